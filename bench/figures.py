"""Plots of results with matplotlib. Text and axes are in one colour, so a page can restyle them."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from inception_fused.spec import GOOGLENET

from .results import CaseResult, Measurement, Results

INK = "#223344"
"""Colour of text and axes; :func:`svg` turns it into the page's own."""

COLOURS = {
    "fused": "#d1495b",
    "eager": "#8d99ae",
    "channels_last": "#5b7b9a",
    "folded": "#3a8fb7",
    "compile": "#edae49",
    "onnxruntime": "#66a182",
    "openvino": "#7a5ea8",
    "ncnn": "#b0713f",
}
_STYLE: Any = {
    "font.size": 10.5,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "svg.fonttype": "none",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 11.5,
    "xtick.color": INK,
    "ytick.color": INK,
}
_GRID: dict[str, Any] = {"color": INK, "alpha": 0.15, "linewidth": 0.7}


def pngs(results: Results, folder: Path) -> list[Path]:
    """Writes latency.png for networks and modules.png for the nine modules; returns the paths."""
    written = []
    for name, figure in (("latency", latency(results)), ("modules", modules(results))):
        if figure is not None:
            written.append(folder / f"{name}.png")
            figure.savefig(written[-1], dpi=144, facecolor="white")
    return written


def svg(figure: Figure) -> str:
    """An inline SVG element whose ink is the page's text colour, as wide as the page allows."""
    buffer = io.StringIO()
    with mpl.rc_context(_STYLE):
        figure.savefig(buffer, format="svg", transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    widest = f'<svg style="max-width:{110 * figure.get_figwidth():.0f}px"'
    head, rest = text.split(">", 1)
    head = re.sub(r' (?:width|height)="[^"]*"', "", head).replace("<svg", widest, 1)
    return f"{head}>{rest}"


def latency(results: Results) -> Figure | None:
    """A panel per network and batch: median latency, whiskers from p10 to p90."""
    cases = [c for c in results.cases if c.model not in GOOGLENET and _timed(c)]
    if not cases:
        return None
    rows = max(len(_timed(c)) for c in cases)
    columns = min(2, len(cases))
    lines = -(-len(cases) // columns)
    with mpl.rc_context(_STYLE):
        figure = Figure((5.4 * columns, lines * (1.2 + 0.36 * rows)), layout="constrained")
        for axes, case in zip(
            figure.subplots(lines, columns, squeeze=False).flat, cases, strict=False
        ):
            _bars(axes, case)
        for axes in figure.axes[len(cases) :]:
            axes.remove()
    return figure


def throughput(results: Results) -> Figure | None:
    """Images a second against the batch size, a panel per network with at least two batches."""
    names = list(dict.fromkeys(c.model for c in results.cases if c.model not in GOOGLENET))
    groups = [[c for c in results.cases if c.model == n and _timed(c)] for n in names]
    groups = [g for g in groups if len(g) > 1]
    if not groups:
        return None
    with mpl.rc_context(_STYLE):
        figure = Figure((5.4 * len(groups), 3.4), layout="constrained")
        for axes, group in zip(
            figure.subplots(1, len(groups), squeeze=False).flat, groups, strict=True
        ):
            for first in _timed(group[0]):
                points = [
                    (c.batch, m.images_per_s)
                    for c in group
                    for m in _timed(c)
                    if m.title == first.title and m.images_per_s
                ]
                axes.plot(*zip(*points, strict=True), "o-", color=_colour(first), label=first.title)
            batches = [c.batch for c in group]
            axes.set_xscale("log", base=2)
            axes.set_xticks(batches, map(str, batches))
            axes.minorticks_off()
            axes.set(title=group[0].title, xlabel="batch size (images)", ylabel="images/s", ylim=0)
            axes.grid(**_GRID)
            axes.legend(fontsize=8.5, frameon=False)
    return figure


def modules(results: Results) -> Figure | None:
    """A panel per batch size: GFLOP/s of each module and contestant, and the measured ceiling."""
    cases = [c for c in results.cases if c.model in GOOGLENET and _timed(c)]
    if not cases:
        return None
    batches = sorted({c.batch for c in cases})
    with mpl.rc_context(_STYLE):
        figure = Figure((10, 0.5 + 2.7 * len(batches)), layout="constrained")
        for axes, batch in zip(
            figure.subplots(len(batches), 1, squeeze=False).flat, batches, strict=True
        ):
            group = [c for c in cases if c.batch == batch]
            titles = list(dict.fromkeys(m.title for c in group for m in _timed(c)))
            width = 0.84 / len(titles)
            for i, title in enumerate(titles):
                found = [
                    (x, c, m) for x, c in enumerate(group) for m in _timed(c) if m.title == title
                ]
                axes.bar(
                    [x + (i - (len(titles) - 1) / 2) * width for x, _, _ in found],
                    [c.gflops(m) or 0 for _, c, m in found],
                    width * 0.92,
                    color=_colour(found[0][2]),
                    label=title,
                )
            if results.ceiling:
                axes.axhline(results.ceiling["gflops"], color=INK, linestyle="--", linewidth=1)
            axes.set_xticks(range(len(group)), [c.model for c in group])
            axes.set(title=f"batch {batch}", ylabel="GFLOP/s (direct)")
            axes.grid(axis="y", **_GRID)
        figure.axes[-1].set_xlabel("module of GoogLeNet; dashed line: measured float32 ceiling")
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False)
    return figure


def roofline(results: Results) -> Figure | None:
    """GFLOP/s against operations per byte that must move, with the two measured ceilings."""
    cases = [c for c in results.cases if c.model in GOOGLENET and _timed(c)]
    if not cases or not results.ceiling:
        return None
    top, stream = results.ceiling["gflops"], results.ceiling["gbytes"]
    with mpl.rc_context(_STYLE):
        figure = Figure((7, 4.2), layout="constrained")
        axes = figure.subplots()
        batches = sorted({c.batch for c in cases})
        for peer in ("eager", "channels_last", "fused"):
            for batch in batches:
                found = [
                    (c.flops / c.bytes, c.gflops(m), c.model, m)
                    for c in cases
                    for m in _timed(c)
                    if c.batch == batch and m.peer == peer
                ]
                if not found:
                    continue
                x, y, names, rows = zip(*found, strict=True)
                label = f"{rows[0].title}, batch {batch}"
                marker = "os^Dv"[batches.index(batch) % 5]
                axes.plot(x, y, marker, color=_colour(rows[0]), alpha=0.8, label=label)
                if peer == "fused" and batch == batches[0]:
                    for point in zip(x, y, names, strict=True):
                        axes.annotate(
                            point[2], point[:2], (4, 4), textcoords="offset points", size=8
                        )
        right = max(c.flops / c.bytes for c in cases) * 1.6
        left = min(min(c.flops / c.bytes for c in cases), top / stream) / 2
        knee = top / stream
        axes.plot([left, knee, right], [left * stream, top, top], color=INK, linewidth=1.2)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set(
            xlabel="operations per byte of input, weights and output",
            ylabel="GFLOP/s (direct convolution)",
            title=f"Roofline: {top:.0f} GFLOP/s, {stream:.1f} GB/s (both measured)",
        )
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter("{x:g}")
            axis.set_tick_params(which="minor", labelsize=7)
        axes.grid(which="both", **_GRID)
        axes.legend(fontsize=8, frameon=False)
    return figure


def _timed(case: CaseResult) -> list[Measurement]:
    return [m for m in case.measurements if m.latency]


def _colour(m: Measurement) -> str:
    return COLOURS.get(m.peer, INK)


def _bars(axes: Axes, case: CaseResult) -> None:
    rows: Sequence[Measurement] = sorted(
        _timed(case), key=lambda m: m.latency["median"] if m.latency else 0, reverse=True
    )
    for y, m in enumerate(rows):
        assert m.latency is not None
        median, p10, p90 = (m.latency[k] for k in ("median", "p10", "p90"))
        axes.barh(y, median, 0.66, color=_colour(m))
        axes.plot([p10, p90], [y, y], color=INK, linewidth=1.2, marker="|", markersize=6)
        times = f"  {m.ratio[0]:.2f}x" if m.ratio else ""
        axes.annotate(
            f"{median:.1f} ms{times}",
            (max(median, p90), y),
            (5, 0),
            textcoords="offset points",
            va="center",
        )
    axes.set_yticks(range(len(rows)), [m.title for m in rows])
    axes.set(title=f"{case.title}, batch {case.batch}", xlabel="latency (ms), median, p10 to p90")
    axes.grid(axis="x", **_GRID)
    axes.margins(x=0.3)
