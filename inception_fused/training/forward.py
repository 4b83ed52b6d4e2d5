"""The forward pass of a training step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..plan import IN, OUT, Plan, Pool, Slice, Step
from ..reference import empty_output, output_format
from ..spec import Activation
from . import norm
from .norm import BatchNorm
from .operators import Operators


class Parameters(NamedTuple):
    """The tensors of one convolution that have gradients; gamma and beta are its norm's."""

    weight: Tensor
    bias: Tensor | None
    gamma: Tensor | None
    beta: Tensor | None


class Kept(NamedTuple):
    """What the backward pass needs of one step.

    Attributes:
        z: what the convolutions of the step gave, before norm and activation; None for a pool, and
            where no gradient depends on it.
        constants: those of :mod:`norm`.
    """

    z: Tensor | None
    constants: Tensor | None


def forward(
    plan: Plan,
    x: Tensor,
    parameters: Sequence[Parameters],
    norms: Sequence[BatchNorm | None],
    operators: Operators,
) -> tuple[Tensor, list[Kept]]:
    """The plan's output, and what is to be kept of each step."""
    out = empty_output(plan, x)
    values = {Slice(IN, 0, plan.in_channels): x}
    kept = []
    for step in plan.steps:
        source = values[step.src]
        if step.kind.is_pool:
            target = step.dst[0].slice
            value = operators.pool(source, Pool(step.kind, step.window))
            if target.buffer == OUT:
                out.narrow(1, target.offset, target.channels).copy_(value)
            else:
                values[target] = value
            kept.append(Kept(None, None))
            continue
        if step.pre:
            source = operators.pool(source, step.pre)
        own = [parameters[d.weight] for d in step.dst]
        z = operators.convolve(source, joined([p.weight for p in own]), _bias(own), step.window)
        constants = norm.constants(
            z,
            [d.slice.channels for d in step.dst],
            [norms[d.weight] for d in step.dst],
            [p.gamma for p in own],
            [p.beta for p in own],
        )
        for number, target in enumerate(d.slice for d in step.dst):
            if target.buffer == OUT:
                activate(step, number, z, constants, out.narrow(1, target.offset, target.channels))
            else:
                values[target] = activate(step, number, z, constants)
        kept.append(Kept(z if _matters(step, constants) else None, constants))
    return out, kept


def activate(
    step: Step, number: int, z: Tensor, constants: Tensor | None, out: Tensor | None = None
) -> Tensor:
    """What destination ``number`` of the step gets, from the step's z.

    Args:
        out: where to write it; None: a tensor of its own, or a part of z if that is the same.
    """
    relu = step.dst[number].activation is Activation.RELU
    z, constants = part(step, [number], z, constants)
    if out is None:
        if constants is None and not relu:
            return z
        out = torch.empty_like(z, memory_format=output_format(z))
    if constants is None and relu:
        return torch.clamp_min(z, 0, out=out)
    norm.apply(z, constants, out)
    return out.clamp_min_(0) if relu else out


def part(
    step: Step, numbers: Sequence[int], z: Tensor, constants: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The channels of some adjacent destinations in the step's z and in its constants."""
    start = sum(d.slice.channels for d in step.dst[: numbers[0]])
    extent = (1, start, sum(step.dst[n].slice.channels for n in numbers))
    return z.narrow(*extent), None if constants is None else constants.narrow(*extent)


def joined(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """The concatenation; of one tensor, the tensor itself."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim)


def _bias(parameters: Sequence[Parameters]) -> Tensor | None:
    if all(p.bias is None for p in parameters):
        return None
    filled = [p.weight.new_zeros(len(p.weight)) if p.bias is None else p.bias for p in parameters]
    return joined(filled)


def _matters(step: Step, constants: Tensor | None) -> bool:
    return constants is not None or any(
        d.activation is Activation.RELU or d.slice.buffer != OUT for d in step.dst
    )
