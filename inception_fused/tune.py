"""``tune``: measures, per fused module, what could run it, and keeps the fastest.

What was measured is kept on disk (:mod:`cache`) by everything that it depends on beside the values
of weights and inputs, and taken from there by the next process.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from .backends import Tuning
from .candidates import (
    ORIGINAL,
    Candidate,
    Inside,
    candidates,
    finalists,
    inside,
    timings,
    winner,
)
from .examine import tolerance
from .figures import STORE, Figures, device_name, key_of_figures
from .find import find
from .fusion import Fusion, fusion_of, network_of
from .medians import LEAST
from .route import Route
from .trace import all_modules, evaluating
from .trial import Site, measure, visit

Progress = Callable[[str, float], None]
"""Is told what is being done, and the share of all that is done, 0 to 1."""


@dataclass(frozen=True)
class Tuned:
    """One module for one kind of input. ``remembered``: the figures were on disk.

    ``figures`` is None if there are none, then ``reason`` says why.
    """

    name: str
    inputs: str
    figures: Figures | None
    remembered: bool
    reason: str = ""

    def __str__(self) -> str:
        if self.figures is None:
            return f"{self.inputs}: not tuned: {self.reason}"
        rows = ", ".join(f"{t.label} {t.median:.3g} ms" for t in self.figures.timings)
        source = "remembered" if self.remembered else "measured"
        reason = f", {self.reason}" if self.reason else ""
        return f"{self.inputs}: takes {self.figures.taken}{reason} ({source}: {rows})"


@dataclass(frozen=True)
class TuneReport:
    """What :func:`tune` returns; ``str`` gives one line per module and kind of input."""

    lines: tuple[Tuned, ...]

    def __str__(self) -> str:
        return "\n".join(map(str, self.lines))


def tune(
    model: nn.Module,
    example_input: Tensor,
    seconds: float = 20.0,
    fresh: bool = False,
    progress: Progress | None = None,
) -> TuneReport:
    """Measures what can run each fused module of the model, and makes it take the fastest.

    The candidates are every available back end in every configuration that it can express one
    change at a time, and the original forward: a module for which nothing is clearly faster than
    the original (by a 99 % confidence interval of the ratio) takes the original. A network that
    can run as a whole is then tried with what its modules take, and keeps running as a whole unless
    its modules in turn are clearly faster. The output of each is compared
    with the original's before it is timed; one that differs is dropped with a warning. The model is
    called as a whole, many times, in eval mode without gradients, on ``example_input``: its hooks
    run, and autocast is as it is around the call of ``tune``.

    The choice holds for inputs of a module with the same shape, dtype, device, strides and
    autocast, whatever the weights become; it is part of deep copies and not of saved models. It was
    measured with torch's current number of threads: tune again after changing that. Graphs of
    torch.compile and torch.export choose as if not tuned.

    Figures are kept in a file for each device in ``$INCEPTION_FUSED_CACHE``, else
    ``$XDG_CACHE_HOME/inception_fused``, else ``~/.cache/inception_fused``; what is found there is
    not measured again.

    Args:
        model: fused, or a fused module.
        example_input: an input of the model, on its device, in the shape that will be used.
        seconds: the time to measure for; it takes longer if the model is so slow that the rounds
            that a confidence interval needs do not fit in.
        fresh: measures again what is on disk.
        progress: is called often.

    Raises:
        TypeError: model is not an nn.Module, or example_input not a Tensor.
        ValueError: nothing in the model is fused or called, or seconds is not above 0.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    if not isinstance(example_input, Tensor):
        raise TypeError(f"example_input must be a Tensor, got {type(example_input).__name__}")
    if not (math.isfinite(seconds) and seconds > 0):
        raise ValueError(f"seconds must be above 0, got {seconds}")
    say = progress or (lambda text, share: None)
    modules, networks = fused_parts(model)
    if not modules and not networks:
        raise ValueError("model has no fused module: call inception_fused.fuse(model) before")
    touched: list[tuple[Site, Route | None]] = []
    found: list[Tuned] = []
    with torch.no_grad(), evaluating(all_modules(model)):
        try:
            # Hooks on modules inside keep a network from running as a whole: so first the modules,
            # then the whole against its modules as they then are.
            share = 0.6 if modules and networks else float(bool(modules))
            for named, start, end in ((modules, 0.0, share), (networks, share, 1.0)):
                sites = visit(model, named, example_input) if named else []
                tuned = [(site.fusion, site.fusion.measured(site.key)) for site, _ in touched]
                settled = {site: inside(site.fusion, tuned) for site in sites if tuned}
                touched += [(site, site.fusion.measured(site.key)) for site in sites]
                part = partial(_part, say, start, end)
                span = (end - start) * seconds
                found += _tune(model, example_input, sites, settled, span, fresh, part)
        except BaseException:
            for site, route in touched:
                site.fusion.take(site.key, route)
            raise
        finally:
            for _, fusion in (*modules, *networks):
                fusion.drop_packs()
    if not touched:
        raise ValueError("example_input does not reach a fused module of the model")
    say("done", 1.0)
    return TuneReport(tuple(found))


