"""Back ends: one record each, in the order of preference, and the choice between them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from . import cuda, ops, reference
from .plan import Plan
from .triton_kernels import check as triton_check
from .triton_kernels import operator as triton_operator
from .tuning import cpu_describe, cpu_options, cpu_tuning

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

    ``device`` is the type of device it is for, None for any. ``unavailable()`` says why this
    machine cannot use it, ``why_not(plan, x)`` why these arguments cannot; None means that they
    can. ``tuning(plan, x)`` is its choice per step for such an x, ``pack`` prepares the weights
    once per tuning, ``run(plan, x, packed)`` computes the output. ``settings(x)`` is what else a
    pack for such an x depends on beside the weights.

    For measuring: ``options(plan, x)`` is, per place of a tuning, every value that it may have,
    empty if there is nothing to choose; ``describe(plan, tuning)`` names a tuning;
    ``tune(plan, x, packed)`` measures what the back end chooses inside its ``run``.
    """

    name: str
    device: str | None
    unavailable: Callable[[], str | None]
    why_not: Callable[[Plan, Tensor], str | None]
    pack: Pack
    run: Callable[[Plan, Tensor, list[Tensor]], Tensor]
    tuning: Callable[[Plan, Tensor], Tuning] = lambda plan, x: ()
    settings: Callable[[Tensor], Hashable] = lambda x: x.dtype
    options: Callable[[Plan, Tensor], tuple[Tuning, ...]] = lambda plan, x: ()
    describe: Callable[[Plan, Tuning], str] = lambda plan, tuning: ""
    tune: Callable[[Plan, Tensor, list[Tensor]], None] = lambda plan, x, packed: None


@dataclass(frozen=True)
class Choice:
    """The back end taken, and those for x's device before it, with the reason against each."""

    backend: Backend
    refused: tuple[tuple[str, str], ...]


def _cuda_unavailable() -> str | None:
    if ops.CUDA_NOT_LOADED is not None:
        return ops.CUDA_NOT_LOADED
    return None if torch.cuda.is_available() else "there is no CUDA device"


def _cuda_why_not(plan: Plan, x: Tensor) -> str | None:
    if x.device.type != "cuda":
        return f"x is on {x.device}"
    if x.dtype not in cuda.DTYPES:
        return f"x is {x.dtype}, the CUDA kernels are float16, bfloat16 or float32"
    major, minor = capability = torch.cuda.get_device_capability(x.device)
    if capability < cuda.OLDEST:
        return f"{x.device} is of sm_{major}{minor}, the kernels need sm_80 or newer"
    if not ops.cuda_has_code(x.device.index):
        return (
            f"the CUDA library has no code for {x.device}, of sm_{major}{minor}: "
            f"build it with TORCH_CUDA_ARCH_LIST={major}.{minor}"
        )
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    if pixels > cuda.MAX_PIXELS:
        return f"x has {pixels} pixels, the kernels count up to {cuda.MAX_PIXELS}"
    return cuda.why_not(plan)


def _cuda_settings(x: Tensor) -> Hashable:
    return (x.dtype, ops.float32_products() if x.dtype is torch.float32 else None)


def _cpu_why_not(plan: Plan, x: Tensor) -> str | None:
    if x.device.type != "cpu":
        return f"x is on {x.device}"
    if x.dtype not in ops.CPU_DTYPES:
        return f"x is {x.dtype}, the CPU kernels are float32 or bfloat16"
    return None


def _cpu_tuning(plan: Plan, x: Tensor) -> Tuning:
    # A size that torch.compile keeps open must not decide: the graph would hold for one size only.
    batch, _, height, width = (n if isinstance(n, int) else None for n in x.shape)
    if height is None or width is None:
        return ()
    return cpu_tuning(plan, batch or 1, height, width, half=x.dtype is torch.bfloat16)


def _cpu_options(plan: Plan, x: Tensor) -> tuple[Tuning, ...]:
    return cpu_options(plan)


def _reference_why_not(plan: Plan, x: Tensor) -> str | None:
    if x.dtype not in reference.DTYPES:
        return f"x is {x.dtype}, not floating-point"
    return None


