"""The kernels: ``run_launch`` for a :class:`problem.Launch`, ``run_pool`` for a pool on its own.

``run_launch`` computes for every output pixel m and every column n of every segment::

    destination[m, n] = activation(bias[n] + sum over tap t, channel c of
                                   operand[m, t, c] * weight[n, t, c])

The operand is the source at the pixel of the tap, zero outside of the image. A pooled segment has
one tap: the maximum or the mean of the source over the window, rounded to the source's type. Sums
are float32.

A tensor is addressed by the constants LAYOUT (:class:`problem.Layouts`) and UNIT, a number of
elements that divides its strides, and with adjacent channels also channel offsets and counts.
Strides come divided by it, since only a product with a constant lets the compiler move vectors.

Under the interpreter WIDEN makes bfloat16 operands float32, which it can multiply and compare.
"""

# mypy: ignore-errors
# The functions are Triton's, not Python's.
from __future__ import annotations

import triton
import triton.language as tl

CHANNELS = tl.constexpr(0)  # problem.Layouts
PLANES = tl.constexpr(1)
NO_POOL = tl.constexpr(-1)
MAXPOOL = tl.constexpr(2)  # spec.Kind
RELU = tl.constexpr(1)  # spec.Activation
PACK_UNIT = tl.constexpr(16)  # packing.UNIT


@triton.jit
def _steps(strides, LAYOUT: tl.constexpr, UNIT: tl.constexpr):
    """Elements from one (image, channel, row, pixel) to the next."""
    if LAYOUT == CHANNELS:
        return strides.image * UNIT, 1, strides.row * UNIT, strides.pixel * UNIT
    elif LAYOUT == PLANES:
        return strides.image * UNIT, strides.channel * UNIT, strides.row, 1
    else:
        return strides.image, strides.channel, strides.row, strides.pixel


@triton.jit
def _channels(count, LAYOUT: tl.constexpr, UNIT: tl.constexpr):
    """A channel count or offset, such that the compiler knows that UNIT divides it."""
    if LAYOUT == CHANNELS:
        return count // UNIT * UNIT
    else:
        return count


@triton.jit
def _take(segments, column):
    """The segment that has a column tile."""
    taken = segments[0]
    for i in tl.static_range(1, len(segments)):
        if column >= segments[i].first:
            taken = segments[i]
    return taken


@triton.jit
def _rows(tile, size, PER_IMAGE: tl.constexpr, PIXEL_UNIT: tl.constexpr, ROWS: tl.constexpr):
    """(image, pixel within it, whether there is such a row) of the output, for each row.

    With PER_IMAGE a tile is of one image and its pixels are adjacent; PIXEL_UNIT divides their
    number.
    """
    row = tl.arange(0, ROWS)
    if PER_IMAGE:
        pixels = size.height * size.width // PIXEL_UNIT * PIXEL_UNIT
        tiles = tl.cdiv(pixels, ROWS)
        pixel = tile % tiles * ROWS + row
        return tile // tiles, pixel, pixel < pixels
    else:
        pixels = size.height * size.width
        row += tile * ROWS
        return row // pixels, row % pixels, row < size.images * pixels


@triton.jit
def _corner(rows, segment, size, steps, LAYOUT: tl.constexpr, UNIT: tl.constexpr):
    """(offset in the source, y, x) of each row's first tap, at the segment's first channel."""
    image, pixel, _ = rows
    image_step, channel_step, row_step, pixel_step = steps
    y = pixel // size.width * segment.stride_h - segment.padding_h
    x = pixel % size.width * segment.stride_w - segment.padding_w
    offset = image.to(tl.int64) * image_step
    offset += _channels(segment.source, LAYOUT, UNIT) * channel_step
    if LAYOUT == PLANES:  # windows keep the size, so adjacent pixels stay adjacent
        offset += pixel - (segment.padding_h * row_step + segment.padding_w)
    else:
        offset += y * row_step + x * pixel_step
    return offset, y, x


@triton.jit
def _is_inside(y, x, size):
    return (y >= 0) & (y < size.source_height) & (x >= 0) & (x < size.source_width)


