"""What ``csrc/cuda/choose.h`` picks for GoogLeNet on every architecture, as a page.

``python -m inception_fused.bench.gpu.choice_table > docs/cuda_choices.md``, from a checkout with a
C++ compiler.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch

from inception_fused import cuda
from inception_fused.lower import lower
from inception_fused.spec import GOOGLENET, GOOGLENET_SIZE

from . import choices
from .choices import BATCHES, MATHS, TITLES, Launch, Problem

SHOWN = ("Half", "Tf32")
BATCH = 8
"""Of the table of bytes."""

DTYPES = {"Half": torch.float16, "BFloat16": torch.bfloat16}
"""Of a math that is not of float32."""

_HEAD = """# Choice of CUDA tiles

Written by `python -m inception_fused.bench.gpu.choice_table`: what `csrc/cuda/choose.h` picks for
the nine modules of GoogLeNet, channels last. A tile is rows x columns x depth in vectors of 16
bytes, then warps along each; blocks of a cluster share their weights. The times are predicted, in
microseconds, for the two launches and both together, by a model that has not been compared with a
GPU; `inception-fused gpu-check` prints what it measures beside them.
"""

_BYTES = """## Bytes

What the multiprocessors read and write at batch 8, as predicted, over the least that it can be: x,
weights and output once, what is between the launches written once and read once. A copy to all
blocks of a cluster is one read. Tests compare the prediction with what the emulator counts.

A launch with tiles of R x C reads its source once for every C columns and its weights once for
every R pixels. 4d makes 288 and, of the pool, 64 columns of x, and then 288 and 64 columns: at 1568
pixels, tiles of 128 x 128 read x and the scratch three times or once, and all weights 13 times.
Without multicast, which choose.h counts on for sm_90 and sm_100, none of 3b and 4a to 4e has tiles
within four times the least; tiles of 256 rows would leave three quarters of an A100 idle. A cluster
of four blocks reads weights once for 256 or 512 pixels and still has a block for every 64 or 128:
on sm_90 every module and type stays within four times. On sm_100, with more multiprocessors to keep
busy, the tiles that move least are in some launches predicted to be slower than the fastest by more
than the tie of choose.h.
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


def least_bytes(name: str, math: str, batch: int) -> int:
    """x, weights and output once, scratch twice."""
    plan = lower(GOOGLENET[name])
    dtype = DTYPES.get(math, torch.float32)
    scratch = sum(plan.buffers) - plan.in_channels - plan.out_channels
    elements = batch * GOOGLENET_SIZE[name] ** 2 * (sum(plan.buffers) + scratch)
    return (elements + cuda.pack_elements(plan, dtype)) * dtype.itemsize


def byte_lines() -> Iterator[str]:
    """The table of bytes: a line for every architecture and type."""
    yield f"| arch | type | {' | '.join(GOOGLENET)} |"
    yield "|---" * (len(GOOGLENET) + 2) + "|"
    for a, math in product(choices.architectures(), MATHS):
        problems = [Problem(name, BATCH, a.sm, math) for name in GOOGLENET]
        cells: list[object] = [f"sm_{a.sm}", TITLES[math]]
        for problem, found in zip(problems, choices.launches(problems), strict=True):
            moved = sum(launch.bytes for launch in found)
            cells.append(f"{moved / least_bytes(problem.name, math, BATCH):.2f}")
        yield f"| {' | '.join(map(str, cells))} |"


def page() -> str:
    """The whole page."""
    tables = ["\n".join(lines(a.sm, math)) for a in choices.architectures() for math in SHOWN]
    return "\n".join((_HEAD, _BYTES, *byte_lines(), "", "\n\n".join(tables), ""))


if __name__ == "__main__":
    print(page(), end="")
