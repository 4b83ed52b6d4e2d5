"""What the CUDA kernels take, and the size of their pack: the mirror of ``csrc/cuda/program.cpp``.

Pure functions of the plan, without a device; a test compares them with the C++.
"""

from __future__ import annotations

import torch

from .plan import IN, OUT, Plan, Slice
from .spec import Kind

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
"""Types of x."""

FLOAT32 = ("tf32", "bf16x3", "ieee")
"""How float32 is multiplied: in TF32, as three products of bfloat16, as three of TF32.

A product is off by at most 2^-10, 2^-15 and 2^-21 of it. The pack says which way is taken.
"""

MAX_PIXELS = 2**30
"""Of all images of a batch: pixel indices have 32 bits, with room for a halo."""

OLDEST = (8, 0)
"""The compute capability from which on the kernels' instructions exist."""

_MAX_DESTINATIONS = 12  # kMaxSegments of csrc/cuda/problem.h


def why_not(plan: Plan) -> str | None:
    """Why the kernels cannot run the plan, or None. ``why_not`` of ``csrc/cuda/program.cpp``."""
    written = {d.slice for step in plan.steps for d in step.dst if d.slice.buffer != OUT}
    for number, step in enumerate(plan.steps):
        where = f"step {number}"
        if step.kind.is_pool:
            return f"{where} is a pool that no 1x1 convolution follows"
        if not step.kind.has_weight:
            return f"{where} is of a kind that has no kernel"
        if step.pre and step.pre.kind is Kind.AVGPOOL_INSIDE:
            return f"{where} averages the pixels inside the image alone"
        if not step.window.keeps_size or (step.pre and not step.pre.window.keeps_size):
            return f"{where} has a window that changes the image size"
        if len(step.dst) > _MAX_DESTINATIONS:
            return f"{where} has more than {_MAX_DESTINATIONS} destinations"
        if step.src.buffer != IN and step.src not in written:
            return f"{where} reads scratch that is not exactly one destination"
        if step.pre and step.src.buffer != IN:
            return f"{where} pools scratch"
        if _too_deep(step.src, step.window.kernel):
            return f"{where} reads more channels than an index can count"
    return None


def _too_deep(src: Slice, kernel: tuple[int, int]) -> bool:
    depth = -(-src.channels // 4)  # vectors of float32
    return (kernel[0] * kernel[1] * depth + 64) * depth >= 2**32


def pack_elements(plan: Plan, dtype: torch.dtype, float32: str = "tf32") -> int:
    """Elements of a pack; ``pack_layout`` and ``telling_bytes`` of ``csrc/cuda/program.cpp``.

    Args:
        float32: of FLOAT32; a pack tells it by a length of its own.
    """
    vector = 16 // dtype.itemsize
    total = {"tf32": 0, "ieee": 16, "bf16x3": 32}[float32] if dtype is torch.float32 else 0
    for step in plan.steps:
        if step.kind.has_weight:
            columns = sum(-(-d.slice.channels // vector) * vector for d in step.dst)
            depth = -(-step.src.channels // vector)
            taps = step.window.kernel[0] * step.window.kernel[1]
            total += columns * (4 + 16 * taps * depth)
    return total // dtype.itemsize
