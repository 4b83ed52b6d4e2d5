"""What may run a fused module, and which of it is taken by what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .backends import Backend, Tuning, able
from .fusion import Fusion
from .medians import interval
from .route import Route, Timing, autocasts

ORIGINAL = "original"
"""Of the candidate that runs the module's own forward."""


@dataclass(frozen=True)
class Candidate:
    """A back end, or None for the original, with a tuning."""

    backend: Backend | None
    tuning: Tuning
    label: str

    @property
    def name(self) -> str:
        """The name that :attr:`Fusion.taken` has after a call."""
        return self.backend.name if self.backend else ORIGINAL

    def route(self, reason: str = "", timings: tuple[Timing, ...] = ()) -> Route:
        return Route(self.backend, reason, self.tuning, timings)


Times = dict[Candidate, list[float]]
"""Latencies in ms. The n-th of every candidate belongs to the same round."""


def candidates(fusion: Fusion, x: Tensor) -> list[Candidate]:
    """The original, every back end with its own choice, and each change of that in one place.

    Back ends and tunings that the module's options rule out are not among them.
    """
    if autocasts(x):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    found = [Candidate(None, (), ORIGINAL)]
    for backend in able(fusion.plan, x, fusion.options.backend):
        options = backend.options(fusion.plan, x) if fusion.options.winograd else ()
        own = backend.tuning(fusion.plan, x) if fusion.options.winograd else ()
        found.append(_candidate(fusion, backend, own))
        plainest = tuple(values[0] for values in options)
        variants = [plainest] if options and own else []
        for place, values in enumerate(options if own else ()):
            variants += [(*own[:place], value, *own[place + 1 :]) for value in values]
        seen = {own}
        for tuning in variants:
            if tuning not in seen:
                seen.add(tuning)
                found.append(_candidate(fusion, backend, tuning))
    return found


def _candidate(fusion: Fusion, backend: Backend, tuning: Tuning) -> Candidate:
    words = backend.describe(fusion.plan, tuning)
    return Candidate(backend, tuning, f"{backend.name}: {words}" if words else backend.name)


def finalists(fusion: Fusion, times: Times) -> list[Candidate]:
    """Who is timed again, after all were, in the order in which they are preferred.

    The original; of each back end its own choice, then that with every place changed whose change
    alone was clearly faster.
    """
    found = []
    for group in _groups(times):
        own = group[0]
        found.append(own)
        if own.backend is None:
            continue
        best = list(own.tuning)
        for place in range(len(own.tuning)):
            changes = [c for c in group[1:] if _differs_only_in(place, c.tuning, own.tuning)]
            for change in sorted(changes, key=lambda c: interval(times[c]).median):
                if clearly_faster(times[change], times[own]):
                    best[place] = change.tuning[place]
                    break
        if tuple(best) != own.tuning:
            found.append(_candidate(fusion, own.backend, tuple(best)))
    return found


def _groups(times: Times) -> list[list[Candidate]]:
    """By back end; a back end's own choice is the first of its group."""
    groups: dict[str, list[Candidate]] = {}
    for candidate in times:
        groups.setdefault(candidate.name, []).append(candidate)
    return list(groups.values())


def _differs_only_in(place: int, a: Tuning, b: Tuning) -> bool:
    return [i for i, (one, other) in enumerate(zip(a, b, strict=True)) if one != other] == [place]


def clearly_faster(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether the median of the rounds' ratios a/b is below 1 with the confidence of medians."""
    return interval([x / y for x, y in zip(a, b, strict=True)]).high < 1


def winner(times: Times) -> Candidate:
    """The candidate that is clearly faster than the original and than those preferred to it.

    Args:
        times: of the finalists, in their order, the original first.
    """
    first, *others = times
    best = first
    for candidate in others:
        if clearly_faster(times[candidate], times[best]):
            best = candidate
    return best


def timings(times: Times) -> tuple[Timing, ...]:
    """What each candidate took, the fastest first."""
    found = []
    for candidate, values in times.items():
        t = interval(values)
        found.append(
            Timing(candidate.label, candidate.name, candidate.tuning, t.median, t.low, t.high)
        )
    return tuple(sorted(found, key=lambda t: t.median))
