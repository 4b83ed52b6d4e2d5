"""What may run a fused module, and which of it is taken by what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .backends import Backend, Tuning, able
from .fusion import Fusion
from .medians import interval
from .plan import Step
from .route import Route, Timing, autocasts

ORIGINAL = "original"
"""Of the candidate that runs the module's own forward."""

Inside = Mapping[str, Mapping[int, int]]
"""By the name of a back end, places of a network's tuning that its modules have settled."""


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


def inside(network: Fusion, modules: Iterable[tuple[Fusion, Route | None]]) -> Inside:
    """What the fused modules of a network take, as places of the network's tuning.

    A step of the network is that of the module which has the same weights.
    """
    known: dict[str, dict[frozenset[int], int]] = {}
    for fusion, route in modules:
        if route is not None and route.backend is not None:
            for step, value in zip(fusion.plan.steps, route.tuning, strict=False):
                known.setdefault(route.backend.name, {})[_weights(fusion, step)] = value
    steps = {i: _weights(network, step) for i, step in enumerate(network.plan.steps)}
    return {
        name: {i: values[own] for i, own in steps.items() if own and own in values}
        for name, values in known.items()
    }


def _weights(fusion: Fusion, step: Step) -> frozenset[int]:
    weights = (fusion.sources[d.weight].weight.tensor() for d in step.dst if d.weight >= 0)
    return frozenset(map(id, weights))


def candidates(fusion: Fusion, x: Tensor, settled: Inside | None = None) -> list[Candidate]:
    """The original, every back end with its own choice, and each change of that in one place.

    Of a network the original is its modules in turn. Where they have ``settled`` a step, the
    network is tried with all that they take, and only other steps are changed one by one; each
    further candidate would cost a copy of all weights. Back ends and tunings that the options rule
    out are not among them, nor is the reference for a network that another back end may run.
    """
    if autocasts(x):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    found = [Candidate(None, (), "its modules in turn" if fusion.network else ORIGINAL)]
    for backend in able(fusion.plan, x, fusion.options.backend):
        if fusion.network and backend.name == "reference" != fusion.options.backend:
            continue
        options = backend.options(fusion.plan, x) if fusion.options.winograd else ()
        own = backend.tuning(fusion.plan, x) if fusion.options.winograd else ()
        found.append(_candidate(fusion, backend, own))
        plainest = tuple(values[0] for values in options)
        kept = (settled or {}).get(backend.name, {})
        start = _with(own, kept)
        variants = [start, plainest] if options and own else []
        for place, values in enumerate(options if own else ()):
            if place not in kept:
                variants += [_with(start, {place: value}) for value in values]
        seen = {own}
        for tuning in variants:
            if tuning not in seen:
                seen.add(tuning)
                found.append(_candidate(fusion, backend, tuning))
    return found


def _candidate(fusion: Fusion, backend: Backend, tuning: Tuning) -> Candidate:
    words = backend.describe(fusion.plan, tuning)
    return Candidate(backend, tuning, f"{backend.name}: {words}" if words else backend.name)


def _with(tuning: Tuning, changes: Mapping[int, int]) -> Tuning:
    return tuple(changes.get(place, value) for place, value in enumerate(tuning))


def finalists(fusion: Fusion, times: Times, settled: Inside | None = None) -> list[Candidate]:
    """Who is timed again, after all were: the original, and of each back end one or two.

    They are its own choice, then what its modules have settled with every other place changed whose
    change alone was clearly faster.
    """
    found = []
    for group in _groups(times):
        own = group[0]
        found.append(own)
        if own.backend is None:
            continue
        start = _with(own.tuning, (settled or {}).get(own.name, {}))
        base = next((c for c in group if c.tuning == start), own)
        best = list(base.tuning)
        for place in range(len(best)):
            changes = [c for c in group if _differs_only_in(place, c.tuning, base.tuning)]
            for change in sorted(changes, key=lambda c: interval(times[c]).median):
                if clearly_faster(times[change], times[base]):
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


def winner(times: Times, network: bool = False) -> Candidate:
    """The candidate that is clearly faster than all that are preferred to it.

    The original is preferred to all others. Of a network, which nobody runs in turn if it can run
    as a whole, the first back end's own choice is, and its modules in turn come next.

    Args:
        times: of the finalists, in their order, the original first.
    """
    order = list(times)
    if network:
        order[:2] = reversed(order[:2])
    best = order[0]
    for candidate in order[1:]:
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
