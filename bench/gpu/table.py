"""Compiles every CUDA kernel without a GPU and says what the compiler made of it.

``python -m inception_fused.bench.gpu.table > docs/cuda_kernels.md``, from a checkout with nvcc;
architectures as arguments ("90a") for a page of these alone. Exits 1 if a kernel spills, touches
local memory, lacks matrix instructions or 16-byte asynchronous copies, or needs more registers than
choose.h counts with.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from inception_fused.spec import GOOGLENET

from . import choices, nvcc
from .choices import BATCHES, MATHS, TITLES, Problem, Shape
from .nvcc import KERNELS, Code, Instance

ARCHS = ("80", "86", "89", "90a", "100", "120")
CONV = {"pointwise": False, "conv": True}
"""``Launch.conv`` of a kernel."""

REGISTERS = 65536  # of a multiprocessor
STEP = 8  # registers of a thread are given out in eights
THREADS = {80: 2048, 90: 2048, 100: 2048}  # that a multiprocessor holds, else 1536
RESERVED = 1024  # bytes of shared memory that a block takes beside its own

_INSTANCES = """# CUDA kernels

Written by `python -m inception_fused.bench.gpu.table` with nvcc {release}: every instance of the
two kernels, compiled without a GPU. None of them spills, touches local memory, or copies less than
16 bytes at a time where it copies asynchronously; the script fails if one does, or if one needs
more registers than `csrc/cuda/choose.h` counts with.

A tile is rows x columns x depth in vectors of 16 bytes, then warps along each. Registers are of one
thread, "counted" is what choose.h assumes. Shared memory is the most that a block has among the
nine modules of GoogLeNet at batch {batches}, and the blocks are those that a multiprocessor holds
with it; a dash where no launch takes the tile. HMMA and LDGSTS count instructions in the code:
matrix products, and 16-byte copies from global to shared memory.

| kernel | type | tile | arch | registers | counted | shared | blocks per SM | HMMA | LDGSTS |
|---|---|---|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Row:
    """An instance on an architecture; ``shared``: None if no launch of the table takes it."""

    instance: Instance
    arch: str
    code: Code
    shared: int | None

    @property
    def sm(self) -> int:
        return int(self.arch.rstrip("a"))

    @property
    def shape(self) -> Shape:
        return choices.shapes()[self.instance.shape]

    @property
    def blocks(self) -> int | None:
        """That one multiprocessor can hold at once."""
        if self.shared is None:
            return None
        device = next(a for a in choices.architectures() if a.sm == self.sm)
        given = -(-self.code.registers // STEP) * STEP
        return min(
            device.shared_processor // (self.shared + RESERVED),
            REGISTERS // (given * self.shape.threads),
            THREADS.get(self.sm, 1536) // self.shape.threads,
        )

    def faults(self) -> list[str]:
        """What must not be, in words."""
        found = self.code.faults()
        counted = self.shape.registers_on(self.sm)
        if self.code.registers > counted:
            found.append(f"needs more registers than the {counted} of choose.h")
        return found

    def __str__(self) -> str:
        cells = (
            self.instance.kernel,
            TITLES[self.instance.math],
            self.shape,
            f"sm_{self.arch}",
            self.code.registers,
            self.shape.registers_on(self.sm),
            "-" if self.shared is None else self.shared,
            "-" if self.blocks is None else self.blocks,
            self.code.count("HMMA"),
            self.code.count("LDGSTS"),
        )
        return f"| {' | '.join(map(str, cells))} |"


def largest(archs: Iterable[str]) -> Mapping[tuple[int, str, bool, int], int]:
    """Most bytes of shared memory of a block, by (sm, math, conv, shape), over GoogLeNet."""
    sms = [int(arch.rstrip("a")) for arch in archs]
    problems = [Problem(*p) for p in product(GOOGLENET, BATCHES, sms, MATHS)]
    most: dict[tuple[int, str, bool, int], int] = {}
    for problem, found in zip(problems, choices.launches(problems), strict=True):
        for launch in found:
            key = (problem.sm, problem.math, launch.conv, launch.shape)
            most[key] = max(most.get(key, 0), launch.shared)
    return most


def rows(
    archs: Iterable[str] = ARCHS,
    maths: Iterable[str] = MATHS,
    shapes: Iterable[int] | None = None,
) -> Iterator[Row]:
    """Compiles the instances, the two kernels of each type and tile on each architecture."""
    archs, maths = tuple(archs), tuple(maths)
    tiles = range(len(choices.shapes())) if shapes is None else tuple(shapes)
    most = largest(archs)
    for arch, math in product(archs, maths):
        sm = int(arch.rstrip("a"))
        wanted = [
            Instance(kernel, math, shape)
            for kernel in KERNELS
            for shape in tiles
            if choices.shapes()[shape].runs_on(sm)
        ]
        for instance, code in nvcc.compile_instances(wanted, arch).items():
            key = (sm, math, CONV[instance.kernel], instance.shape)
            yield Row(instance, arch, code, most.get(key))


def main(archs: Sequence[str] = ARCHS) -> int:
    """Prints the page, with the kernels of some architectures; 1 if one has a fault."""
    unknown = sorted(set(archs) - set(ARCHS))
    missing = nvcc.missing()
    if unknown:
        missing = f"architectures must be of {', '.join(ARCHS)}, got {', '.join(unknown)}"
    if missing:
        print(missing, file=sys.stderr)
        return 2
    batches = ", ".join(map(str, BATCHES))
    print(_INSTANCES.format(release=nvcc.release(), batches=batches), end="")
    faulty = 0
    for row in rows(archs):
        print(row, flush=True)
        for fault in row.faults():
            print(f"{row} {fault}", file=sys.stderr)
            faulty += 1
    return 1 if faulty else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ARCHS))
