"""Peak memory of one contestant, in a process of its own, which also shows whether it runs at all.

The figure is the highest resident set during calls minus the resident set before the model was
made: weights (converted or packed), activations and the engine's own code and buffers. Conversion
and compilation are not in it: the high-water mark is reset after them, and what they freed is given
back to the system first. Linux only; elsewhere there is no figure. On a GPU it is the device memory
that the calls leave taken.
"""

from __future__ import annotations

import ctypes
import gc
import json
import signal
import subprocess
import sys
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")
TIMEOUT_S = 300.0
"""Seconds for starting, preparing and four calls."""


def peak_mib(
    model: str,
    peer: str,
    memory_format: str,
    batch: int,
    threads: int,
    device: str = "cpu",
    dtype: str = "float32",
) -> float | None:
    """Peak memory in MiB of a fresh process, None if it cannot be had here.

    Raises:
        RuntimeError: the process failed or took longer than :data:`TIMEOUT_S`.
    """
    if not STATUS.exists():
        return None
    arguments = [model, peer, memory_format, str(batch), str(threads), device, dtype]
    try:
        done = subprocess.run(
            [sys.executable, "-m", __name__, *arguments],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"not ready after {TIMEOUT_S} s in a process of its own") from None
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise RuntimeError(f"ended by {name} in a process of its own")
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no message"])[-1])
    return float(json.loads(done.stdout.strip().splitlines()[-1])["mib"])


def _kib(field: str) -> int:
    line = next(v for v in STATUS.read_text().splitlines() if v.startswith(field + ":"))
    return int(line.split()[1])


def _trim() -> None:
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _main(
    model: str, peer: str, memory_format: str, batch: int, threads: int, device: str, dtype: str
) -> None:
    from . import cases, peers

    torch.set_num_threads(threads)
    case = cases.find(model)
    x = case.inputs(batch).to(device, peers.DTYPES[dtype])
    torch.conv2d(*torch.ones(2, 1, 1, 8, 8, device=device))  # loads the libraries
    _trim()
    before = _taken(device)
    with torch.no_grad():
        built = case.build().to(device, peers.DTYPES[dtype])
        run = peers.Contestant(peer, memory_format).prepare(built, x, threads)
        run()
        _trim()
        if device == "cpu":
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
        else:
            torch.cuda.empty_cache()
        for _ in range(3):
            run()
    peak = _kib("VmHWM") if device == "cpu" else _taken(device)
    print(json.dumps({"mib": max(0, peak - before) / 1024}))


def _taken(device: str) -> int:
    """KiB of the process, or of the device by all of its users."""
    if device == "cpu":
        return _kib("VmRSS")
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    return (total - free) // 1024


if __name__ == "__main__":
    _model, _peer, _format, _batch, _threads, _device, _dtype = sys.argv[1:]
    _main(_model, _peer, _format, int(_batch), int(_threads), _device, _dtype)
