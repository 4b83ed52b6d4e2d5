"""Measured tiles on disk, by device and by what they depend on beside it."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from ..cache import Store
from .choose import Tile

if TYPE_CHECKING:
    from .execute import Work

FORMAT = 3
"""Changes when the meaning of a file does, or when the kernels change so that it is out of date."""


def key(work: Work) -> str:
    """What tiles depend on beside the device: plan, shape, type and layouts."""
    views = [(int(v.layout), v.unit) for v in work.views[:2]]
    text = json.dumps([work.plan.code, work.shape, int(work.math), views])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _read(tiles: Any) -> tuple[Tile, ...]:
    return tuple(map(_tile, tiles))


def _tile(numbers: Any) -> Tile:
    tile = Tile(*numbers)
    powers = all(type(n) is int and 0 < n <= 1024 and n & (n - 1) == 0 for n in tile[:4])
    if not powers or type(tile.stages) is not int or not 0 < tile.stages <= 8:
        raise ValueError(f"no tile: {numbers}")
    return tile


TILES: Store[tuple[Tile, ...]] = Store("triton", FORMAT, _read, list)
"""A tile for each launch, by :func:`key`, in one file for each device."""
