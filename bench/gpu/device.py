"""The GPU that a result belongs to, its clocks and its driver."""

from __future__ import annotations

import shutil
import subprocess
from typing import Any

import torch

_ASKED = (
    *("name", "driver_version", "pstate", "clocks.sm", "clocks.max.sm", "clocks.mem"),
    *("clocks.max.mem", "power.limit", "temperature.gpu", "ecc.mode.current", "mig.mode.current"),
    "clocks_event_reasons.active",
)


def missing() -> str | None:
    """Why there is no CUDA device to check; None if there is one."""
    if torch.version.cuda is None:
        return "this torch has no CUDA"
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    return None


def arch() -> str:
    """Of the current device, as nvcc names it: "90a" for compute capability 9.0."""
    major, minor = torch.cuda.get_device_capability()
    return f"{major}{minor}" + ("a" if (major, minor) == (9, 0) else "")


def describe() -> dict[str, Any]:
    """Of the current device; plain JSON values. Clocks and limits are nvidia-smi's."""
    p = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "name": p.name,
        "capability": f"{p.major}.{p.minor}",
        "processors": p.multi_processor_count,
        "memory_mib": p.total_memory // 2**20,
        "l2_bytes": getattr(p, "L2_cache_size", None),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "settings": settings(torch.cuda.current_device()),
    }


def settings(index: int) -> dict[str, str]:
    """What nvidia-smi says of a device now; empty where it is not there."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    found = {}
    for name in _ASKED:  # one at a time: drivers do not know all of them
        done = subprocess.run(
            [program, f"--query-gpu={name}", "--format=csv,noheader", "-i", str(index)],
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        if done.returncode == 0 and done.stdout.strip():
            found[name] = done.stdout.strip()
    return found
