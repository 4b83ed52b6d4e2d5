"""A plan in int8 as PyTorch's integers: what the CPU's kernels must equal bit for bit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from inception_fused import reference
from inception_fused.plan import IN, OUT, Destination, Plan, Step
from inception_fused.quantise import Scale
from inception_fused.spec import Activation, Kind, Window

_BIAS = 2**24


def quantise(x: Tensor, scale: Scale) -> Tensor:
    """The uint8 numbers of float32 values, as int32; rounded to nearest, ties to even."""
    inverse = 1 / torch.tensor(scale.scale, dtype=torch.float32)
    return (torch.round(x * inverse) + scale.zero).clamp(0, 255).int()


def dequantise(number: Tensor, scale: Scale) -> Tensor:
    return (number - scale.zero).float() * torch.tensor(scale.scale, dtype=torch.float32)


def quantised_weights(weight: Tensor, bias: Tensor, scale: Scale) -> tuple[Tensor, Tensor, Tensor]:
    """Weights from -127 to 127 and biases as int64, and the float32 scale of each channel."""
    largest = weight.flatten(1).abs().amax(1)
    tiny = torch.full_like(largest, torch.finfo(torch.float32).tiny)
    needed = (bias.double().abs() / (float(torch.tensor(scale.scale)) * _BIAS)).float()
    scales = torch.stack([largest / 127, tiny, needed]).amax(0)
    numbers = torch.round(weight / scales.reshape(-1, 1, 1, 1)).clamp(-127, 127).long()
    unit = torch.tensor(scale.scale, dtype=torch.float32).double() * scales.double()
    return numbers, torch.round(bias.double() / unit).long(), scales


def run(
    plan: Plan,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    scales: Sequence[Scale],
) -> Tensor:
    """The plan's float32 output for a float32 x, through uint8 buffers."""
    sizes = plan.sizes(x.shape[2], x.shape[3])
    buffers = [
        torch.zeros((x.shape[0], channels, *size), dtype=torch.int32)
        for channels, size in zip(plan.buffers, sizes, strict=True)
    ]
    buffers[IN] = quantise(x, scales[IN])
    buffers[OUT] = buffers[OUT].float()
    for step in plan.steps:
        source = scales[step.src.buffer]
        operand = buffers[step.src.buffer].narrow(1, step.src.offset, step.src.channels)
        if step.pre:
            operand = _pool(operand, step.pre.kind, step.pre.window, source, source)
        for d in step.dst:
            target = None if d.slice.buffer == OUT else scales[d.slice.buffer]
            value = _step(step, d, operand, weights, biases, source, target)
            buffers[d.slice.buffer].narrow(1, d.slice.offset, d.slice.channels).copy_(value)
    return buffers[OUT].contiguous(memory_format=reference.output_format(x))


def _step(
    step: Step,
    d: Destination,
    operand: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    source: Scale,
    target: Scale | None,
) -> Tensor:
    if step.kind is Kind.LRN:
        value = reference.unweighted(step, dequantise(operand, source))
        return value if target is None else quantise(value, target)
    if not step.kind.has_weight:
        window = step.window if step.kind is not Kind.MEAN else Window(operand.shape[2:])
        kind = Kind.AVGPOOL if step.kind is Kind.MEAN else step.kind
        return _pool(operand, kind, window, source, target)
    numbers, bias, scale = quantised_weights(weights[d.weight], biases[d.weight], source)
    # Sums of up to 31 bits are exact in float64, and so is zero around the image.
    centred = (operand - source.zero).double()
    sums = F.conv2d(centred, numbers.double(), None, step.window.stride, step.window.padding)
    sums = sums.long() + bias.reshape(-1, 1, 1)
    factor = torch.tensor(source.scale, dtype=torch.float32).double() * scale.double()
    if target is not None:
        factor = factor / torch.tensor(target.scale, dtype=torch.float32).double()
    value = sums.float() * factor.float().reshape(-1, 1, 1)
    relu = d.activation is Activation.RELU
    if target is None:
        return value.relu() if relu else value
    number = torch.round(value.clamp(-512, 512)) + target.zero
    return number.clamp(target.zero if relu else 0, 255).int()


def _pool(
    operand: Tensor, kind: Kind, window: Window, source: Scale, target: Scale | None
) -> Tensor:
    args = (window.kernel, window.stride, window.padding)
    if kind is Kind.MAXPOOL:
        value = F.max_pool2d(operand.float(), *args, ceil_mode=window.ceil_mode).int()
        return dequantise(value, source) if target is None else value
    centred = (operand - source.zero).double()
    sums = F.avg_pool2d(centred, *args, window.ceil_mode, True, divisor_override=1)
    ones = torch.ones_like(centred[:1, :1])
    mean = F.avg_pool2d(ones, *args, window.ceil_mode, kind is Kind.AVGPOOL)
    taps = F.avg_pool2d(ones, *args, window.ceil_mode, True, divisor_override=1)
    counted = torch.round(taps / mean).float()
    ratio = torch.tensor(source.scale, dtype=torch.float32)
    if target is not None:
        ratio = ratio / torch.tensor(target.scale, dtype=torch.float32)
    value = torch.round(sums).float() * (ratio / counted)
    if target is None:
        return value
    return (torch.round(value) + target.zero).clamp(0, 255).int()
