"""The whole check of a GPU, unattended: right first, then fast. Without one, the emulated tests.

A bare machine needs torch, pytest and a checkout: ``python -m inception_fused.bench.gpu``.
"""

from __future__ import annotations

import re
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from inception_fused.backends import TABLE

from .. import environment
from ..device import describe, slowed
from ..results import replace_file
from . import (
    behaviour,
    conformance,
    correctness,
    device,
    gradients,
    sanitize,
    suites,
    timings,
    winners,
)
from .job import Job, Say, do
from .record import FAILED, OK, Record, Row
from .summary import page

OUTPUT = Path("bench/results")
MINUTES = 9.0
SHARES = {"cuda": 0.3, "triton": 0.45, "sanitizer": 0.55, "winners": 0.7, "timings": 1.0}
"""Of the time, after which each part begins nothing new."""


def check(
    output: Path = OUTPUT, minutes: float = MINUTES, fresh: bool = False, say: Say = print
) -> int:
    """Checks the current device and writes ``<gpu>-<date>.json`` and ``.md`` into ``output``.

    Goes on with a file of the same device, day and commit, unless ``fresh``.

    Returns:
        1 if anything was wrong; 0 if not, or if there is no GPU and the emulated tests pass.
    """
    missing = device.missing()
    if missing:
        say(f"{missing}: nothing is timed and nothing is written; the emulated tests instead:")
        return emulated(say)
    deadline = time.monotonic() + 60 * minutes
    record, path = _begin(output, fresh)
    for name, value in record.device.items():
        say(f"{name}: {value}")
    _work(record, path, deadline, 60 * minutes, say)
    record.device["slowed"] = slowed()
    record.save(path)
    text = page(record)
    replace_file(path.with_suffix(".md"), text)
    say(text)
    say(f"wrote {path} and {path.with_suffix('.md')}")
    return 1 if record.failures() else 0


def emulated(say: Say = print) -> int:
    """The tests that stand for a GPU's; 1 if one fails."""
    code = 0
    for name, arguments in suites.EMULATED.items():
        row = suites.run(name, arguments)
        say(f"{name}: {row.status}, {row.figures}{f', {row.detail}' if row.detail else ''}")
        code |= row.status != OK
    return int(code)


def _begin(output: Path, fresh: bool) -> tuple[Record, Path]:
    found: dict[str, Any] = describe()
    around = environment.describe(torch.get_num_threads())
    now = datetime.now(timezone.utc)
    name = re.sub(r"[^a-z0-9]+", "-", found["name"].lower()).strip("-")
    path = output / f"{name}-{now:%Y-%m-%d}.json"
    if path.exists() and not fresh:
        old = Record.load(path)
        if (old.device["name"], old.environment["commit"]) == (found["name"], around["commit"]):
            return old, path
    return Record(now.isoformat(timespec="seconds"), found, around), path


def _work(record: Record, path: Path, deadline: float, seconds: float, say: Say) -> None:
    def until(part: str) -> float:
        return deadline - seconds * (1 - SHARES[part])

    cuda, triton = (next(b for b in TABLE if b.name == name) for name in ("cuda", "triton"))
    first = Job("conformance", "primitives", conform, seconds=20)
    do([first], record, path, until("cuda"), say)
    do(correctness.jobs([cuda], "cuda"), record, path, until("cuda"), say)
    do(behaviour.jobs([cuda], "cuda"), record, path, until("cuda"), say)
    do(suites.jobs(suites.ON_GPU), record, path, until("triton"), say)
    do(correctness.jobs([triton], "cuda"), record, path, until("triton"), say)
    do(behaviour.jobs([triton], "cuda"), record, path, until("triton"), say)
    do(sanitize.jobs(), record, path, until("sanitizer"), say)
    do(winners.jobs("cuda"), record, path, until("winners"), say)
    do(gradients.jobs("cuda"), record, path, until("winners"), say)
    do(timings.jobs(record, "cuda"), record, path, until("timings"), say)


def conform() -> Row:
    """Every primitive of simt.h on the device."""
    row = Row("conformance", "primitives", OK)
    checks = conformance.run(device.arch())
    row.figures = {check.name: check.values for check in checks}
    wrong = [f"{c.name}: {c.wrong} of {c.values} wrong, {c.detail}" for c in checks if c.wrong]
    if wrong:
        row.status, row.detail = FAILED, "; ".join(wrong)
    return row
