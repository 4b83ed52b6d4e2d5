"""``inception-fused bench`` in one process: every case checked, then timed, written and shown."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from inception_fused.spec import GOOGLENET

from . import breakdown, ceiling, device, environment, memory, results, runner, tables
from .cases import Case
from .check import Check
from .peers import DTYPES, PEERS, REFERENCE, contestants
from .results import CaseResult, Measurement, Results

RESULTS = "results.json"

SLOW = 0.93
"""Below this share of the ceiling a CPU's clock is worth a note."""


@dataclass(frozen=True)
class Settings:
    """What to run. ``seconds`` is per case, for all contestants; ``rounds`` overrides it."""

    models: tuple[str, ...]
    batches: tuple[int, ...]
    peers: tuple[str, ...]
    memory_format: str = "channels_last"
    threads: int = 0
    seconds: float = 6.0
    rounds: int | None = None
    memory: bool = True
    device: str = "cpu"
    dtype: str = "float32"
    processes: int = 1

    def plain(self) -> dict[str, object]:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @classmethod
    def of_plain(cls, values: dict[str, object]) -> Settings:
        known = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**known)  # type: ignore[arg-type]


def run(
    cases: list[Case], settings: Settings, output: Path, console: Console, resume: bool = False
) -> Results:
    """Runs the job; the results file in ``output`` is written after every contestant's step.

    Ctrl-C ends it early with what was measured, marked ``interrupted``.

    Raises:
        ValueError: ``resume`` is asked for and the file is missing or of other settings.
    """
    torch.set_num_threads(settings.threads)
    path = output / RESULTS
    found = start(settings, path, resume)
    finished = {(c.model, c.batch) for c in found.cases if c.complete}
    found.cases = [c for c in found.cases if c.complete]
    stolen = environment.steal_ticks()

    def save() -> None:
        found.save(path)

    save()
    try:
        with Progress(console=console, transient=True) as progress, torch.no_grad():
            task = progress.add_task("measured ceiling", total=len(cases) * len(settings.batches))
            if found.ceiling is None:
                found.ceiling = asdict(ceiling.measure(settings.device, settings.dtype))
            for case in cases:
                todo = [b for b in settings.batches if (case.name, b) not in finished]
                model = case.build() if todo else None
                for batch in settings.batches:
                    if model is not None and batch in todo:
                        result = _begin(case, model, batch)
                        found.cases.append(result)

                        def say(text: str, name: str = f"{case.title}, batch {batch}") -> None:
                            progress.update(task, description=f"{name}: {text}")

                        found.notes += _one(case, model, result, found, settings, save, say)
                        result.complete = True
                        save()
                        progress.console.print(tables.case(result, found.ceiling))
                    progress.advance(task)
    except KeyboardInterrupt:
        found.interrupted = True
        for result in found.cases:
            if not result.complete:
                console.print(tables.case(result, found.ceiling))
    share = environment.stolen(stolen, environment.steal_ticks())
    if share is not None and share > 0.02:
        found.notes.append(f"other virtual machines took {share:.0%} of the processor time")
    save()
    return found


def agreed(found: Results) -> bool:
    """True if something was measured and every fused model gave the stock model's numbers."""
    fused = [m for c in found.cases for m in c.measurements if m.peer.startswith("fused")]
    stock = [m for c in found.cases for m in c.measurements if m.peer == REFERENCE]
    fine = (results.OK, results.PENDING, results.ABSENT)
    return all(m.status in fine for m in fused + stock) and bool(stock)


def start(settings: Settings, path: Path, resume: bool) -> Results:
    """Empty results, or with ``resume`` those in the file; ValueError as :func:`run` says."""
    if not resume:
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        about = environment.describe(settings.threads)
        if settings.device != "cpu":
            about["gpu"] = device.describe()
        found = Results(now, about, settings.plain())
        found.notes += environment.doubts(about)
        return found
    found = Results.load(path)
    if found.settings != settings.plain():
        keys = [k for k, v in settings.plain().items() if found.settings.get(k) != v]
        raise ValueError(f"--resume: {path} was run with other settings: {', '.join(keys)}")
    found.interrupted = False
    return found


def _begin(case: Case, model: nn.Module, batch: int) -> CaseResult:
    x = case.inputs(1)
    with FlopCounterMode(display=False) as counter:
        y = model(x)
    weights = sum(p.nbytes for p in model.parameters())
    return CaseResult(
        case.name,
        case.title,
        batch,
        counter.get_total_flops() * batch,
        (x.nbytes + y.nbytes) * batch + weights,
    )


