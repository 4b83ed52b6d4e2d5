"""The machine and the software that a result belongs to."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import inception_fused

PACKAGES = (
    "torch",
    "torchvision",
    "triton",
    "numpy",
    "onnx",
    "onnxruntime",
    "openvino",
    "ncnn",
    "pnnx",
    "tensorrt",
    "torch-tensorrt",
)
_TELLING = ("sse4_2", "avx2", "fma", "f16c", "avx512", "avx_vnni", "amx", "asimd", "sve")


def describe(threads: int) -> dict[str, Any]:
    """Everything a reader needs to judge a figure; plain JSON values."""
    model, flags, megahertz = _cpu()
    return {
        "cpu": model,
        "cpu_flags": [f for f in flags if f.startswith(_TELLING)],
        "cpu_mhz": megahertz,
        "logical_cpus": os.cpu_count(),
        "usable_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "threads": threads,
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "memory_mib": _memory_mib(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": _versions(),
        "backends": inception_fused.backends(),
        "commit": _commit(),
        "torch_cpu": torch.backends.cpu.get_cpu_capability(),
        "variables": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith(("OMP_", "KMP_", "MKL_", "INCEPTION_FUSED_", "ONEDNN_"))
        },
    }


def doubts(environment: dict[str, Any]) -> list[str]:
    """What speaks against figures taken now, for the reader."""
    load, cpus = environment["load_average"], environment["usable_cpus"]
    if load and cpus and load[0] > 0.5 * cpus:
        return [f"other work was running: load average {load[0]:.1f} on {cpus} processors"]
    return []


def steal_ticks() -> tuple[int, int] | None:
    """(ticks that the hypervisor gave to others, all ticks) so far; None where not known."""
    try:
        fields = [int(v) for v in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return None
    return (fields[7], sum(fields)) if len(fields) == 8 else None


def stolen(before: tuple[int, int] | None, after: tuple[int, int] | None) -> float | None:
    """Share of the machine's time in between that other virtual machines took, 0 to 1."""
    if before is None or after is None or after[1] <= before[1]:
        return None
    return (after[0] - before[0]) / (after[1] - before[1])


def _cpu() -> tuple[str, list[str], float | None]:
    fields: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    except OSError:
        pass
    mhz = fields.get("cpu MHz")
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    name = fields.get("model name") or platform.processor() or platform.machine()
    return name, flags, float(mhz) if mhz else None


def _memory_mib() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    except (AttributeError, ValueError, OSError):
        return None


def _versions() -> dict[str, str]:
    found = {}
    for name in ("inception-fused", *PACKAGES):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _commit() -> str | None:
    """Of the checkout that the package is run from, "+" if it was changed; None if installed."""
    folder = Path(inception_fused.__file__).parent
    if not (folder.parent / ".git").exists():
        return None
    try:
        git = ["git", "-C", str(folder.parent)]
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True)
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True).returncode
    except OSError:
        return None
    return head.stdout.decode().strip() + ("+" if changed else "") or None