def _part(say: Progress, start: float, end: float, text: str, share: float) -> None:
    say(text, start + (end - start) * share)


def fused_parts(model: nn.Module) -> tuple[list[tuple[str, Fusion]], list[tuple[str, Fusion]]]:
    """What is fused by name: single modules, and networks that run as a whole."""
    modules: list[tuple[str, Fusion]] = []
    networks: list[tuple[str, Fusion]] = []
    for verdict in find(model):
        if verdict.network and not verdict.outline:
            fusion = network_of(verdict.module)
        else:
            fusion = fusion_of(verdict.module)
        if fusion is not None:
            (networks if verdict.network else modules).append((verdict.name, fusion))
    return modules, networks


def _tune(
    model: nn.Module,
    example: Tensor,
    sites: list[Site],
    settled: dict[Site, Inside],
    seconds: float,
    fresh: bool,
    say: Progress,
) -> list[Tuned]:
    found: dict[Site, Tuned] = {}
    device = device_name(example)
    known = {} if fresh else STORE.load(device)
    contest: dict[Site, list[Candidate]] = {}
    keys: dict[Site, str] = {}
    for site in sites:
        if site.fusion.int8 is not None:
            reason = "it computes in int8, which is not tuned"
            found[site] = Tuned(site.name, str(site), None, False, reason)
            continue
        who = candidates(site.fusion, site.x, settled.get(site))
        keys[site] = key_of_figures(site, who)
        figures = known.get(keys[site])
        if figures is not None and _take(site, figures, who):
            found[site] = Tuned(site.name, str(site), figures, True)
        else:
            contest[site] = who
    for number, site in enumerate(contest):
        say(f"checking {site}", 0.1 * number / len(contest))
        who, reason = check(site, contest[site])
        contest[site] = who
        if reason:
            site.fusion.take(site.key, None)
            found[site] = Tuned(site.name, str(site), None, False, reason)
    contest = {site: who for site, who in contest.items() if site not in found}
    measured = _measure(model, example, contest, settled, seconds, say) if contest else {}
    for site, (figures, reason) in measured.items():
        if figures is None or not _take(site, figures, contest[site]):
            site.fusion.take(site.key, None)
        found[site] = Tuned(site.name, str(site), figures, False, reason)
    new = {keys[site]: figures for site, (figures, _) in measured.items() if figures}
    try:
        if new:
            STORE.save(device, new)
    except OSError as error:
        warnings.warn(f"what tune has measured cannot be kept: {error}", stacklevel=3)
    return [found[site] for site in sites]


