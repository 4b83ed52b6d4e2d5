"""The CUDA kernels on the emulator of tests/simt, called with tensors in CPU memory.

Every CUDA thread is a fiber, so that races, deadlocks and wrong accesses show on any machine.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import native
import torch
from torch import Tensor

from inception_fused import cuda, ops, reference
from inception_fused.backends import Backend
from inception_fused.plan import OUT, Plan

MATHS = {"float16": 0, "bfloat16": 1, "tf32": 2, "bf16x3": 3, "float32": 4}
"""``Math`` of csrc/cuda/choose.h."""

DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "tf32": torch.float32,
    "bf16x3": torch.float32,
    "float32": torch.float32,
}
FLOAT32 = {"tf32": "tf32", "bf16x3": "bf16x3", "float32": "ieee"}
"""What ``inception_fused::pack`` calls the precisions of float32."""

SM = 90

MACHINE = tuple(
    native.ROOT / "tests" / "simt" / f"{name}.cpp"
    for name in ("cluster", "emulator", "fiber", "matrix", "memory", "numbers")
)
"""The emulator itself."""

KERNELS = tuple(native.ROOT / path for path in ("tests/simt/emulated.cpp", "csrc/cuda/program.cpp"))
"""What it runs."""


@functools.cache
def library() -> ModuleType:
    """The extension module of tests/simt/bind.cpp."""
    binding = native.ROOT / "tests" / "simt" / "bind.cpp"
    return native.load("simt_emulator", [*MACHINE, *KERNELS, binding], ["-O3"])


def view(tensor: Tensor) -> tuple[int, list[int], list[int]]:
    """Address, sizes and strides in elements."""
    return tensor.data_ptr(), list(tensor.shape), list(tensor.stride())


def output(plan: Plan, x: Tensor) -> Tensor:
    """An output tensor for x, full of NaN."""
    height, width = plan.sizes(x.shape[2], x.shape[3])[OUT]
    return torch.empty(
        (x.shape[0], plan.out_channels, height, width),
        dtype=x.dtype,
        memory_format=reference.output_format(x),
    ).fill_(float("nan"))


def run_into(
    plan: Plan,
    math: str,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    out: Tensor,
    *,
    sm: int = SM,
    seed: int = 0,
    shape: int | None = None,
) -> dict[str, Any]:
    """Packs the weights and runs the plan into ``out``; returns launches and counters.

    Args:
        seed: shuffles the order of the threads; 0 leaves it.
        shape: index of the tile of choose.h to take where it fits, instead of the chosen one.
    """
    packs = [(view(w), (b.data_ptr(), b.stride(0))) for w, b in zip(weights, biases, strict=True)]
    counted: dict[str, Any] = library().run(
        list(plan.code), MATHS[math], sm, view(x), packs, view(out), seed, shape
    )
    return counted


def _sizes(plan: Plan, shape: tuple[int, int], channels_last: bool) -> list[Any]:
    batch, size = shape
    views = []
    for channels in (plan.in_channels, plan.out_channels):
        stride = (
            [size * size * channels, 1, size * channels, channels]
            if channels_last
            else [size * size * channels, size * size, size, 1]
        )
        views.append((0, [batch, channels, size, size], stride))
    return views


def launches(
    plan: Plan,
    precision: str,
    shape: tuple[int, int],
    *,
    sm: int = SM,
    channels_last: bool = True,
) -> list[dict[str, Any]]:
    """What would be launched for (batch, height and width of a square image); nothing is run."""
    views = _sizes(plan, shape, channels_last)
    found: list[dict[str, Any]] = library().plan_launches(
        list(plan.code), MATHS[precision], sm, *views
    )
    return found


def alternatives(
    plan: Plan,
    precision: str,
    shape: tuple[int, int],
    launch: int,
    *,
    sm: int = SM,
    channels_last: bool = True,
) -> list[dict[str, Any]]:
    """The launch of this index with every tile of choose.h that fits."""
    views = _sizes(plan, shape, channels_last)
    found: list[dict[str, Any]] = library().alternatives(
        list(plan.code), MATHS[precision], sm, *views, launch
    )
    return found


def backend() -> Backend:
    """The emulated kernels in place of the CUDA back end, for tensors in CPU memory."""

    def run(plan: Plan, x: Tensor, packed: list[Tensor]) -> Tensor:
        half = len(packed) // 2
        precision = next(name for name, dtype in DTYPES.items() if dtype is x.dtype)
        if x.dtype is torch.float32:
            called = ops.float32_products()
            precision = next(name for name in FLOAT32 if FLOAT32[name] == called)
        out = output(plan, x)
        run_into(plan, precision, x, packed[:half], packed[half:], out)
        return out

    return Backend(
        "emulated",
        "cpu",
        lambda: None,
        lambda plan, x: cuda.why_not(plan),
        lambda plan, weights, biases, tuning=(): [*weights, *biases],
        run,
    )
