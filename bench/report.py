"""Results as one HTML page that needs nothing else: pictures inline, light and dark."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from inception_fused.spec import GOOGLENET

from . import figures
from .readme import caption
from .results import Measurement, Results
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
    pictures = [
        ("Latency", figures.latency(results)),
        ("Throughput against batch size", figures.throughput(results)),
        ("Modules", figures.modules(results)),
        ("Roofline, by module", figures.roofline(results)),
    ]
    return {
        "results": results,
        "caption": caption(results),
        "cases": [
            (c, sorted(c.measurements, key=_order), c.model in GOOGLENET) for c in results.cases
        ],
        "speedups": speedups(results),
        "pictures": [(title, Markup(figures.svg(f))) for title, f in pictures if f is not None],
    }


def _order(m: Measurement) -> float:
    return m.latency["median"] if m.latency else math.inf
