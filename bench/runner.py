"""The interleaved clock: contestants take turns in one process, in shuffled order.

Timed one after the other, two builds with identical machine code differ by a quarter as the
clock and the neighbours change; taking turns, both meet the same weather, and their ratio is taken
round by round.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

TURN_S = 0.06
"""Seconds of timed calls in a turn; a turn has at least one and at most 100."""

PAUSE_S = 0.004
"""Seconds of rest before a turn: thread pools spin for a while after their last call."""

LEAST_ROUNDS = 5

Call = Callable[[], object]

Turn = Callable[[str, Call, int], list[float]]
"""Takes a contestant's name, its call and a number of repeats; returns as many latencies in ms."""


@dataclass
class Samples:
    """Latencies in ms, a list per round. ``failure`` is what a contestant raised, if it did."""

    rounds: list[list[float]] = field(default_factory=list)
    failure: str | None = None

    @property
    def all(self) -> list[float]:
        return [value for values in self.rounds for value in values]


@dataclass(frozen=True)
class Summary:
    """Percentiles of a contestant's latency in ms.

    ``outliers`` counts the calls beyond three interquartile ranges above the upper quartile; they
    are in the percentiles, nothing is removed.
    """

    median: float
    p10: float
    p90: float
    p99: float
    calls: int
    outliers: int


def percentile(values: list[float], percent: float) -> float:
    """Linear between the neighbours in order; ValueError if there are no values."""
    if not values:
        raise ValueError("values must not be empty")
    ordered = sorted(values)
    position = (len(ordered) - 1) * percent / 100
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def summarise(values: list[float]) -> Summary:
    q1, q3 = percentile(values, 25), percentile(values, 75)
    limit = q3 + 3 * (q3 - q1)
    p10, p50, p90, p99 = (percentile(values, p) for p in (10, 50, 90, 99))
    return Summary(p50, p10, p90, p99, len(values), sum(v > limit for v in values))


def ratio(reference: Samples, other: Samples) -> tuple[float, float, float]:
    """How many times faster than the reference: median, p10 and p90 of the rounds' ratios."""
    pairs = zip(reference.rounds, other.rounds, strict=False)
    ratios = [percentile(a, 50) / percentile(b, 50) for a, b in pairs]
    return percentile(ratios, 50), percentile(ratios, 10), percentile(ratios, 90)


def host_turn(name: str, call: Call, repeats: int) -> list[float]:
    """Latencies in ms after one call that brings the contestant's weights back into the caches."""
    clock = time.perf_counter_ns
    time.sleep(PAUSE_S)
    call()
    values = []
    for _ in range(repeats):
        start = clock()
        call()
        values.append((clock() - start) / 1e6)
    return values


def measure(
    calls: Mapping[str, Call],
    samples: dict[str, Samples],
    seconds: float,
    rounds: int | None,
    turn: Turn = host_turn,
    turn_s: float = TURN_S,
) -> Iterator[float]:
    """Warms up, then adds a round to every contestant's samples per step of the iterator.

    Yields the share that is done, 0 to 1. Ends after ``rounds`` if given, else after ``seconds``,
    but not before :data:`LEAST_ROUNDS`. A contestant that raises is dropped; its Samples say why.
    """
    clock = time.perf_counter
    repeats: dict[str, int] = {}
    for name, call in calls.items():
        samples[name] = Samples()
        try:
            call()
            once = turn(name, call, 1)[0] / 1000
            repeats[name] = max(1, min(100, round(turn_s / max(once, 1e-9))))
        except Exception as error:
            samples[name].failure = describe(error)
    order = [name for name in calls if name in repeats]
    shuffle = random.Random(0).shuffle
    done, began = 0, clock()
    while order and (done < rounds if rounds else done < LEAST_ROUNDS or clock() < began + seconds):
        shuffle(order)
        turns: dict[str, list[float]] = {}
        for name in tuple(order):
            try:
                turns[name] = turn(name, calls[name], repeats[name])
            except Exception as error:
                samples[name].failure = describe(error)
                order.remove(name)
        for name, values in turns.items():  # only whole rounds, so that rounds can be paired
            samples[name].rounds.append(values)
        done += 1
        yield min(1.0, done / rounds if rounds else (clock() - began) / seconds)


def describe(error: BaseException) -> str:
    """Type and first line of an exception, short enough for a table."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:160]}"
