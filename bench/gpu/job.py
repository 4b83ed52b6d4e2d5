"""The work of a check as a list of jobs, done in order until the time is over."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ..runner import describe
from .record import FAILED, OK, PENDING, Record, Row

Say = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """``run`` gives the row of this stage and name.

    Attributes:
        needs: answers why the job must not be done, from what is recorded; None if it may.
        seconds: how much time must be left to begin.
    """

    stage: str
    name: str
    run: Callable[[], Row]
    needs: Callable[[Record], str | None] = field(default=lambda record: None)
    seconds: float = 0.0


def do(
    jobs: Iterable[Job],
    record: Record,
    path: Path,
    deadline: float,
    say: Say,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Does what the record does not have yet, and saves it after every job.

    A job that raises is a failure; one for which no time is left stays pending, for the next run.
    """
    for job in jobs:
        known = record.find(job.stage, job.name)
        if known is not None and known.status == OK:
            continue
        began = clock()
        reason = job.needs(record)
        if reason:
            row = Row(job.stage, job.name, FAILED, reason)
        elif began + job.seconds > deadline:
            row = Row(job.stage, job.name, PENDING, "no time was left")
        else:
            try:
                row = job.run()
            except Exception as error:
                row = Row(job.stage, job.name, FAILED, describe(error))
        record.put(row)
        record.seconds[job.stage] = record.seconds.get(job.stage, 0.0) + clock() - began
        record.save(path)
        say(f"{job.stage}: {job.name}: {row.status}{f', {row.detail}' if row.detail else ''}")
