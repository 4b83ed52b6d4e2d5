"""The same job in several processes, one after the other, and the best of each contestant.

Memory placement and thread start differ from process to process and stay as they are until its
end; some engines are up to twice as slow in one process as in the next. Each contestant is judged
by the process in which its median was lowest, stock PyTorch too.
"""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console

from . import cases, job, results, tables
from .job import RESULTS, Settings
from .peers import REFERENCE
from .results import CaseResult, Measurement, Results

SETTINGS = "settings.json"
"""What a process reads from its folder."""

_PATIENCE_S = 60


def run(settings: Settings, output: Path, console: Console, resume: bool = False) -> Results:
    """Runs ``settings.processes`` processes; each leaves its own results in ``output/process-N``.

    A process that dies is noted, and the next one starts; memory is measured in the first one, and
    a peer that fails or disagrees there is not run in the next. Ctrl-C keeps what was measured.

    Raises:
        ValueError: ``resume`` is asked for and the file is missing or of other settings.
    """
    empty = job.start(settings, output / RESULTS, resume)
    count = settings.processes
    folders = [output / f"process-{i}" for i in range(1, count + 1)]
    if not resume:
        for folder in folders:
            (folder / RESULTS).unlink(missing_ok=True)
    deaths, interrupted = [], False
    for i, folder in enumerate(folders, 1):
        console.print(f"process {i} of {count}")
        names = settings.peers if i == 1 else _without_failed(settings, folders[0] / RESULTS)
        first = settings.memory and i == 1
        try:
            _start(replace(settings, processes=1, memory=first, peers=names), folder)
        except KeyboardInterrupt:
            interrupted = True
        except RuntimeError as error:
            deaths.append(f"process {i} of {count} {error}")
        found = [Results.load(f / RESULTS) for f in folders if (f / RESULTS).exists()]
        merged = merge(found, settings) if found else empty
        merged.notes += deaths
        merged.interrupted = interrupted or any(r.interrupted for r in found)
        merged.save(output / RESULTS)
        if merged.interrupted:
            break
    for case in merged.cases:
        console.print(tables.case(case, merged.ceiling))
    return merged


def _without_failed(settings: Settings, first: Path) -> tuple[str, ...]:
    """The peers without those that failed or disagreed in the first process."""
    if not first.exists():
        return settings.peers
    wrong = {
        m.peer
        for c in Results.load(first).cases
        for m in c.measurements
        if m.status in (results.FAILED, results.DISAGREES)
    }
    return tuple(p for p in settings.peers if p not in wrong or p in ("fused", REFERENCE))


def merge(runs: list[Results], settings: Settings) -> Results:
    """The runs, at least one and all of these settings, as one."""
    found = Results(runs[0].created, runs[0].environment, settings.plain())
    ceilings = [r.ceiling for r in runs if r.ceiling]
    found.ceiling = max(ceilings, key=lambda c: float(c["gflops"]), default=None)
    found.notes = list(dict.fromkeys(note for r in runs for note in r.notes))
    for key in dict.fromkeys((c.model, c.batch) for r in runs for c in r.cases):
        group = [c for r in runs for c in r.cases if (c.model, c.batch) == key]
        complete = len(group) == settings.processes and all(c.complete for c in group)
        result = replace(group[0], complete=complete, clock=[s for c in group for s in c.clock])
        result.measurements = _best(group)
        names = dict.fromkeys(name for c in group for name in c.steps)
        result.steps = {n: min(c.steps[n] for c in group if n in c.steps) for n in names}
        found.cases.append(result)
    return found


def _best(group: list[CaseResult]) -> list[Measurement]:
    titles = dict.fromkeys(m.title for c in group for m in c.measurements)
    merged = {t: _merge([m for c in group for m in c.measurements if m.title == t]) for t in titles}
    stock = next((t for t, m in merged.items() if m.peer == REFERENCE and m.latency), None)
    for title, m in merged.items():
        if stock is not None and m.latency:
            own = [_median(c, stock) / _median(c, title) for c in group]
            known = [times for times in own if not math.isnan(times)]
            # Best over best is never outside of what single processes had.
            m.ratio = [min(merged[stock].processes) / min(m.processes), min(known), max(known)]
    return list(merged.values())


def _median(case: CaseResult, title: str) -> float:
    """Of that contestant in ms; not a number if it has none."""
    row = next((m for m in case.measurements if m.title == title), None)
    return row.latency["median"] if row and row.latency else math.nan


def _merge(rows: list[Measurement]) -> Measurement:
    """One contestant: its best process, and the worst status of any."""
    timed = [m for m in rows if m.latency]
    best = min(timed, key=lambda m: m.latency["median"] if m.latency else 0.0, default=rows[0])
    worst = max(rows, key=lambda m: _GRAVITY.index(m.status))
    detail = worst.detail
    if timed and worst.status != results.OK:
        detail = f"in a process of {len(rows)}: {detail}"
    merged = replace(
        best,
        status=worst.status,
        detail=detail,
        processes=[m.latency["median"] for m in timed if m.latency],
        memory_mib=next((m.memory_mib for m in rows if m.memory_mib is not None), None),
        difference=max((m.difference for m in rows if m.difference is not None), default=None),
        error=max((m.error for m in rows if m.error is not None), default=None),
    )
    if merged.status == results.DISAGREES:
        merged.latency = merged.images_per_s = merged.ratio = None
    return merged


_GRAVITY = (results.OK, results.PENDING, results.ABSENT, results.FAILED, results.DISAGREES)


def _start(settings: Settings, folder: Path) -> None:
    """Runs a process to its end; RuntimeError if it dies."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SETTINGS).write_text(json.dumps(asdict(settings), indent=1))
    child = subprocess.Popen([sys.executable, "-m", __name__, str(folder)])
    try:
        code = child.wait()
    except KeyboardInterrupt:
        child.send_signal(signal.SIGINT)  # a terminal has sent it already; twice does no harm
        try:
            child.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        raise
    if code == 130:
        raise KeyboardInterrupt
    if code < 0:
        raise RuntimeError(f"was ended by {signal.Signals(-code).name}")
    if code:
        raise RuntimeError(f"failed with exit code {code}, see above")


def _main(folder: Path) -> int:
    settings = Settings.of_plain(json.loads((folder / SETTINGS).read_text()))
    found = [cases.find(name) for name in settings.models]
    resume = (folder / RESULTS).exists()
    return 130 if job.run(found, settings, folder, Console(), resume).interrupted else 0


if __name__ == "__main__":
    sys.exit(_main(Path(sys.argv[1])))
