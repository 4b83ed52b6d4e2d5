"""What a chart is: panels that are drawn alone for a page, and together for a picture file.

Text and axes are in one colour, so that a page can give them its own, light or dark.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import LogLocator, NullLocator

from .results import CaseResult, Measurement

INK = "#223344"
"""Colour of text and axes; :func:`svg` turns it into the page's own."""

WIDTH = 5.4
"""Inches of a panel; on a phone its text is then about as large as the page's small print."""

COLOURS = {
    "fused": "#d1495b",
    "fused_triton": "#e07a5f",
    "fused_int8": "#f2a3a8",
    "fused_compile": "#e8899a",
    "fused_graph": "#b5305f",
    "eager": "#8d99ae",
    "channels_last": "#5b7b9a",
    "folded": "#3a8fb7",
    "compile": "#edae49",
    "compile_overhead": "#d98f2b",
    "compile_autotune": "#c9a227",
    "graph": "#6d8f3f",
    "onnxruntime": "#66a182",
    "openvino": "#7a5ea8",
    "openvino_bf16": "#ad97d6",
    "ncnn": "#b0713f",
    "tensorrt": "#4f9d4f",
    "torch_tensorrt": "#2f7d6b",
}
GRID: dict[str, Any] = {"color": INK, "alpha": 0.15, "linewidth": 0.7}
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
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "legend.handlelength": 1.1,
}


@dataclass(frozen=True)
class Panel:
    """One pair of axes, ``height`` inches tall and :data:`WIDTH` wide."""

    draw: Callable[[Axes], None]
    height: float = 3.6


@dataclass(frozen=True)
class Chart:
    """Panels of one kind. ``name`` is that of its file, ``note`` says what is seen, with units."""

    name: str
    title: str
    note: str
    panels: Sequence[Panel]


def svgs(chart: Chart) -> list[str]:
    """An inline SVG element per panel whose ink is the page's text colour, as wide as it may be."""
    found = []
    for panel in chart.panels:
        buffer = io.StringIO()
        with mpl.rc_context(_STYLE):
            figure = Figure((WIDTH, panel.height), layout="constrained")
            panel.draw(figure.subplots())
            figure.savefig(buffer, format="svg", transparent=True)
        text = buffer.getvalue()
        text = text[text.index("<svg") :].replace(INK, "currentColor")
        head, rest = text.split(">", 1)
        head = re.sub(r' (?:width|height)="[^"]*"', "", head)
        found.append(head.replace("<svg", '<svg role="img"', 1) + ">" + rest)
    return found


def png(chart: Chart, folder: Path, number: int = 1) -> Path:
    """Writes the panels, two in a row, into one file of the chart's name; returns its path.

    Args:
        number: of the run, if there are several with such a chart.
    """
    path = folder / f"{chart.name}{f'-{number}' if number > 1 else ''}.png"
    with mpl.rc_context(_STYLE):
        _together(chart).savefig(path, dpi=144, facecolor="white")
    return path


def svg_file(chart: Chart, path: Path, ink: str = INK) -> None:
    """Writes the panels, two in a row, into one SVG without a background; text is outlines.

    The same chart gives the same file.
    """
    buffer = io.StringIO()
    with mpl.rc_context({**_STYLE, "svg.fonttype": "path", "svg.hashsalt": chart.name}):
        _together(chart).savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    path.write_text(buffer.getvalue().replace(INK, ink))


def _together(chart: Chart) -> Figure:
    columns = min(2, len(chart.panels))
    rows = -(-len(chart.panels) // columns)
    heights = [
        max(p.height for p in chart.panels[i * columns : (i + 1) * columns]) for i in range(rows)
    ]
    layout = ConstrainedLayoutEngine(h_pad=0.12, w_pad=0.08)
    figure = Figure((WIDTH * columns, sum(heights)), layout=layout)
    grid = figure.subplots(rows, columns, squeeze=False, height_ratios=heights)
    for axes, panel in zip(grid.flat, chart.panels, strict=False):
        panel.draw(axes)
    for axes in grid.flat[len(chart.panels) :]:
        axes.remove()
    return figure


def logarithmic(axis: Axis, text: str = "{x:g}") -> None:
    """Ticks at 1, 2 and 5 of every power of ten, written out."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=20))
    axis.set_major_formatter(text)
    axis.set_minor_locator(NullLocator())


def timed(case: CaseResult) -> list[Measurement]:
    return [m for m in case.measurements if m.latency]


def colour(m: Measurement) -> str:
    return COLOURS.get(m.peer, INK)


def fastest_first(cases: Sequence[CaseResult]) -> list[str]:
    """The contestants of these cases, by the geometric mean of their latencies."""
    logarithms: dict[str, list[float]] = {}
    for case in cases:
        for m in timed(case):
            assert m.latency is not None
            logarithms.setdefault(m.title, []).append(math.log(m.latency["median"]))
    return sorted(logarithms, key=lambda title: fmean(logarithms[title]))


def legend(axes: Axes, columns: int = 3, handles: Sequence[Artist] = ()) -> None:
    """Above the axes, so that it covers no figure; the title goes above it.

    Args:
        handles: what it shows; otherwise all that has a label.
    """
    shown = handles or axes.get_legend_handles_labels()[0]
    rows = -(-len(shown) // columns)
    axes.legend(
        handles=shown,
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=columns,
        borderaxespad=0.2,
        columnspacing=0.9,
        handletextpad=0.4,
    )
    axes.set_title(axes.get_title(), pad=8 + 15 * rows)
