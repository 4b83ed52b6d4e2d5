"""int8 for fused modules: the ranges of their activations on examples, and the accuracy left."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from . import ops, reference
from .backends import int8
from .fusion import Fusion, Int8
from .quantise import Accuracy, Ranges, flat
from .trace import all_modules, evaluating


def check(examples: Tensor | Iterable[Tensor], backend: str) -> list[Tensor]:
    """The examples as a list.

    Args:
        examples: what a user gave as ``int8``.
        backend: what a user gave as ``backend``.

    Raises:
        TypeError, ValueError: with the reason, naming the argument.
    """
    if isinstance(examples, Tensor):
        examples = [examples]
    if not isinstance(examples, Iterable) or isinstance(examples, str | bytes | dict):
        raise TypeError(
            "int8 must be a tensor of example inputs or an iterable of such tensors, "
            f"got {type(examples).__name__}"
        )
    given = [*examples]
    for i, x in enumerate(given):
        if not isinstance(x, Tensor):
            raise TypeError(f"int8[{i}] must be a tensor of inputs, got {type(x).__name__}")
        if x.device.type != "cpu" or x.dtype is not torch.float32:
            raise ValueError(f"int8[{i}] must be float32 on the CPU, got {x.dtype} on {x.device}")
    if sum(len(x) if x.dim() else 0 for x in given) == 0:
        raise ValueError("int8 must hold at least one example input")
    if backend not in ("auto", "cpu"):
        raise ValueError(f"int8 is computed by the cpu back end alone, got backend={backend!r}")
    if ops.NOT_LOADED is not None:
        raise ValueError(f"int8 is computed by the cpu back end: {ops.NOT_LOADED}")
    return given


def calibrate(model: nn.Module, fusions: Sequence[Fusion], examples: Sequence[Tensor]) -> None:
    """Gives every fused module that the model runs on the examples its scales and its accuracy.

    The model runs in eval mode on each example twice, in float32.

    Raises:
        ValueError: the examples reach no fused module, or an activation is not finite.
    """
    ranges = {id(f): Ranges(f.plan) for f in fusions}
    refused: dict[int, str] = {}

    def see(fusion: Fusion, x: Tensor) -> None:
        if (reason := fusion.why_not_int8(x)) is not None:
            refused[id(fusion)] = reason
            return
        try:
            ranges[id(fusion)].see(x, *fusion.folded(x.dtype))
        except ValueError as error:
            raise ValueError(f"int8 of {type(fusion.module).__name__}: {error}") from error

    _visit(model, fusions, examples, see)
    reached = [f for f in fusions if ranges[id(f)].seen and id(f) not in refused]
    if not reached:
        reasons = "".join(f"\n  {reason}" for reason in dict.fromkeys(refused.values()))
        raise ValueError(f"int8: no example reaches a module that is fused{reasons}")
    for fusion in fusions:
        reason = refused.get(id(fusion), "no example reached it")
        fusion.int8 = Int8(None, reason=reason)
    scales = {id(f): flat(ranges[id(f)].scales()) for f in reached}
    chosen = {id(f): int8(scales[id(f)]) for f in reached}
    accuracies = {id(f): Accuracy() for f in reached}

    def compare(fusion: Fusion, x: Tensor) -> None:
        if (backend := chosen.get(id(fusion))) is None or fusion.why_not_int8(x) is not None:
            return
        weights, biases = fusion.folded(x.dtype)
        wanted = reference.run(fusion.plan, x, weights, biases)
        got = backend.run(fusion.plan, x, backend.pack(fusion.plan, weights, biases))
        if fusion.match.flat:
            wanted, got = wanted.flatten(1), got.flatten(1)
        accuracies[id(fusion)].see(wanted, got)

    _visit(model, reached, examples, compare)
    for fusion in reached:
        found = id(fusion)
        fusion.int8 = Int8(chosen[found], scales[found], accuracy=accuracies[found])
        fusion.drop()


def _visit(
    model: nn.Module,
    fusions: Sequence[Fusion],
    examples: Sequence[Tensor],
    see: Callable[[Fusion, Tensor], None],
) -> None:
    """Runs the model on the examples; shows each fused module its inputs, and lets the original
    run."""
    for fusion in fusions:
        fusion.observer = see
    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False), evaluating(all_modules(model)):
            for x in examples:
                model(x)
    finally:
        for fusion in fusions:
            fusion.observer = None
