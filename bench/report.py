"""Results as one HTML page that needs nothing else, light and dark, and as picture files."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from inception_fused.spec import GOOGLENET

from . import accuracy_chart, charts, module_charts, network_charts
from .charts import Chart
from .readme import caption
from .results import ABSENT, Measurement, Results
from .tables import figure


def page(results: list[Results]) -> str:
    """The page of these runs, one section each."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["figure"] = figure
    template = environment.get_template("report.html.j2")
    return template.render(runs=[_run(r) for r in results])


def pngs(runs: list[Results], folder: Path) -> list[Path]:
    """Writes every chart of every run into the folder; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written, numbers = [], Counter[str]()
    for results in runs:
        for chart in all_charts(results):
            numbers[chart.name] += 1
            written.append(charts.png(chart, folder, numbers[chart.name]))
    return written


def all_charts(results: Results) -> Iterator[Chart]:
    """The charts for which the results have figures, the whole models' first."""
    for draw in (
        network_charts.latency,
        network_charts.against_batch,
        module_charts.speedup,
        module_charts.rate,
        module_charts.roofline,
        module_charts.steps,
        accuracy_chart.accuracy,
    ):
        chart = draw(results)
        if chart is not None:
            yield chart


def speedups(results: Results) -> list[tuple[int, str, float]]:
    """(batch, contestant, geometric mean of times faster than stock NCHW over the modules)."""
    found: dict[tuple[int, str], list[float]] = {}
    for case in results.cases:
        if case.model in GOOGLENET:
            for m in case.measurements:
                if m.ratio:
                    found.setdefault((case.batch, m.title), []).append(m.ratio[0])
    most = max((len(v) for v in found.values()), default=0)
    return [
        (batch, title, math.exp(sum(map(math.log, values)) / len(values)))
        for (batch, title), values in found.items()
        if len(values) == most
    ]


def _run(results: Results) -> dict[str, Any]:
    found = speedups(results)
    absent = {
        m.title: m.detail for c in results.cases for m in c.measurements if m.status == ABSENT
    }
    return {
        "results": results,
        "caption": caption(results),
        "cases": [(c, _rows(c.measurements), c.model in GOOGLENET) for c in results.cases],
        "absent": absent,
        "batches": sorted({batch for batch, _, _ in found}),
        "speedups": {
            title: {batch: times for batch, t, times in found if t == title}
            for _, title, _ in sorted(found, key=lambda row: -row[2])
        },
        "charts": [
            (chart, [Markup(text) for text in charts.svgs(chart)]) for chart in all_charts(results)
        ],
    }


def _rows(measurements: list[Measurement]) -> list[Measurement]:
    """Those that could run, the fastest first."""
    there = [m for m in measurements if m.status != ABSENT]
    return sorted(there, key=lambda m: m.latency["median"] if m.latency else math.inf)