def _measure(
    model: nn.Module,
    example: Tensor,
    contest: dict[Site, list[Candidate]],
    settled: dict[Site, Inside],
    seconds: float,
    say: Progress,
) -> dict[Site, tuple[Figures | None, str]]:
    """All candidates in half of the time, then the finalists, whose times decide."""

    def tell(share: float, start: float) -> None:
        say("timing calls of the model", start + 0.45 * share)

    first = measure(model, example, contest, seconds / 2, lambda share: tell(share, 0.1))
    last: dict[Site, list[Candidate]] = {}
    for site, times in first.items():
        if len(next(iter(times.values()))) >= LEAST:
            last[site], _ = check(site, finalists(site.fusion, times, settled.get(site)))
    second = measure(model, example, last, seconds / 2, lambda share: tell(share, 0.55))
    found: dict[Site, tuple[Figures | None, str]] = {}
    for site, times in first.items():
        final = second.get(site, {})
        if len(final.get(contest[site][0], ())) < LEAST:
            found[site] = (None, "the model does not call it with these inputs every time")
            continue
        network = site.fusion.network
        best = winner(final, network)
        figures = Figures(best.label, timings({**times, **final}))
        found[site] = (figures, "" if best.backend else _AGAINST[network])
    return found


_AGAINST = {
    False: "nothing is clearly faster than the original",
    True: "its modules in turn are clearly faster than the whole",
}
"""Why no back end is taken, for a module and for a network."""


def check(site: Site, who: list[Candidate]) -> tuple[list[Candidate], str]:
    """Those whose output is the original's, the original first; or why there is nothing to time.

    Warns of each that fails or differs.
    """
    expected = _output(site, who[0])
    assert expected is not None
    scale = float(expected.abs().max()) if expected.numel() else 0.0
    kept = [who[0]]
    for candidate in who[1:]:
        try:
            output = _output(site, candidate)
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            _drop(site, candidate, f"raises {type(error).__name__}: {lines[0]}")
            continue
        if output is None:
            return kept, site.fusion.reason
        if output.shape != expected.shape:
            _drop(site, candidate, f"gives {tuple(output.shape)}, not {tuple(expected.shape)}")
            continue
        apart = float((output - expected).abs().max()) if output.numel() else 0.0
        if not apart <= tolerance(expected) * scale:
            _drop(site, candidate, f"differs from the original by {apart:.2g}, of {scale:.2g}")
            continue
        kept.append(candidate)
    return kept, "" if len(kept) > 1 else "no back end can run it"


def _output(site: Site, candidate: Candidate) -> Tensor | None:
    """What the module gives if it takes the candidate; None if it does not take it."""
    fusion = site.fusion
    fusion.take(site.key, candidate.route())
    output = fusion.module.forward(site.x)
    if fusion.taken != candidate.name:
        return None
    if candidate.backend is not None:
        fusion.tune_inside(candidate.backend, candidate.tuning, site.x)
    assert isinstance(output, Tensor)
    return output


def _drop(site: Site, candidate: Candidate, reason: str) -> None:
    warnings.warn(f"tune does not try {candidate.label} for {site}: it {reason}", stacklevel=5)


def _take(site: Site, figures: Figures, who: list[Candidate]) -> bool:
    """Makes the module take what the figures say; False if that is no longer possible."""
    timing = next(t for t in figures.timings if t.label == figures.taken)
    backend = next((c.backend for c in who if c.name == timing.backend), None)
    if backend is None and timing.backend != ORIGINAL:
        return False
    tuning: Tuning = timing.tuning
    if backend is not None:
        options = backend.options(site.fusion.plan, site.x)
        places = zip(options, tuning, strict=False)
        if tuning and (len(options) != len(tuning) or any(t not in o for o, t in places)):
            return False
    original = next(t for t in figures.timings if t.backend == ORIGINAL)
    network = site.fusion.network
    name = original.label if network else f"the {original.label}"
    reason = f"measured: {timing.median:.3g} ms, {name} {original.median:.3g} ms"
    if backend is None:
        reason = f"measured: {_AGAINST[network]}, {original.median:.3g} ms"
    site.fusion.take(site.key, Route(backend, reason, tuning, figures.timings))
    return True
