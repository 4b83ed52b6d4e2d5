"""Medians of latencies and how far they can be trusted, without assuming a distribution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.99
"""Of every interval, both sides together."""

LEAST = 8
"""Values from which on an interval of this confidence exists: 2 * 0.5^8 is less than 1 %."""


@dataclass(frozen=True)
class Interval:
    """A median and the bounds that hold it; ``low`` and ``high`` are infinitely far apart if there
    are fewer than :data:`LEAST` values."""

    median: float
    low: float
    high: float


def interval(values: Sequence[float]) -> Interval:
    """The median of independent values, with its confidence interval from order statistics.

    The number of values below the true median is binomial with p = 1/2, whatever they are drawn
    from; so the k-th smallest and the k-th largest hold it as long as both tails of that
    distribution together are within 1 - :data:`CONFIDENCE`.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("values must not be empty")
    ordered = sorted(values)
    # Not from the module statistics, whose import takes 2 ms of every program's start.
    median = (ordered[len(ordered) // 2] + ordered[(len(ordered) - 1) // 2]) / 2
    rank = _rank(len(ordered))
    if rank == 0:
        return Interval(median, -math.inf, math.inf)
    return Interval(median, ordered[rank - 1], ordered[-rank])


def _rank(count: int) -> int:
    """The largest k for which the k-th smallest and k-th largest hold the median; 0 for none."""
    tail, rank = 0.0, 0
    exponent = -count * math.log(2)  # of the probability of exactly `rank` values: 0.5^count is 0
    while 2 * (tail + math.exp(exponent)) <= 1 - CONFIDENCE:  # from some 1,100 values on
        tail += math.exp(exponent)
        rank += 1
        exponent += math.log((count - rank + 1) / rank)
    return rank
