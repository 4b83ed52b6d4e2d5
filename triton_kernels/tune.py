"""Measures tiles on the device at hand and keeps the fastest, for this process and on disk.

The tiles whose predicted time is far from the best are not tried: see :func:`candidates`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import Any

import torch
import triton
from torch import Tensor

from ..plan import Plan
from ..reference import empty_output
from . import cache, choose, launch
from .choose import Device, Math, Tile
from .execute import Program, Work, device_of
from .problem import Launch

Timer = Callable[[Callable[[], Any]], float]
"""Time of one call of a function, in any unit."""

_FAR = 2.5  # times the best predicted time
_MOST = 6  # tiles for each launch


def candidates(one: Launch, math: Math, device: Device) -> tuple[Tile, ...]:
    """The tiles that are worth a measurement, the most promising first."""
    tiles = choose.ranked(one, math, device)
    if len(tiles) < 2:
        return tiles
    limit = _FAR * choose.cycles(one, tiles[0], math, device)
    return tuple(t for t in tiles[:_MOST] if choose.cycles(one, t, math, device) <= limit)


def measure(
    work: Work, device: Device, run: Callable[[Sequence[Tile]], Callable[[], Any]], timer: Timer
) -> tuple[Tile, ...]:
    """The fastest tile for each launch, one launch after the other.

    Args:
        run: prepares the work with a tile for each launch; what it returns is timed. A tile that
            the device refuses raises triton.OutOfResources and is not taken.

    Raises:
        triton.OutOfResources: the device refuses every candidate of a launch.
    """
    best = [choose.choose(one, work.math, device) for one in work.launches]
    for i, one in enumerate(work.launches):
        fastest, least = best[i], inf
        refusal: Exception | None = None
        for tile in candidates(one, work.math, device):
            try:
                time = timer(run([*best[:i], tile, *best[i + 1 :]]))
            except triton.OutOfResources as error:
                refusal = error
                continue
            if time < least:
                fastest, least = tile, time
        if least == inf and refusal is not None:
            raise refusal
        best[i] = fastest
    return tuple(best)


def tune(
    plan: Plan, x: Tensor, pack: Tensor, timer: Timer = triton.testing.do_bench
) -> tuple[Tile, ...]:
    """Measures a plan for tensors like x, unless it was, and remembers the tiles.

    Programs that are prepared later take them; those already prepared in this process do not.

    Args:
        x: (N, plan.in_channels, H, W) on a GPU.
        pack: what ``inception_fused::triton_pack`` gives for the plan.

    Raises:
        RuntimeError: Triton interprets, so that times mean nothing.
    """
    if launch.INTERPRETS:
        raise RuntimeError("Triton's interpreter runs the kernels: there is nothing to measure")
    name = torch.cuda.get_device_name(x.device)
    with torch.cuda.device(x.device):
        out = empty_output(plan, x)
        work = Work.of(plan, x, out)
        key = cache.key(work)
        if (known := cache.TILES.load(name).get(key)) is not None:
            return known

        def run(tiles: Sequence[Tile]) -> Callable[[], None]:
            program = Program(work, tiles, x, pack, out)
            return lambda: program(x, pack, out)

        best = measure(work, device_of(x), run, timer)
    cache.TILES.save(name, {key: best})
    return best
