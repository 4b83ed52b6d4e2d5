"""The weight gradient of one convolution: its tile, its splits and its launch.

The sum over all pixels is split among blocks, so that a few small tiles fill a device; the splits'
sums are added in a fixed order, so that equal arguments give equal bits.
"""

from __future__ import annotations

import hashlib
import json
from typing import NamedTuple

import torch
from torch import Tensor

from ..spec import Window
from . import cache, launch
from .choose import Device, Math, Tile, shared_bytes
from .execute import device_of, math_of
from .problem import Segment, Size
from .program import Call, Layouts, View

TILES: dict[Math, tuple[Tile, ...]] = {
    Math.HALF: (Tile(32, 64, 64, 4, 3), Tile(64, 64, 64, 8, 3), Tile(128, 64, 32, 8, 4)),
    Math.TF32: (Tile(32, 32, 32, 4, 3), Tile(64, 64, 32, 8, 3), Tile(128, 64, 32, 8, 3)),
    Math.IEEE: (Tile(32, 32, 16, 4, 3), Tile(64, 64, 16, 8, 3)),
}
"""Tiles (output channels, input channels, pixels of a round) that compile without spilling, but:"""

_SPILLING_ON_HIP = frozenset({Tile(32, 64, 64, 4, 3), Tile(64, 64, 64, 8, 3)})
"""Where the pixels of a channel are adjacent: scalar registers, in Triton 3.8."""

PREFIX = "gradient-"
"""Of the keys of measurements."""

_SPLITS = tuple(2**n for n in range(9))
_LATENCY = 1600  # cycles of a block beside its rounds: first loads, stores
_ROUND = 300  # cycles of a round at least
_ADD = 8.0  # bytes of partial sums that a multiprocessor writes and reads again in a cycle


