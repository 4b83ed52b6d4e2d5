"""Modules, weights and inputs of a check, at the precisions of the CUDA kernels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from inception_fused import reference
from inception_fused.lower import lower
from inception_fused.plan import Plan
from inception_fused.spec import Spec

PRECISIONS = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "tf32": torch.float32,
    "bf16x3": torch.float32,
    "float32": torch.float32,
}
OF_CUDA = ("bf16x3",)
"""What the CUDA back end alone has; torch and the others compute in TF32 there."""

FORMATS = {"channels_last": torch.channels_last, "nchw": torch.contiguous_format}


def precisions(backend: str) -> list[str]:
    """Those of a back end of that name."""
    return [name for name in PRECISIONS if backend == "cuda" or name not in OF_CUDA]


@contextmanager
def precision(name: str) -> Iterator[torch.dtype]:
    """Sets torch's switches for products of float32, and sets them back; gives the dtype."""
    conv: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = conv.fp32_precision, torch.get_float32_matmul_precision()
    conv.fp32_precision = "ieee" if name == "float32" else "tf32"
    matmuls = {"float32": "highest", "bf16x3": "high"}
    torch.set_float32_matmul_precision(matmuls.get(name, "medium"))  # medium: TF32 too
    try:
        yield PRECISIONS[name]
    finally:
        conv.fp32_precision = before[0]
        torch.set_float32_matmul_precision(before[1])


@dataclass(frozen=True)
class Arguments:
    """x (N, C, H, W), weights (O, I, kh, kw) and biases (O,) of a plan, on one device."""

    plan: Plan
    x: Tensor
    weights: list[Tensor]
    biases: list[Tensor]

    @classmethod
    def random(cls, spec: Spec, shape: tuple[int, int, int], seed: int = 0) -> Arguments:
        """float32 on the CPU; weights keep the scale of what they multiply. shape is (N, H, W)."""
        generator = torch.Generator().manual_seed(seed)
        convs = list(spec.convolutions())
        sizes = [c.weight_shape for c in convs]
        return cls(
            lower(spec),
            torch.randn(shape[0], spec.in_channels, *shape[1:], generator=generator),
            [torch.randn(s, generator=generator) * (s[1] * s[2] * s[3]) ** -0.5 for s in sizes],
            [torch.randn(c.out_channels, generator=generator) for c in convs],
        )

    def to(
        self,
        device: str,
        dtype: torch.dtype,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> Arguments:
        """x in the memory format."""
        return Arguments(
            self.plan,
            self.x.to(device, dtype).contiguous(memory_format=memory_format),
            [w.to(device, dtype) for w in self.weights],
            [b.to(device, dtype) for b in self.biases],
        )

    def run(self) -> Tensor:
        """torch's own result."""
        return reference.run(self.plan, self.x, self.weights, self.biases)

    def exact(self, dtype: torch.dtype) -> Tensor:
        """In float64 on the CPU, for arguments rounded to dtype first."""
        return self.to("cpu", dtype).to("cpu", torch.float64).run()
