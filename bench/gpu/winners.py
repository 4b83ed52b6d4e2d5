"""Who wins: every module of a network as the original, by CUDA and by Triton, timed in its place.

``inception_fused.tune`` measures, checks each output before it times it, and keeps the winner of
every module and shape where it finds it again (:mod:`inception_fused.figures`).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import inception_fused
from inception_fused.tune import Tuned

from . import timings
from .arguments import FORMATS, precision
from .job import Job
from .record import FAILED, OK, Record, Row
from .timings import Case, network_case

STAGE = "winners"
SECONDS = 5.0
"""For all candidates of all modules of a network."""


def measure(case: Case, device: str, seconds: float = SECONDS) -> Row:
    """A row with, by module, what won and the least median of each back end in ms.

    Failed if a back end gave wrong numbers or raised; what is right was measured all the same.
    """
    row = Row(STAGE, case.name, OK)
    layout = FORMATS["channels_last"]
    with precision(case.precision) as dtype, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model = case.build().to(device, dtype).to(memory_format=layout)
        x = case.input().to(device, dtype).contiguous(memory_format=layout)
        report = inception_fused.tune(inception_fused.fuse(model), x, seconds, fresh=True)
    row.figures = {"modules": {line.name: _figures(line) for line in report.lines}}
    refused = [str(w.message) for w in said if str(w.message).startswith("tune does not try")]
    if refused:
        row.status, row.detail = FAILED, "; ".join(refused)
    return row


def _figures(line: Tuned) -> dict[str, Any]:
    if line.figures is None:
        return {"taken": None, "reason": line.reason}
    ms: dict[str, float] = {}
    for timing in line.figures.timings:  # the fastest first
        ms.setdefault(timing.backend, timing.median)
    return {"taken": line.figures.taken, "ms": ms}


def jobs(device: str) -> Iterator[Job]:
    """A network in every batch size and both kinds of products, the smallest batch first."""

    def wrong(precision_: str, record: Record) -> str | None:
        found = (timings.blocked(record, backend, precision_) for backend in ("cuda", "triton"))
        return next((reason for reason in found if reason), None)

    for batch in timings.BATCHES:
        for precision_ in ("float16", "tf32"):
            case = network_case(batch, precision_)
            run, needs = partial(measure, case, device), partial(wrong, precision_)
            yield Job(STAGE, case.name, run, needs, seconds=30)


def lines(record: Record) -> Iterator[str]:
    """A table in markdown: a row per network and module, the winner of each."""
    rows = [
        (row.name, module, figures)
        for row in record.of(STAGE)
        for module, figures in row.figures.get("modules", {}).items()
        if figures["taken"] is not None
    ]
    if not rows:
        return
    names = list(dict.fromkeys(name for *_, figures in rows for name in figures["ms"]))
    yield "## Winners\n"
    yield "Medians in us, inside calls of the network; what was taken is clearly the fastest.\n"
    yield f"| network | module | {' | '.join(names)} | taken |"
    yield "|---|---|" + "---:|" * len(names) + "---|"
    for case, module, figures in rows:
        cells = [f"{1e3 * figures['ms'][n]:.1f}" if n in figures["ms"] else "" for n in names]
        yield f"| {case} | {module} | {' | '.join(cells)} | {figures['taken']} |"
    yield ""
