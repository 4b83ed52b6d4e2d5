"""Compiles, without a GPU, what the chooser picks for GoogLeNet, and says what the compiler made.

``python -m inception_fused.triton_kernels.compile_table [PYTHON ...] > docs/triton_kernels.md``,
each PYTHON of an environment with another version of Triton. Exits 1 if a kernel spills, lacks
matrix instructions or wants more shared memory than the device has.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget

from . import launch
from .choose import Math
from .picked import TYPES, Kernel, kernels

_MATRIX = ("mma.sync", "wgmma.mma_async", "tcgen05.mma", "v_mfma")

_UNITS = ("SOURCE_UNIT", "OUT_UNIT", "SCRATCH_UNIT", "GRAD_UNIT")

_HEAD = """# Triton kernels

Written by `python -m inception_fused.triton_kernels.compile_table`, which compiles without a GPU:
every kernel that the chooser picks for the nine modules of GoogLeNet at batch 1, 8 and 64, for the
forward pass and for the gradients of its steps. "Uses" counts the launches that share a kernel.
Registers are of one thread; "spilled" bytes, on gfx942 also scalar registers kept in vector ones.
ieee products are float32 without TF32, which NVIDIA's matrix instructions cannot compute.
"Vectors": elements that the source's, the output's and the scratch's addresses allow to move at
once; of a weight gradient, the source's and the output gradient's.

Compiled by Triton {versions}.{order}

| device | type | input | vectors | launch | tile | warps | stages | uses | registers | spilled | shared | of | matrix instruction |
|---|---|---|---|---|---|---|---|---|---|---|---|---|---|
"""  # noqa: E501

_ORDER = " Where what they make differs, a cell has both, in this order."


@dataclass(frozen=True)
class Report:
    """What the compiler made of a kernel; sizes in bytes."""

    registers: int
    spilled: int
    shared: int
    matrix: tuple[str, ...]

    def faults(self, kernel: Kernel) -> list[str]:
        """What must not be."""
        found = []
        if self.spilled:
            found.append(f"spills {self.spilled} bytes")
        if not self.matrix and TYPES[kernel.type][1] is not Math.IEEE:
            found.append("has no matrix instructions")
        if self.shared > kernel.device.shared_block:
            found.append(f"wants {self.shared} bytes of {kernel.device.shared_block}")
        return found


def report(kernel: Kernel) -> Report:
    """Compiles a kernel, or takes it from Triton's cache."""
    device = kernel.device
    target = GPUTarget("hip" if device.is_hip else "cuda", device.arch, device.lanes)
    pointers = launch.POINTERS[kernel.call.kernel]
    type_name, _ = TYPES[kernel.type]
    compiled = launch.compile(kernel.call, type_name, (True,) * pointers, target)
    text = compiled.asm["amdgcn" if device.is_hip else "ptx"]
    registers, spilled = _hip_usage(text) if device.is_hip else _cuda_usage(compiled.asm["cubin"])
    matrix = tuple(name for name in _MATRIX if name in text)
    return Report(registers, spilled, compiled.metadata.shared, matrix)


def _cuda_usage(binary: bytes) -> tuple[int, int]:
    """(registers, bytes of stack and local memory) of the only kernel of a binary."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text)
    if found is None:
        raise RuntimeError(f"cuobjdump says no registers: {text}")
    return int(found[1]), int(found[2]) + int(found[3])


def _hip_usage(text: str) -> tuple[int, int]:
    """(vector registers, spilled bytes) of the only kernel of an assembly text."""
    numbers = {
        name: int(re.search(rf"\.{name}:\s+(\d+)", text)[1])  # type: ignore[index]
        for name in (
            "vgpr_count",
            "vgpr_spill_count",
            "sgpr_spill_count",
            "private_segment_fixed_size",
        )
    }
    spilled = 4 * (numbers["vgpr_spill_count"] + numbers["sgpr_spill_count"])
    return numbers["vgpr_count"], max(spilled, numbers["private_segment_fixed_size"])


def row(kernel: Kernel, made: Sequence[Report]) -> str:
    """A line of the table; ``made`` by every version of Triton."""
    device, tile = kernel.device, kernel.tile
    constants = dict(kernel.call.constants)
    cells = (
        f"sm_{device.arch}" if not device.is_hip else device.arch,
        kernel.type,
        kernel.memory_format,
        "/".join(str(constants[n]) for n in _UNITS if n in constants),
        kernel.launch,
        f"{tile.rows}x{tile.columns}x{tile.depth}",
        tile.warps,
        tile.stages,
        len(kernel.uses),
        _all(m.registers for m in made),
        _all(m.spilled for m in made),
        _all(m.shared for m in made),
        device.shared_block,
        _all(", ".join(m.matrix) or "none" for m in made),
    )
    return "| " + " | ".join(map(str, cells)) + " |"


def _all(values: Iterable[object]) -> str:
    """One value if all are the same."""
    texts = [str(value) for value in values]
    return texts[0] if len({*texts}) == 1 else " / ".join(texts)


def made_by(python: str) -> tuple[str, list[Report]]:
    """The version of Triton that another interpreter has, and what it makes of every kernel."""
    command = [python, "-m", f"{__package__}.compile_table", "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout)
    reports = [Report(**{**fields, "matrix": tuple(fields["matrix"])}) for fields in found["made"]]
    return found["triton"], reports


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; 1 if a kernel has a fault."""
    parser = argparse.ArgumentParser(description="What Triton makes of GoogLeNet's kernels.")
    parser.add_argument(
        "pythons", nargs="*", help="interpreters of environments that have other versions of Triton"
    )
    parser.add_argument("--json", action="store_true", help="print plain figures instead")
    chosen = parser.parse_args(arguments)
    if chosen.json:
        made = [asdict(report(kernel)) for kernel in kernels()]
        print(json.dumps({"triton": triton.__version__, "made": made}))
        return 0
    others = [made_by(python) for python in chosen.pythons]
    versions = [*(version for version, _ in others), triton.__version__]
    order = _ORDER if others else ""
    print(_HEAD.format(versions=" and ".join(versions), order=order), end="")
    faulty = 0
    for number, kernel in enumerate(kernels()):
        reports = [*(reports[number] for _, reports in others), report(kernel)]
        line = row(kernel, reports)
        print(line, flush=True)
        for version, one in zip(versions, reports, strict=True):
            for fault in one.faults(kernel):
                print(f"{line} Triton {version}: {fault}", file=sys.stderr)
                faulty += 1
    return 1 if faulty else 0


if __name__ == "__main__":
    sys.exit(main())
