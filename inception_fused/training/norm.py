"""Batch norms of one step: statistics, normalising, and the gradient.

The convolutions of a step have one common result z, and so their norms have common tensors: the
constants, (4, channels of z) in float32, or in float64 if z is. Row by row they are the mean,
1 / sqrt(var + eps), gamma, and beta - mean * scale where scale is gamma / sqrt(var + eps).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

aten = torch.ops.aten

MEAN, INVERSE, GAMMA, SHIFT = range(4)


@dataclass(frozen=True, slots=True)
class BatchNorm:
    """The batch norm behind one convolution, without its gamma and beta.

    Attributes:
        eps: at least 0.
        batch: whether it normalises by the statistics of the batch; otherwise by ``mean``, ``var``.
        mean, var: running statistics, (out channels,). With ``batch`` they are updated, or None.
        momentum: weight of the batch in the update; None: the plain average over all updates.
        count: the number of updates, (); or None.
    """

    eps: float
    batch: bool
    mean: Tensor | None = None
    var: Tensor | None = None
    momentum: float | None = 0.1
    count: Tensor | None = None

    def update(self, mean: Tensor, var: Tensor, pixels: int) -> None:
        """Takes the statistics of a batch into the running ones, as ``nn.BatchNorm2d`` does.

        Args:
            mean, var: (out channels,), var the biased one.
            pixels: that they are of, at least 2.
        """
        factor = 0.0 if self.momentum is None else self.momentum
        if self.count is not None:
            self.count.add_(1)
            if self.momentum is None:
                factor = 1 / float(self.count)
        if self.mean is not None:
            self.mean.mul_(1 - factor).add_(mean, alpha=factor)
        if self.var is not None:
            self.var.mul_(1 - factor).add_(var, alpha=factor * pixels / (pixels - 1))


def constants(
    z: Tensor,
    channels: Sequence[int],
    norms: Sequence[BatchNorm | None],
    gammas: Sequence[Tensor | None],
    betas: Sequence[Tensor | None],
) -> Tensor | None:
    """The constants of a step; None if it has no norm. Updates the running statistics.

    Args:
        z: (N, sum(channels), H, W), what the convolutions gave.
        channels, norms, gammas, betas: of each convolution; a gamma of None means 1, a beta 0.
    """
    if not any(norms):
        return None
    dtype = torch.float64 if z.dtype is torch.float64 else torch.float32
    sizes = list(channels)
    batch = [norm is not None and norm.batch for norm in norms]
    if all(batch):
        mean, var = _statistics(z)
        means, variances = mean.split_with_sizes(sizes), var.split_with_sizes(sizes)
        statistics = list(zip(means, variances, strict=True))
    else:
        pieces = zip(z.split_with_sizes(sizes, 1), norms, strict=True)
        statistics = [_of_one(piece, norm) for piece, norm in pieces]
        mean, var = (torch.cat([p[i].to(dtype) for p in statistics]) for i in range(2))
    pixels = z.shape[0] * z.shape[2] * z.shape[3]
    for norm, found in zip(norms, statistics, strict=True):
        if norm is not None and norm.batch:
            norm.update(*found, pixels)
    inverse = (var + _eps(sizes, norms, var)).rsqrt()
    gamma = _joined(gammas, sizes, mean.new_ones)
    shift = -mean * inverse * gamma
    if any(beta is not None for beta in betas):
        shift += _joined(betas, sizes, mean.new_zeros)
    return torch.stack([mean, inverse, gamma, shift])


def _statistics(z: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel."""
    if z.dtype in (torch.float16, torch.bfloat16):
        z = z.float()
    mean, var = aten.batch_norm_update_stats(z, None, None, 0.0)
    return mean, var


def _of_one(z: Tensor, norm: BatchNorm | None) -> tuple[Tensor, Tensor]:
    """Mean and variance that one norm uses; 0 and 1 if there is none."""
    if norm is None:
        return z.new_zeros(z.shape[1]), z.new_ones(z.shape[1])
    if norm.batch:
        return _statistics(z)
    assert norm.mean is not None
    assert norm.var is not None
    return norm.mean, norm.var


def _eps(sizes: Sequence[int], norms: Sequence[BatchNorm | None], like: Tensor) -> float | Tensor:
    values = [norm.eps if norm else 0.0 for norm in norms]
    if len(set(values)) == 1:
        return values[0]
    return torch.cat([like.new_full((n,), v) for n, v in zip(sizes, values, strict=True)])


def _joined(
    tensors: Sequence[Tensor | None], sizes: Sequence[int], fill: Callable[[int], Tensor]
) -> Tensor:
    """The tensors in one, in the dtype of ``fill``, which makes what is in the place of None."""
    dtype = fill(0).dtype
    return torch.cat(
        [fill(n) if t is None else t.to(dtype) for t, n in zip(tensors, sizes, strict=True)]
    )


def apply(z: Tensor, constants: Tensor | None, out: Tensor) -> Tensor:
    """Normalises z into ``out``, which may be a channel range of a larger tensor; returns it.

    Args:
        constants: the columns of z's channels; None: there is no norm.
    """
    if constants is None:
        return out.copy_(z)
    return torch.addcmul(constants[SHIFT].reshape(1, -1, 1, 1), z, _scale(constants), out=out)


def backward(
    grad: Tensor, z: Tensor, constants: Tensor, batch: bool, needs: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of z, gamma and beta, each None where ``needs`` is False.

    Args:
        grad: of the normalised values.
        batch: whether the statistics are those of z.
    """
    mean, inverse, gamma, _ = constants
    if batch:
        grad_z, grad_gamma, grad_beta = aten.native_batch_norm_backward(
            grad, z, gamma, None, None, mean, inverse, True, 0.0, list(needs)
        )
        return grad_z, grad_gamma, grad_beta
    needs_z, needs_gamma, needs_beta = needs
    wide = grad.to(constants.dtype)
    grad_beta = wide.sum((0, 2, 3)) if needs_gamma or needs_beta else None
    grad_gamma = None
    if needs_gamma:
        grad_gamma = ((wide * z).sum((0, 2, 3)) - mean * grad_beta) * inverse
    grad_z = (wide * _scale(constants)).to(z.dtype) if needs_z else None
    return grad_z, grad_gamma, grad_beta if needs_beta else None


def _scale(constants: Tensor) -> Tensor:
    return (constants[INVERSE] * constants[GAMMA]).reshape(1, -1, 1, 1)
