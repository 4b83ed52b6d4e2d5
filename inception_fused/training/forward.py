"""The forward pass of a training step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..plan import OUT, Plan, Step
from ..spec import Activation
from . import norm
from .norm import BatchNorm
from .operators import Operators
from .values import Values


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
    values = Values(plan, x)
    kept = []
    for step in plan.steps:
        source = values.read(step.src)
        if not step.kind.has_weight:
            values.target(step.dst[0].slice).copy_(operators.unweighted(step, source))
            kept.append(Kept(None, None))
            continue
        own = [parameters[d.weight] for d in step.dst]
        z = operators.convolve(
            source, joined([p.weight for p in own]), _bias(own), step.window, step.pre
        )
        constants = norm.constants(
            z,
            [d.slice.channels for d in step.dst],
            [norms[d.weight] for d in step.dst],
            [p.gamma for p in own],
            [p.beta for p in own],
        )
        for number, destination in enumerate(step.dst):
            target = values.target(destination.slice)
            activate(step, number, z, constants, target, operators)
        kept.append(Kept(z if _matters(step, constants) else None, constants))
    return values.read(values.output), kept


def activate(
    step: Step,
    number: int,
    z: Tensor,
    constants: Tensor | None,
    out: Tensor,
    operators: Operators,
) -> None:
    """Writes into ``out`` what destination ``number`` of the step gets, from the step's z."""
    relu = step.dst[number].activation is Activation.RELU
    operators.normalise(*part(step, [number], z, constants), relu, out)


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
