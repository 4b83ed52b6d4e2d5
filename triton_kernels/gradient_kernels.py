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

from .kernels import PLANES, _channels, _corner, _is_inside, _product, _rows, _steps


@triton.jit
def run_weight_gradient(
    source, grad, partial,
    source_strides, grad_strides, size, segment, tiles, share,
    SOURCE_LAYOUT: tl.constexpr, SOURCE_UNIT: tl.constexpr,
    GRAD_LAYOUT: tl.constexpr, GRAD_UNIT: tl.constexpr,
    WINDOWED: tl.constexpr, PER_IMAGE: tl.constexpr, PIXEL_UNIT: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """One tile (ROWS output channels, COLUMNS input channels) of one tap and one split.

    Args:
        source, grad, partial: first elements of the convolution's input, of the gradient of its
            output, and of the sums (splits, segment.channels, taps, segment.depth), float32.
        size: a problem.Size; strides: problem.Strides; segment: a problem.Segment.
        tiles: of one split.
        share: rounds of a split, each of DEPTH pixels; with PER_IMAGE the last round of an image
            may have fewer, and PIXEL_UNIT divides the pixels of an image.
        WINDOWED: whether the window is not 1x1 with stride 1.
    """
    split = tl.program_id(0) // tiles
    tile = tl.program_id(0) % tiles
    depth = _channels(segment.depth, SOURCE_LAYOUT, SOURCE_UNIT)
    channels = _channels(segment.channels, GRAD_LAYOUT, GRAD_UNIT)
    column_tiles = tl.cdiv(depth, COLUMNS)
    taps = segment.kernel_h * segment.kernel_w
    column = tile % column_tiles * COLUMNS + tl.arange(0, COLUMNS)
    tap = tile // column_tiles % taps
    ky = tap // segment.kernel_w
    kx = tap % segment.kernel_w
    row = tile // (column_tiles * taps) * ROWS + tl.arange(0, ROWS)
    source_steps = _steps(source_strides, SOURCE_LAYOUT, SOURCE_UNIT)
    _, source_channel, source_row, source_pixel = source_steps
    grad_image, grad_channel, grad_row, grad_pixel = _steps(grad_strides, GRAD_LAYOUT, GRAD_UNIT)
    if PER_IMAGE:
        rounds = size.images * tl.cdiv(size.height * size.width, DEPTH)
    else:
        rounds = tl.cdiv(size.images * size.height * size.width, DEPTH)
    first = split * share
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    for number in tl.range(first, tl.minimum(first + share, rounds)):
        pixels = _rows(number, size, PER_IMAGE, PIXEL_UNIT, DEPTH)
        image, pixel, is_pixel = pixels
        offset = image.to(tl.int64) * grad_image
        if GRAD_LAYOUT == PLANES:
            offset += pixel
        else:
            offset += pixel // size.width * grad_row + pixel % size.width * grad_pixel
        a = tl.load(
            (grad + offset)[:, None] + (row * grad_channel)[None, :],
            mask=is_pixel[:, None] & (row < channels)[None, :],
            other=0.0,
        )
        offset, y, x = _corner(pixels, segment, size, source_steps, SOURCE_LAYOUT, SOURCE_UNIT)
        if WINDOWED:
            offset += ky * source_row + kx * source_pixel
            is_pixel &= _is_inside(y + ky, x + kx, size)
        b = tl.load(
            (source + offset)[:, None] + (column * source_channel)[None, :],
            mask=is_pixel[:, None] & (column < depth)[None, :],
            other=0.0,
        )
        sums = _product(tl.trans(a), b, sums, PRECISION, WIDEN)
    place = (row * taps + tap).to(tl.int64) * depth + split.to(tl.int64) * channels * taps * depth
    tl.store(
        partial + place[:, None] + column[None, :],
        sums,
        mask=(row < channels)[:, None] & (column < depth)[None, :],
    )
