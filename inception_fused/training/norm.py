"""Batch norms of one step: statistics, normalising, and the gradient.

The convolutions of a step have one common result z, and so their norms have common tensors: the
constants, (4, channels of z) in float32, or in float64 if z is. Row by row they are the mean,
1 / sqrt(var + eps), gamma, and beta - mean * scale where scale is gamma / sqrt(var + eps).
"""

from __future__ import annotations

from collections.abc import Sequence
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
    found = torch.zeros(4, z.shape[1], dtype=dtype, device=z.device)
    found[INVERSE] = found[GAMMA] = 1
    rows = found.split(list(channels), 1)
    statistics = _statistics(z, channels, norms)
    pixels = z.shape[0] * z.shape[2] * z.shape[3]
    for row, norm, found_now, gamma, beta in zip(
        rows, norms, statistics, gammas, betas, strict=True
    ):
        if norm is None:
            continue
        if found_now is not None:
            norm.update(*found_now, pixels)
        mean, var = found_now or (norm.mean, norm.var)
        row[MEAN], row[INVERSE] = mean, var
        row[INVERSE].add_(norm.eps).rsqrt_()
        if gamma is not None:
            row[GAMMA] = gamma
        row[SHIFT] = -row[MEAN] * row[INVERSE] * row[GAMMA]
        if beta is not None:
            row[SHIFT] += beta
    return found


def _statistics(
    z: Tensor, channels: Sequence[int], norms: Sequence[BatchNorm | None]
) -> list[tuple[Tensor, Tensor] | None]:
    """Of each convolution, mean and biased variance of its channels if its norm needs them."""

    def compute(z: Tensor) -> tuple[Tensor, Tensor]:
        if z.dtype in (torch.float16, torch.bfloat16):
            z = z.float()
        mean, var = aten.batch_norm_update_stats(z, None, None, 0.0)
        return mean, var

    sizes = list(channels)
    batch = [norm is not None and norm.batch for norm in norms]
    if all(batch):
        mean, var = compute(z)
        return [*zip(mean.split(sizes), var.split(sizes), strict=True)]
    return [compute(p) if b else None for p, b in zip(z.split(sizes, 1), batch, strict=True)]


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
