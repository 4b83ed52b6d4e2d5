"""The README's results, a table and a picture, written from results files between two markers."""

from __future__ import annotations

from html import escape
from pathlib import Path

from . import charts, module_charts, network_charts
from .charts import INK
from .results import ABSENT, CaseResult, Results
from .tables import figure

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


PICTURES = Path("docs")
"""Folder of the pictures, beside the README."""

INKS = {"light": INK, "dark": "#e3e8ee"}
"""Colour of text and axes by the reader's scheme."""


def write(path: Path, results: list[Results]) -> list[Path]:
    """Replaces what is between the markers, and writes the pictures; returns what was written.

    Raises:
        ValueError: naming the file, if the markers are not there.
    """
    try:
        text = path.read_text()
    except OSError as error:
        raise ValueError(f"--readme {path}: {error.strerror}") from None
    start, end = text.find(BEGIN), text.find(END)
    if start < 0 or end < start:
        raise ValueError(f"--readme {path} must have the lines {BEGIN} and {END}")
    written, bodies = [path], []
    for number, run in enumerate(results, 1):
        bodies.append(table(run))
        chart = network_charts.latency(run) or module_charts.speedup(run)
        if chart is not None:
            stem = "results" if number == 1 else f"results-{number}"
            names = {scheme: PICTURES / f"{stem}-{scheme}.svg" for scheme in INKS}
            for scheme, name in names.items():
                (path.parent / name).parent.mkdir(exist_ok=True)
                charts.svg_file(chart, path.parent / name, INKS[scheme])
                written.append(path.parent / name)
            bodies.append(_picture(names, chart.note))
    body = "\n\n".join(bodies)
    path.write_text(f"{text[: start + len(BEGIN)]}\n{body}\n{text[end:]}")
    return written


def _picture(names: dict[str, Path], words: str) -> str:
    """The element that shows a file by the reader's colour scheme."""
    return (
        "<picture>\n"
        f'  <source media="(prefers-color-scheme: dark)" srcset="{names["dark"].as_posix()}">\n'
        f'  <img alt="{escape(words)}" src="{names["light"].as_posix()}">\n'
        "</picture>"
    )


def table(results: Results) -> str:
    """A Markdown table, a row per contestant, a column per model and batch, and its caption."""
    cases = results.cases
    titles = list(
        dict.fromkeys(m.title for c in cases for m in c.measurements if m.status != ABSENT)
    )
    lines = [
        "| median ms (times faster) | "
        + " | ".join(f"{c.title}, b{c.batch}" for c in cases)
        + " |",
        "|---|" + "---:|" * len(cases),
    ]
    for title in titles:
        name = f"**{title}**" if title.startswith("fused") else title
        lines.append(f"| {name} | " + " | ".join(_cell(c, title) for c in cases) + " |")
    return "\n".join([*lines, "", caption(results)])


def caption(results: Results) -> str:
    """One sentence: machine, threads, versions, day, commit."""
    e = results.environment
    versions = e["versions"]
    named = [
        f"{k} {versions[k]}" for k in ("torch", "onnxruntime", "openvino", "ncnn") if k in versions
    ]
    commit = f", commit {e['commit']}" if e.get("commit") else ""
    where = (
        e["gpu"]["name"] if "gpu" in e else f"{e['cpu']}, {e['torch_cpu']}, {e['threads']} threads"
    )
    count = results.settings.get("processes", 1)
    process = "one process" if count == 1 else f"each of {count} processes, each at its best"
    return (
        f"{where}; {', '.join(named)}; {results.settings.get('dtype', 'float32')}, contestants "
        f"interleaved in {process}, {results.created[:10]}{commit}."
    )


def _cell(case: CaseResult, title: str) -> str:
    for m in case.measurements:
        if m.title == title:
            if not m.latency:
                return m.status
            times = f" ({m.ratio[0]:.2f}x)" if m.ratio else ""
            return figure(m.latency["median"]) + times
    return "-"
