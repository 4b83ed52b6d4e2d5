"""What the kernel tests run on: CPU kernels, emulated CUDA kernels, and a GPU if there is one.

A target runs a plan into a tensor of the caller's. Every precision has its own rounding, so its own
stock result: torch's, at that dtype, with operands of convolutions in TF32 for "tf32" and as sums
of two bfloat16 for "bf16x3".
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import emulated
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from inception_fused import ops, reference
from inception_fused.plan import Plan
from inception_fused.spec import Spec

PRECISIONS = emulated.DTYPES
FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
OP = torch.ops.inception_fused


class RunInto(Protocol):
    def __call__(
        self,
        plan: Plan,
        precision: str,
        x: Tensor,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor],
        out: Tensor,
        **options: Any,
    ) -> object: ...


@dataclass(frozen=True)
class Target:
    name: str
    device: str
    precisions: tuple[str, ...]
    run_into: RunInto

    def __str__(self) -> str:
        return self.name


def _operator(
    plan: Plan,
    precision: str,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    out: Tensor,
) -> None:
    float32 = emulated.FLOAT32.get(precision, "tf32")
    pack = OP.pack(list(weights), list(biases), plan.code, float32=float32)
    OP.run.out(x, pack, plan.code, out=out)


def why_no_gpu() -> str | None:
    """Why there is no target for a GPU here; None if there is one."""
    if ops.CUDA_NOT_LOADED is not None:
        return ops.CUDA_NOT_LOADED
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    return None if ops.cuda_has_code(0) else "the CUDA library has no code for this device"


CPU = Target("cpu", "cpu", ("float32", "bfloat16"), _operator)
EMULATED = Target("emulated", "cpu", tuple(PRECISIONS), emulated.run_into)
GPU = Target("cuda", "cuda", tuple(PRECISIONS), _operator)
TARGETS = (CPU, EMULATED, *(() if why_no_gpu() else (GPU,)))
CASES = [(target, precision) for target in TARGETS for precision in target.precisions]
"""Every target with every precision that it has."""


@dataclass
class Arguments:
    """Of one run, in CPU memory."""

    x: Tensor
    weights: list[Tensor]
    biases: list[Tensor]

    def to(self, where: torch.dtype | str) -> Arguments:
        return Arguments(
            self.x.to(where),
            [w.to(where) for w in self.weights],
            [b.to(where) for b in self.biases],
        )


def random_arguments(spec: Spec, shape: tuple[int, int, int], seed: int = 0) -> Arguments:
    """Normal numbers, the weights so that activations keep their scale; shape is (N, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    convs = list(spec.convolutions())
    return Arguments(
        torch.randn(shape[0], spec.in_channels, *shape[1:], generator=generator),
        [
            torch.randn(c.weight_shape, generator=generator)
            * (c.in_channels * c.kernel[0] * c.kernel[1]) ** -0.5
            for c in convs
        ],
        [torch.randn(c.out_channels, generator=generator) for c in convs],
    )


def small_integers(spec: Spec, shape: tuple[int, int, int], seed: int = 0) -> Arguments:
    """-1, 0 and 1, few enough that every sum is exact in every precision."""
    generator = torch.Generator().manual_seed(seed)

    def sparse(size: Sequence[int], one_in: int) -> Tensor:
        signs = torch.randint(0, 2, tuple(size), generator=generator) * 2.0 - 1
        return signs * (torch.randint(0, one_in, tuple(size), generator=generator) == 0)

    convs = list(spec.convolutions())
    return Arguments(
        sparse((shape[0], spec.in_channels, *shape[1:]), 2),
        [sparse(c.weight_shape, 5) for c in convs],
        [sparse((c.out_channels,), 2) for c in convs],
    )


class _Tf32(TorchDispatchMode):
    """Rounds the operands of convolutions to TF32, to nearest, ties away from zero."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default:
            args = (*(to_tf32(a) for a in args[:2]), *args[2:])
        return func(*args, **(kwargs or {}))


class _Bf16x3(TorchDispatchMode):
    """Convolutions of float32 as three, of the high and low parts of their operands."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.ops.aten.convolution.default:
            return func(*args, **(kwargs or {}))
        (x, x_low), (weight, weight_low) = map(to_bf16x2, args[:2])
        bias, *rest = args[2:]
        low = func(x_low, weight, None, *rest) + func(x, weight_low, None, *rest)
        return low + func(x, weight, bias, *rest)


def to_tf32(tensor: Tensor) -> Tensor:
    return ((tensor.contiguous().view(torch.int32) + 0x1000) & -0x2000).view(torch.float32)


def to_bf16x2(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """The high and the low part, in float32."""
    high = tensor.bfloat16().float()
    return high, (tensor - high).bfloat16().float()


MODES = {"tf32": _Tf32, "bf16x3": _Bf16x3}


def stock(plan: Plan, precision: str, arguments: Arguments) -> Tensor:
    """torch's result at the precision, on the CPU."""
    a = arguments.to(PRECISIONS[precision])
    with MODES[precision]() if precision in MODES else contextlib.nullcontext():
        return reference.run(plan, a.x, a.weights, a.biases)


def exact(plan: Plan, precision: str, arguments: Arguments) -> Tensor:
    """The result in float64 for arguments rounded to the precision's dtype."""
    a = arguments.to(PRECISIONS[precision]).to(torch.float64)
    return reference.run(plan, a.x, a.weights, a.biases)


def check_error(ours: Tensor, plan: Plan, precision: str, arguments: Arguments) -> None:
    """Asserts that ours has at most twice torch's error at the precision, against float64."""
    right = exact(plan, precision, arguments)
    theirs = (stock(plan, precision, arguments) - right).abs().max()
    eps = 8 * torch.finfo(torch.float32).eps  # torch may sum in blocks, which rounds less
    assert (ours - right).abs().max() <= 2 * theirs + eps * right.abs().max()


def slice_of_nan(like: Tensor, offset: int) -> tuple[Tensor, Tensor]:
    """A tensor of NaN, and a channel slice of it with the size and the format of ``like``."""
    n, c, h, w = like.shape
    large = torch.full((n, offset + c + 8, h, w), float("nan"), dtype=like.dtype)
    if like.stride(1) == 1 and c > 1:
        large = large.to(memory_format=torch.channels_last)
    return large, large.narrow(1, offset, c)


def copy_with_storage(view: Tensor, device: str) -> Tensor:
    """The same view, strides and offset, of a copy of its whole storage on a device."""
    elements = view.untyped_storage().nbytes() // view.itemsize
    whole = torch.as_strided(view, (elements,), (1,), 0).to(device)
    return torch.as_strided(whole, view.shape, view.stride(), view.storage_offset())


def run_poisoned(
    target: Target,
    plan: Plan,
    precision: str,
    arguments: Arguments,
    fmt: torch.memory_format,
    offset: int = 8,
    **options: Any,
) -> Tensor:
    """The output, on the CPU.

    x and the output are channel slices of tensors full of NaN; afterwards the output has none and
    all is NaN around it.
    """
    a = arguments.to(PRECISIONS[precision])
    _, x = slice_of_nan(a.x.to(memory_format=fmt), offset)
    x.copy_(a.x)
    height, width = plan.sizes(x.shape[2], x.shape[3])[1]
    like = torch.empty(x.shape[0], plan.out_channels, height, width, dtype=x.dtype)
    large, _ = slice_of_nan(like.to(memory_format=fmt), offset)
    large = large.to(target.device)
    out = large.narrow(1, offset, plan.out_channels)
    on_device = Arguments(x, a.weights, a.biases).to(target.device)
    target.run_into(
        plan, precision, on_device.x, on_device.weights, on_device.biases, out, **options
    )
    large = large.cpu()
    assert large[:, :offset].isnan().all()
    assert large[:, offset + plan.out_channels :].isnan().all()
    written = large[:, offset : offset + plan.out_channels]
    assert not written.isnan().any() or not arguments.x.isfinite().all()
    return written
