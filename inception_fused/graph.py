"""The operator that a compiled graph calls: a module from its parameters, packed once.

A graph must not keep packed weights, as they may change, and packing them in every call would take
longer than the module itself. So the operator gets the parameters and keeps the pack outside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from . import reference, weights
from .backends import Backend, Tuning, choose, int8
from .plan import Plan
from .watch import sharded

Parameters = tuple[Tensor, Tensor | None, weights.Norm | None]
"""Of one convolution: weight, bias, norm; the arguments of :func:`weights.fold`."""

_FIELDS = 6  # weight, bias, mean, var, gamma, beta


@dataclass(frozen=True)
class _Pack:
    """A back end's pack, and the state of the parameters that it was made from, but the first."""

    packed: list[Tensor]
    others: list[Tensor]
    state: list[tuple[int, int]]

    def holds(self, tensors: Sequence[Tensor]) -> bool:
        same = all(a is b for a, b in zip(self.others, tensors[1:], strict=True))
        return same and self.state == _state(tensors)


# By the first weight, which the values must not hold.
_PACKS: WeakIdKeyDictionary = WeakIdKeyDictionary()

_plan = lru_cache(maxsize=256)(Plan.decode)

torch.library.define(
    "inception_fused::module",
    "(Tensor x, Tensor[] tensors, int[] present, float[] eps, int[] plan, str backend, "
    "bool winograd, float[] scales) -> Tensor",
)


def call(
    x: Tensor,
    parameters: Sequence[Parameters],
    plan: Plan,
    backend: str,
    winograd: bool,
    scales: Sequence[float] = (),
) -> Tensor:
    """``plan(x)`` with these parameters, as one node of a graph; without gradients.

    Args:
        x: (N, plan.in_channels, H, W); its dtype is the output's.
        parameters: by weight index.
        backend: "auto" or a name, as of ``choose``; the reference runs what none can.
        scales: to compute in int8, as of the operator ``pack_int8``.
    """
    result: Tensor = torch.ops.inception_fused.module(
        x, *take_apart(parameters), list(plan.code), backend, winograd, list(scales)
    )
    return result


def forget(weight: Tensor | None) -> None:
    """Drops the packs of the module whose first weight this is: they may be stale unseen."""
    if weight is not None and weight in _PACKS:
        del _PACKS[weight]


def take_apart(
    parameters: Sequence[Parameters],
) -> tuple[list[Tensor], list[int], list[float]]:
    """The operator's tensors, which of the six of each convolution they are, and its eps."""
    tensors: list[Tensor] = []
    present: list[int] = []
    eps: list[float] = []
    for weight, bias, norm in parameters:
        fields = [weight, bias]
        fields += [norm.mean, norm.var, norm.gamma, norm.beta] if norm else [None] * 4
        tensors += [t for t in fields if t is not None]
        present += [int(t is not None) for t in fields]
        eps.append(norm.eps if norm else 0.0)
    return tensors, present, eps


def _state(tensors: Sequence[Tensor]) -> list[tuple[int, int]]:
    return [(t._version, t.data_ptr()) for t in tensors]


def _fold(
    tensors: Sequence[Tensor], present: Sequence[int], eps: Sequence[float], dtype: torch.dtype
) -> tuple[list[Tensor], list[Tensor]]:
    """Weights and biases by weight index; the inverse of :func:`take_apart`, folded."""
    rest = iter(tensors)
    fields = [next(rest) if there else None for there in present]
    folded = []
    for i, e in enumerate(eps):
        weight, bias, mean, var, gamma, beta = fields[_FIELDS * i : _FIELDS * (i + 1)]
        assert weight is not None
        norm = None
        if mean is not None and var is not None:
            norm = weights.Norm(mean, var, gamma, beta, e)
        folded.append(weights.fold(weight, bias, norm))
    return [w.to(dtype) for w, _ in folded], [b.to(dtype) for _, b in folded]


_ROUTES: dict[object, tuple[Backend, Tuning]] = {}
_REMEMBERED = 1024


def _route(
    code: tuple[int, ...], backend: str, winograd: bool, x: Tensor
) -> tuple[Backend, Tuning]:
    """The back end and its tuning for such an x."""
    key = (code, backend, winograd, x.dtype, x.device, x.shape, x.stride())
    found = _ROUTES.get(key)
    if found is None:
        if len(_ROUTES) >= _REMEMBERED:
            _ROUTES.clear()
        taken = choose(_plan(code), x, backend).backend
        tuning = taken.tuning(_plan(code), x) if winograd else ()
        found = _ROUTES[key] = (taken, tuning)
    return found


@torch.library.impl("inception_fused::module", "default")
def _module(
    x: Tensor,
    tensors: list[Tensor],
    present: list[int],
    eps: list[float],
    plan: list[int],
    backend: str,
    winograd: bool,
    scales: list[float],
) -> Tensor:
    code = tuple(plan)
    decoded = _plan(code)
    taken, tuning = _route(code, backend, winograd, x)
    if scales:
        taken, tuning = int8(tuple(scales)), ()
    if sharded() or any(t.is_inference() for t in tensors):  # changes cannot be seen
        packed = taken.pack(decoded, *_fold(tensors, present, eps, x.dtype), tuning)
        return taken.run(decoded, x, packed)
    key = (code, tuple(present), tuple(eps), taken.name, taken.settings(x), tuning)
    if tensors[0] not in _PACKS:
        _PACKS[tensors[0]] = {}
    packs = _PACKS[tensors[0]]
    found = packs.get(key)
    if found is None or not found.holds(tensors):
        with torch.inference_mode(False), torch.no_grad():
            packed = taken.pack(decoded, *_fold(tensors, present, eps, x.dtype), tuning)
        found = packs[key] = _Pack(packed, list(tensors[1:]), _state(tensors))
    return taken.run(decoded, x, found.packed)


def _fake(
    x: Tensor, tensors: list[Tensor], present: list[int], eps: list[float], plan: list[int], *_: Any
) -> Tensor:
    return reference.empty_output(_plan(tuple(plan)), x)


torch.library.register_fake("inception_fused::module", _fake)
