"""Compiles, without a GPU, what the chooser picks for GoogLeNet, and says what the compiler made.

``python -m inception_fused.triton_kernels.compile_table > docs/triton_kernels.md``; exits 1 if a
kernel spills, lacks matrix instructions or wants more shared memory than the device has.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from triton import knobs
from triton.backends.compiler import GPUTarget

from ..lower import lower
from ..plan import OUT
from ..spec import GOOGLENET, GOOGLENET_SIZE
from . import gradients, launch, problem, program, weight_gradient
from .choose import DEVICES, Device, Math, Tile, choose
from .program import Call, View

ARCHS: tuple[int | str, ...] = (80, 90, 100, "gfx942")
BATCHES = (1, 8, 64)
GRADIENT_BATCH = 64
"""The batch for which the kernels of gradients are compiled, too."""

FORMATS = ("channels_last", "contiguous")

TYPES = {
    "float16": ("fp16", Math.HALF),
    "bfloat16": ("bf16", Math.HALF),
    "tf32": ("fp32", Math.TF32),
    "ieee float32": ("fp32", Math.IEEE),
}
"""Triton's name of the elements, and how products are computed."""

_MATRIX = ("mma.sync", "wgmma.mma_async", "tcgen05.mma", "v_mfma")

_UNITS = ("SOURCE_UNIT", "OUT_UNIT", "SCRATCH_UNIT", "GRAD_UNIT")

_HEAD = """# Triton kernels

Written by `python -m inception_fused.triton_kernels.compile_table`: every kernel that the chooser
picks for the nine modules of GoogLeNet at batch 1, 8 and 64, compiled without a GPU. "Uses" counts
the launches, of 9 modules x 3 batches, that share a kernel. Registers are of one thread; "spilled"
bytes, on gfx942 also scalar registers kept in vector ones. ieee products are float32 without TF32,
which NVIDIA's matrix instructions cannot compute. "Vectors": elements that the source's, the
output's and the scratch's addresses allow to move at once; of a weight gradient, the source's and
the output gradient's. The gradients' kernels are those of
single steps at batch 64.

| device | type | input | vectors | launch | tile | warps | stages | uses | registers | spilled | shared | of | matrix instruction |
|---|---|---|---|---|---|---|---|---|---|---|---|---|---|
"""  # noqa: E501


@dataclass
class Kernel:
    """A call to compile, where it is from, and (module, batch) of the launches it serves."""

    device: Device
    type: str
    memory_format: str
    launch: str
    tile: Tile
    call: Call
    uses: list[tuple[str, int]] = field(default_factory=list)


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


def kernels(
    archs: Iterable[int | str] = ARCHS,
    types: Iterable[str] = tuple(TYPES),
    formats: Iterable[str] = FORMATS,
    names: Iterable[str] = tuple(GOOGLENET),
    batches: Iterable[int] = BATCHES,
) -> list[Kernel]:
    """The different kernels among those that the chooser picks."""
    found: dict[object, Kernel] = {}
    for device in (d for d in DEVICES if d.arch in tuple(archs)):
        for type_ in types:
            for memory_format in formats:
                for name in names:
                    for batch in batches:
                        for kernel in _picked(device, type_, memory_format, name, batch):
                            call = kernel.call
                            structure = str(launch.argument_types(call))
                            key = (device.arch, type_, call.constants, call.warps, call.stages)
                            same = found.setdefault((*key, structure), kernel)
                            same.uses.append((name, batch))
    return list(found.values())


def _picked(
    device: Device, type_: str, memory_format: str, name: str, batch: int
) -> Iterator[Kernel]:
    math = TYPES[type_][1]
    plan = lower(GOOGLENET[name])
    edge = GOOGLENET_SIZE[name]

    def view(buffer: int) -> View:
        channels = plan.buffers[buffer]
        if buffer > OUT:
            return View.scratch(channels, edge, edge, math.item)
        return _view(channels, batch, edge, memory_format, math)

    precision = "tf32" if math is Math.TF32 else "ieee"
    for wave, one in enumerate(problem.launches(plan, batch, edge, edge)):
        tile = choose(one, math, device)
        scratch = None if one.scratch == OUT else view(one.scratch)
        call = program.call(one, view(one.source), view(OUT), scratch, tile, precision)
        label = ("1x1 and pool", "3x3 and 5x5")[wave]
        yield Kernel(device, type_, memory_format, label, tile, call)
    for step in plan.steps if batch == GRADIENT_BATCH else ():
        height, width = step.window.kernel
        label = f"pooled {height}x{width}" if step.pre else f"{height}x{width}"
        turned = gradients.turned(step.src.channels, step.out_channels, step.window)
        assert turned is not None
        views = (
            _view(step.out_channels, batch, edge, memory_format, math),
            _view(step.src.channels, batch, edge, memory_format, math),
        )
        (one,) = problem.launches(turned, batch, edge, edge)
        tile = choose(one, math, device)
        call = program.call(one, *views, None, tile, precision)
        yield Kernel(device, type_, memory_format, f"{label} input gradient", tile, call)
        geometry = (*step.window.kernel, *step.window.stride, *step.window.padding)
        channels = (step.src.channels, step.out_channels)
        segment = problem.Segment(0, channels[0], 0, *geometry, 0, 0, channels[1], 0, 0, 0)
        size = problem.Size(batch, edge, edge, edge, edge)
        weight = weight_gradient.Problem(
            segment, size, math, views[1].dividing(channels[:1]), views[0].dividing(channels[1:])
        )
        tile = weight_gradient.ranked(weight, device)[0]
        count = weight_gradient.splits(weight, tile, device)[1]
        call = weight_gradient.call(weight, tile, count)
        yield Kernel(device, type_, memory_format, f"{label} weight gradient", tile, call)


def _view(channels: int, batch: int, edge: int, memory_format: str, math: Math) -> View:
    pixels = edge * edge
    strides = (channels * pixels, pixels, edge, 1)
    if memory_format == "channels_last":
        strides = (channels * pixels, 1, edge * channels, channels)
    return View.of((batch, channels, edge, edge), strides, math.item)


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


def row(kernel: Kernel, made: Report) -> str:
    """A line of the table."""
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
        made.registers,
        made.spilled,
        made.shared,
        device.shared_block,
        ", ".join(made.matrix) or "none",
    )
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> int:
    """Prints the table; 1 if a kernel has a fault."""
    print(_HEAD, end="")
    faulty = 0
    for kernel in kernels():
        made = report(kernel)
        print(row(kernel, made), flush=True)
        for fault in made.faults(kernel):
            print(f"{row(kernel, made)} {fault}", file=sys.stderr)
            faulty += 1
    return 1 if faulty else 0


if __name__ == "__main__":
    sys.exit(main())
