"""Compiles calls and launches them: on a device by kept handles, else in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

from . import gradient_kernels, kernels
from .program import Call

INTERPRETS = not isinstance(kernels.run_launch, triton.JITFunction)
"""Whether TRITON_INTERPRET=1 was set when Triton was imported: then kernels run on the CPU."""

TYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
"""Types of tensors that the kernels take, and Triton's names of them."""

KERNELS: dict[str, Any] = {
    "run_launch": kernels.run_launch,
    "run_pool": kernels.run_pool,
    "run_weight_gradient": gradient_kernels.run_weight_gradient,
}

POINTERS = {"run_launch": 4, "run_pool": 2, "run_weight_gradient": 3}
"""How many pointers a kernel takes before the other arguments."""

_FLOAT32_POINTERS = {"run_weight_gradient": 2}  # the one pointer that is always to float32

_MOST_REGISTERS = 255  # of a thread of an NVIDIA GPU
_REGISTERS = 65536  # of a block

Launcher = Callable[..., None]
"""Launches one call. Takes its pointers, then the stream."""


def compile(call: Call, type_name: str, aligned: tuple[bool, ...], target: GPUTarget) -> Any:
    """The compiled kernel of a call; needs no device.

    Args:
        type_name: of the tensors' elements, as in :data:`TYPES`.
        aligned: for each pointer, whether it is a multiple of 16 bytes.
    """
    kernel = KERNELS[call.kernel]
    types: list[Any] = [f"*{type_name}" for _ in aligned]
    if call.kernel in _FLOAT32_POINTERS:
        types[_FLOAT32_POINTERS[call.kernel]] = "*fp32"
    types += argument_types(call)
    constants = _constants(call)
    source = ASTSource(
        kernel,
        dict(zip(kernel.arg_names, types + ["constexpr"] * len(constants), strict=True)),
        constants,
        {(i,): [["tt.divisibility", 16]] for i, is_aligned in enumerate(aligned) if is_aligned},
    )
    options = {"num_warps": call.warps, "num_stages": call.stages}
    if target.backend == "cuda":
        # A limit keeps ptxas from spilling in order that another block fits beside.
        options["maxnreg"] = min(_MOST_REGISTERS, _REGISTERS // (call.warps * target.warp_size))
    return triton.compile(source, target=target, options=options)


def _constants(call: Call) -> dict[str, Any]:
    """The call's constants in the order of the kernel's parameters."""
    constants = dict(call.constants)
    names = KERNELS[call.kernel].arg_names
    return {name: constants[name] for name in names[len(names) - len(constants) :]}


def argument_types(call: Call) -> list[Any]:
    """Triton's names of the arguments' types, in tuples as the arguments are."""
    return [_argument_type(argument) for argument in call.arguments]


def _argument_type(value: Any) -> Any:
    if not isinstance(value, tuple):
        return "i32"
    types = [_argument_type(v) for v in value]
    if not hasattr(value, "_fields"):
        return tuple(types)
    # images may be far apart, anything else is within one image
    wide = ("i64" if n == "image" else t for n, t in zip(value._fields, types, strict=True))
    return type(value)(*wide)


def launcher(call: Call, dtype: torch.dtype, aligned: tuple[bool, ...]) -> Launcher:
    """What launches the call on the current device; compiles it unless Triton's cache has it."""
    constants = _constants(call)
    if INTERPRETS:
        interpreted = KERNELS[call.kernel][(call.tiles,)]

        def interpret(*pointers: Tensor, stream: int) -> None:
            interpreted(*pointers, *call.arguments, **constants)

        return interpret

    target = triton.runtime.driver.active.get_current_target()
    compiled: CompiledKernel = compile(call, TYPES[dtype], aligned, target)
    hooked = compiled[(call.tiles, 1, 1)]
    run, function, metadata = compiled.run, compiled.function, compiled.packed_metadata
    runtime = triton.knobs.runtime
    tiles = call.tiles
    rest = (*call.arguments, *constants.values())

    def launch(*pointers: int, stream: int) -> None:
        enter, leave = runtime.launch_enter_hook, runtime.launch_exit_hook
        # A chain of no hooks would cost half of the time.
        if (enter is not None and getattr(enter, "calls", True)) or (
            leave is not None and getattr(leave, "calls", True)
        ):
            return hooked(*pointers, *rest, stream=stream)
        run(tiles, 1, 1, stream, function, metadata, None, None, None, *pointers, *rest)

    return launch