@triton.jit
def _load_weights(pack, segment, columns, tap, taps, k, wanted):
    """The weights (k, columns) of a tap; zeros if they are not wanted."""
    pitch = (segment.depth + (PACK_UNIT - 1)) // PACK_UNIT * PACK_UNIT
    row = segment.weight.to(tl.int64) * PACK_UNIT + columns.to(tl.int64) * (taps * pitch)
    mask = (wanted & (columns < segment.channels))[None, :] & (k < pitch)[:, None]
    return tl.load(pack + row[None, :] + (tap * pitch + k)[:, None], mask=mask, other=0.0)


@triton.jit
def _product(a, b, sums, PRECISION: tl.constexpr, WIDEN: tl.constexpr):
    if WIDEN:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, sums, input_precision=PRECISION)


@triton.jit
def _multiply(
    source, pack, segment, columns, rows, size, strides,
    WINDOWED: tl.constexpr, LAYOUT: tl.constexpr, UNIT: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """The sums (ROWS, COLUMNS) of a plain segment. Not WINDOWED: every window is 1x1, stride 1."""
    _, _, is_row = rows
    steps = _steps(strides, LAYOUT, UNIT)
    _, channel_step, row_step, pixel_step = steps
    depth = _channels(segment.depth, LAYOUT, UNIT)
    offset, y, x = _corner(rows, segment, size, steps, LAYOUT, UNIT)
    channel = tl.arange(0, DEPTH)
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    if WINDOWED:
        taps = segment.kernel_h * segment.kernel_w
        first = 0
        tap = 0
        ky = 0
        kx = 0
        # One flat loop over (tap, channels), so that loads run ahead over both.
        for _ in tl.range(taps * tl.cdiv(depth, DEPTH)):
            k = first + channel
            at = source + (offset + (ky * row_step + kx * pixel_step))
            inside = is_row & _is_inside(y + ky, x + kx, size)
            a = tl.load(
                at[:, None] + (k * channel_step)[None, :],
                mask=inside[:, None] & (k < depth)[None, :],
                other=0.0,
            )
            b = _load_weights(pack, segment, columns, tap, taps, k, True)
            sums = _product(a, b, sums, PRECISION, WIDEN)
            first += DEPTH
            if first >= depth:
                first = 0
                tap += 1
                kx += 1
                if kx == segment.kernel_w:
                    kx = 0
                    ky += 1
    else:
        for first in tl.range(0, depth, DEPTH):
            k = first + channel
            a = tl.load(
                (source + offset)[:, None] + (k * channel_step)[None, :],
                mask=is_row[:, None] & (k < depth)[None, :],
                other=0.0,
            )
            b = _load_weights(pack, segment, columns, 0, 1, k, True)
            sums = _product(a, b, sums, PRECISION, WIDEN)
    return sums


@triton.jit
def _no_pixels(
    type, POOL: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr, WIDEN: tl.constexpr
):
    """The pool of no pixels, (ROWS, DEPTH): of that type, or float32 for a mean."""
    if POOL != MAXPOOL:
        return tl.zeros((ROWS, DEPTH), tl.float32)
    elif WIDEN:
        return tl.full((ROWS, DEPTH), float("-inf"), tl.float32)
    else:
        return tl.full((ROWS, DEPTH), float("-inf"), type)


@triton.jit
def _add_pixels(pooled, at, inside, POOL: tl.constexpr):
    """The pool with the pixels at ``at``. NaN wins; what is not inside does not count."""
    if POOL == MAXPOOL:
        value = tl.load(at, mask=inside, other=float("-inf")).to(pooled.dtype)
        larger = tl.maximum(pooled, value, propagate_nan=tl.PropagateNan.ALL)
        return larger.to(pooled.dtype)  # of bfloat16 it is float32
    else:
        return pooled + tl.load(at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _multiply_pooled(
    source, pack, segment, columns, rows, size, strides,
    POOL: tl.constexpr, LAYOUT: tl.constexpr, UNIT: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, STAGES: tl.constexpr,
    PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """The sums (ROWS, COLUMNS) of a pooled segment, whose window is the pool's."""
    _, _, is_row = rows
    steps = _steps(strides, LAYOUT, UNIT)
    _, channel_step, row_step, pixel_step = steps
    depth = _channels(segment.depth, LAYOUT, UNIT)
    offset, y, x = _corner(rows, segment, size, steps, LAYOUT, UNIT)
    channel = tl.arange(0, DEPTH)
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    pooled = _no_pixels(source.dtype.element_ty, POOL, ROWS, DEPTH, WIDEN)
    taps = segment.kernel_h * segment.kernel_w
    first = 0
    ky = 0
    kx = 0
    # One flat loop over (channels, tap), so that loads run ahead over both; the compiler must be
    # told, since their product is not in every round.
    for _ in tl.range(tl.cdiv(depth, DEPTH) * taps, num_stages=STAGES):
        k = first + channel
        at = source + (offset + (ky * row_step + kx * pixel_step))
        inside = is_row & _is_inside(y + ky, x + kx, size)
        is_last = (ky == segment.kernel_h - 1) & (kx == segment.kernel_w - 1)
        b = _load_weights(pack, segment, columns, 0, 1, k, is_last)
        pooled = _add_pixels(
            pooled,
            at[:, None] + (k * channel_step)[None, :],
            inside[:, None] & (k < depth)[None, :],
            POOL,
        )
        kx += 1
        if kx == segment.kernel_w:
            kx = 0
            ky += 1
        if is_last:
            if POOL != MAXPOOL:
                pooled /= taps
            a = tl.where(is_row[:, None] & (k < depth)[None, :], pooled, 0.0)
            sums = _product(a.to(source.dtype.element_ty), b, sums, PRECISION, WIDEN)
            pooled = _no_pixels(source.dtype.element_ty, POOL, ROWS, DEPTH, WIDEN)
            first += DEPTH
            ky = 0
    return sums


@triton.jit
def _finish(sums, pack, segment, columns):
    """Bias and activation."""
    bias = tl.load(
        pack + segment.bias.to(tl.int64) * PACK_UNIT + columns,
        mask=columns < segment.channels,
        other=0.0,
    )
    sums += bias.to(tl.float32)[None, :]
    # a comparison, not a maximum: NaN stays
    return tl.where((sums < 0) & (segment.activation == RELU), 0.0, sums)


@triton.jit
def _store(
    tile, destination, strides, segment, columns, rows, size,
    LAYOUT: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """A tile into the segment's channels of a buffer."""
    image, pixel, is_row = rows
    image_step, channel_step, row_step, pixel_step = _steps(strides, LAYOUT, UNIT)
    offset = image.to(tl.int64) * image_step
    if LAYOUT == PLANES:
        offset += pixel
    else:
        offset += pixel // size.width * row_step + pixel % size.width * pixel_step
    channel = _channels(segment.destination, LAYOUT, UNIT) + columns
    is_column = columns < _channels(segment.channels, LAYOUT, UNIT)
    tl.store(
        (destination + offset)[:, None] + (channel * channel_step)[None, :],
        tile.to(destination.dtype.element_ty),
        mask=is_row[:, None] & is_column[None, :],
    )


@triton.jit
def run_launch(
    source, out, scratch, pack,
    source_strides, out_strides, scratch_strides, size,
    segments, pooled_tiles, column_tiles,
    POOL: tl.constexpr, WINDOWED: tl.constexpr, TO_SCRATCH: tl.constexpr,
    SOURCE_LAYOUT: tl.constexpr, SOURCE_UNIT: tl.constexpr,
    OUT_LAYOUT: tl.constexpr, OUT_UNIT: tl.constexpr, SCRATCH_UNIT: tl.constexpr,
    PER_IMAGE: tl.constexpr, PIXEL_UNIT: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, STAGES: tl.constexpr,
    PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """One tile of one segment.

    The column tiles of the same rows are neighbours, so that they share the source in the cache.

    Args:
        source, out, scratch, pack: first elements of the buffers and of the pack.
        size: a problem.Size; strides: problem.Strides.
        segments: a tuple of problem.Segment, the pooled ones first.
        pooled_tiles, column_tiles: column tiles of the pooled segments, and of all.
        POOL: kind of the pool of the pooled segments, NO_POOL if there are none.
        WINDOWED: whether any other segment has a window that is not 1x1 with stride 1.
        TO_SCRATCH: whether any segment writes scratch.
        PRECISION: of float32 products, as tl.dot's input_precision.
    """
    tile = tl.program_id(0)
    column = tile % column_tiles
    rows = _rows(tile // column_tiles, size, PER_IMAGE, PIXEL_UNIT, ROWS)
    segment = _take(segments, column)
    columns = (column - segment.first) * COLUMNS + tl.arange(0, COLUMNS)
    if POOL == NO_POOL:
        sums = _multiply(
            source, pack, segment, columns, rows, size, source_strides,
            WINDOWED, SOURCE_LAYOUT, SOURCE_UNIT, ROWS, COLUMNS, DEPTH, PRECISION, WIDEN,
        )  # fmt: skip
    elif column < pooled_tiles:
        sums = _multiply_pooled(
            source, pack, segment, columns, rows, size, source_strides,
            POOL, SOURCE_LAYOUT, SOURCE_UNIT, ROWS, COLUMNS, DEPTH, STAGES, PRECISION, WIDEN,
        )  # fmt: skip
    else:
        sums = _multiply(
            source, pack, segment, columns, rows, size, source_strides,
            WINDOWED, SOURCE_LAYOUT, SOURCE_UNIT, ROWS, COLUMNS, DEPTH, PRECISION, WIDEN,
        )  # fmt: skip
    sums = _finish(sums, pack, segment, columns)
    if not TO_SCRATCH:
        _store(
            sums, out, out_strides, segment, columns, rows, size, OUT_LAYOUT, OUT_UNIT
        )  # fmt: skip
    elif segment.to_scratch != 0:
        _store(
            sums, scratch, scratch_strides, segment, columns, rows, size, CHANNELS, SCRATCH_UNIT
        )  # fmt: skip
    else:
        _store(
            sums, out, out_strides, segment, columns, rows, size, OUT_LAYOUT, OUT_UNIT
        )  # fmt: skip


@triton.jit
def run_pool(
    source, destination, source_strides, destination_strides, size, segment,
    POOL: tl.constexpr,
    SOURCE_LAYOUT: tl.constexpr, SOURCE_UNIT: tl.constexpr,
    LAYOUT: tl.constexpr, UNIT: tl.constexpr,
    PER_IMAGE: tl.constexpr, PIXEL_UNIT: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """One tile (ROWS pixels, COLUMNS channels) of a pool; the arguments are those of run_launch.

    The segment's channels and its depth are the same.
    """
    steps = _steps(source_strides, SOURCE_LAYOUT, SOURCE_UNIT)
    _, channel_step, row_step, pixel_step = steps
    column_tiles = tl.cdiv(segment.channels, COLUMNS)
    tile = tl.program_id(0)
    rows = _rows(tile // column_tiles, size, PER_IMAGE, PIXEL_UNIT, ROWS)
    columns = tile % column_tiles * COLUMNS + tl.arange(0, COLUMNS)
    _, _, is_row = rows
    is_column = columns < _channels(segment.depth, SOURCE_LAYOUT, SOURCE_UNIT)
    offset, y, x = _corner(rows, segment, size, steps, SOURCE_LAYOUT, SOURCE_UNIT)
    pooled = _no_pixels(source.dtype.element_ty, POOL, ROWS, COLUMNS, WIDEN)
    for tap in tl.range(segment.kernel_h * segment.kernel_w):
        ky = tap // segment.kernel_w
        kx = tap % segment.kernel_w
        at = source + (offset + (ky * row_step + kx * pixel_step))
        inside = is_row & _is_inside(y + ky, x + kx, size)
        pooled = _add_pixels(
            pooled,
            at[:, None] + (columns * channel_step)[None, :],
            inside[:, None] & is_column[None, :],
            POOL,
        )
    if POOL != MAXPOOL:
        pooled /= segment.kernel_h * segment.kernel_w
    _store(
        pooled, destination, destination_strides, segment, columns, rows, size,
        LAYOUT, UNIT,
    )  # fmt: skip
