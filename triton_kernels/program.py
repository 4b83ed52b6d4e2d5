"""The kernels' arguments for one launch, given the tensors' layouts and a tile. No device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from math import gcd
from typing import Any, NamedTuple

from .choose import Tile
from .packing import UNIT, padded
from .problem import Launch

_VECTOR = 16  # bytes of the widest memory access


class Layouts(IntEnum):
    """How a kernel finds an element. Between the rows of CHANNELS and PLANES there is no gap."""

    CHANNELS = 0  # the channels of a pixel are adjacent
    PLANES = 1  # the pixels of a channel are adjacent
    STRIDED = 2  # neither


class Strides(NamedTuple):
    """Elements, or units of them: see :meth:`View.in_units`."""

    image: int
    channel: int
    row: int
    pixel: int


@dataclass(frozen=True)
class View:
    """A tensor as the kernels address it.

    ``unit`` is the most elements, at most 16 bytes, that divide the address, every stride in which
    elements are not adjacent, and for PLANES the number of pixels.
    """

    strides: Strides
    layout: Layouts
    unit: int

    @classmethod
    def of(cls, size: Sequence[int], strides: Sequence[int], item: int, address: int = 0) -> View:
        """The view of a tensor (N, C, H, W) with strides in elements of ``item`` bytes.

        Args:
            address: of the first element, in bytes.
        """
        _, channels, height, width = size
        image, channel, row, pixel = (
            stride if extent > 1 else 0 for stride, extent in zip(strides, size, strict=True)
        )
        if width == 1:
            pixel = row
        vector = gcd(_VECTOR // item, address // item)
        if height == 1 or row == width * pixel:
            if channels == 1 or channel == 1:
                unit = gcd(vector, image, pixel)
                return cls(Strides(image, 1, width * pixel, pixel), Layouts.CHANNELS, unit)
            if height * width == 1 or pixel == 1:
                unit = gcd(vector, image, channel, height * width)
                return cls(Strides(image, channel, width, 1), Layouts.PLANES, unit)
        return cls(Strides(image, channel, row, pixel), Layouts.STRIDED, 1)

    @classmethod
    def scratch(cls, channels: int, height: int, width: int, item: int) -> View:
        """The view of a scratch buffer."""
        pitch = padded(channels)
        strides = Strides(height * width * pitch, 1, width * pitch, pitch)
        return cls(strides, Layouts.CHANNELS, gcd(_VECTOR // item, UNIT))

    def strided(self) -> View:
        """The same tensor, without the promise that anything is adjacent."""
        return View(self.strides, Layouts.STRIDED, 1)

    def dividing(self, numbers: Sequence[int]) -> View:
        """The same with a unit that divides these channel counts and offsets, if it has to."""
        if self.layout is not Layouts.CHANNELS:
            return self
        return View(self.strides, self.layout, gcd(self.unit, *numbers))

    @property
    def in_units(self) -> Strides:
        """The strides as the kernels take them."""
        image, channel, row, pixel = self.strides
        if self.layout is Layouts.CHANNELS:
            return Strides(image // self.unit, 1, row // self.unit, pixel // self.unit)
        return Strides(image // self.unit, channel // self.unit, row, pixel)


@dataclass(frozen=True)
class Call:
    """One kernel launch but for the pointers, which come first.

    ``arguments`` are ints and named tuples of ints, ``constants`` what is compiled in, by name.
    """

    kernel: str
    arguments: tuple[Any, ...]
    constants: tuple[tuple[str, int | str | bool], ...]
    tiles: int
    warps: int
    stages: int


def call(
    launch: Launch,
    source: View,
    out: View,
    scratch: View | None,
    tile: Tile,
    precision: str,
    widen: bool = False,
) -> Call:
    """The call of a launch.

    Args:
        source, out: views of the buffer that is read and of OUT.
        scratch: view of the scratch buffer that is written, None if none is.
        precision: of float32 products: "tf32" or "ieee".
        widen: whether bfloat16 is computed in float32, as the interpreter must.
    """
    segments, pooled_tiles, column_tiles = launch.tiled(tile.columns)
    source = source.dividing([n for s in segments for n in (s.depth, s.source)])
    if source.layout is Layouts.PLANES and not launch.keeps_pixels:
        source = source.strided()
    written: list[list[int]] = [[], []]  # channel counts and offsets in OUT, in scratch
    for s in segments:
        written[s.to_scratch] += s.channels, s.destination
    if scratch is not None:
        scratch = scratch.dividing(written[1])
    out = out.dividing(written[0])
    if scratch is not None and not written[0]:
        out = scratch
    size = launch.size
    planes = [v.unit for v in (source, out) if v and v.layout is Layouts.PLANES]
    pixels = size.height * size.width
    row_tiles = size.images * -(-pixels // tile.rows) if planes else -(-size.rows // tile.rows)
    constants: dict[str, int | str | bool] = {
        "POOL": -1 if launch.pool is None else int(launch.pool),
        "SOURCE_LAYOUT": int(source.layout),
        "SOURCE_UNIT": source.unit,
        "PER_IMAGE": bool(planes),
        "PIXEL_UNIT": max(planes, default=1),
        "ROWS": tile.rows,
        "COLUMNS": tile.columns,
        "WIDEN": widen,
    }
    arguments: tuple[Any, ...]
    if launch.convolves:
        kernel = "run_launch"
        other = scratch or out
        arguments = (source.in_units, out.in_units, other.in_units, size)
        arguments += (segments, pooled_tiles, column_tiles)
        constants |= {
            "WINDOWED": launch.windowed,
            "TO_SCRATCH": scratch is not None,
            "OUT_LAYOUT": int(out.layout),
            "OUT_UNIT": out.unit,
            "SCRATCH_UNIT": other.unit,
            "DEPTH": tile.depth,
            "STAGES": tile.stages,
            "PRECISION": precision,
        }
    else:
        kernel = "run_pool"
        destination = scratch or out
        arguments = (source.in_units, destination.in_units, size, segments[0])
        constants |= {"LAYOUT": int(destination.layout), "UNIT": destination.unit}
    return Call(
        kernel,
        arguments,
        tuple(constants.items()),
        row_tiles * column_tiles,
        tile.warps,
        tile.stages,
    )
