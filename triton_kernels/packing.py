"""The weights of a plan in one tensor, as the kernels read them.

Each convolution is a matrix of (out channels, taps, in channels), its in channels padded with
zeros to a multiple of :data:`UNIT`, so that rows are read in whole vectors; the biases follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor

from ..plan import Plan

UNIT = 16
"""Rows of weights, and of scratch buffers, are a multiple of this many elements."""


@dataclass(frozen=True)
class Layout:
    """First elements of each weight and each bias, by weight index, and the pack's elements."""

    weights: tuple[int, ...]
    biases: tuple[int, ...]
    size: int


def padded(channels: int) -> int:
    """The next multiple of :data:`UNIT`."""
    return -(-channels // UNIT) * UNIT


@lru_cache(maxsize=256)
def layout(plan: Plan) -> Layout:
    """Where the pack of a plan has its weights and biases."""
    weights, biases = [], []
    place = 0
    convolutions = plan.convolutions()
    for c in convolutions:
        weights.append(place)
        place += c.out_channels * c.kernel[0] * c.kernel[1] * padded(c.in_channels)
    for c in convolutions:
        biases.append(place)
        place += padded(c.out_channels)
    return Layout(tuple(weights), tuple(biases), place)


def pack(plan: Plan, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """One tensor of (size,) elements with the weights' dtype and device.

    Args:
        weights: by weight index, (out channels, in channels, height, width) each.
        biases: by weight index, (out channels,) each.
    """
    places = layout(plan)
    packed = weights[0].new_zeros(places.size)
    for i, c in enumerate(plan.convolutions()):
        height, width = c.kernel
        rows = (c.out_channels, height, width, padded(c.in_channels))
        matrix = packed.narrow(0, places.weights[i], rows[0] * rows[1] * rows[2] * rows[3])
        matrix = matrix.view(rows).narrow(3, 0, c.in_channels)
        matrix.copy_(weights[i].permute(0, 2, 3, 1))
        packed.narrow(0, places.biases[i], c.out_channels).copy_(biases[i])
    return packed
