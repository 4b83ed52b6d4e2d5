"""Back ends: one record each, in the order of preference, and the choice between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from . import ops, reference
from .plan import Plan
from .tuning import cpu_tuning

Tuning = tuple[int, ...]
"""A back end's choice per step; empty: its plainest."""


class Pack(Protocol):
    """Prepares the weights of a plan; the weights by weight index, OIHW, the biases (O,)."""

    def __call__(
        self, plan: Plan, weights: Sequence[Tensor], biases: Sequence[Tensor], tuning: Tuning = ()
    ) -> list[Tensor]: ...


@dataclass(frozen=True)
class Backend:
    """What runs a plan.

    ``unavailable()`` says why this machine cannot use it, ``why_not(plan, x)`` why these arguments
    cannot; None means that they can. ``tuning(plan, x)`` is its choice per step for such an x,
    ``pack`` prepares the weights once per tuning, ``run(plan, x, packed)`` computes the output.
    """

    name: str
    unavailable: Callable[[], str | None]
    why_not: Callable[[Plan, Tensor], str | None]
    pack: Pack
    run: Callable[[Plan, Tensor, list[Tensor]], Tensor]
    tuning: Callable[[Plan, Tensor], Tuning] = lambda plan, x: ()


@dataclass(frozen=True)
class Choice:
    """The back end taken, and those before it in the table with the reason against each."""

    backend: Backend
    refused: tuple[tuple[str, str], ...]


def _cpu_why_not(plan: Plan, x: Tensor) -> str | None:
    if x.device.type != "cpu":
        return f"x is on {x.device}"
    if x.dtype != torch.float32:
        return f"x is {x.dtype}, the CPU kernels are float32"
    return None


def _cpu_tuning(plan: Plan, x: Tensor) -> Tuning:
    # A size that torch.compile keeps open must not decide: the graph would hold for one size only.
    batch, _, height, width = (n if isinstance(n, int) else None for n in x.shape)
    if height is None or width is None:
        return ()
    return cpu_tuning(plan, batch or 1, height, width)


def _reference_why_not(plan: Plan, x: Tensor) -> str | None:
    if x.dtype not in reference.DTYPES:
        return f"x is {x.dtype}, not floating-point"
    return None


TABLE: tuple[Backend, ...] = (
    Backend(
        "cpu",
        lambda: ops.NOT_LOADED,
        _cpu_why_not,
        lambda plan, weights, biases, tuning=(): [
            torch.ops.inception_fused.pack(list(weights), list(biases), plan.code, tuning)
        ],
        lambda plan, x, packed: torch.ops.inception_fused.run(x, packed[0], plan.code),
        _cpu_tuning,
    ),
    Backend(
        "reference",
        lambda: None,
        _reference_why_not,
        lambda plan, weights, biases, tuning=(): [*weights, *biases],
        lambda plan, x, packed: reference.run(
            plan, x, packed[: len(packed) // 2], packed[len(packed) // 2 :]
        ),
    ),
)
"""Every back end, the preferred first."""


def names() -> tuple[str, ...]:
    """The names that ``backend=`` takes, beside "auto"."""
    return tuple(backend.name for backend in TABLE)


def choose(plan: Plan, x: Tensor, wanted: str = "auto") -> Choice:
    """The first back end with no reason against it, or the wanted one.

    Raises:
        ValueError: no such back end, or the wanted one cannot run this; the reason is given.
    """
    if wanted != "auto" and wanted not in names():
        raise ValueError(f"backend must be auto, {', '.join(names())}, got {wanted!r}")
    refused: list[tuple[str, str]] = []
    for backend in TABLE:
        if wanted not in ("auto", backend.name):
            continue
        reason = backend.unavailable() or backend.why_not(plan, x)
        if reason is None:
            return Choice(backend, tuple(refused))
        refused.append((backend.name, reason))
    raise ValueError("; ".join(f"back end {name}: {reason}" for name, reason in refused))


def backends() -> dict[str, str]:
    """Each back end by name, with "available" or the reason why it is not."""
    state = {backend.name: backend.unavailable() or "available" for backend in TABLE}
    if ops.NOT_LOADED is None:
        lanes = int(torch.ops.inception_fused.cpu_lanes())
        state["cpu"] += f" ({ {4: 'base', 8: 'AVX2', 16: 'AVX-512'}[lanes] } kernels)"
    return state
