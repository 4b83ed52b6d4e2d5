"""The chart of errors: each contestant against the same network computed in float64."""

from __future__ import annotations

from functools import partial

from matplotlib.axes import Axes

from inception_fused.spec import GOOGLENET

from .charts import GRID, Chart, Panel, colour, fastest_first, legend, logarithmic
from .results import CaseResult, Measurement, Results


def accuracy(results: Results) -> Chart | None:
    """A panel per whole model, and one of the modules, at the smallest batch of each."""
    smallest = {c.model: c for c in sorted(results.cases, key=lambda c: -c.batch)}
    cases = [c for c in smallest.values() if _rows(c)]
    cases.sort(key=lambda c: list(GOOGLENET).index(c.model) if c.model in GOOGLENET else -1)
    networks = [c for c in cases if c.model not in GOOGLENET]
    modules = [c for c in cases if c.model in GOOGLENET]
    panels = [Panel(partial(_network, case=c), 1.1 + 0.3 * len(_rows(c))) for c in networks]
    if modules:
        panels.append(Panel(partial(_modules, group=modules)))
    note = (
        "Largest difference from the output in float64, relative to the largest output, of the "
        "first image; further left, or lower, is more accurate."
    )
    return Chart("accuracy", "Error against float64", note, panels) if panels else None


def _rows(case: CaseResult) -> list[Measurement]:
    """Those with an error; an error of exactly 0 has no place on a logarithmic axis."""
    return [m for m in case.measurements if m.error]


def _network(axes: Axes, case: CaseResult) -> None:
    rows = sorted(_rows(case), key=lambda m: m.error or 0.0, reverse=True)
    for y, m in enumerate(rows):
        assert m.error is not None
        axes.plot(m.error, y, "o", color=colour(m))
        axes.annotate(
            f"{m.error:.1e}", (m.error, y), (7, 0), textcoords="offset points", va="center", size=9
        )
    axes.set_xscale("log")
    axes.set_yticks(range(len(rows)), [m.title for m in rows])
    axes.set(title=case.title, xlabel="error, relative to the largest output")
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.margins(x=0.3)
    axes.xaxis.minorticks_off()
    axes.grid(**GRID)


def _modules(axes: Axes, group: list[CaseResult]) -> None:
    for title in fastest_first(group):
        found = [(x, m) for x, c in enumerate(group) for m in _rows(c) if m.title == title]
        if not found:
            continue
        shade = colour(found[0][1])
        axes.plot(
            [x for x, _ in found], [m.error or 0.0 for _, m in found], "o", color=shade, label=title
        )
    axes.set_yscale("log")
    logarithmic(axes.yaxis, "{x:.0e}")
    axes.set_xticks(range(len(group)), [c.model for c in group])
    axes.set(
        title="modules",
        xlabel="module of GoogLeNet",
        ylabel="error, relative to the largest output",
    )
    axes.grid(**GRID)
    legend(axes)
