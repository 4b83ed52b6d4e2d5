"""``inception-fused bench``: every case checked, then timed, written and shown."""

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

from . import ceiling, environment, memory, results, runner, tables
from .cases import Case
from .peers import PEERS, REFERENCE, Contestant, contestants
from .results import CaseResult, Measurement, Results

TOLERANCE = 1e-4
"""Largest |difference| from the stock output, relative to the largest |stock output|."""

RESULTS = "results.json"


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

    def plain(self) -> dict[str, object]:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


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
    found = _start(settings, path, resume)
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
                found.ceiling = asdict(ceiling.measure())
            for case in cases:
                todo = [b for b in settings.batches if (case.name, b) not in finished]
                model = case.build() if todo else None
                for batch in settings.batches:
                    if model is not None and batch in todo:
                        result = _begin(case, model, batch)
                        found.cases.append(result)

                        def say(text: str, name: str = f"{case.title}, batch {batch}") -> None:
                            progress.update(task, description=f"{name}: {text}")

                        _one(case, model, result, settings, save, say)
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
    fused = [m for c in found.cases for m in c.measurements if m.peer == "fused"]
    stock = [m for c in found.cases for m in c.measurements if m.peer == REFERENCE]
    return all(m.status in (results.OK, results.PENDING) for m in fused + stock) and bool(stock)


def _start(settings: Settings, path: Path, resume: bool) -> Results:
    if not resume:
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        found = Results(now, environment.describe(settings.threads), settings.plain())
        found.notes += environment.doubts(found.environment)
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
    settings: Settings,
    save: Callable[[], None],
    say: Callable[[str], None],
) -> None:
    """Prepares and checks every contestant, then times those that agree."""
    x = case.inputs(result.batch)
    stock = model(x)
    exact = copy.deepcopy(model).double()(x[:1].double())
    torch._dynamo.reset()
    calls: dict[str, Callable[[], Tensor]] = {}
    by_title: dict[str, Measurement] = {}
    for contestant in contestants(list(settings.peers), settings.memory_format):
        m = Measurement(contestant.peer, contestant.memory_format, contestant.title)
        result.measurements.append(m)
        say(f"preparing {contestant.title}")
        call = _prepare(contestant, model, x, stock, exact, settings.threads, m)
        if call is not None:
            calls[m.title], by_title[m.title] = call, m
        save()
    samples: dict[str, runner.Samples] = {}
    saved = time.monotonic()
    for share in runner.measure(calls, samples, settings.seconds, settings.rounds):
        say(f"timing {share:.0%}")
        if time.monotonic() > saved + 2:
            _record(result, by_title, samples)
            save()
            saved = time.monotonic()
    _record(result, by_title, samples)
    save()
    if settings.memory:
        for m in by_title.values():
            say(f"memory of {m.title}")
            try:
                arguments = (case.name, m.peer, m.memory_format, result.batch, settings.threads)
                m.memory_mib = memory.peak_mib(*arguments)
            except RuntimeError as error:
                m.detail = str(error)
            save()


def _prepare(
    contestant: Contestant,
    model: nn.Module,
    x: Tensor,
    stock: Tensor,
    exact: Tensor,
    threads: int,
    m: Measurement,
) -> Callable[[], Tensor] | None:
    """A call whose output agrees with stock; otherwise None, and the measurement says why."""
    missing = PEERS[contestant.peer].missing()
    if missing:
        m.status, m.detail = results.ABSENT, missing
        return None
    try:
        start = time.perf_counter()
        call = contestant.prepare(copy.deepcopy(model), x, threads)
        output = call().clone()
        m.prepare_s = time.perf_counter() - start
        if output.shape != stock.shape:
            raise ValueError(f"output {tuple(output.shape)} instead of {tuple(stock.shape)}")
    except Exception as error:
        m.status, m.detail = results.FAILED, runner.describe(error)
        return None
    m.difference = _relative(output, stock)
    m.error = _relative(output[:1].double(), exact)
    if not m.difference <= TOLERANCE:
        m.status = results.DISAGREES
        m.detail = f"differs from stock by {m.difference:.1e} of the largest output"
        return None
    return call


def _relative(y: Tensor, wanted: Tensor) -> float:
    """Not a number if y has one."""
    return float((y - wanted).abs().max() / wanted.abs().max().clamp_min(1e-30))


def _record(
    result: CaseResult, by_title: dict[str, Measurement], samples: dict[str, runner.Samples]
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