def _one(
    case: Case,
    model: nn.Module,
    result: CaseResult,
    found: Results,
    settings: Settings,
    save: Callable[[], None],
    say: Callable[[str], None],
) -> list[str]:
    """Prepares and checks every contestant, then times those that agree; returns notes."""
    dtype = DTYPES[settings.dtype]
    result.bytes = result.bytes * dtype.itemsize // torch.float32.itemsize
    x = case.inputs(result.batch).to(settings.device, dtype)
    placed = copy.deepcopy(model).to(settings.device, dtype)
    check = Check(placed, x, settings.dtype, settings.device, settings.threads)
    torch._dynamo.reset()
    calls: dict[str, Callable[[], Tensor]] = {}
    by_title: dict[str, Measurement] = {}
    for contestant in contestants(list(settings.peers), settings.memory_format):
        m = Measurement(contestant.peer, contestant.memory_format, contestant.title)
        result.measurements.append(m)
        say(f"preparing {contestant.title}")
        call = check.prepare(contestant, m) if _tried(case, m, result.batch, settings) else None
        if call is not None:
            calls[m.title], by_title[m.title] = call, m
        save()
    notes = _time(result, found, calls, by_title, settings, save, say)
    if case.name in GOOGLENET and any(m.peer == "fused" for m in by_title.values()):
        say("timing each step")
        result.steps = breakdown.measure(GOOGLENET[case.name], check.x)
        save()
    return notes


def _tried(case: Case, m: Measurement, batch: int, settings: Settings) -> bool:
    """Runs a contestant alone first, for its memory; one that crashes or hangs is not let in."""
    peer = PEERS[m.peer]
    if not settings.memory or peer.why_not(settings.device, settings.dtype):
        return True
    try:
        m.memory_mib = memory.peak_mib(
            case.name,
            m.peer,
            m.memory_format,
            batch,
            settings.threads,
            settings.device,
            settings.dtype,
        )
    except RuntimeError as error:
        m.status, m.detail = results.FAILED, str(error)
        return False
    return True


def _time(
    result: CaseResult,
    found: Results,
    calls: dict[str, Callable[[], Tensor]],
    by_title: dict[str, Measurement],
    settings: Settings,
    save: Callable[[], None],
    say: Callable[[str], None],
) -> list[str]:
    assert found.ceiling is not None
    best = ceiling.Ceiling(**found.ceiling)
    samples: dict[str, runner.Samples] = {}
    gpu = device.Clock() if settings.device != "cpu" else None
    turn = gpu.turn if gpu else runner.host_turn
    notes = []
    before = ceiling.clock(best)
    saved = time.monotonic()
    for share in runner.measure(calls, samples, settings.seconds, settings.rounds, turn):
        say(f"timing {share:.0%}")
        if time.monotonic() > saved + 2:
            _record(result, by_title, samples, gpu)
            save()
            saved = time.monotonic()
    slowed = device.slowed() if gpu else None
    if slowed:
        notes.append(f"{result.title}, batch {result.batch}: the GPU was slowed: {slowed}")
    after = ceiling.clock(best)
    result.clock = [round(share, 3) for share in (before, after) if share is not None]
    if min(result.clock, default=1) < SLOW:
        notes.append(
            f"{result.title}, batch {result.batch}: the processor ran at "
            f"{' and '.join(f'{share:.0%}' for share in result.clock)} of its measured peak before "
            "and after the timing (clock, or other work)"
        )
    _record(result, by_title, samples, gpu)
    save()
    return notes


def _record(
    result: CaseResult,
    by_title: dict[str, Measurement],
    samples: dict[str, runner.Samples],
    gpu: device.Clock | None,
) -> None:
    reference = next((samples.get(t) for t, m in by_title.items() if m.peer == REFERENCE), None)
    for title, m in by_title.items():
        taken = samples.get(title, runner.Samples())
        if taken.failure:
            m.status, m.detail = results.FAILED, taken.failure
        elif taken.rounds:
            m.status = results.OK
        if taken.rounds:
            m.rounds = [[round(v, 5) for v in values] for values in taken.rounds]
            m.latency = asdict(runner.summarise(taken.all))
            m.images_per_s = 1000 * result.batch / m.latency["median"]
            if reference is not None and reference.rounds:
                m.ratio = list(runner.ratio(reference, taken))
            if gpu:
                kept = {"host": gpu.host, "warm": gpu.warm, "cold": gpu.cold}
                m.device = {k: asdict(runner.summarise(v[title])) for k, v in kept.items()}
