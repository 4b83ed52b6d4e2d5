"""The command line. Everything but the arguments is in the modules that the commands import."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

commands = typer.Typer(
    help="Fused Inception (GoogLeNet) modules for PyTorch.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_NETWORKS, _MODULES = "torchvision,paper", "modules"


def app(arguments: list[str] | None = None) -> NoReturn:
    """Runs a command. Exit code 2 and one line for wrong arguments, 1 for a failed check."""
    try:
        code = commands(arguments, prog_name="inception-fused", standalone_mode=False)
    except typer.Abort:
        code = 130
    except ValueError as error:
        code = _complain(str(error))
    except Exception as error:
        message = getattr(error, "format_message", None)  # a mistake that typer found
        if message is None:
            raise
        code = _complain(message())
    sys.exit(code or 0)


def _complain(message: str) -> int:
    print("inception-fused:", " ".join(message.split()), file=sys.stderr)
    return 2


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print("inception-fused", version("inception-fused"))
        raise typer.Exit


@commands.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@commands.command()
def bench(
    model: Annotated[
        str,
        typer.Option(
            help="torchvision, paper, 3a to 5b (several: with commas), modules for all nine, "
            "chain (all nine in a row), l3-6, l3-7 (KernelBench), or path.py:function returning a "
            "model or (model, example input)."
        ),
    ] = _NETWORKS,
    batch: Annotated[
        str,
        typer.Option(help="Sizes, with commas. [default: 1,8; modules: 1,8,32; KernelBench: 10]"),
    ] = "",
    peers: Annotated[
        str,
        typer.Option(
            help="Of fused_triton, fused_int8, fused_compile, fused_graph, eager, channels_last, "
            "folded, compile, compile_overhead, compile_autotune, graph, onnxruntime, openvino, "
            "openvino_bf16, ncnn, tensorrt, torch_tensorrt, or all. "
            "[default: eager,channels_last,compile; modules: without compile]"
        ),
    ] = "",
    memory_format: Annotated[
        str,
        typer.Option(help="Of those that take any: nchw, channels_last or both."),
    ] = "channels_last",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    threads: Annotated[int, typer.Option(help="0: as many as torch would use.")] = 0,
    seconds: Annotated[float, typer.Option(help="Timing per case, for all together.")] = 5.0,
    rounds: Annotated[int | None, typer.Option(help="Rounds per case, instead of time.")] = None,
    processes: Annotated[
        int, typer.Option(help="Processes, one after the other; the best of each contestant.")
    ] = 1,
    memory: Annotated[bool, typer.Option(help="Measure peak memory (a process each).")] = True,
    output: Annotated[Path, typer.Option(help="Folder for results.json and plots.")] = Path(
        "bench/out"
    ),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the output folder.")] = False,
) -> None:
    """Check, then time fused models beside what else could run them. Exits 1 if outputs differ."""
    with _extra("bench"):
        from .bench import command
    settings = command.settings(
        model=model,
        batch=batch,
        peers=peers,
        memory_format=memory_format,
        device=device,
        dtype=dtype,
        threads=threads,
        seconds=seconds,
        rounds=rounds,
        processes=processes,
        memory=memory,
    )
    raise typer.Exit(command.bench(settings, output, resume))


@commands.command()
def report(
    results: Annotated[list[Path], typer.Argument(help="Files that bench has written.")],
    output: Annotated[Path, typer.Option(help="The page to write.")] = Path(
        "bench/out/report.html"
    ),
    readme: Annotated[
        Path | None,
        typer.Option(help="Write the table and a picture into this file, between its markers."),
    ] = None,
) -> None:
    """Make one self-contained HTML page of results, and pictures, or the README's results."""
    with _extra("bench"):
        from .bench import command
    command.report(results, output, readme)


@commands.command()
def gpu_check(
    output: Annotated[Path, typer.Option(help="Folder for the results of this GPU.")] = Path(
        "bench/results"
    ),
    minutes: Annotated[float, typer.Option(help="Time for all of it.")] = 9.0,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Do not go on with today's file of this GPU.")
    ] = False,
) -> None:
    """Check the kernels on a GPU, then time them. Exits 1 if anything is wrong.

    Without a GPU it says so, and runs the emulated tests of a checkout.
    """
    if not minutes > 0:
        raise ValueError(f"--minutes must be above 0, got {minutes}")
    with _extra("bench"):
        from .bench.gpu import command
    raise typer.Exit(command.check(output, minutes, fresh))


@commands.command()
def tune(
    model: Annotated[str, typer.Argument(help="torchvision, paper, 3a to 5b or path.py:function.")],
    batch: Annotated[int, typer.Option(help="Images in a call.")] = 1,
    memory_format: Annotated[str, typer.Option(help="nchw or channels_last.")] = "channels_last",
    threads: Annotated[int, typer.Option(help="0: as many as torch would use.")] = 0,
    seconds: Annotated[float, typer.Option(help="Time to measure for.")] = 20.0,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again what is on disk.")] = False,
) -> None:
    """Measure what can run each module, the original too, and keep the fastest on disk."""
    from rich.console import Console

    with _extra("bench"):
        from .bench import tuning
    console = Console()
    raise typer.Exit(tuning.run(model, batch, memory_format, threads, seconds, fresh, console))


@commands.command()
def profile(
    model: Annotated[str, typer.Argument(help="torchvision, paper, 3a to 5b or path.py:function.")],
    batch: Annotated[int, typer.Option(help="Images in a call.")] = 1,
    memory_format: Annotated[str, typer.Option(help="nchw or channels_last.")] = "channels_last",
    threads: Annotated[int, typer.Option(help="0: as many as torch would use.")] = 0,
    seconds: Annotated[float, typer.Option(help="Time to measure the steps for.")] = 5.0,
    output: Annotated[Path, typer.Option(help="Folder for the trace and the plans.")] = Path(
        "bench/out/profile"
    ),
) -> None:
    """Show what each step takes; write a Chrome trace and a picture of every plan."""
    from rich.console import Console

    with _extra("bench"):
        from .bench import profile as profiling
    console = Console()
    raise typer.Exit(profiling.run(model, batch, memory_format, threads, seconds, output, console))


@commands.command()
def table() -> None:
    """Print the paper's Table 1 as computed from the model, and what its two claims come to."""
    from rich.console import Console

    from .models import GoogLeNet
    from .table import render

    render(Console(), GoogLeNet())


@commands.command()
def explain(
    model: Annotated[str, typer.Argument(help="torchvision, paper, 3a to 5b or path.py:function.")],
) -> None:
    """Fuse a model, run it once and say which back end each module got, and why."""
    import torch

    import inception_fused

    with _extra("bench"):
        from .bench.cases import find
    case = find(model)
    fused = inception_fused.fuse(case.build())
    with torch.no_grad():
        fused(case.inputs(1))
    print(inception_fused.explain(fused))


@commands.command()
def backends() -> None:
    """List the back ends, and what is in the way of those that cannot run here."""
    import inception_fused

    for name, state in inception_fused.backends().items():
        print(f"{name}: {state}")


class _extra:
    """Turns a missing package into the line that says how to get it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if isinstance(error, ImportError):
            raise ValueError(
                f"{error.name} is not installed: pip install 'inception-fused[{self.name}]'"
            ) from None


if __name__ == "__main__":
    app()
