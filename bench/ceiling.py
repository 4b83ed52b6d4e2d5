"""What this machine can do at best, measured in the run that the results are compared with."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from inception_fused import ops

SIZE, DEVICE_SIZE = 1536, 8192
"""Rows and columns of the matrices on a CPU and on a GPU."""

STREAM_MIB = 256
"""Size of the copied tensor; several times the last-level cache of most machines."""

_FMA = "FMA peak, "
_SPINS = 300_000  # about 25 ms


@dataclass(frozen=True)
class Ceiling:
    """``gflops``: 10**9 operations a second, an FMA is two; ``gbytes``: 10**9 bytes/s."""

    name: str
    gflops: float
    gbytes: float


def measure(device: str = "cpu", dtype: str = "float32", seconds: float = 1.0) -> Ceiling:
    """The best of several runs, with torch's number of threads.

    The compute ceiling of a CPU is multiply-adds in registers on every thread, the widest that the
    CPU kernels of this process use, in float32 and, where there are instructions for it, in
    bfloat16; otherwise, and without the native library, it is a large torch.mm. Operations are
    counted as of direct convolution, so Winograd's filtering may pass it. The memory ceiling is a
    copy, read plus written.
    """
    if device == "cpu" and ops.NOT_LOADED is None and _spins(dtype):
        name = _FMA + dtype
        gflops = _best(lambda: _spin(dtype), seconds)
    else:
        size = SIZE if device == "cpu" else DEVICE_SIZE
        name = f"best of torch.mm, {dtype}, {size}x{size}"
        a, b = torch.randn(2, size, size, generator=torch.Generator().manual_seed(0)).to(
            device, getattr(torch, dtype)
        )
        out = torch.empty_like(a)

        def multiply() -> int:
            torch.mm(a, b, out=out)
            _wait(device)
            return 2 * size**3

        gflops = _best(multiply, seconds)
    source = torch.ones(STREAM_MIB * 2**18, device=device)
    target = torch.empty_like(source)

    def copy() -> int:
        target.copy_(source)
        _wait(device)
        return 2 * source.nbytes

    return Ceiling(name, gflops, _best(copy, seconds / 2))


def clock(ceiling: Ceiling) -> float | None:
    """The CPU's multiply-adds a second at this moment, relative to the ceiling, in about 0.1 s.

    Well below 1 where the clock has fallen or something else runs. None without the native library.
    """
    if ops.NOT_LOADED is not None or not ceiling.name.startswith(_FMA):
        return None
    return _best(lambda: _spin(ceiling.name.removeprefix(_FMA)), 0.08) / ceiling.gflops


def _spins(dtype: str) -> bool:
    """Whether :func:`_spin` is the peak of the dtype."""
    if dtype == "bfloat16":
        return bool(torch.ops.inception_fused.cpu_multiplies_bfloat16())
    return dtype == "float32"


def _spin(dtype: str) -> int:
    return int(torch.ops.inception_fused.cpu_spin(_SPINS, bfloat16=dtype == "bfloat16"))


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def _best(call: Callable[[], int], seconds: float) -> float:
    """The highest rate, in 10**9 a second, of a call that returns how much it did."""
    call()
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        done = call()
        best = max(best, 1e-9 * done / (time.perf_counter() - start))
    return best
