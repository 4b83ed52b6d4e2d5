"""What the kernels are told: the launches of a plan for one input, whatever the tiles.

A launch is one matrix product with several column ranges. Its rows are the pixels of the output
size; a column range, a :class:`Segment`, is one convolution: its source channels, its window, its
weights and the channels that it writes. Launches run in order; the segments of one run together.
Needs neither a device nor Triton.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import NamedTuple

from ..plan import IN, OUT, Destination, Plan, Step
from ..spec import Kind
from .packing import UNIT, Layout, layout, padded

MAX_PIXELS = 2**30
"""Pixels of all images of a buffer: row indices have 32 bits."""

MAX_IMAGE = 2**31 - 1
"""Elements from the first to the last of one image: offsets within an image have 32 bits."""


class Segment(NamedTuple):
    """One convolution, or one pool with as many channels as its depth. The kernels read these."""

    first: int  # column tile
    depth: int  # source channels
    source: int  # first source channel
    kernel_h: int  # of the window: the pool's, if there is one
    kernel_w: int
    stride_h: int
    stride_w: int
    padding_h: int
    padding_w: int
    weight: int  # first element of the pack / UNIT
    bias: int  # first element of the pack / UNIT
    channels: int
    to_scratch: int  # 0: writes OUT, 1: writes the launch's scratch
    destination: int  # first destination channel
    activation: int

    @property
    def is_pixelwise(self) -> bool:
        """Whether output pixel p reads source pixel p only."""
        return self[3:9] == (1, 1, 1, 1, 0, 0)

    @property
    def length(self) -> int:
        """Source elements that one output element reads."""
        return self.kernel_h * self.kernel_w * self.depth


class Size(NamedTuple):
    """Images, and height and width in pixels of each output and each source image."""

    images: int
    height: int
    width: int
    source_height: int
    source_width: int

    @property
    def rows(self) -> int:
        return self.images * self.height * self.width


@dataclass(frozen=True)
class Launch:
    """Segments that run in one grid: one source buffer, one output size, one scratch to write.

    ``pooled`` segments multiply a pool of the source, of the kind ``pool``; of a launch that is a
    pool itself, ``convolves`` is False and the only segment is in ``pooled``. ``scratch`` is the
    buffer that is written beside OUT, OUT if none is.
    """

    source: int
    scratch: int
    size: Size
    pool: Kind | None
    pooled: tuple[Segment, ...]
    plain: tuple[Segment, ...]
    convolves: bool = True

    @property
    def segments(self) -> tuple[Segment, ...]:
        return self.pooled + self.plain

    @property
    def windowed(self) -> bool:
        return not all(s.is_pixelwise for s in self.plain)

    @property
    def keeps_pixels(self) -> bool:
        """Whether every window has stride 1 and keeps the size."""
        size = self.size
        return (size.height, size.width) == (size.source_height, size.source_width) and all(
            (s.stride_h, s.stride_w) == (1, 1) for s in self.segments
        )

    def tiled(self, columns: int) -> tuple[tuple[Segment, ...], int, int]:
        """(segments with their first column tile, pooled column tiles, all column tiles)."""
        found = []
        tiles = pooled = 0
        for i, segment in enumerate(self.segments):
            found.append(segment._replace(first=tiles))
            tiles += -(-segment.channels // columns)
            if i < len(self.pooled):
                pooled = tiles
        return tuple(found), pooled, tiles


def scratch_elements(plan: Plan, images: int, height: int, width: int) -> tuple[int, ...]:
    """Elements of each buffer of the plan that is scratch; 0 for IN and OUT."""
    return tuple(
        0 if buffer in (IN, OUT) else images * prod(size) * padded(channels)
        for buffer, (size, channels) in enumerate(
            zip(plan.sizes(height, width), plan.buffers, strict=True)
        )
    )


def why_not(plan: Plan, images: int, height: int, width: int) -> str | None:
    """Why the kernels cannot run the plan on such an input, or None."""
    if not plan.convolutions():
        return "the plan has no convolution"
    for size, channels in zip(plan.sizes(height, width), plan.buffers, strict=True):
        if images * prod(size) > MAX_PIXELS:
            return f"a buffer has {images * prod(size)} pixels, the kernels count to {MAX_PIXELS}"
        if prod(size) * padded(channels) > MAX_IMAGE:
            return f"an image of a buffer has more than {MAX_IMAGE} elements"
    rows = [prod(c.kernel) * padded(c.in_channels) for c in plan.convolutions()]
    if max(rows, default=0) > MAX_IMAGE:
        return f"an output channel has more than {MAX_IMAGE} weights"
    for number, step in enumerate(plan.steps):
        if not (step.kind.has_weight or step.kind.is_pool):
            return f"step {number} is of a kind that has no kernel"
        pool = step.pre.kind if step.pre else step.kind
        if pool is Kind.AVGPOOL_INSIDE:
            return f"step {number} averages the pixels inside the image alone"
        if step.kind is Kind.AVGPOOL and step.window.ceil_mode:
            return f"step {number} is an average with ceil_mode"
        if step.pre and step.pre.kind is Kind.AVGPOOL and step.pre.window.ceil_mode:
            return f"step {number} is an average with ceil_mode"
        if len({d.slice.buffer for d in step.dst} - {OUT}) > 1:
            return f"step {number} writes two scratch buffers"
    return None


def launches(plan: Plan, images: int, height: int, width: int) -> tuple[Launch, ...]:
    """The launches of a plan in the order in which they must run, the longest segments first.

    Raises:
        ValueError: the image is smaller than a window.
    """
    sizes = plan.sizes(height, width)
    packed = layout(plan)
    found: list[Launch] = []
    for wave in plan.waves:
        joined: list[Launch] = []
        for step in wave:
            size = Size(images, *sizes[step.dst[0].slice.buffer], *sizes[step.src.buffer])
            launch = _launch(step, size, packed)
            for i, other in enumerate(joined):
                if (both := _join(other, launch)) is not None:
                    joined[i] = both
                    break
            else:
                joined.append(launch)
        found += joined
    return tuple(found)


def _launch(step: Step, size: Size, packed: Layout) -> Launch:
    segments = tuple(_segment(step, d, packed) for d in step.dst)
    pooled = step.kind.is_pool or step.pre is not None
    return Launch(
        step.src.buffer,
        max(d.slice.buffer for d in step.dst),
        size,
        step.pre.kind if step.pre else step.kind if step.kind.is_pool else None,
        segments if pooled else (),
        () if pooled else segments,
        step.kind.has_weight,
    )


def _segment(step: Step, d: Destination, packed: Layout) -> Segment:
    window = step.pre.window if step.pre else step.window
    return Segment(
        0,
        step.src.channels,
        step.src.offset,
        *window.kernel,
        *window.stride,
        *window.padding,
        packed.weights[d.weight] // UNIT if d.weight >= 0 else 0,
        packed.biases[d.weight] // UNIT if d.weight >= 0 else 0,
        d.slice.channels,
        int(d.slice.buffer != OUT),
        d.slice.offset,
        int(d.activation),
    )


def _join(a: Launch, b: Launch) -> Launch | None:
    """Both in one launch, or None if they do not go together."""
    if (a.source, a.size) != (b.source, b.size) or not (a.convolves and b.convolves):
        return None
    if OUT not in (a.scratch, b.scratch) and a.scratch != b.scratch:
        return None
    if None not in (a.pool, b.pool) and a.pool != b.pool:
        return None

    def longest_first(segments: tuple[Segment, ...]) -> tuple[Segment, ...]:
        return tuple(sorted(segments, key=lambda s: -s.length))

    return replace(
        a,
        scratch=max(a.scratch, b.scratch),
        pool=b.pool if a.pool is None else a.pool,
        pooled=longest_first(a.pooled + b.pooled),
        plain=longest_first(a.plain + b.plain),
    )
