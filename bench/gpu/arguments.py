"""Modules, weights and inputs of a check, at the four precisions of the CUDA kernels."""

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
    "float32": torch.float32,
}
FORMATS = {"channels_last": torch.channels_last, "nchw": torch.contiguous_format}


@contextmanager
def precision(name: str) -> Iterator[torch.dtype]:
    """Sets torch's switches for products of float32, and sets them back; gives the dtype."""
    conv: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    matmul: Any = torch.backends.cuda.matmul
    before = conv.fp32_precision, matmul.fp32_precision
    wanted = "ieee" if name == "float32" else "tf32"
    conv.fp32_precision = matmul.fp32_precision = wanted
    try:
        yield PRECISIONS[name]
    finally:
        conv.fp32_precision, matmul.fp32_precision = before


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
