"""The kernels that the chooser picks for GoogLeNet, each once with the launches that it serves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from ..lower import lower
from ..plan import OUT
from ..spec import GOOGLENET, GOOGLENET_SIZE
from . import gradients, launch, problem, program, weight_gradient
from .choose import DEVICES, Device, Math, Tile, choose
from .program import Call, View

ARCHS: tuple[int | str, ...] = (80, 90, 100, "gfx942")
BATCHES = (1, 8, 64)
FORMATS = ("channels_last", "contiguous")

TYPES = {
    "float16": ("fp16", Math.HALF),
    "bfloat16": ("bf16", Math.HALF),
    "tf32": ("fp32", Math.TF32),
    "ieee float32": ("fp32", Math.IEEE),
}
"""Triton's name of the elements, and how products are computed."""


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
    for step in plan.steps:
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
        channels = (step.src.channels, step.out_channels)
        size = problem.Size(batch, edge, edge, edge, edge)
        weight = weight_gradient.Problem.between(channels, step.window, size, math, *views[::-1])
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
