"""The clock of ``tune``: every fused module is timed where it is, in calls of the whole model.

So its weights are as cold, its threads as warm and its neighbours what they are in use; modules
timed alone find their weights in the cache, and the ranking changes. A pass is one call of the
model, in which each module runs one of its candidates; a round has as many passes as the module
with the most candidates needs. Candidates take turns in shuffled order, so that all of them meet
the same weather, and are compared round by round.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .candidates import Candidate, Times
from .fusion import Fusion
from .medians import LEAST
from .route import Key, key_of

MOST_ROUNDS = 60


@dataclass(frozen=True, eq=False)
class Site:
    """A fused module as it is called: inputs of one shape, type and layout."""

    name: str
    fusion: Fusion
    x: Tensor
    key: Key

    def __str__(self) -> str:
        layout = "channels_last" if _channels_last(self.x) else "NCHW"
        shape = "x".join(map(str, self.x.shape))
        return f"{self.name or 'the model'}, {shape}, {str(self.x.dtype)[6:]}, {layout}"


def _channels_last(x: Tensor) -> bool:
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def visit(model: nn.Module, fusions: Sequence[tuple[str, Fusion]], example: Tensor) -> list[Site]:
    """Runs the model once; the fused modules that it calls, in the order of their first call."""
    found: dict[tuple[int, Key], Site] = {}

    def note(name: str, fusion: Fusion, args: tuple[Any, ...]) -> None:
        if len(args) == 1 and type(args[0]) is Tensor and args[0].dim() == 4:
            x = args[0].detach()
            key = key_of(x)
            found.setdefault((id(fusion), key), Site(name, fusion, x, key))

    handles = [
        fusion.module.register_forward_pre_hook(lambda _, args, n=name, f=fusion: note(n, f, args))
        for name, fusion in fusions
    ]
    try:
        model(example)
    finally:
        for handle in handles:
            handle.remove()
    return list(found.values())


def measure(
    model: nn.Module,
    example: Tensor,
    contest: dict[Site, list[Candidate]],
    seconds: float,
    progress: Callable[[float], None],
) -> dict[Site, Times]:
    """Rounds for ``seconds``, at least those that an interval needs; the first one is not kept.

    Args:
        contest: who takes part at each site.
        progress: is called after every pass with the share that is done, 0 to 1.
    """
    times: dict[Site, Times] = {site: {c: [] for c in who} for site, who in contest.items()}
    passes = max(map(len, contest.values()), default=0)
    if not passes:
        return times
    shuffle = random.Random(0)
    began = time.perf_counter()
    done = -1  # the round that warms up
    while done < LEAST or (done < MOST_ROUNDS and time.perf_counter() < began + seconds):
        round_: dict[Site, dict[Candidate, float]] = {site: {} for site in contest}
        orders = {site: _order(who, passes, shuffle) for site, who in contest.items()}
        for number in range(passes):
            for site, order in orders.items():
                site.fusion.take(site.key, order[number].route())
            taken = _pass(model, example, list(contest))
            for site, ms in taken.items():
                round_[site].setdefault(orders[site][number], ms)
            past = (time.perf_counter() - began) / seconds
            at_least = (done + 1 + (number + 1) / passes) / (LEAST + 1)
            progress(min(1.0, past, at_least))
        if done >= 0:
            for site, values in round_.items():
                if len(values) == len(times[site]):  # else the model called it with other inputs
                    for candidate, ms in values.items():
                        times[site][candidate].append(ms)
        done += 1
    return times


def _order(who: Sequence[Candidate], passes: int, shuffle: random.Random) -> list[Candidate]:
    """Each of them once in shuffled order, and again from the start until all passes have one."""
    order = shuffle.sample(who, len(who))
    return [order[i % len(order)] for i in range(passes)]


def _pass(model: nn.Module, example: Tensor, sites: Sequence[Site]) -> dict[Site, float]:
    """One call of the model: what each site took in ms, all of its calls together."""
    clock = _device_clock if example.is_cuda else _host_clock
    by_key = {(id(site.fusion), site.key): site for site in sites}
    with clock() as (now, between):
        started: dict[int, Any] = {}
        spans: list[tuple[Site, Any, Any]] = []

        def start(fusion: Fusion) -> None:
            started[id(fusion)] = now()

        def stop(fusion: Fusion, x: Any) -> None:
            end = now()
            site = by_key.get((id(fusion), key_of(x))) if isinstance(x, Tensor) else None
            if site is not None:
                spans.append((site, started[id(fusion)], end))

        handles = []
        for fusion in {id(site.fusion): site.fusion for site in sites}.values():
            module = fusion.module
            handles += [
                module.register_forward_pre_hook(lambda _, __, f=fusion: start(f)),
                module.register_forward_hook(
                    lambda _, args, __, f=fusion: stop(f, args[0] if args else None), prepend=True
                ),
            ]
        try:
            model(example)
        finally:
            for handle in handles:
                handle.remove()
    taken: dict[Site, float] = {}
    for site, begin, end in spans:
        taken[site] = taken.get(site, 0.0) + between(begin, end)
    return taken


Clock = tuple[Callable[[], Any], Callable[[Any, Any], float]]
"""Takes a time, and tells how many ms lie between two; the second after the context's end."""


@contextmanager
def _host_clock() -> Iterator[Clock]:
    yield time.perf_counter_ns, lambda begin, end: (end - begin) / 1e6


@contextmanager
def _device_clock() -> Iterator[Clock]:
    """Of the current CUDA stream: gaps in which the host is late count."""

    def now() -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    yield now, lambda begin, end: float(begin.elapsed_time(end))
    torch.cuda.synchronize()
