"""A plan as training runs it: batch norms with statistics of the batch, and exact gradients.

For the backward pass a step keeps its input and what its convolutions gave, nothing else: the
values behind the norms, the masks of the ReLUs and the pools follow from these at the cost of one
pass over memory and are computed anew. Nothing is concatenated: what a norm and a ReLU give is
written into its slice of the output.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..ops import NOT_LOADED
from ..plan import Plan
from ..reference import DTYPES, StepGradients, aten_gradients
from .backward import Backward
from .cpu import CpuOperators
from .forward import Kept, Parameters, forward
from .norm import BatchNorm
from .operators import Operators, StepOperators
from .places import norms_of, parameters_of

__all__ = [
    "BatchNorm",
    "Operators",
    "Parameters",
    "norms_of",
    "operators_for",
    "parameters_of",
    "run",
    "why_not",
]

_FIELDS = Parameters._fields


def run(
    plan: Plan,
    x: Tensor,
    parameters: Sequence[Parameters],
    norms: Sequence[BatchNorm | None],
    operators: Operators,
) -> Tensor:
    """The plan's output for x, (N, plan.out_channels, H', W'), in x's dtype and memory format.

    Running statistics are updated in place, as ``nn.BatchNorm2d`` in training mode does.

    Args:
        x: (N, plan.in_channels, H, W), floating-point, with at least two pixels in all.
        parameters: by weight index. Weights and biases have x's dtype; gammas and betas have it or
            are float32.
        norms: by weight index; None where no norm follows the convolution.

    Raises:
        RuntimeError: in the backward pass, if that is to be differentiated again.
    """
    tensors = [t for p in parameters for t in p]
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, *tensors)):
        output: Tensor = _Training.apply(plan, norms, operators, x, *tensors)
        return output
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        return forward(plan, x, parameters, norms, operators)[0]


def operators_for(
    x: Tensor, backend: str, winograd: bool, step_gradients: StepGradients
) -> Operators:
    """The quickest operators for such an x; the arguments are those of ``FusedInception``.

    ``step_gradients`` computes the gradients of convolutions, unless it is torch's own.
    """
    if step_gradients is not aten_gradients:
        return StepOperators(step_gradients)
    filters = winograd and backend in ("auto", "cpu") and NOT_LOADED is None
    return CpuOperators() if filters and x.device.type == "cpu" else Operators()


def why_not(plan: Plan, x: Tensor) -> str | None:
    """Why :func:`run` cannot take such an x, of 4 dimensions; None if it can."""
    if x.dtype not in DTYPES:
        return f"the input is {x.dtype}, not floating-point"
    try:
        sizes = plan.sizes(x.shape[2], x.shape[3])
    except ValueError as error:
        return str(error)
    pixels = min(x.shape[0] * height * width for height, width in sizes if height)
    if pixels < 2:
        return f"the input has shape {tuple(x.shape)}: too few values per channel"
    return None


class _Training(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, plan: Plan, norms: Any, operators: Operators, x: Tensor, *tensors: Any
    ) -> Tensor:
        grouped = range(0, len(tensors), len(_FIELDS))
        parameters = [Parameters(*tensors[i : i + len(_FIELDS)]) for i in grouped]
        with torch.autocast(x.device.type, enabled=False):
            out, kept = forward(plan, x, parameters, norms, operators)
        ctx.plan, ctx.operators = plan, operators
        ctx.batch = [None if norm is None else norm.batch for norm in norms]
        ctx.save_for_backward(x, *(p.weight for p in parameters), *(t for k in kept for t in k))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "the gradient of a fused module in training mode cannot be differentiated again "
                "(create_graph=True); inception_fused.unfuse(model) gives modules whose can"
            )
        x, *tensors = ctx.saved_tensors
        count = len(ctx.batch)
        weights, rest = tensors[:count], tensors[count:]
        kept = [Kept(*pair) for pair in zip(rest[::2], rest[1::2], strict=True)]
        names = [(i, name) for i in range(count) for name in _FIELDS]
        needs_x, *needed = ctx.needs_input_grad[3:]
        needs = {name for name, need in zip(names, needed, strict=True) if need}
        with torch.autocast(x.device.type, enabled=False):
            gradients = Backward(
                ctx.plan, x, weights, ctx.batch, kept, needs_x, needs, ctx.operators
            )
            grad_x = gradients.run(grad)
        return (None, None, None, grad_x, *(gradients.grads.get(name) for name in names))
