"""A CUDA device: its description, and a clock that holds host time and device time apart."""

from __future__ import annotations

import shutil
import subprocess
import time
from typing import Any

import torch

from .runner import Call, percentile

# Bits of NVML's clock event reasons that mean that the device runs slower than it could.
_SLOWED = {
    0x4: "power limit",
    0x8: "hardware slowdown",
    0x20: "temperature (software)",
    0x40: "temperature (hardware)",
    0x80: "power brake",
}
_FIELDS = "driver_version,clocks.sm,clocks.max.sm,clocks_throttle_reasons.active,temperature.gpu"


class Clock:
    """Times calls that leave work on the current CUDA device.

    Beside the latency of a call, from its start until the device is done, it keeps three times in
    ms per contestant: ``host`` until the call returns, and the device's own time from the first to
    the last of its work, ``warm`` with the caches as the same call left them and ``cold`` after
    the L2 cache was overwritten. For the device's time the device is held up until the host has
    handed over all work, so that gaps between launches do not count.
    """

    def __init__(self) -> None:
        size = torch.cuda.get_device_properties().L2_cache_size
        self._flush = torch.empty(2 * size, dtype=torch.uint8, device="cuda")
        self._cycles_per_ms = self._calibrate()
        self.host: dict[str, list[float]] = {}
        self.warm: dict[str, list[float]] = {}
        self.cold: dict[str, list[float]] = {}

    def turn(self, name: str, call: Call, repeats: int) -> list[float]:
        """Latencies in ms of so many calls, after one that is not timed."""
        clock, wait = time.perf_counter_ns, torch.cuda.synchronize
        call()
        wait()
        latencies, host = [], []
        for _ in range(repeats):
            start = clock()
            call()
            returned = clock()
            wait()
            latencies.append((clock() - start) / 1e6)
            host.append((returned - start) / 1e6)
        self.host.setdefault(name, []).extend(host)
        held = 1.5 * percentile(host, 50) + 0.02
        for times, cold in ((self.warm, False), (self.cold, True)):
            found = times.setdefault(name, [])
            found.extend(self._device_ms(call, held, cold) for _ in range(repeats))
        return latencies

    def _device_ms(self, call: Call, held_ms: float, cold: bool) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        if cold:
            self._flush.zero_()
        torch.cuda._sleep(int(held_ms * self._cycles_per_ms))
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end))

    @staticmethod
    def _calibrate() -> float:
        """Cycles of ``torch.cuda._sleep`` in a ms."""
        cycles = 2_000_000
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(cycles)
        start.record()
        torch.cuda._sleep(cycles)
        end.record()
        torch.cuda.synchronize()
        return cycles / float(start.elapsed_time(end))


def describe() -> dict[str, Any]:
    """The current CUDA device; plain JSON values."""
    properties = torch.cuda.get_device_properties()
    state = _state() or {}
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_mib": properties.total_memory // 2**20,
        "l2_mib": properties.L2_cache_size / 2**20,
        "driver": state.get("driver_version"),
        "max_mhz": _number(state.get("clocks.max.sm")),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "tf32": torch.backends.cudnn.allow_tf32,
    }


def slowed() -> str | None:
    """Why the device runs slower than it could at this moment, if the driver says so."""
    state = _state()
    if state is None:
        return None
    try:
        bits = int(state["clocks_throttle_reasons.active"], 16)
    except ValueError:
        return None
    reasons = [text for bit, text in _SLOWED.items() if bits & bit]
    if not reasons:
        return None
    at = f"{state['clocks.sm']} of {state['clocks.max.sm']}, {state['temperature.gpu']} degrees"
    return f"{', '.join(reasons)} ({at})"


def _state() -> dict[str, str] | None:
    """What nvidia-smi says of the first device it lists; None without it."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", f"--query-gpu={_FIELDS}", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    values = [v.strip() for v in done.stdout.partition("\n")[0].split(",")]
    names = _FIELDS.split(",")
    return dict(zip(names, values, strict=True)) if len(values) == len(names) else None


def _number(text: str | None) -> float | None:
    """The number that "1980 MHz" begins with."""
    try:
        return float((text or "").split()[0])
    except (IndexError, ValueError):
        return None
