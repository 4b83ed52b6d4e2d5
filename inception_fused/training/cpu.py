"""The steps of a plan in training by the CPU kernels, where these are faster than torch's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from ..lower import lower
from ..plan import Plan, Pool
from ..spec import Activation, Kind, Spec, Stage, Window
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
    turned around and its channels swapped. Channels-last tensors are normalised together with their
    ReLU, in one pass over memory, and max pools keep a byte per result for their gradient.
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

    def normalise(self, z: Tensor, constants: Tensor | None, relu: bool, out: Tensor) -> None:
        if constants is None or not (_is_plain(z) and _is_plain(out)):
            super().normalise(z, constants, relu, out)
            return
        torch.ops.inception_fused.normalise(z, constants, relu, out=out)

    def grad_norm(
        self,
        grads: Sequence[Tensor],
        z: Tensor,
        constants: Tensor,
        relus: Sequence[bool],
        batch: bool,
        needs: Sequence[bool],
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        if not all(map(_is_plain, (z, *grads))):
            return super().grad_norm(grads, z, constants, relus, batch, needs)
        grad_z = torch.empty_like(z, memory_format=torch.channels_last)
        affine = constants.new_empty(2, z.shape[1])
        start = 0
        for grad, relu in zip(grads, relus, strict=True):
            extent = (1, start, grad.shape[1])
            torch.ops.inception_fused.normalise_backward(
                grad,
                z.narrow(*extent),
                constants.narrow(*extent),
                relu,
                batch,
                grad_z=grad_z.narrow(*extent),
                grad_affine=affine.narrow(*extent),
            )
            start += grad.shape[1]
        needs_z, needs_gamma, needs_beta = needs
        return (
            grad_z if needs_z else None,
            affine[0] if needs_gamma else None,
            affine[1] if needs_beta else None,
        )

    def pool(self, x: Tensor, pool: Pool) -> tuple[Tensor, Tensor | None]:
        window = pool.window
        if pool.kind is not Kind.MAXPOOL or not _is_plain(x) or math.prod(window.kernel) > 256:
            return super().pool(x, pool)
        shape = (*x.shape[:2], *window.output_size((x.shape[2], x.shape[3])))
        out = torch.empty(shape, memory_format=torch.channels_last)
        where = torch.empty((shape[0], *shape[2:], shape[1]), dtype=torch.uint8)
        torch.ops.inception_fused.max_pool(x, _numbers(window), out=out, where=where)
        return out, where

    def grad_pool(self, grad: Tensor, x: Tensor, pool: Pool, indices: Tensor | None) -> Tensor:
        if indices is None or indices.dtype is not torch.uint8:
            return super().grad_pool(grad, x, pool, indices)
        grad = grad.contiguous(memory_format=torch.channels_last)
        found = torch.empty_like(x, memory_format=torch.channels_last)
        torch.ops.inception_fused.max_pool_backward(
            grad, indices, _numbers(pool.window), grad_x=found
        )
        return found


def _numbers(window: Window) -> list[int]:
    return [*window.kernel, *window.stride, *window.padding]


def _is_plain(x: Tensor) -> bool:
    """Whether x is float32, with adjacent channels and its pixels at even distances."""
    if x.dtype is not torch.float32 or x.stride(1) != 1 or x.numel() == 0:
        return False
    pitch, count = x.stride(3), 1
    for dim in (3, 2, 0):
        if x.stride(dim) != pitch * count:
            return False
        count *= x.shape[dim]
    return pitch >= x.shape[1]


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
