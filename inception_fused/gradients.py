"""Who computes the gradients of a fused module's convolutions: torch's operators, or Triton's."""

from __future__ import annotations

from types import TracebackType

import torch
from torch import Tensor

from .reference import StepGradients, aten_gradients
from .triton_kernels import check
from .triton_kernels import gradients as triton

_NAMES = ("auto", "aten", "triton")
_by = "auto"


class gradients:
    """Chooses who computes the gradients of convolutions in backward passes of later calls.

    ``gradients("triton")`` holds from then on, ``with gradients("triton"):`` inside the block. What
    counts is the choice at the forward call.

    Args:
        by: "aten", torch's operators; "triton", the Triton kernels where they can (the gradient of
            the input of a convolution with a stride, float64 and other devices stay torch's);
            "auto", the default: the Triton kernels where ``triton_kernels.measured`` has found them
            faster on this device, else torch's. A graph of ``torch.compile`` takes "auto" as
            "aten".

    Raises:
        ValueError: no such name, or the Triton kernels cannot run here; the reason is given.
    """

    def __init__(self, by: str) -> None:
        global _by
        if by not in _NAMES:
            raise ValueError(f"gradients must be by one of {', '.join(_NAMES)}, got {by!r}")
        if by == "triton" and (reason := check.unavailable()) is not None:
            raise ValueError(f"gradients cannot be by triton: {reason}")
        self._before, _by = _by, by

    def __enter__(self) -> gradients:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        global _by
        _by = self._before


def step_gradients(x: Tensor) -> StepGradients:
    """What computes the gradients of convolutions of a plan that is called with x now."""
    found: StepGradients = aten_gradients
    if _by == "triton":
        found = triton.step_gradients
    elif _by == "auto" and not torch.compiler.is_compiling() and _has_measurements(x):
        found = triton.measured_gradients
    return found


def _has_measurements(x: Tensor) -> bool:
    if check.unavailable() is not None or check.why_not_tensor(x) is not None:
        return False
    return bool(check.load_module("measured").any_for(x))
