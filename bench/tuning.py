"""``inception-fused tune``: measures what can run each module, and shows it."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import inception_fused
from inception_fused.candidates import ORIGINAL
from inception_fused.figures import STORE, device_name
from inception_fused.tune import TuneReport

from .fused import subject
from .tables import figure


def run(
    model: str,
    batch: int,
    memory_format: str,
    threads: int,
    seconds: float,
    fresh: bool,
    console: Console,
) -> int:
    """Tunes the model and prints a table per module; 0."""
    case = subject(model, batch, memory_format, threads)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(case.title, total=1.0)

        def say(text: str, share: float) -> None:
            progress.update(task, description=f"{case.title}: {text}", completed=share)

        report = inception_fused.tune(case.model, case.x, seconds, fresh, say)
    console.print(table(case.title, report))
    console.print(f"kept in {STORE.path(device_name(case.x))}", soft_wrap=True)
    return 0


def table(title: str, report: TuneReport) -> Table:
    """A row per module and candidate, the fastest first; what was taken is so marked."""
    made = Table(
        title=f"{title}: median ms and its 99 % confidence interval, inside calls of the model",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
    )
    made.add_column("module")
    made.add_column("ran as")
    for name in ("ms", "interval", "times", ""):
        made.add_column(name, justify="right", no_wrap=True)
    for line in report.lines:
        name = line.name or "(the model itself)"
        if line.figures is None:
            made.add_row(name, f"not tuned: {line.reason}")
            continue
        original = next(t for t in line.figures.timings if t.backend == ORIGINAL)
        source = " (remembered)" if line.remembered else ""
        for number, t in enumerate(line.figures.timings):
            taken = t.label == line.figures.taken
            made.add_row(
                name + source if number == 0 else "",
                t.label,
                figure(t.median),
                f"{figure(t.low)}-{figure(t.high)}",
                f"{original.median / t.median:.2f}",
                "taken" if taken else "",
                style="bold" if taken else "",
            )
        made.add_section()
    made.caption = (
        "times: faster than the original. A module takes what is clearly faster than its original "
        "and than simpler choices; a network runs as a whole unless its modules in turn are "
        "clearly faster. The best were measured a second time, and that is shown."
    )
    made.caption_justify = "left"
    return made
