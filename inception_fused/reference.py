"""The oracle and the back end that is always there: a plan interpreted with torch operators.

Any device, any dtype of :data:`DTYPES`, traceable by fake tensors, ``make_fx`` and AOTAutograd.
Every other back end is tested against :func:`run`; :func:`backward` is the gradient of all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .plan import IN, OUT, Destination, Plan, Pool, Slice, Step
from .spec import Activation, Kind, Response, Window

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Floating-point types that :func:`run` takes."""

aten = torch.ops.aten


def check(plan: Plan, x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> None:
    """Raises ValueError unless the arguments fit the plan; says which, what it is and must be.

    Args:
        x: (N, plan.in_channels, H, W), one of :data:`DTYPES`; N may be 0.
        weights: by weight index, (out channels, in channels, height, width) each.
        biases: by weight index, (out channels,) each.
    """
    if x.dim() != 4:
        raise ValueError(f"x must have 4 dimensions (N, C, H, W), got shape {tuple(x.shape)}")
    if x.shape[1] != plan.in_channels:
        raise ValueError(f"x must have {plan.in_channels} channels, got {x.shape[1]}")
    if x.dtype not in DTYPES:
        raise ValueError(f"x must be one of {', '.join(map(str, DTYPES))}, got {x.dtype}")
    plan.sizes(x.shape[2], x.shape[3])
    shapes = [c.weight_shape for c in plan.convolutions()]
    for name, tensors in (("weights", weights), ("biases", biases)):
        if len(tensors) != len(shapes):
            raise ValueError(f"{name} must be {len(shapes)} tensors, got {len(tensors)}")
        for i, (tensor, shape) in enumerate(zip(tensors, shapes, strict=True)):
            wanted = shape if name == "weights" else shape[:1]
            if tuple(tensor.shape) != wanted:
                raise ValueError(
                    f"{name}[{i}] must have the shape {wanted}, got {tuple(tensor.shape)}"
                )
            if tensor.dtype != x.dtype:
                raise ValueError(f"{name}[{i}] must be {x.dtype} like x, got {tensor.dtype}")
            if tensor.device != x.device:
                raise ValueError(f"{name}[{i}] must be on {x.device} like x, got {tensor.device}")


def output_format(x: Tensor) -> torch.memory_format:
    """The memory format of the output for the input x, of this and of every other back end.

    channels_last if the channels of x are adjacent in memory and x is not contiguous, so also for
    a channel slice of a channels_last tensor; contiguous otherwise.
    """
    if x.stride(1) == 1 and not x.is_contiguous():
        return torch.channels_last
    return torch.contiguous_format


def empty_output(plan: Plan, x: Tensor) -> Tensor:
    """The output for x, not computed: (N, plan.out_channels, H', W') as :func:`run` returns it."""
    height, width = plan.sizes(x.shape[2], x.shape[3])[1]
    return torch.empty(
        (x.shape[0], plan.out_channels, height, width),
        dtype=x.dtype,
        device=x.device,
        memory_format=output_format(x),
    )


def run(plan: Plan, x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """Runs the plan; returns (N, plan.out_channels, H', W') in x's dtype and memory format.

    Arguments and errors are those of :func:`check`. x is not written to.
    """
    check(plan, x, weights, biases)
    return buffers_of(plan, x, weights, biases)[OUT]


class Gradients(NamedTuple):
    """Of a step's input, and of the weights and biases of its convolutions; None if not needed."""

    x: Tensor | None
    weights: list[Tensor | None]
    biases: list[Tensor | None]


class StepGradients(Protocol):
    """Computes the gradients of convolutions with one input x and one window.

    Args:
        grads: of each convolution's output, (N, out channels, H', W').
        x: (N, in channels, H, W).
        weights: of each convolution, (out channels, in channels, height, width).
        needs_x, needs_weight, needs_bias: which gradients are needed.
    """

    def __call__(
        self,
        grads: Sequence[Tensor],
        x: Tensor,
        weights: Sequence[Tensor],
        window: Window,
        needs_x: bool,
        needs_weight: Sequence[bool],
        needs_bias: Sequence[bool],
    ) -> Gradients: ...


def aten_gradients(
    grads: Sequence[Tensor],
    x: Tensor,
    weights: Sequence[Tensor],
    window: Window,
    needs_x: bool,
    needs_weight: Sequence[bool],
    needs_bias: Sequence[bool],
) -> Gradients:
    """Torch's own :class:`StepGradients`, one convolution after the other."""
    found = Gradients(None, [], [])
    for grad, weight, *needs in zip(grads, weights, needs_weight, needs_bias, strict=True):
        parts: Sequence[Tensor | None] = (None, None, None)
        if needs_x or any(needs):
            parts = _conv_backward(grad, x, weight, window, [needs_x, *needs])
        if needs_x and parts[0] is not None:
            found = found._replace(x=parts[0] if found.x is None else found.x + parts[0])
        # The operator may give more than it is asked for.
        found.weights.append(parts[1] if needs[0] else None)
        found.biases.append(parts[2] if needs[1] else None)
    return found


def backward(
    plan: Plan,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    grad_out: Tensor,
    needs: Sequence[bool],
    step_gradients: StepGradients = aten_gradients,
) -> tuple[Tensor | None, list[Tensor | None], list[Tensor | None]]:
    """Gradients of :func:`run`, which needs nothing saved but its arguments.

    Args:
        grad_out: gradient of the output, with its shape.
        needs: for x, then for each weight, then for each bias: whether to compute its gradient.
        step_gradients: computes the gradients of the convolutions.

    Returns:
        Gradients of x, of the weights and of the biases; None where not needed.
    """
    check(plan, x, weights, biases)
    count = len(weights)
    if len(needs) != 1 + 2 * count:
        raise ValueError(f"needs must be {1 + 2 * count} bools, got {len(needs)}")
    needs_x, needs_weight, needs_bias = needs[0], needs[1 : 1 + count], needs[1 + count :]
    grad_weights: list[Tensor | None] = [None] * count
    grad_biases: list[Tensor | None] = [None] * count

    buffers = buffers_of(plan, x, weights, biases)
    if grad_out.shape != buffers[OUT].shape:
        raise ValueError(
            f"grad_out must have the shape {tuple(buffers[OUT].shape)} of the output, "
            f"got {tuple(grad_out.shape)}"
        )
    grads = {OUT: grad_out}
    for i, buffer in enumerate(buffers):
        if i != OUT and (i != IN or needs_x):
            grads[i] = torch.zeros_like(buffer)
    needs_src = _sources_needed(plan, needs_x, needs_weight, needs_bias)
    for step, needed in zip(reversed(plan.steps), reversed(needs_src), strict=True):
        src = _narrow(buffers, step.src)
        operand, indices = pooled(src, step.pre) if step.pre else (src, None)
        wanted = [
            d
            for d in step.dst
            if needed or (d.weight >= 0 and (needs_weight[d.weight] or needs_bias[d.weight]))
        ]
        if not wanted:
            continue
        behind = [_before_activation(grads, buffers, d) for d in wanted]
        if step.kind.has_weight:
            numbers = [d.weight for d in wanted]
            found = step_gradients(
                behind,
                operand,
                [weights[i] for i in numbers],
                step.window,
                needed,
                [needs_weight[i] for i in numbers],
                [needs_bias[i] for i in numbers],
            )
            grad_operand = found.x
            for i, weight, bias in zip(numbers, found.weights, found.biases, strict=True):
                grad_weights[i], grad_biases[i] = weight, bias
        else:
            grad_operand = grad_unweighted(step, behind[0], operand)
        if grad_operand is None:
            continue
        if step.pre:
            grad_operand = grad_pooled(step.pre, grad_operand, src, indices)
        _narrow(grads, step.src).add_(grad_operand)
    return grads.get(IN), grad_weights, grad_biases


def _before_activation(
    grads: dict[int, Tensor], buffers: Sequence[Tensor], d: Destination
) -> Tensor:
    """The gradient of a destination before its activation."""
    grad = _narrow(grads, d.slice)
    if d.activation is Activation.RELU:
        grad = aten.threshold_backward(grad, _narrow(buffers, d.slice), 0)
    return grad


def buffers_of(
    plan: Plan, x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]
) -> list[Tensor]:
    """Every buffer of the plan, filled; the first is x."""
    memory_format = output_format(x)
    buffers = [x]
    for channels, size in zip(plan.buffers[1:], plan.sizes(*x.shape[2:])[1:], strict=True):
        shape = (x.shape[0], channels, *size)
        buffers.append(
            torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format)
        )
    for step in plan.steps:
        operand = _narrow(buffers, step.src)
        if step.pre:
            operand, _ = pooled(operand, step.pre)
        for dst in step.dst:
            if not step.kind.has_weight:
                value = unweighted(step, operand)
            else:
                value = torch.conv2d(
                    operand,
                    weights[dst.weight],
                    biases[dst.weight],
                    step.window.stride,
                    step.window.padding,
                )
            if dst.activation is Activation.RELU:
                value = torch.relu(value)
            _narrow(buffers, dst.slice).copy_(value)
    return buffers


