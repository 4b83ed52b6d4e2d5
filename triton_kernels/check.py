"""What the back end takes, and the operators' argument errors."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Sequence
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from ..constant import constant_result
from ..plan import OUT, Plan
from . import problem
from .overlap import elements_are_distinct, may_overlap
from .packing import layout

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
"""Types of x. float32 is computed in TF32 where torch's convolutions may use it."""

OLDEST = (8, 0)
"""The CUDA compute capability from which on the kernels are tried."""

_LEAST = (3, 6)  # version of Triton


@cache
def load() -> ModuleType | str:
    """The module ``execute``, which imports Triton, or why it cannot be imported."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    try:
        version = importlib.import_module("triton").__version__
        if tuple(map(int, version.split(".")[:2])) < _LEAST:
            return f"Triton is {version}, the kernels need {'.'.join(map(str, _LEAST))} or newer"
        return importlib.import_module(".execute", __package__)
    except ImportError as error:
        return f"Triton does not load ({error})"


def interprets() -> bool:
    """Whether the environment asks Triton to run kernels on the CPU."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


@constant_result
def unavailable() -> str | None:
    """Why this machine cannot run the kernels, or None."""
    if not interprets() and not torch.cuda.is_available():
        return "there is no GPU (TRITON_INTERPRET=1 runs the kernels on the CPU, slowly)"
    loaded = load()
    if isinstance(loaded, str):
        return loaded
    if interprets() != loaded.launch.INTERPRETS:
        return "TRITON_INTERPRET was changed after Triton was imported"
    return None


def load_module(name: str) -> ModuleType:
    """A module of this package that imports Triton; :func:`unavailable` must be None."""
    return importlib.import_module(f".{name}", __package__)


def why_not(plan: Plan, x: Tensor) -> str | None:
    """Why the kernels cannot run the plan on x, or None."""
    reason = why_not_tensor(x)
    return reason or problem.why_not(plan, x.shape[0], x.shape[2], x.shape[3])


def why_not_tensor(x: Tensor) -> str | None:
    """Why the kernels cannot read x, whatever they compute, or None."""
    if x.device.type != ("cpu" if interprets() else "cuda"):
        return f"x is on {x.device}" + (", TRITON_INTERPRET is set" if interprets() else "")
    if x.dtype not in DTYPES:
        return f"x is {x.dtype}, the Triton kernels are float16, bfloat16 or float32"
    if x.device.type == "cuda" and torch.version.cuda:
        major, minor = capability = torch.cuda.get_device_capability(x.device)
        if capability < OLDEST:
            return f"{x.device} is of sm_{major}{minor}, the kernels need sm_80 or newer"
    if _span(x) > problem.MAX_IMAGE:
        return f"the elements of an image of x are more than {problem.MAX_IMAGE} apart"
    return None


def _span(x: Tensor) -> int:
    """Elements from the first to the last of an image."""
    return sum((n - 1) * stride for n, stride in zip(x.shape[1:], x.stride()[1:], strict=True))


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(f"inception_fused: {message}")


def _require_like(name: str, tensor: Tensor, like: str, other: Tensor) -> None:
    _require(
        (tensor.dtype, tensor.device) == (other.dtype, other.device),
        f"{name} must be {other.dtype} on {other.device} as {like} is, "
        f"got {tensor.dtype} on {tensor.device}",
    )


def check_weights(plan: Plan, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> None:
    """Raises ValueError, naming the argument, unless these are the plan's weights."""
    shapes = [c.weight_shape for c in plan.convolutions()]
    _require(
        len(weights) == len(biases) == len(shapes) > 0,
        f"the plan needs {len(shapes)} weights and biases, got {len(weights)} and {len(biases)}",
    )
    for name, tensors in (("weights", weights), ("biases", biases)):
        for i, (tensor, shape) in enumerate(zip(tensors, shapes, strict=True)):
            wanted = shape if name == "weights" else shape[:1]
            got = tuple(tensor.shape)
            _require(got == wanted, f"{name}[{i}] must be of shape {wanted}, got {got}")
            _require_like(f"{name}[{i}]", tensor, "weights[0]", weights[0])


def check_run(plan: Plan, x: Tensor, pack: Tensor, out: Tensor | None) -> None:
    """Raises ValueError, naming the argument, unless the kernels can run this."""
    got = tuple(x.shape)
    _require(
        x.dim() == 4,
        f"x must have 4 dimensions (batch, channels, height, width), got shape {got}",
    )
    _require(
        got[1] == plan.in_channels, f"x must have {plan.in_channels} channels, got shape {got}"
    )
    reason = unavailable() or why_not(plan, x)
    _require(reason is None, str(reason))
    size = layout(plan).size
    _require(
        tuple(pack.shape) == (size,) and pack.is_contiguous(),
        "pack must be what inception_fused::triton_pack gives for this plan, contiguous of shape "
        f"({size},), got {tuple(pack.shape)}",
    )
    _require_like("pack", pack, "x", x)
    if out is None:
        return
    shape = (got[0], plan.out_channels, *plan.sizes(*got[2:])[OUT])
    _require(tuple(out.shape) == shape, f"out must be of shape {shape}, got {tuple(out.shape)}")
    _require_like("out", out, "x", x)
    _require(
        elements_are_distinct(out.shape, out.stride()),
        "out must not have two indices for one element (an expanded or self-overlapping view)",
    )
    for name, tensor in (("x", x), ("pack", pack)):
        _require(not may_overlap(tensor, out), f"out must not overlap {name} in memory")
    _require(
        _span(out) <= problem.MAX_IMAGE,
        f"the elements of an image of out are more than {problem.MAX_IMAGE} apart",
    )
