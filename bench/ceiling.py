"""What this machine can do at best, measured in the run that the results are compared with."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from inception_fused import ops

SIZE = 1536
"""Rows and columns of the matrices."""

STREAM_MIB = 256
"""Size of the copied tensor; several times the last-level cache of most machines."""

_SPINS = 300_000  # about 25 ms


@dataclass(frozen=True)
class Ceiling:
    """``gflops``: 10**9 float32 operations a second, an FMA is two; ``gbytes``: 10**9 bytes/s."""

    name: str
    gflops: float
    gbytes: float


def measure(seconds: float = 1.0) -> Ceiling:
    """The best of several runs, with torch's number of threads.

    The compute ceiling is multiply-adds in registers on every thread, the widest that the CPU
    kernels of this process use; without the native library a large float32 torch.mm. Operations are
    counted as of direct convolution, so Winograd's filtering may pass it. The memory ceiling is a
    copy, read plus written.
    """
    if ops.NOT_LOADED is None:
        name = "FMA peak, float32"
        gflops = _best(lambda: int(torch.ops.inception_fused.cpu_spin(_SPINS)), seconds)
    else:
        name = f"best of torch.mm, float32, {SIZE}x{SIZE}"
        a, b = torch.randn(2, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
        out = torch.empty_like(a)

        def multiply() -> int:
            torch.mm(a, b, out=out)
            return 2 * SIZE**3

        gflops = _best(multiply, seconds)
    source = torch.ones(STREAM_MIB * 2**18)
    target = torch.empty_like(source)

    def copy() -> int:
        target.copy_(source)
        return 2 * source.nbytes

    return Ceiling(name, gflops, _best(copy, seconds / 2))


def _best(call: Callable[[], int], seconds: float) -> float:
    """The highest rate, in 10**9 a second, of a call that returns how much it did."""
    call()
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        done = call()
        best = max(best, 1e-9 * done / (time.perf_counter() - start))
    return best