def _narrow(buffers: Sequence[Tensor] | dict[int, Tensor], s: Slice) -> Tensor:
    return buffers[s.buffer].narrow(1, s.offset, s.channels)


def pooled(x: Tensor, pool: Pool) -> tuple[Tensor, Tensor | None]:
    """The pooled x and, of a max pool, the indices of the maxima."""
    w = pool.window
    args = (x, w.kernel, w.stride, w.padding)
    if pool.kind is Kind.MAXPOOL:
        value, indices = aten.max_pool2d_with_indices(*args, (1, 1), w.ceil_mode)
        return value, indices
    return aten.avg_pool2d(*args, w.ceil_mode, pool.kind is Kind.AVGPOOL), None


def grad_pooled(pool: Pool, grad: Tensor, x: Tensor, indices: Tensor | None) -> Tensor:
    w = pool.window
    args = (grad, x, w.kernel, w.stride, w.padding)
    grad_x: Tensor
    if pool.kind is Kind.MAXPOOL:
        grad_x = aten.max_pool2d_with_indices_backward(*args, (1, 1), w.ceil_mode, indices)
    else:
        grad_x = aten.avg_pool2d_backward(*args, w.ceil_mode, pool.kind is Kind.AVGPOOL, None)
    return grad_x


def unweighted(step: Step, x: Tensor) -> Tensor:
    """The result of a step that is no convolution."""
    if step.kind is Kind.MEAN:
        return x.mean((2, 3), keepdim=True)
    if step.response is not None:
        scale = _response_scale(x, step.response)
        return x * scale.pow(-step.response.beta)
    return pooled(x, Pool(step.kind, step.window))[0]


