"""Charts of whole models: latency of each contestant, latency and throughput against the batch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from matplotlib.axes import Axes

from inception_fused.spec import GOOGLENET

from .charts import GRID, INK, Chart, Panel, colour, fastest_first, legend, logarithmic, timed
from .results import CaseResult, Measurement, Results
from .tables import figure


def latency(results: Results) -> Chart | None:
    """A panel per model and batch: bars of the median, whiskers from p10 to p90."""
    cases = _networks(results)
    panels = [Panel(partial(_bars, case=case), 1.1 + 0.34 * len(timed(case))) for case in cases]
    note = "Median latency in ms of a batch, whiskers from p10 to p90; times faster than stock."
    return Chart("latency", "Latency", note, panels) if panels else None


def against_batch(results: Results) -> Chart | None:
    """For each model with at least two batch sizes, a panel of latency and one of throughput."""
    panels = []
    for name in dict.fromkeys(c.model for c in _networks(results)):
        group = [c for c in _networks(results) if c.model == name]
        if len(group) > 1:
            for unit, value in (("latency (ms)", _median), ("images/s", _rate)):
                panels.append(Panel(partial(_lines, group=group, unit=unit, value=value)))
    note = "The same contestants at every batch size: ms a batch, and images a second."
    title = "Latency and throughput against batch size"
    return Chart("batch", title, note, panels) if panels else None


def _networks(results: Results) -> list[CaseResult]:
    return [c for c in results.cases if c.model not in GOOGLENET and timed(c)]


def _median(m: Measurement) -> float:
    assert m.latency is not None
    return m.latency["median"]


def _rate(m: Measurement) -> float:
    assert m.images_per_s is not None
    return m.images_per_s


def _bars(axes: Axes, case: CaseResult) -> None:
    rows = sorted(timed(case), key=_median, reverse=True)
    for y, m in enumerate(rows):
        assert m.latency is not None
        median, p10, p90 = (m.latency[k] for k in ("median", "p10", "p90"))
        axes.barh(y, median, 0.66, color=colour(m))
        axes.plot([p10, p90], [y, y], color=INK, linewidth=1.2, marker="|", markersize=6)
        times = f", {m.ratio[0]:.2f}x" if m.ratio else ""
        axes.annotate(
            f"{figure(median)} ms{times}",
            (max(median, p90), y),
            (5, 0),
            textcoords="offset points",
            va="center",
            fontsize=9.5,
        )
    axes.set_yticks(range(len(rows)), [m.title for m in rows])
    axes.set(title=f"{case.title}, batch {case.batch}", xlabel="latency (ms), median, p10 to p90")
    axes.grid(axis="x", **GRID)
    axes.margins(x=0.45)


def _lines(
    axes: Axes, group: list[CaseResult], unit: str, value: Callable[[Measurement], float]
) -> None:
    for title in fastest_first(group):
        found = [(c.batch, m) for c in group for m in timed(c) if m.title == title]
        axes.plot(
            [batch for batch, _ in found],
            [value(m) for _, m in found],
            "o-",
            color=colour(found[0][1]),
            label=title,
        )
    batches = [c.batch for c in group]
    axes.set_xscale("log", base=2)
    axes.set_xticks(batches, map(str, batches))
    if value is _median:
        axes.set_yscale("log")
        logarithmic(axes.yaxis)
    else:
        axes.set_ylim(0, None)
    axes.set_ylabel(unit)
    axes.grid(**GRID)
    axes.xaxis.minorticks_off()
    axes.set(title=group[0].title, xlabel="batch size (images)")
    legend(axes)
