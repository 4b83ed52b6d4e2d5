"""Confidence intervals of medians."""

from __future__ import annotations

import math
import random

import pytest

from inception_fused.medians import CONFIDENCE, LEAST, interval


@pytest.mark.parametrize(
    ("count", "rank"),
    [(8, 1), (10, 1), (12, 2), (20, 4), (50, 16), (100, 37), (1100, 507), (3000, 1429)],
)
def test_ranks_are_those_of_the_sign_test(count: int, rank: int) -> None:
    """The largest k whose two binomial tails are within 1 %."""
    values = [float(i) for i in range(1, count + 1)]
    random.Random(0).shuffle(values)
    found = interval(values)
    assert (found.low, found.high) == (rank, count + 1 - rank)
    tail = sum(math.comb(count, k) for k in range(rank)) / 2**count
    assert 2 * tail <= 1 - CONFIDENCE < 2 * (tail + math.comb(count, rank) / 2**count)


def test_too_few_values_bound_nothing() -> None:
    found = interval([3.0, 1.0, 2.0, 4.0] + [2.5] * (LEAST - 5))
    assert found.median == 2.5
    assert (found.low, found.high) == (-math.inf, math.inf)
    assert math.isfinite(interval([1.0] * LEAST).high)


def test_nothing_has_no_median() -> None:
    with pytest.raises(ValueError, match="values must not be empty"):
        interval([])


def test_the_interval_holds_the_true_median() -> None:
    """Of a skewed distribution, as latencies have: exponential with median ln 2."""
    draw = random.Random(1)
    tries = 4000
    missed = 0
    for _ in range(tries):
        found = interval([draw.expovariate(1.0) for _ in range(15)])
        missed += not found.low <= math.log(2) <= found.high
    exact = 2 * sum(math.comb(15, k) for k in range(3)) / 2**15  # 0.74 %
    assert missed / tries == pytest.approx(exact, abs=4 * math.sqrt(exact / tries))
