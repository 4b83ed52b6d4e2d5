"""The two commands of the command line that need this package: arguments in, exit code out."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path

import torch
from rich.console import Console

from inception_fused.spec import GOOGLENET

from . import cases, job, kernelbench, processes
from .peers import DEVICES, DTYPES, FORMATS, PEERS, REFERENCE


def settings(
    *,
    model: str,
    batch: str,
    peers: str,
    memory_format: str,
    device: str,
    dtype: str,
    threads: int,
    seconds: float,
    rounds: int | None,
    processes: int,
    memory: bool,
) -> job.Settings:
    """The options as settings, defaults filled in; ValueError naming the option if one is wrong."""
    models = tuple(GOOGLENET) if model == "modules" else _words("--model", model)
    modules = all(name in GOOGLENET for name in models)
    sizes = _words("--batch", batch or _sizes(models))
    if not all(size.isdecimal() and 0 < int(size) <= 4096 for size in sizes):
        raise ValueError(f"--batch must be sizes from 1 to 4096 with commas, got {batch!r}")
    everything = [name for name in PEERS if name != "fused"]
    default = "eager,channels_last" if modules else "eager,channels_last,compile"
    names = everything if peers == "all" else list(_words("--peers", peers or default))
    for name in names:
        _one_of("--peers", name, [*everything, "all"])
    _one_of("--memory-format", memory_format, [*FORMATS, "both"])
    _one_of("--device", device, DEVICES)
    _one_of("--dtype", dtype, DTYPES)
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch sees no CUDA device here")
    for option, value, least in (("--threads", threads, 0), ("--processes", processes, 1)):
        if value < least:
            raise ValueError(f"{option} must be at least {least}, got {value}")
    if not (math.isfinite(seconds) and seconds > 0):
        raise ValueError(f"--seconds must be above 0, got {seconds}")
    if rounds is not None and rounds < 1:
        raise ValueError(f"--rounds must be at least 1, got {rounds}")
    return job.Settings(
        models,
        tuple(int(size) for size in sizes),
        tuple(dict.fromkeys(["fused", REFERENCE, *names])),
        memory_format,
        threads or torch.get_num_threads(),
        seconds,
        rounds,
        memory,
        device,
        dtype,
        processes,
    )


def bench(chosen: job.Settings, output: Path, resume: bool) -> int:
    """Runs the job and writes results.json and PNGs; 1 if the outputs do not agree."""
    found = [cases.find(name) for name in chosen.models]
    console = Console()
    if chosen.processes > 1:
        results = processes.run(chosen, output, console, resume)
    else:
        results = job.run(found, chosen, output, console, resume)
    for note in results.notes:
        console.print(f"note: {note}")
    from .report import pngs

    written = [output / job.RESULTS, *pngs([results], output)]
    console.print("wrote", ", ".join(map(str, written)), soft_wrap=True)
    if results.interrupted:
        console.print("interrupted; --resume goes on")
        return 130
    if not job.agreed(results):
        console.print("[bold red]a fused or the stock model failed or disagrees[/]")
        return 1
    return 0


def report(paths: list[Path], output: Path, readme: Path | None) -> None:
    """Writes the page and its pictures, or the README's table and picture if asked to."""
    from .readme import write
    from .report import page, pngs
    from .results import Results

    results = [Results.load(path) for path in paths]
    if readme is not None:
        print("wrote", ", ".join(map(str, write(readme, results))))
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(page(results))
    print("wrote", ", ".join(map(str, [output, *pngs(results, output.parent)])))


def _sizes(models: tuple[str, ...]) -> str:
    if all(name in GOOGLENET for name in models):
        return "1,8,32"
    return str(kernelbench.BATCH) if all(name in cases.KERNELBENCH for name in models) else "1,8"


def _one_of(option: str, value: str, allowed: Collection[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{option} must be of {', '.join(allowed)}, got {value!r}")


def _words(option: str, text: str) -> tuple[str, ...]:
    words = tuple(dict.fromkeys(w.strip() for w in text.split(",") if w.strip()))
    if not words:
        raise ValueError(f"{option} must not be empty")
    return words
