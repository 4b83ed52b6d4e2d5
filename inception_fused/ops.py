"""The operator ``torch.ops.inception_fused``: loading, shape functions, gradients.

The schemas are in ``csrc/bind.cpp``, once for all back ends; the dispatcher chooses by device.
``_C`` has the CPU's implementation, ``_cuda`` that of CUDA.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import cuda, reference
from .constant import constant_result
from .plan import Plan
from .reference import StepGradients
from .tuning import cpu_taps

CPU_DTYPES = (torch.float32, torch.bfloat16)
"""What the CPU kernels compute with."""

_GROUP = 16  # columns; csrc/cpu/kernels.h


def _load() -> str | None:
    """Loads the native library; returns why it could not be, or None."""
    try:
        importlib.import_module("inception_fused._C")
    except ImportError as error:
        return f"the native library is not built or does not load ({error})"
    return None


NOT_LOADED: str | None = _load()
"""Why ``_C`` is not there, or None if it is."""


def load_cuda() -> str | None:
    """Loads ``_cuda`` where torch has CUDA; returns why it could not be, or None."""
    if NOT_LOADED is not None:
        return NOT_LOADED
    if torch.version.cuda is None:
        return "this torch has no CUDA"
    if importlib.util.find_spec("inception_fused._cuda") is None:
        return "the CUDA library is not built (install again with FORCE_CUDA=1 to see why)"
    try:
        importlib.import_module("inception_fused._cuda")
    except ImportError as error:
        return f"the CUDA library does not load ({error})"
    return None


CUDA_NOT_LOADED: str | None = load_cuda()
"""Why ``_cuda`` is not there, or None if it is."""


@constant_result
def cuda_has_code(index: int) -> bool:
    """Whether ``_cuda``, which must be loaded, has code for the CUDA device of this index."""
    return bool(torch.ops.inception_fused.cuda_has_code(index))


@constant_result
def allows_tf32() -> bool:
    """Whether torch's convolutions may use TF32 for float32 now."""
    return bool(torch.backends.cudnn.conv.fp32_precision == "tf32")  # type: ignore[attr-defined]


@constant_result
def float32_products() -> str:
    """How the CUDA kernels multiply float32 now, of ``cuda.FLOAT32``: what torch's switches allow.

    "ieee" where torch's convolutions must not use TF32; else "bf16x3" if
    ``torch.set_float32_matmul_precision`` is "high", which torch describes as either of the two,
    and "tf32" if it is not.
    """
    if not allows_tf32():
        return "ieee"
    try:
        high = torch.get_float32_matmul_precision() == "high"
    except RuntimeError:  # the switches of single operators are set, and do not amount to one value
        high = False
    return "bf16x3" if high else "tf32"


