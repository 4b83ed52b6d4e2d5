"""Times of calls on a GPU by CUDA events, contestants taking turns.

Two kinds: "cold", one call after the L2 cache was overwritten; "warm", a run of calls one after the
other, the time of one. Both are what the device's clock says between two events of the stream, so
they hold the gaps in which the device waits for the host, which a CUDA graph does not have.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch

from ..runner import describe, percentile

Call = Callable[[], object]

WARM_MS = 3.0
"""Milliseconds that a run of warm calls takes, about."""

MOST_CALLS = 50
LEAST_ROUNDS, MOST_ROUNDS = 7, 60


class Clock(Protocol):
    """Milliseconds between begin and end on the device."""

    def flush(self) -> None: ...
    def time(self, call: Call, calls: int) -> float: ...


class Events:
    """The clock of the current CUDA device."""

    def __init__(self) -> None:
        p = torch.cuda.get_device_properties(torch.cuda.current_device())
        cache = getattr(p, "L2_cache_size", 0) or 64 * 2**20
        self._large = torch.empty(2 * cache, dtype=torch.uint8, device="cuda")
        self._begin = torch.cuda.Event(enable_timing=True)
        self._end = torch.cuda.Event(enable_timing=True)

    def flush(self) -> None:
        """Fills the L2 cache with other data."""
        self._large.fill_(1)

    def time(self, call: Call, calls: int) -> float:
        self._begin.record()
        for _ in range(calls):
            call()
        self._end.record()
        self._end.synchronize()
        return float(self._begin.elapsed_time(self._end))


class Wall:
    """The host's clock, for calls that run on a CPU."""

    def flush(self) -> None:
        """Nothing is known of the caches."""

    def time(self, call: Call, calls: int) -> float:
        began = time.perf_counter()
        for _ in range(calls):
            call()
        return 1e3 * (time.perf_counter() - began)


@dataclass
class Times:
    """Of one contestant: milliseconds per call, one of each kind a round."""

    warm: list[float] = field(default_factory=list)
    cold: list[float] = field(default_factory=list)
    failure: str | None = None

    def summary(self) -> dict[str, float]:
        found = {"rounds": float(len(self.warm))}
        for kind, values in (("warm", self.warm), ("cold", self.cold)):
            for percent in (10, 50, 90):
                found[f"{kind}_p{percent}"] = percentile(values, percent)
        return found


def measure(calls: Mapping[str, Call], clock: Clock, seconds: float) -> dict[str, Times]:
    """Warms every call up, then times them in shuffled order, round by round.

    A call that raises is dropped; its Times say why. Ends after ``seconds`` or the most rounds, but
    not before the fewest.
    """
    times = {name: Times() for name in calls}
    repeats: dict[str, int] = {}
    for name, call in calls.items():
        try:
            for _ in range(3):
                clock.time(call, 1)
            repeats[name] = max(1, min(MOST_CALLS, round(WARM_MS / max(clock.time(call, 1), 1e-3))))
        except Exception as error:
            times[name].failure = describe(error)
    order = list(repeats)
    shuffle = random.Random(0).shuffle
    began, rounds = time.monotonic(), 0
    while order and rounds < MOST_ROUNDS:
        if rounds >= LEAST_ROUNDS and time.monotonic() > began + seconds:
            break
        shuffle(order)
        for name in tuple(order):
            try:
                warm = clock.time(calls[name], repeats[name]) / repeats[name]
                clock.flush()
                cold = clock.time(calls[name], 1)
            except Exception as error:
                times[name].failure = describe(error)
                order.remove(name)
                continue
            times[name].warm.append(warm)
            times[name].cold.append(cold)
        rounds += 1
    return times
