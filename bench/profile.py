"""``inception-fused profile``: where the time of a fused model goes; a table, a trace, pictures."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from inception_fused.fusion import Fusion
from inception_fused.route import key_of
from inception_fused.trial import visit
from inception_fused.tune import fused_parts

from . import ceiling, drawing, steps, trace
from .fused import subject
from .steps import Profile
from .tables import figure

TRACE = "trace.json"


def run(
    model: str,
    batch: int,
    memory_format: str,
    threads: int,
    seconds: float,
    output: Path,
    console: Console,
) -> int:
    """Prints a table per fused part, writes the trace and a picture of every plan; 0."""
    case = subject(model, batch, memory_format, threads)
    console.print(f"{case.title}, batch {batch}, {torch.get_num_threads()} threads")
    with torch.no_grad():
        ran = taken(case.model, case.x)
        if not ran:
            raise ValueError(f"--model {model}: nothing in it runs fused")
        profiles = steps.measure([part for part in ran if part[2].name == "cpu"], seconds)
    named = [(name, fusion) for name, fusion, *_ in ran]
    peak = ceiling.measure()
    for one in profiles:
        console.print(table(one, peak.gflops, peak.name))
    output.mkdir(parents=True, exist_ok=True)
    ranges = trace.write(case.model, case.x, named, output / TRACE)
    console.print(_ranges(ranges))
    written = [output / TRACE]
    measured = {id(p.plan): p for p in profiles}
    for name, fusion, _, _, x in ran:
        known = measured.get(id(fusion.plan))
        notes = {s.number: f"{figure(s.ms.median)} ms" for s in known.steps} if known else None
        height, width = x.shape[2:]
        picture = drawing.svg(
            fusion.plan, name or case.title, len(x), height, width, x.element_size(), notes
        )
        file = re.sub(r"[^A-Za-z0-9]+", "-", name or case.title).strip("-")
        written.append(output / f"plan-{file}.svg")
        written[-1].write_text(picture)
    console.print("wrote", ", ".join(map(str, written)), soft_wrap=True)
    return 0


def taken(model: nn.Module, x: Tensor) -> list[tuple[str, Fusion, Any, tuple[int, ...], Tensor]]:
    """What a call of the model runs fused: name, fusion, back end, tuning and its input.

    A network that runs as a whole stands for the modules inside.
    """
    modules, networks = fused_parts(model)
    model(x)
    whole = [part for part in networks if part[1].taken not in ("", "original")]
    found = []
    for site in visit(model, whole or modules, x):
        route = site.fusion.route_of(key_of(site.x))
        if route is not None and route.backend is not None:
            found.append((site.name, site.fusion, route.backend, route.tuning, site.x))
    return found


def table(one: Profile, peak: float, peak_name: str) -> Table:
    """A row per step, and the whole; 100 columns wide."""
    made = Table(
        title=f"{one.name or 'the model'}: steps on the back end {one.backend}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    made.add_column("step")
    made.add_column("wave", justify="right")
    made.add_column("channels", overflow="fold")
    made.add_column("algorithm")
    for name in ("ms", "share", "GFLOP/s", "% peak", "MB"):
        made.add_column(name, justify="right", no_wrap=True)
    for s in one.steps:
        rate = [figure(s.gflops), f"{100 * s.gflops / peak:.0f}"] if s.flops else ["-", "-"]
        made.add_row(
            f"{s.number}: {drawing.what(s.step)}",
            str(s.step.wave),
            f"{s.step.src.channels} to {'+'.join(str(d.slice.channels) for d in s.step.dst)}",
            s.algorithm.removesuffix(" in step 0"),
            figure(s.ms.median),
            f"{s.ms.median / one.sum_ms:.0%}",
            *rate,
            figure(s.bytes / 1e6),
        )
    flops = sum(s.flops for s in one.steps)
    made.add_section()
    made.add_row("sum", "", "", "", figure(one.sum_ms), "", "", "", "")
    rate_of_whole = flops / one.whole.median / 1e6
    made.add_row(
        "whole",
        "",
        "",
        "",
        figure(one.whole.median),
        f"{one.whole.median / one.sum_ms:.0%}",
        figure(rate_of_whole),
        f"{100 * rate_of_whole / peak:.0f}",
        "",
        style="bold",
    )
    made.caption = (
        "Each step is measured alone, as a plan of one step, in turn with all others and the whole "
        "(medians): it starts its own threads, and a direct convolution copies its input into a "
        "padded buffer first, which inside the whole it need not. GFLOP/s and % of peak count "
        "direct convolution, so Winograd may pass 100 %; peak: "
        f"{peak:.0f} GFLOP/s, {peak_name}. MB: input, output and packed weights, each once."
    )
    made.caption_justify = "left"
    return made


def _ranges(ranges: list[trace.Range]) -> Table:
    made = Table(
        title=f"ranges of the trace, ms a call (mean of {trace.CALLS} profiled calls)",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
    )
    made.add_column("range")
    made.add_column("host", justify="right")
    made.add_column("device", justify="right")
    for one in ranges:
        made.add_row(one.name.replace("[", "\\["), figure(one.host_ms), figure(one.device_ms))
    return made