def cpu_pack_size(
    plan: Plan, tuning: Sequence[int] = (), dtype: torch.dtype = torch.float32
) -> int:
    """Elements of the dtype in a CPU pack: ``pack_layout`` of ``csrc/cpu/pack.cpp``."""
    in_four_bytes = 4 // dtype.itemsize
    total = -(-len(plan.steps) // _GROUP) * _GROUP
    int8 = dtype is torch.int8
    if int8:
        total += -(-2 * len(plan.buffers) // _GROUP) * _GROUP
    for step, tile in zip(plan.steps, tuning or [0] * len(plan.steps), strict=True):
        if step.kind.has_weight:
            columns = sum(-(-d.slice.channels // _GROUP) * _GROUP for d in step.dst)
            taps, depth = cpu_taps(step, tile)
            if not tile:  # a tile's products are float32
                depth = -(-depth // in_four_bytes)
            total += columns * (1 + int8 + taps * depth)
    return total * in_four_bytes


def _register_fakes() -> None:
    # One tensor on meta is enough for the dispatcher to come here instead of to a kernel.
    def check_devices(**tensors: Tensor) -> None:
        first, *others = tensors
        device = tensors[first].device
        for name in others:
            if tensors[name].device != device:
                raise ValueError(
                    f"{name} must be on {device} as {first} is, got {tensors[name].device}"
                )

    def run(x: Tensor, pack: Tensor, plan: Sequence[int]) -> Tensor:
        decoded = Plan.decode([int(i) for i in plan])
        check_devices(x=x, pack=pack)
        shape = tuple(x.shape)
        torch._check_value(x.dim() == 4, lambda: f"x must have 4 dimensions, got shape {shape}")
        torch._check_value(
            x.shape[1] == decoded.in_channels,
            lambda: f"x must have {decoded.in_channels} channels, got shape {shape}",
        )
        return reference.empty_output(decoded, x)

    def run_out(x: Tensor, pack: Tensor, plan: Sequence[int], *, out: Tensor) -> None:
        check_devices(x=x, pack=pack, out=out)

    def pack(
        weights: Sequence[Tensor],
        biases: Sequence[Tensor],
        plan: Sequence[int],
        tuning: Sequence[int] = (),
        float32: str = "tf32",
    ) -> Tensor:
        named = {"weights": weights, "biases": biases}
        check_devices(**{f"{n}[{i}]": t for n, ts in named.items() for i, t in enumerate(ts)})
        decoded = Plan.decode([int(i) for i in plan])
        first = weights[0]
        if first.device.type == "cuda":
            return first.new_empty(cuda.pack_elements(decoded, first.dtype, float32))
        return first.new_empty(cpu_pack_size(decoded, [int(i) for i in tuning], first.dtype))

    def pack_int8(
        weights: Sequence[Tensor],
        biases: Sequence[Tensor],
        plan: Sequence[int],
        scales: Sequence[float],
    ) -> Tensor:
        decoded = Plan.decode([int(i) for i in plan])
        size = cpu_pack_size(decoded, dtype=torch.int8)
        return torch.empty(size, dtype=torch.int8, device=weights[0].device)

    torch.library.register_fake("inception_fused::run", run)
    torch.library.register_fake("inception_fused::run.out", run_out)
    torch.library.register_fake("inception_fused::pack", pack)
    torch.library.register_fake("inception_fused::pack_int8", pack_int8)


if NOT_LOADED is None:
    _register_fakes()

Run = Callable[[Plan, Tensor, list[Tensor]], Tensor]
"""A back end's forward: plan, x, packed weights."""


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(
        run: Run,
        plan: Plan,
        packed: list[Tensor],
        step_gradients: StepGradients,
        x: Tensor,
        *tensors: Tensor,
    ) -> Tensor:
        return run(plan, x, packed)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, plan, _, step_gradients, x, *tensors = inputs
        ctx.plan = plan
        ctx.step_gradients = step_gradients
        ctx.save_for_backward(x, *tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *tensors = ctx.saved_tensors
        half = len(tensors) // 2
        needs = ctx.needs_input_grad[4:]
        # Only aten's have gradients of their own.
        step_gradients = reference.aten_gradients if torch.is_grad_enabled() else ctx.step_gradients
        grad_x, grad_weights, grad_biases = reference.backward(
            ctx.plan, x, tensors[:half], tensors[half:], grad, needs, step_gradients
        )
        return (None, None, None, None, grad_x, *grad_weights, *grad_biases)


def differentiable(
    run: Run,
    plan: Plan,
    x: Tensor,
    packed: list[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    step_gradients: StepGradients = reference.aten_gradients,
) -> Tensor:
    """A back end's forward with gradients for x, weights and biases.

    Only x and the weights are saved; the backward pass recomputes the scratch buffers
    (:func:`reference.backward`).

    Args:
        x: (N, plan.in_channels, H, W).
        packed: the back end's pack of exactly these weights and biases.
        step_gradients: computes the gradients of convolutions; not asked where the gradients must
            be differentiable themselves.
    """
    arguments = (run, plan, packed, step_gradients, x, *weights, *biases)
    output: Tensor = _Differentiable.apply(*arguments)
    return output
