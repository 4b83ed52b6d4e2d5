"""The gradients of a step's convolutions: one matrix product each for its input and its weights.

A step's convolutions have one input and one window, so the gradients of their outputs, side by
side, are the gradient of the output of one convolution with all their weights. The gradient of its
input is itself a convolution, with the weights turned round, and runs as a plan of one step. The
gradient of its weights has a kernel of its own (:mod:`weight_gradient`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..ops import allows_tf32
from ..plan import IN, OUT, Destination, Plan, Slice, Step
from ..reference import Gradients, aten_gradients
from ..spec import Kind, Window
from . import check, operator, problem

_library: Any = torch.library.Library("inception_fused", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define(
    "triton_weight_gradient(Tensor grad, Tensor x, int[2] kernel, int[2] stride, int[2] padding)"
    " -> Tensor"
)

_REMEMBERED = 512  # prepared programs
_programs: dict[Any, Any] = {}


def _weight_gradient(
    grad: Tensor, x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    key = (
        *((t.shape, t.stride(), t.dtype, t.device, t.data_ptr() % 16) for t in (grad, x)),
        *(tuple(kernel), tuple(stride), tuple(padding)),
        x.dtype is torch.float32 and allows_tf32(),
    )
    program = _programs.get(key)
    if program is None:
        window = Window((kernel[0], kernel[1]), (stride[0], stride[1]), (padding[0], padding[1]))
        reason = check.unavailable() or _shape_fault(grad, x, window) or why_not(grad, x)
        if reason is not None:
            raise ValueError(f"inception_fused: {reason}")
    if not grad.numel() or not x.numel():
        return x.new_zeros((grad.shape[1], x.shape[1], *kernel))
    with operator.on(x.device):
        if program is None:
            loaded: Any = check.load_module("weight_gradient")
            if len(_programs) >= _REMEMBERED:
                _programs.clear()
            program = _programs[key] = loaded.prepare(grad, x, window)
        result: Tensor = program(grad, x)
    return result


def _fake_weight_gradient(
    grad: Tensor, x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    return x.new_empty((grad.shape[1], x.shape[1], *kernel))


_library.impl("triton_weight_gradient", _weight_gradient, "CompositeExplicitAutograd")
torch.library.register_fake(
    "inception_fused::triton_weight_gradient", _fake_weight_gradient, lib=_library
)


def forget() -> None:
    """Makes later calls look again for measured tiles."""
    _programs.clear()


def _shape_fault(grad: Tensor, x: Tensor, window: Window) -> str | None:
    shapes = tuple(grad.shape), tuple(x.shape)
    if grad.dim() != 4 or x.dim() != 4 or grad.shape[0] != x.shape[0]:
        return f"grad and x must be of shape (N, C, H, W) with one N, got {shapes[0]}, {shapes[1]}"
    size = window.output_size((x.shape[2], x.shape[3]))
    if size != tuple(grad.shape[2:]):
        wanted = f"{size[0]}x{size[1]}"
        return f"grad must have {wanted} pixels for x of shape {shapes[1]}, got {shapes[0]}"
    if (grad.dtype, grad.device) != (x.dtype, x.device):
        return f"grad must be {x.dtype} on {x.device} as x is, got {grad.dtype} on {grad.device}"
    return None


def why_not(grad: Tensor, x: Tensor) -> str | None:
    """Why the kernel cannot compute the weight gradient, or None."""
    for tensor in (grad, x):
        if (reason := check.why_not_tensor(tensor)) is not None:
            return reason
        pixels = tensor.shape[0] * tensor.shape[2] * tensor.shape[3]
        if pixels > problem.MAX_PIXELS:
            return f"a buffer has {pixels} pixels, the kernels count to {problem.MAX_PIXELS}"
    return None


def turned(channels: int, out_channels: int, window: Window) -> Plan | None:
    """The plan that computes the gradient of a convolution's input from that of its output.

    Its one weight is :func:`turn` of the convolution's. None unless the stride is 1 and the padding
    smaller than the window.

    Args:
        channels, out_channels: of the convolution's input and output.
    """
    padding = tuple(k - 1 - p for k, p in zip(window.kernel, window.padding, strict=True))
    if window.stride != (1, 1) or min(padding) < 0:
        return None
    back = Window(window.kernel, (1, 1), (padding[0], padding[1]))
    kind = Kind.POINTWISE if back == Window() else Kind.CONV
    step = Step(
        kind, back, Slice(IN, 0, out_channels), (Destination(Slice(OUT, 0, channels), 0),), 0
    )
    return Plan((out_channels, channels), (step,))


def turn(weight: Tensor) -> Tensor:
    """(O, I, height, width) to (I, O, height, width), the window turned by half a circle."""
    return weight.flip(2, 3).transpose(0, 1)


def input_gradient(grad: Tensor, weight: Tensor, window: Window) -> Tensor | None:
    """The gradient (N, I, H, W) of a convolution's input; None if the kernels cannot compute it."""
    plan = turned(weight.shape[1], weight.shape[0], window)
    if plan is None or check.why_not(plan, grad) is not None:
        return None
    return operator.run(plan, grad, pack_turned(plan, weight))


