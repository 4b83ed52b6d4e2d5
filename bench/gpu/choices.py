"""The tiles of ``csrc/cuda/choose.h`` and which one every launch gets, on any machine.

Asks the C++ itself, through ``choices.cpp``, which needs a C++20 compiler.
"""

from __future__ import annotations

import functools
import os
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple, TypeVar

from inception_fused.lower import lower
from inception_fused.spec import GOOGLENET, GOOGLENET_SIZE

ROOT = Path(__file__).resolve().parent.parent.parent
"""Of the checkout: the sources of the kernels are not installed."""

MATHS = ("Half", "BFloat16", "Tf32", "Bf16x3", "Float32")
"""Types of ``csrc/cuda/tile.h``, in the order of ``Math`` of ``choose.h``."""

TITLES = dict(zip(MATHS, ("float16", "bfloat16", "tf32", "bf16x3", "float32"), strict=True))
BATCHES = (1, 8, 64, 256)
"""Of the tables."""

T = TypeVar("T", "Shape", "Architecture")


@dataclass(frozen=True)
class Shape:
    """``Shape`` of choose.h: rows and columns of a tile, depth in vectors, warps, stages.

    ``registers`` are the bound for architectures older than sm_100, ``registers_100`` from it on.
    """

    rows: int
    columns: int
    depth: int
    warp_rows: int
    warp_columns: int
    warp_depth: int
    stages: int
    cluster: int
    registers: int
    registers_100: int

    @property
    def threads(self) -> int:
        return 32 * self.warp_rows * self.warp_columns * self.warp_depth

    def __str__(self) -> str:
        warps = f"{self.warp_rows}x{self.warp_columns}x{self.warp_depth}"
        cluster = f" cluster {self.cluster}" if self.cluster > 1 else ""
        return f"{self.rows}x{self.columns}x{self.depth} {warps}{cluster}"

    def registers_on(self, sm: int) -> int:
        """What choose.h counts with on an architecture."""
        return self.registers if sm < 100 else self.registers_100

    def runs_on(self, sm: int) -> bool:
        """Whether the kernels have code for this tile there."""
        return self.cluster == 1 or sm >= 90


@dataclass(frozen=True)
class Architecture:
    """``Architecture`` of choose.h; shared memory in bytes of a block and of a multiprocessor."""

    sm: int
    processors: int
    shared_block: int
    shared_processor: int


class Problem(NamedTuple):
    """A module of GoogLeNet on its images, channels last; ``math`` is one of nvcc.MATHS."""

    name: str
    batch: int
    sm: int
    math: str


@dataclass(frozen=True)
class Launch:
    """What choose.h picked: a tile of :func:`shapes` and ``Config``.

    ``bytes`` are what multiprocessors read and write together, a multicast counted once, and
    ``nanoseconds`` the time, both predicted.
    """

    conv: bool
    shape: int
    blocks: int
    threads: int
    shared: int
    blocks_per_processor: int
    bytes: float
    nanoseconds: float


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """Of the program, until this process ends."""
    return tempfile.TemporaryDirectory(prefix="inception_fused_")


@functools.cache
def _program() -> Path:
    program = Path(_folder().name, "choices")
    sources = [Path(__file__).with_suffix(".cpp"), ROOT / "csrc" / "cuda" / "program.cpp"]
    done = subprocess.run(
        [
            *(os.environ.get("CXX", "c++"), "-std=c++20", "-O1", f"-I{ROOT / 'csrc'}"),
            *(*map(str, sources), "-o", str(program)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"choices.cpp does not build:\n{done.stderr}")
    return program


@functools.cache
def _tables() -> dict[str, list[list[int]]]:
    text = subprocess.run([_program()], capture_output=True, text=True, check=True).stdout
    tables: dict[str, list[list[int]]] = {}
    for line in text.splitlines():
        kind, *numbers = line.split()
        tables.setdefault(kind, []).append([int(n) for n in numbers])
    return tables


def _rows(kind: type[T], name: str) -> tuple[T, ...]:
    return tuple(
        kind(**dict(zip((f.name for f in fields(kind)), row, strict=True)))
        for row in _tables()[name]
    )


def shapes() -> tuple[Shape, ...]:
    """``kShapes``."""
    return _rows(Shape, "shape")


def architectures() -> tuple[Architecture, ...]:
    """``kArchitectures``."""
    return _rows(Architecture, "architecture")


def launches(problems: Iterable[Problem]) -> list[tuple[Launch, ...]]:
    """The launches of each problem, in order."""
    lines = []
    for p in problems:
        size = GOOGLENET_SIZE[p.name]
        code = lower(GOOGLENET[p.name]).code
        numbers = (p.sm, MATHS.index(p.math), p.batch, size, size, 1, *code)
        lines.append(" ".join(map(str, numbers)))
    done = subprocess.run(
        [_program(), "plans"],
        input="".join(f"{line}\n" for line in lines),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"no choice: {done.stderr.strip()}")
    width = len(fields(Launch))
    found = []
    for line in done.stdout.splitlines():
        words = line.split()
        rows = [words[i : i + width] for i in range(0, len(words), width)]
        found.append(
            tuple(
                Launch(c == "1", int(s), int(b), int(t), int(m), int(p), float(moved), float(ns))
                for c, s, b, t, m, p, moved, ns in rows
            )
        )
    return found
