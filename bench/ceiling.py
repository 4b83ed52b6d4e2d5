"""What this machine can do at best, measured in the run that the results are compared with."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

SIZE = 1536
"""Rows and columns of the matrices."""

STREAM_MIB = 256
"""Size of the copied tensor; several times the last-level cache of most machines."""


@dataclass(frozen=True)
class Ceiling:
    """``gflops``: 10**9 float32 operations a second, an FMA is two; ``gbytes``: 10**9 bytes/s."""

    name: str
    gflops: float
    gbytes: float


def measure(seconds: float = 1.0) -> Ceiling:
    """The best of several runs, with torch's number of threads.

    The compute ceiling is a large float32 torch.mm, which on x86 reaches 90 % of the FMA peak and
    more, so a percentage of it may exceed 100. The memory ceiling is a copy, read plus written.
    """
    a, b = torch.randn(2, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    out = torch.empty_like(a)
    mm = _best(lambda: torch.mm(a, b, out=out), seconds)
    source = torch.ones(STREAM_MIB * 2**18)
    target = torch.empty_like(source)
    copy = _best(lambda: target.copy_(source), seconds / 2)
    return Ceiling(
        f"best of torch.mm, float32, {SIZE}x{SIZE}",
        2e-9 * SIZE**3 / mm,
        2e-9 * source.nbytes / copy,
    )


def _best(call: object, seconds: float) -> float:
    assert callable(call)
    call()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best
