"""The steps of a plan in training by the CPU kernels, where these are faster than torch's."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ..lower import lower
from ..plan import Plan, Pool
from ..spec import Activation, Spec, Stage, Window
from .operators import Operators

_TILES = {(3, 3): (2, 4), (5, 5): (2,)}
"""Edges of Winograd's output tile by kernel."""

# Costs in multiply-adds; weights are new in every step.
_PER_WEIGHT = 650.0  # to transform a weight, per product of its tile
_PER_INPUT = 6.0  # to transform one value of an input tile
_PER_OUTPUT = 4.0  # and one product


class CpuOperators(Operators):
    """For float32 Winograd's minimal filtering, and pools that are part of a convolution.

    The gradient of an input is a convolution, too: of the gradient of the result, with the weight
    turned around and its channels swapped.
    """

    def convolve(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, window: Window, pool: Pool | None
    ) -> Tensor:
        tile = best_tile(weight, window, x)
        if x.dtype is not torch.float32 or not (tile or pool):
            return super().convolve(x, weight, bias, window, pool)
        return _convolve(x, weight, bias, window, tile, pool)

    def grad_input(self, grad: Tensor, x: Tensor, weight: Tensor, window: Window) -> Tensor:
        turned = weight.transpose(0, 1).flip(2, 3)
        tile = best_tile(turned, window, grad)
        if tile == 0:
            return super().grad_input(grad, x, weight, window)
        return _convolve(grad, turned, None, window, tile)


def best_tile(weight: Tensor, window: Window, x: Tensor) -> int:
    """The edge of the output tile that costs least for such an x; 0: torch's convolution does."""
    if not window.keeps_size or window.kernel not in _TILES or x.dtype is not torch.float32:
        return 0
    batch, inputs, height, width = x.shape
    edge, outputs = window.kernel[0], weight.shape[0]

    def cost(tile: int) -> float:
        if tile == 0:
            return batch * height * width * edge * edge * inputs * outputs
        tiles = batch * -(-height // tile) * -(-width // tile)
        transforms = tiles * (_PER_INPUT * inputs + _PER_OUTPUT * outputs)
        products = (tile + edge - 1) ** 2
        return products * ((tiles + _PER_WEIGHT) * inputs * outputs + transforms)

    return min((0, *_TILES[window.kernel]), key=cost)


@lru_cache(maxsize=256)
def _plan(inputs: int, outputs: int, window: Window, pool: Pool | None) -> Plan:
    """The plan of one convolution without activation, perhaps behind a pool."""
    conv = Stage.conv(outputs, window.kernel, window.stride, window.padding, Activation.NONE)
    stages = (conv,) if pool is None else (Stage(pool.kind, 0, pool.window), conv)
    return lower(Spec(inputs, (stages,)))


def _convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    window: Window,
    tile: int,
    pool: Pool | None = None,
) -> Tensor:
    plan = _plan(weight.shape[1], weight.shape[0], window, pool)
    bias = weight.new_zeros(weight.shape[0]) if bias is None else bias
    pack = torch.ops.inception_fused.pack([weight], [bias], plan.code, (tile,))
    z: Tensor = torch.ops.inception_fused.run(x, pack, plan.code)
    return z
