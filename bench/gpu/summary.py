"""A record as a page of markdown: what was wrong first, then goals, then times."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from . import gradients, winners
from .goals import GOALS, doubts
from .record import FAILED, OK, PENDING, SKIPPED, Record, Row
from .timings import STAGE

STATES = (OK, FAILED, SKIPPED, PENDING)


def page(record: Record) -> str:
    """The whole page."""
    parts = (_head, _stages, _goals, winners.lines, gradients.lines, _times)
    return "\n".join((*(line for part in parts for line in part(record)), ""))


def _head(record: Record) -> Iterator[str]:
    device, environment = record.device, record.environment
    yield f"# {device.get('name', 'unknown device')}, {record.created[:10]}\n"
    yield f"Commit {environment.get('commit')}.\n"
    for name, value in device.items():
        yield f"* {name}: {value}"
    yield ""


def _stages(record: Record) -> Iterator[str]:
    yield "| stage | " + " | ".join(STATES) + " | seconds |"
    yield "|---|" + "---:|" * (len(STATES) + 1)
    for stage in dict.fromkeys(row.stage for row in record.rows):
        counted = Counter(row.status for row in record.of(stage))
        numbers = [str(counted[state]) for state in STATES]
        yield f"| {stage} | {' | '.join(numbers)} | {record.seconds.get(stage, 0):.0f} |"
    yield ""
    for row in record.failures():
        yield f"* **failed** {row.stage}: {row.name}: {row.detail}"
    reasons = Counter((r.stage, r.detail) for r in record.rows if r.status == SKIPPED)
    for (stage, detail), number in reasons.items():
        yield f"* skipped {number} of {stage}: {detail}"
    for doubt in doubts(record):
        yield f"* **doubtful** {doubt}"
    yield ""


def _goals(record: Record) -> Iterator[str]:
    yield "## Goals for one H100\n"
    yield "| goal | wanted | measured | reached |"
    yield "|---|---|---|---|"
    yield from (goal.line(record) for goal in GOALS)
    yield ""


def _times(record: Record) -> Iterator[str]:
    """Cases down, contestants across: warm / cold medians in us."""
    rows = [row for row in record.of(STAGE) if row.figures.get("contestants")]
    if not rows:
        return
    titles = list(dict.fromkeys(t for row in rows for t in row.figures["contestants"]))
    yield "## Times\n"
    yield "Medians in us: device, warm / device, L2 cache overwritten / from the call to its end.\n"
    yield f"| case | {' | '.join(titles)} | TFLOP/s | predicted us |"
    yield "|---|" + "---:|" * (len(titles) + 2)
    for row in rows:
        cells = [_cell(row, title) for title in titles]
        predicted = row.figures.get("predicted_us")
        said = "" if predicted is None else f"{predicted:.1f}"
        yield f"| {row.name} | {' | '.join(cells)} | {_rate(row)} | {said} |"


def _cell(row: Row, title: str) -> str:
    figures = row.figures["contestants"].get(title)
    if figures is None:
        return ""
    if "warm_p50" not in figures:
        return "failed"
    return " / ".join(f"{1e3 * figures[f'{k}_p50']:.1f}" for k in ("warm", "cold", "latency"))


def _rate(row: Row) -> str:
    """Of ours, the quickest, by the operations of direct convolution."""
    ours = [
        figures["warm_p50"]
        for figures in row.figures["contestants"].values()
        if figures.get("backend") and "warm_p50" in figures
    ]
    flops = row.figures.get("flops")
    return f"{flops / min(ours) / 1e9:.1f}" if ours and flops else ""