def _cpu_pack(
    plan: Plan, weights: Sequence[Tensor], biases: Sequence[Tensor], tuning: Tuning = ()
) -> list[Tensor]:
    return [torch.ops.inception_fused.pack(list(weights), list(biases), plan.code, tuning)]


def _cuda_pack(
    plan: Plan, weights: Sequence[Tensor], biases: Sequence[Tensor], tuning: Tuning = ()
) -> list[Tensor]:
    float32 = ops.float32_products()
    return [
        torch.ops.inception_fused.pack(
            list(weights), list(biases), plan.code, tuning, float32=float32
        )
    ]


def _run(plan: Plan, x: Tensor, packed: list[Tensor]) -> Tensor:
    output: Tensor = torch.ops.inception_fused.run(x, packed[0], plan.code)
    return output


TABLE: tuple[Backend, ...] = (
    Backend(
        "cuda",
        "cuda",
        _cuda_unavailable,
        _cuda_why_not,
        _cuda_pack,
        _run,
        settings=_cuda_settings,
    ),
    Backend(
        "triton",
        "cuda",  # the device type of AMD GPUs too
        triton_check.unavailable,
        triton_check.why_not,
        lambda plan, weights, biases, tuning=(): triton_operator.pack(plan, weights, biases),
        triton_operator.run,
        tune=triton_operator.tune,
    ),
    Backend(
        "cpu",
        "cpu",
        lambda: ops.NOT_LOADED,
        _cpu_why_not,
        _cpu_pack,
        _run,
        _cpu_tuning,
        options=_cpu_options,
        describe=cpu_describe,
    ),
    Backend(
        "reference",
        None,
        lambda: None,
        _reference_why_not,
        lambda plan, weights, biases, tuning=(): [*weights, *biases],
        lambda plan, x, packed: reference.run(
            plan, x, packed[: len(packed) // 2], packed[len(packed) // 2 :]
        ),
    ),
)
"""Every back end, the preferred first."""


def int8(scales: tuple[float, ...]) -> Backend:
    """The CPU's back end in int8, for float32 inputs.

    Args:
        scales: of the plan that it will run, as of the operator ``pack_int8``.
    """

    def why_not(plan: Plan, x: Tensor) -> str | None:
        return None if x.dtype is torch.float32 else f"x is {x.dtype}, int8 is for float32"

    def pack(
        plan: Plan, weights: Sequence[Tensor], biases: Sequence[Tensor], tuning: Tuning = ()
    ) -> list[Tensor]:
        arguments = (list(weights), list(biases), plan.code, scales)
        return [torch.ops.inception_fused.pack_int8(*arguments)]

    return Backend(
        "cpu int8", "cpu", lambda: ops.NOT_LOADED, why_not, pack, _run, settings=lambda x: scales
    )


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
    for backend, reason in _asked(plan, x, wanted):
        if reason is None:
            return Choice(backend, tuple(refused))
        refused.append((backend.name, reason))
    raise ValueError("; ".join(f"back end {name}: {reason}" for name, reason in refused))


def able(plan: Plan, x: Tensor, wanted: str = "auto") -> list[Backend]:
    """Every back end that :func:`choose` could take for such an x, the preferred first."""
    return [backend for backend, reason in _asked(plan, x, wanted) if reason is None]


def _asked(plan: Plan, x: Tensor, wanted: str) -> Iterator[tuple[Backend, str | None]]:
    """The wanted back end, or all for x's device, each with the reason against it."""
    for backend in TABLE:
        if backend.name == wanted or (wanted == "auto" and backend.device in (None, x.device.type)):
            yield backend, backend.unavailable() or backend.why_not(plan, x)


def backends() -> dict[str, str]:
    """Each back end by name, with "available" or the reason why it is not."""
    state = {backend.name: backend.unavailable() or "available" for backend in TABLE}
    if ops.NOT_LOADED is None:
        lanes = int(torch.ops.inception_fused.cpu_lanes())
        kernels = {4: "base", 8: "AVX2", 16: "AVX-512"}[lanes]
        if torch.ops.inception_fused.cpu_multiplies_bfloat16():
            kernels += ", AVX512-VNNI and AVX512-BF16"
        elif torch.ops.inception_fused.cpu_multiplies_int8():
            kernels += " and AVX512-VNNI"
        state["cpu"] += f" ({kernels} kernels)"
    return state
