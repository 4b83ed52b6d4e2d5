"""Charts of the nine modules: times faster, rate, roofline and the time of each step."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from matplotlib.axes import Axes
from matplotlib.patches import Patch

from inception_fused.spec import GOOGLENET

from .charts import GRID, INK, Chart, Panel, colour, fastest_first, legend, logarithmic, timed
from .results import CaseResult, Measurement, Results

STEPS = {
    "1x1": "#2b6cb0",
    "pool + 1x1": "#90bfe8",
    "3x3": "#178f83",
    "5x5": "#8fd0c4",
}
"""Colours by the beginning of a step's name; none of them is a contestant's."""

_ROW = 1.15
"""Between rows of names above a roofline: the ratio of their places on the logarithmic axis."""


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
        "Operations of direct convolution a second, in 10⁹; the dashed line is the measured "
        "ceiling, which Winograd's filtering may pass, as it needs fewer."
    )
    return _by_batch("rate", "Rate by module", note, results, draw)


def roofline(results: Results) -> Chart | None:
    """GFLOP/s against operations per byte that must move, with the two measured ceilings."""
    cases = _modules(results)
    if not cases or not results.ceiling:
        return None
    note = (
        "Every module, a vertical line with its name, by its operations (of direct convolution, in "
        "10⁹ a second) per byte of input, weights and output. Only a method that needs fewer, as "
        "Winograd's filtering does, can be above the roof, whose parts are measured in the same "
        "run."
    )
    panels = [
        Panel(
            partial(_roofline, group=[c for c in cases if c.batch == batch], results=results), 4.2
        )
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
    draw: Callable[..., None],
) -> Chart | None:
    """``draw(axes, group=cases)`` for the modules at each batch size."""
    cases = _modules(results)
    panels = []
    for batch in sorted({c.batch for c in cases}):
        group = [c for c in cases if c.batch == batch]
        panels.append(Panel(partial(draw, group=group), 3.9))
    return Chart(name, title, note, panels) if panels else None


def _grouped(
    axes: Axes, group: list[CaseResult], height: Callable[[CaseResult, Measurement], float]
) -> None:
    """Bars side by side for every module; those of one contestant have one colour.

    Contestants are in the order of their mean speed.
    """
    titles = fastest_first(group)
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
    for title in fastest_first(group):
        found = [(c, m) for c in group for m in timed(c) if m.title == title]
        axes.plot(
            [c.flops / c.bytes for c, _ in found],
            [c.gflops(m) or 0.0 for c, m in found],
            "D" if found[0][1].peer.startswith("fused") else "o",
            color=colour(found[0][1]),
            markersize=5,
            label=title,
            zorder=3,
        )
    knee = top / stream
    intensity = [c.flops / c.bytes for c in group]
    left, right = min(*intensity, knee) / 2, max(*intensity, knee) * 1.6
    axes.plot([left, knee, right], [left * stream, top, top], color=INK, linewidth=1.2)
    axes.set_xscale("log")
    axes.set_yscale("log")
    highest = max(top, *((c.gflops(m) or 0.0) for c in group for m in timed(c)))
    rows: list[float] = []  # of names from below: where the last one of each is
    for case in sorted(group, key=lambda c: c.flops / c.bytes):
        x = case.flops / case.bytes
        gap = (right / left) ** 0.08
        row = next((i for i, last in enumerate(rows) if x > last * gap), len(rows))
        rows[row : row + 1] = [x]
        y = highest * _ROW ** (row + 0.7)
        lowest = min(case.gflops(m) or 0.0 for m in timed(case))
        axes.vlines(x, lowest, y, color=INK, linewidth=0.6, alpha=0.35, zorder=1)
        axes.annotate(case.model, (x, y), ha="center", va="bottom", fontsize=8.5)
    axes.set_ylim(None, highest * _ROW ** (len(rows) + 1))
    axes.set(
        xlabel="operations per byte",
        ylabel="GFLOP/s",
        title=f"batch {group[0].batch}: {top:.0f} GFLOP/s, {stream:.1f} GB/s",
    )
    for axis in (axes.xaxis, axes.yaxis):
        logarithmic(axis)
    axes.grid(**GRID)
    legend(axes)


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
    legend(axes, 5, [*handles, line])


def _step_colour(name: str) -> str:
    return next((shade for start, shade in STEPS.items() if name.startswith(start)), INK)
