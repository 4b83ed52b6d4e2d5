"""Charts of the nine modules: times faster, rate, roofline and the time of each step."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from inception_fused.spec import GOOGLENET

from .charts import GRID, INK, Chart, Panel, colour, legend, logarithmic, timed
from .results import CaseResult, Measurement, Results

STEPS = {
    "1x1": "#d1495b",
    "pool + 1x1": "#edae49",
    "3x3": "#5b7b9a",
    "5x5": "#66a182",
}
"""Colours by the beginning of a step's name."""

_MARKERS = {"eager": "o", "channels_last": "s", "fused": "D"}
"""Of the contestants in the roofline; there the colour tells the module."""


def speedup(results: Results) -> Chart | None:
    """A panel per batch size: how many times faster than stock each module is."""

    def height(case: CaseResult, m: Measurement) -> float:
        return m.ratio[0] if m.ratio else 0.0

    def draw(axes: Axes, group: list[CaseResult]) -> None:
        _grouped(axes, group, height)
        axes.axhline(1, color=INK, linewidth=1)
        axes.set_ylabel("times faster")

    note = "Times faster than stock PyTorch (eager, NCHW) by module; the line is stock itself."
    return _by_batch("speedup", "Speed-up by module", note, results, draw)


def rate(results: Results) -> Chart | None:
    """A panel per batch size: GFLOP/s of each module and contestant, and the measured ceiling."""

    def height(case: CaseResult, m: Measurement) -> float:
        return case.gflops(m) or 0.0

    def draw(axes: Axes, group: list[CaseResult]) -> None:
        _grouped(axes, group, height)
        if results.ceiling:
            axes.axhline(results.ceiling["gflops"], color=INK, linestyle="--", linewidth=1)
        axes.set_ylabel("GFLOP/s")

    note = (
        "Operations of direct convolution a second, in 10^9; the dashed line is the measured "
        "ceiling, which Winograd's filtering may pass, as it needs fewer."
    )
    return _by_batch("rate", "Rate by module", note, results, draw)


def roofline(results: Results) -> Chart | None:
    """GFLOP/s against operations per byte that must move, with the two measured ceilings."""
    cases = _modules(results)
    if not cases or not results.ceiling:
        return None
    note = (
        "Every module by its operations (of direct convolution, in 10^9 a second) per byte of "
        "input, weights and output. Only a method that needs fewer, as Winograd's filtering "
        "does, can be above the line; both of its parts are measured in the same run."
    )
    panels = [
        Panel(partial(_roofline, group=[c for c in cases if c.batch == batch], results=results))
        for batch in sorted({c.batch for c in cases})
    ]
    return Chart("roofline", "Roofline", note, panels)


def steps(results: Results) -> Chart | None:
    """A panel per batch size: the time of each step of the fused plan, and of the whole."""
    cases = [c for c in _modules(results) if c.steps]
    note = (
        "Each step of the fused plan timed alone, in ms, stacked; the mark is the whole module. "
        "It lies below the stack where steps run side by side or share what is in the caches."
    )
    panels = [
        Panel(partial(_steps, group=[c for c in cases if c.batch == batch]))
        for batch in sorted({c.batch for c in cases})
    ]
    return Chart("steps", "Where the time of a module goes", note, panels) if panels else None


def _modules(results: Results) -> list[CaseResult]:
    return [c for c in results.cases if c.model in GOOGLENET and timed(c)]


def _by_batch(
    name: str,
    title: str,
    note: str,
    results: Results,
    draw: Callable[[Axes, list[CaseResult]], None],
) -> Chart | None:
    cases = _modules(results)
    panels = []
    for batch in sorted({c.batch for c in cases}):
        group = [c for c in cases if c.batch == batch]
        panels.append(Panel(partial(draw, group=group), 3.9))
    return Chart(name, title, note, panels) if panels else None


def _grouped(
    axes: Axes, group: list[CaseResult], height: Callable[[CaseResult, Measurement], float]
) -> None:
    """Bars side by side for every module; those of one contestant have one colour."""
    titles = list(dict.fromkeys(m.title for c in group for m in timed(c)))
    width = 0.84 / len(titles)
    for i, title in enumerate(titles):
        found = [(x, c, m) for x, c in enumerate(group) for m in timed(c) if m.title == title]
        axes.bar(
            [x + (i - (len(titles) - 1) / 2) * width for x, _, _ in found],
            [height(c, m) for _, c, m in found],
            width * 0.92,
            color=colour(found[0][2]),
            label=title,
        )
    axes.set_xticks(range(len(group)), [c.model for c in group])
    axes.set(title=f"batch {group[0].batch}", xlabel="module of GoogLeNet")
    axes.grid(axis="y", **GRID)
    legend(axes)


def _roofline(axes: Axes, group: list[CaseResult], results: Results) -> None:
    assert results.ceiling is not None
    top, stream = results.ceiling["gflops"], results.ceiling["gbytes"]
    shades = mpl.color_sequences["tab10"]
    for case, shade in zip(group, shades, strict=False):
        for m in timed(case):
            if m.peer in _MARKERS:
                point = case.flops / case.bytes, case.gflops(m) or 0.0
                axes.plot(*point, _MARKERS[m.peer], color=shade, markersize=5.5, alpha=0.9)
        axes.plot([], [], "s", color=shade, markersize=7, label=case.model)
    for m in timed(group[0]):
        if m.peer in _MARKERS:
            axes.plot([], [], _MARKERS[m.peer], color=INK, fillstyle="none", label=m.title)
    knee = top / stream
    intensity = [c.flops / c.bytes for c in group]
    left, right = min(*intensity, knee) / 2, max(*intensity, knee) * 1.6
    axes.plot([left, knee, right], [left * stream, top, top], color=INK, linewidth=1.2)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set(
        xlabel="operations per byte",
        ylabel="GFLOP/s",
        title=f"batch {group[0].batch}: {top:.0f} GFLOP/s, {stream:.1f} GB/s",
    )
    for axis in (axes.xaxis, axes.yaxis):
        logarithmic(axis)
    axes.grid(**GRID)
    legend(axes, 4)


def _steps(axes: Axes, group: list[CaseResult]) -> None:
    for x, case in enumerate(group):
        bottom = 0.0
        for name, ms in case.steps.items():
            axes.bar(x, ms, 0.62, bottom=bottom, color=_step_colour(name))
            bottom += ms
        whole = next((m for m in timed(case) if m.peer == "fused"), None)
        if whole is not None and whole.latency:
            axes.plot([x - 0.4, x + 0.4], [whole.latency["median"]] * 2, color=INK, linewidth=2)
    axes.set_xticks(range(len(group)), [c.model for c in group])
    axes.set(title=f"batch {group[0].batch}", ylabel="ms", xlabel="module of GoogLeNet")
    axes.grid(axis="y", **GRID)
    handles = [Patch(color=shade, label=name) for name, shade in STEPS.items()]
    (line,) = axes.plot([], [], color=INK, linewidth=2, label="whole module")
    axes.legend(handles=[*handles, line])


def _step_colour(name: str) -> str:
    return next((shade for start, shade in STEPS.items() if name.startswith(start)), INK)
