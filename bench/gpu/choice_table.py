"""What ``csrc/cuda/choose.h`` picks for GoogLeNet on every architecture, as a page.

``python -m inception_fused.bench.gpu.choice_table > docs/cuda_choices.md``, from a checkout with a
C++ compiler.
"""

from __future__ import annotations

from collections.abc import Iterator

from inception_fused.spec import GOOGLENET

from . import choices
from .choices import BATCHES, TITLES, Launch, Problem

SHOWN = ("Half", "Tf32")

_HEAD = """# Choice of CUDA tiles

Written by `python -m inception_fused.bench.gpu.choice_table`: what `csrc/cuda/choose.h` picks for
the nine modules of GoogLeNet, channels last. A tile is rows x columns x depth in vectors of 16
bytes, then warps along each; blocks of a cluster share their weights. The times are predicted, in
microseconds, for the two launches and both together, by a model that has not been compared with a
GPU; `inception-fused gpu-check` prints what it measures beside them.
"""


def _cells(launch: Launch) -> tuple[object, ...]:
    tile = choices.shapes()[launch.shape]
    return tile, launch.blocks, f"{launch.nanoseconds / 1000:.2f}"


def lines(sm: int, math: str) -> Iterator[str]:
    """The table of one architecture and type: a line for every module and batch."""
    yield f"## sm_{sm}, {TITLES[math]}\n"
    yield "| module | batch | pointwise | blocks | us | conv | blocks | us | both |"
    yield "|---|---|---|---|---|---|---|---|---|"
    problems = [Problem(name, batch, sm, math) for name in GOOGLENET for batch in BATCHES]
    for problem, found in zip(problems, choices.launches(problems), strict=True):
        cells: list[object] = [problem.name, problem.batch]
        for launch in found:
            cells += _cells(launch)
        cells.append(f"{sum(launch.nanoseconds for launch in found) / 1000:.2f}")
        yield f"| {' | '.join(map(str, cells))} |"


def page() -> str:
    """The whole page."""
    tables = ("\n".join(lines(a.sm, math)) for a in choices.architectures() for math in SHOWN)
    return "\n".join((_HEAD, "\n\n".join(tables), ""))


if __name__ == "__main__":
    print(page(), end="")