def grad_unweighted(step: Step, grad: Tensor, x: Tensor) -> Tensor:
    if step.kind is Kind.MEAN:
        spread: Tensor = grad.expand_as(x) / (x.shape[2] * x.shape[3])
        return spread
    if (r := step.response) is not None:
        scale = _response_scale(x, r)
        factor = scale.pow(-r.beta)
        # Channel c is in the windows of the channels whose window, mirrored, holds them.
        others = _channel_sums(grad * x * factor / scale, r.size, r.size - 1 - r.size // 2)
        grad_x: Tensor = grad * factor - (2 * r.alpha / r.size * r.beta) * x * others
        return grad_x
    pool = Pool(step.kind, step.window)
    return grad_pooled(pool, grad, x, pooled(x, pool)[1])


def _response_scale(x: Tensor, r: Response) -> Tensor:
    return _channel_sums(x.square(), r.size, r.size // 2) * (r.alpha / r.size) + r.k


def _channel_sums(x: Tensor, size: int, before: int) -> Tensor:
    """The sum over the ``size`` channels from ``before`` channels before on that exist."""
    channels = x.shape[1]
    behind = min(size - 1 - before, channels - 1)
    before = min(before, channels - 1)
    padded = aten.constant_pad_nd(x, (0, 0, 0, 0, before, behind))
    total: Tensor = padded.narrow(1, 0, channels)
    for i in range(1, before + 1 + behind):
        total = total + padded.narrow(1, i, channels)
    return total


def _conv_backward(
    grad: Tensor, x: Tensor, weight: Tensor, window: Window, mask: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, weight and bias, each None where the mask is False."""
    bias_shape = [weight.shape[0]]
    geometry = (window.stride, window.padding, (1, 1), False, (0, 0), 1)
    grad_x, grad_weight, grad_bias = aten.convolution_backward(
        grad, x, weight, bias_shape, *geometry, list(mask)
    )
    return grad_x, grad_weight, grad_bias


def _sources_needed(
    plan: Plan, needs_x: bool, needs_weight: Sequence[bool], needs_bias: Sequence[bool]
) -> list[bool]:
    """For each step, whether its source depends on anything that needs a gradient."""
    wanted = [Slice(IN, 0, plan.in_channels)] if needs_x else []
    needed = []
    for step in plan.steps:
        behind = any(_overlap(s, step.src) for s in wanted)
        needed.append(behind)
        for d in step.dst:
            if behind or (d.weight >= 0 and (needs_weight[d.weight] or needs_bias[d.weight])):
                wanted.append(d.slice)
    return needed


def _overlap(a: Slice, b: Slice) -> bool:
    return a.buffer == b.buffer and a.offset < b.end and b.offset < a.end
