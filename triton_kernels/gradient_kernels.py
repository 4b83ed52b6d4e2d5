"""The kernel of a convolution's weight gradient; that of its input is ``kernels.run_launch``.

``run_weight_gradient`` computes, for output channel n, tap t and input channel c::

    partial[split, n, t, c] = sum over the split's pixels m of grad[m, n] * operand[m, t, c]

The operand is the source at the pixel of the tap, zero outside of the image. Sums are float32.
Every split has its own place, and the splits are added later in a fixed order: the result does not
depend on which block ends first.

Tensors are addressed as in :mod:`kernels`.
"""

# mypy: ignore-errors
# The functions are Triton's, not Python's.
from __future__ import annotations

import triton
import triton.language as tl

from .kernels import _channels, _is_inside, _product, _steps


@triton.jit
def run_weight_gradient(
    source, grad, partial,
    source_strides, grad_strides, size, segment, tiles, share,
    SOURCE_LAYOUT: tl.constexpr, SOURCE_UNIT: tl.constexpr,
    GRAD_LAYOUT: tl.constexpr, GRAD_UNIT: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """One tile (ROWS output channels, COLUMNS input channels) of one tap and one split.

    Args:
        source, grad, partial: first elements of the convolution's input, of the gradient of its
            output, and of the sums (splits, segment.channels, taps, segment.depth), float32.
        size: a problem.Size; strides: problem.Strides; segment: a problem.Segment.
        tiles: of one split.
        share: pixels of a split.
    """
    split = tl.program_id(0) // tiles
    tile = tl.program_id(0) % tiles
    depth = _channels(segment.depth, SOURCE_LAYOUT, SOURCE_UNIT)
    channels = _channels(segment.channels, GRAD_LAYOUT, GRAD_UNIT)
    column_tiles = tl.cdiv(depth, COLUMNS)
    taps = segment.kernel_h * segment.kernel_w
    column = tile % column_tiles * COLUMNS + tl.arange(0, COLUMNS)
    tap = tile // column_tiles % taps
    row = tile // (column_tiles * taps) * ROWS + tl.arange(0, ROWS)
    source_image, source_channel, source_row, source_pixel = _steps(
        source_strides, SOURCE_LAYOUT, SOURCE_UNIT
    )
    grad_image, grad_channel, grad_row, grad_pixel = _steps(grad_strides, GRAD_LAYOUT, GRAD_UNIT)
    pixels = size.height * size.width
    first = split * share
    end = tl.minimum(first + share, size.images * pixels)
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in tl.range(first, end, DEPTH):
        m = start + tl.arange(0, DEPTH)
        image = (m // pixels).to(tl.int64)
        y = m % pixels // size.width
        x = m % size.width
        at = grad + (image * grad_image + (y * grad_row + x * grad_pixel))
        a = tl.load(
            at[:, None] + (row * grad_channel)[None, :],
            mask=(m < end)[:, None] & (row < channels)[None, :],
            other=0.0,
        )
        y = y * segment.stride_h - segment.padding_h + tap // segment.kernel_w
        x = x * segment.stride_w - segment.padding_w + tap % segment.kernel_w
        at = source + (image * source_image + (y * source_row + x * source_pixel))
        inside = (m < end) & _is_inside(y, x, size)
        b = tl.load(
            at[:, None] + (column * source_channel)[None, :],
            mask=inside[:, None] & (column < depth)[None, :],
            other=0.0,
        )
        sums = _product(tl.trans(a), b, sums, PRECISION, WIDEN)
    place = (row * taps + tap).to(tl.int64) * depth + split.to(tl.int64) * channels * taps * depth
    tl.store(
        partial + place[:, None] + column[None, :],
        sums,
        mask=(row < channels)[:, None] & (column < depth)[None, :],
    )