def pack_turned(plan: Plan, weight: Tensor) -> list[Tensor]:
    """The pack of a plan of :func:`turned` for the convolution's weight."""
    return operator.pack(plan, [turn(weight)], [weight.new_zeros(weight.shape[1])])


def weight_gradient(grad: Tensor, x: Tensor, window: Window) -> Tensor | None:
    """The gradient (O, I, height, width) of a weight; None if the kernel cannot compute it."""
    if why_not(grad, x) is not None:
        return None
    result: Tensor = torch.ops.inception_fused.triton_weight_gradient(
        grad, x, window.kernel, window.stride, window.padding
    )
    return result


def step_gradients(
    grads: Sequence[Tensor],
    x: Tensor,
    weights: Sequence[Tensor],
    window: Window,
    needs_x: bool,
    needs_weight: Sequence[bool],
    needs_bias: Sequence[bool],
) -> Gradients:
    """:func:`reference.aten_gradients` by the kernels; by aten what they cannot compute."""
    needs = (needs_x, needs_weight, needs_bias)
    return _step_gradients(grads, x, weights, window, *needs, lambda what, grad: True)


def measured_gradients(
    grads: Sequence[Tensor],
    x: Tensor,
    weights: Sequence[Tensor],
    window: Window,
    needs_x: bool,
    needs_weight: Sequence[bool],
    needs_bias: Sequence[bool],
) -> Gradients:
    """:func:`step_gradients` where it was measured as faster, else :func:`aten_gradients`."""
    needs = (needs_x, needs_weight, needs_bias)
    measured: Any = check.load_module("measured")

    def is_faster(what: str, grad: Tensor) -> bool:
        return bool(measured.is_faster(what, grad, x, window))

    return _step_gradients(grads, x, weights, window, *needs, is_faster)


def _step_gradients(
    grads: Sequence[Tensor],
    x: Tensor,
    weights: Sequence[Tensor],
    window: Window,
    needs_x: bool,
    needs_weight: Sequence[bool],
    needs_bias: Sequence[bool],
    takes: Callable[[str, Tensor], bool],
) -> Gradients:
    grad = grads[0] if len(grads) == 1 else torch.cat(list(grads), 1)
    grad_x = joint = None
    if needs_x and takes("input", grad):
        weight = weights[0] if len(weights) == 1 else torch.cat(list(weights))
        grad_x = input_gradient(grad, weight, window)
    if any(needs_weight) and takes("weight", grad):
        joint = weight_gradient(grad, x, window)
    rest = aten_gradients(
        grads,
        x,
        weights,
        window,
        needs_x and grad_x is None,
        [needed and joint is None for needed in needs_weight],
        needs_bias,
    )
    grad_weights = rest.weights
    if joint is not None:
        parts = joint.split([len(w) for w in weights])
        grad_weights = [p if n else None for p, n in zip(parts, needs_weight, strict=True)]
    return Gradients(rest.x if grad_x is None else grad_x, grad_weights, rest.biases)