class Problem(NamedTuple):
    """The shapes: ``segment`` has the channels and the window, ``size`` the pixels."""

    segment: Segment
    size: Size
    math: Math
    source: View
    grad: View

    @classmethod
    def of(cls, grad: Tensor, x: Tensor, window: Window) -> Problem:
        """The problem for tensors like these, at addresses like these modulo 16 bytes."""
        size = Size(x.shape[0], *grad.shape[2:], *x.shape[2:])
        source, gradient = (
            View.of(t.shape, t.stride(), t.element_size(), t.data_ptr() % 16) for t in (x, grad)
        )
        channels = (x.shape[1], grad.shape[1])
        return cls.between(channels, window, size, math_of(x.dtype), source, gradient)

    @classmethod
    def between(
        cls,
        channels: tuple[int, int],
        window: Window,
        size: Size,
        math: Math,
        source: View,
        grad: View,
    ) -> Problem:
        """That of a convolution with these channels of input and output and tensors like these."""
        geometry = (*window.kernel, *window.stride, *window.padding)
        segment = Segment(0, channels[0], 0, *geometry, 0, 0, channels[1], 0, 0, 0)
        same_size = (size.height, size.width) == (size.source_height, size.source_width)
        if source.layout is Layouts.PLANES and not (window.stride == (1, 1) and same_size):
            source = source.strided()
        source, grad = source.dividing(channels[:1]), grad.dividing(channels[1:])
        return cls(segment, size, math, source, grad)

    @property
    def pixel_unit(self) -> int:
        """A divisor of an image's pixels that the kernel may rely on; 0: rounds cross images."""
        views = (self.source, self.grad)
        return max((v.unit for v in views if v.layout is Layouts.PLANES), default=0)

    def rounds(self, depth: int) -> int:
        """Rounds of so many pixels that go over all of them."""
        if self.pixel_unit:
            return self.size.images * -(-self.size.height * self.size.width // depth)
        return -(-self.size.rows // depth)

    @property
    def elements(self) -> int:
        """Of the weight."""
        return self.segment.channels * self.segment.length

    def key(self, what: str) -> str:
        """What a measurement of this gradient depends on beside the device."""
        views = [(int(v.layout), v.unit) for v in (self.source, self.grad)]
        text = json.dumps([what, self.segment, self.size, int(self.math), views])
        return PREFIX + hashlib.sha256(text.encode()).hexdigest()[:32]

    def tiles(self, tile: Tile) -> int:
        """Blocks of one split."""
        rows = -(-self.segment.channels // tile.rows)
        columns = -(-self.segment.depth // tile.columns)
        return rows * columns * self.segment.kernel_h * self.segment.kernel_w


def splits(problem: Problem, tile: Tile, device: Device) -> tuple[float, int]:
    """(predicted cycles, number of splits) of the best number; a paper model, as in choose."""
    rate = device.rates[problem.math]
    loads = (tile.rows + tile.columns) * tile.depth * problem.math.item / device.l2_bytes
    step = max(tile.rows * tile.columns * tile.depth / rate, loads, _ROUND)

    def cycles(count: int) -> float:
        waves = -(-problem.tiles(tile) * count // device.processors)
        rounds = _share(problem, tile, count)
        added = 4.0 * problem.elements * count if count > 1 else 0.0
        return waves * (_LATENCY + rounds * step) + added / (_ADD * device.processors)

    most = max(1, problem.rounds(tile.depth))
    least, count = min((cycles(count), count) for count in _SPLITS if count <= most)
    return least, -(-most // _share(problem, tile, count))


def _share(problem: Problem, tile: Tile, count: int) -> int:
    """Rounds of one of so many splits."""
    return -(-problem.rounds(tile.depth) // count)


def ranked(problem: Problem, device: Device) -> tuple[Tile, ...]:
    """Every tile that fits, the one with the least predicted time first."""
    spilling = _SPILLING_ON_HIP if device.is_hip and problem.pixel_unit else frozenset()
    fitting = [
        tile
        for tile in TILES[problem.math]
        if tile not in spilling and shared_bytes(tile, problem.math) <= device.shared_block
    ]
    return tuple(sorted(fitting, key=lambda t: splits(problem, t, device)[0]))


def call(problem: Problem, tile: Tile, count: int, widen: bool = False) -> Call:
    """The launch with a tile and a number of splits; of :mod:`program`'s form."""
    tiles = problem.tiles(tile)
    constants: dict[str, int | str | bool] = {
        "SOURCE_LAYOUT": int(problem.source.layout),
        "SOURCE_UNIT": problem.source.unit,
        "GRAD_LAYOUT": int(problem.grad.layout),
        "GRAD_UNIT": problem.grad.unit,
        "WINDOWED": not problem.segment.is_pixelwise,
        "PER_IMAGE": bool(problem.pixel_unit),
        "PIXEL_UNIT": max(problem.pixel_unit, 1),
        "ROWS": tile.rows,
        "COLUMNS": tile.columns,
        "DEPTH": tile.depth,
        "PRECISION": "tf32" if problem.math is Math.TF32 else "ieee",
        "WIDEN": widen,
    }
    views = (problem.source.in_units, problem.grad.in_units)
    return Call(
        "run_weight_gradient",
        (*views, problem.size, problem.segment, tiles, _share(problem, tile, count)),
        tuple(constants.items()),
        tiles * count,
        tile.warps,
        tile.stages,
    )


def interpreted(problem: Problem) -> tuple[Tile, int]:
    """As few tiles as can be, but two splits of two rounds where there are pixels for them."""

    def power(n: int, most: int) -> int:
        return min(most, 1 << max(4, (n - 1).bit_length()))

    rows, columns = problem.segment.channels, problem.segment.depth
    tile = Tile(power(rows, 512), power(columns, 512), power(problem.size.rows // 4, 256), 4, 1)
    return tile, min(2, problem.rounds(tile.depth))


class Program:
    """A prepared launch; a call takes tensors like those it was made of."""

    def __init__(self, problem: Problem, tile: Tile, count: int, grad: Tensor, x: Tensor) -> None:
        self._problem = problem
        self._device = x.get_device()
        self._splits = count
        widen = launch.INTERPRETS and x.dtype is torch.bfloat16
        aligned = (x.data_ptr() % 16 == 0, grad.data_ptr() % 16 == 0, True)
        self._launch = launch.launcher(call(problem, tile, count, widen), x.dtype, aligned)

    def __call__(self, grad: Tensor, x: Tensor) -> Tensor:
        """The gradient (O, I, height, width) in x's dtype. The device must be the current one."""
        segment = self._problem.segment
        shape = (self._splits, segment.channels, segment.kernel_h, segment.kernel_w, segment.depth)
        partial = x.new_empty(shape, dtype=torch.float32)
        if launch.INTERPRETS:
            self._launch(x, grad, partial, stream=0)
        else:
            stream = torch._C._cuda_getCurrentRawStream(self._device)
            self._launch(x.data_ptr(), grad.data_ptr(), partial.data_ptr(), stream=stream)
        sums = partial[0] if self._splits == 1 else partial.sum(0)
        out = x.new_empty((shape[1], shape[4], *shape[2:4]))
        return out.copy_(sums.permute(0, 3, 1, 2))


def device_name(x: Tensor) -> str:
    """The name under which measurements on x's device are kept."""
    return "interpreter" if launch.INTERPRETS else torch.cuda.get_device_name(x.device)


def prepare(grad: Tensor, x: Tensor, window: Window, tile: Tile | None = None) -> Program:
    """The program for such tensors, with the given tile, the measured one, or the predicted one.

    Args:
        grad: (N, O, H', W') of the convolution's output.
        x: (N, I, H, W), its input.
    """
    problem = Problem.of(grad, x, window)
    if launch.INTERPRETS:
        return Program(problem, *interpreted(problem), grad, x)
    device = device_of(x)
    if tile is None:
        known = cache.TILES.load(device_name(x)).get(problem.key("weight"), ())
        tile = (*known, *ranked(problem, device))[0]
    return Program(problem, tile, splits(problem, tile, device)[1], grad, x)
