"""Folding of an eval-mode batch norm into the convolution before it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Norm:
    """Batch norm in eval mode: ``(v - mean) / sqrt(var + eps) * gamma + beta``, per channel.

    ``mean``, ``var``, ``gamma`` and ``beta`` have the shape (out channels,). ``gamma=None`` means
    1 and ``beta=None`` means 0, as in ``BatchNorm2d(affine=False)``.
    """

    mean: Tensor
    var: Tensor
    gamma: Tensor | None
    beta: Tensor | None
    eps: float

    def __post_init__(self) -> None:
        if not 0 <= self.eps < math.inf:  # compile may trace this with a symbolic eps
            raise ValueError(f"eps must be finite and at least 0, got {self.eps}")


def fold(weight: Tensor, bias: Tensor | None, norm: Norm | None) -> tuple[Tensor, Tensor]:
    """The weight and the bias of one convolution that computes the convolution and the norm.

    Computed in float64, returned in the weight's dtype, differentiable in every tensor.

    Args:
        weight: (out channels, in channels, height, width), or (out channels, in channels) of a
            linear layer, which is a 1x1 convolution.
        bias: (out channels,) or None, which means zeros.
        norm: None if no norm follows.

    Raises:
        ValueError: a tensor is not floating-point or its shape does not fit the weight.
    """
    if weight.dim() == 2:
        weight = weight[:, :, None, None]
    if weight.dim() != 4 or not weight.is_floating_point():
        raise ValueError(
            "weight must be floating-point with 4 dimensions (O, I, H, W), "
            f"got {weight.dtype} {tuple(weight.shape)}"
        )
    named = {"bias": bias}
    if norm is not None:
        named |= {"mean": norm.mean, "var": norm.var, "gamma": norm.gamma, "beta": norm.beta}
    for name, tensor in named.items():
        if tensor is None:
            continue
        if tuple(tensor.shape) != (weight.shape[0],) or not tensor.is_floating_point():
            raise ValueError(
                f"{name} must be floating-point with the shape ({weight.shape[0]},) of the "
                f"weight's out channels, got {tensor.dtype} {tuple(tensor.shape)}"
            )
    if norm is None:
        return weight, weight.new_zeros(weight.shape[0]) if bias is None else bias.to(weight.dtype)

    scale = (norm.var.double() + norm.eps).rsqrt()
    if norm.gamma is not None:
        scale = scale * norm.gamma.double()
    shift = -norm.mean.double() if bias is None else bias.double() - norm.mean.double()
    shift = shift * scale
    if norm.beta is not None:
        shift = shift + norm.beta.double()
    folded = weight.double() * scale.reshape(-1, 1, 1, 1)
    return folded.to(weight.dtype), shift.to(weight.dtype)
