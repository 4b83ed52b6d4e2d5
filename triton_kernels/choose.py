"""Which tile a launch gets: pure functions of the launch and the device, tested on any machine.

The times are a paper model, good for ranking tiles and not yet compared with a GPU; every rate
says what it stands for. :mod:`tune` measures instead.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import NamedTuple

from .problem import Launch, Segment


class Math(IntEnum):
    """How products are computed; sums are always float32."""

    HALF = 0  # float16 or bfloat16
    TF32 = 1
    IEEE = 2  # float32, without matrix instructions

    @property
    def item(self) -> int:
        """Bytes of an element."""
        return 2 if self is Math.HALF else 4


class Tile(NamedTuple):
    """What one block of warps computes, and how."""

    rows: int
    columns: int
    depth: int  # source elements of a round of the loop
    warps: int
    stages: int  # rounds whose loads are under way


@dataclass(frozen=True)
class Device:
    """``rates`` are multiply-adds a cycle and multiprocessor, by :class:`Math`."""

    arch: int | str  # as Triton names it
    processors: int
    shared_block: int  # bytes of shared memory that one block can have
    shared_processor: int  # bytes that the blocks of one multiprocessor share
    rates: tuple[int, int, int]
    l2_bytes: int  # a cycle and multiprocessor, all of them reading
    lanes: int = 32  # of a warp
    narrow: float = 1.0  # of the matrix rate that tiles of fewer than 64 rows reach

    @property
    def is_hip(self) -> bool:
        return isinstance(self.arch, str)


DEVICES: tuple[Device, ...] = (
    Device(80, 108, 166912, 167936, (1024, 512, 64), 40),  # A100
    Device(86, 72, 101376, 102400, (512, 256, 128), 24),  # A10
    Device(89, 142, 101376, 102400, (512, 256, 128), 24),  # L40S
    Device(90, 132, 232448, 233472, (2048, 1024, 128), 40, narrow=0.6),  # H100
    Device(100, 148, 232448, 233472, (4096, 2048, 128), 40, narrow=0.3),  # B200
    Device(120, 188, 101376, 102400, (512, 256, 128), 24),  # RTX PRO 6000
    Device("gfx942", 304, 65536, 65536, (1024, 512, 128), 32, lanes=64),  # MI300X
)
"""One well-known device of each architecture."""


def device_for(arch: int | str, processors: int) -> Device:
    """The known device that is nearest: the newest CUDA one that is not newer, or the HIP one."""
    if isinstance(arch, str):
        found = DEVICES[-1]
    else:
        found = max(
            (d for d in DEVICES if isinstance(d.arch, int) and d.arch <= arch),
            key=lambda d: int(d.arch),
            default=DEVICES[0],
        )
    return replace(found, processors=processors)


TILES: dict[Math, tuple[Tile, ...]] = {
    Math.HALF: (
        Tile(32, 64, 64, 4, 3),
        Tile(64, 32, 64, 4, 4),
        Tile(64, 64, 32, 4, 4),
        Tile(64, 64, 64, 8, 3),
        Tile(128, 64, 64, 8, 3),
        Tile(128, 128, 32, 8, 4),
        Tile(128, 128, 64, 8, 3),
    ),
    Math.TF32: (
        Tile(32, 32, 32, 4, 4),
        Tile(64, 32, 32, 4, 4),
        Tile(64, 64, 16, 4, 4),
        Tile(64, 64, 32, 8, 3),
        Tile(128, 64, 32, 8, 3),
        Tile(128, 128, 32, 8, 3),
    ),
    Math.IEEE: (
        Tile(32, 32, 16, 4, 3),
        Tile(64, 32, 16, 8, 3),
        Tile(64, 64, 16, 8, 3),
    ),
}
"""Tiles that compile without spilling registers, but for these:"""

_SPILLING_ON_HIP = frozenset(
    {
        Tile(32, 64, 64, 4, 3),
        Tile(128, 128, 32, 8, 4),
        Tile(128, 128, 64, 8, 3),
        Tile(128, 128, 32, 8, 3),
    }
)

POOL_TILE = Tile(32, 64, 1, 4, 1)
"""Of a pool that is a launch of its own; depth and stages mean nothing there."""

_LATENCY = 700  # cycles of a read from L2 under load
_EPILOGUE = 900  # cycles: bias, layout change through shared memory, stores
_CHAIN = 100  # cycles of a round that nothing overlaps: barrier, dependent products
_REGISTERS = 65536  # of a multiprocessor
_WARPS = 48  # that a multiprocessor can hold, the least of all architectures


def shared_bytes(tile: Tile, math: Math) -> int:
    """Bytes of shared memory that the loop needs; the epilogue needs less."""
    return tile.stages * (tile.rows + tile.columns) * tile.depth * math.item


def _block_cycles(
    s: Segment, pooled: bool, tile: Tile, math: Math, device: Device, resident: int
) -> float:
    """Predicted cycles of a block in a multiprocessor that holds so many of them."""
    taps = s.kernel_h * s.kernel_w
    rounds = taps * -(-s.depth // tile.depth)
    rate: float = device.rates[math]
    if math is not Math.IEEE and tile.rows < 64:
        rate *= device.narrow
    products = tile.rows * tile.columns * tile.depth / rate / (taps if pooled else 1)
    columns = tile.columns / (taps if pooled else 1)
    loads = (tile.rows + columns) * tile.depth * math.item / device.l2_bytes
    busy = max(products, loads) * resident
    step = max(busy, _LATENCY / max(tile.stages - 1, 1), _CHAIN)
    return _LATENCY + rounds * step + _EPILOGUE


def cycles(launch: Launch, tile: Tile, math: Math, device: Device) -> float:
    """Predicted cycles of a launch; infinity if a block does not fit."""
    shared = shared_bytes(tile, math)
    if shared > device.shared_block:
        return float("inf")
    row_tiles = -(-launch.size.rows // tile.rows)
    blocks = launch.tiled(tile.columns)[2] * row_tiles
    threads = tile.warps * device.lanes
    registers = min(255, 64 + (tile.rows + tile.depth) * tile.columns // threads)
    fitting = min(
        device.shared_processor // (shared + 1024),
        _REGISTERS // (registers * threads),
        _WARPS // tile.warps,
    )
    resident = max(1, min(fitting, -(-blocks // device.processors)))
    total = longest = 0.0
    for i, segment in enumerate(launch.segments):
        pooled = i < len(launch.pooled)
        block = _block_cycles(segment, pooled, tile, math, device, resident)
        total += block * row_tiles * -(-segment.channels // tile.columns)
        longest = max(longest, block)
    return max(total / (device.processors * resident), longest)


def ranked(launch: Launch, math: Math, device: Device) -> tuple[Tile, ...]:
    """Every tile that fits, the one with the least predicted time first."""
    if not launch.convolves:
        return (POOL_TILE,)
    spilling = _SPILLING_ON_HIP if device.is_hip and launch.pooled else frozenset()
    priced = [(cycles(launch, t, math, device), t) for t in TILES[math] if t not in spilling]
    return tuple(tile for cost, tile in sorted(priced) if cost != float("inf"))


def choose(launch: Launch, math: Math, device: Device) -> Tile:
    """The tile with the least predicted time."""
    return ranked(launch, math, device)[0]


def interpreted(launch: Launch) -> Tile:
    """As few tiles as can be: the interpreter's time goes by operations, not by elements."""

    def power(n: int, most: int) -> int:
        return min(most, 1 << max(4, (n - 1).bit_length()))

    columns = power(max(s.channels for s in launch.segments), 512)
    depth = power(max(s.depth for s in launch.segments), 256)
    return Tile(power(launch.size.rows, 1024), columns, depth, 4, 1)
