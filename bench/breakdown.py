"""What each step of a module takes, by name, as it runs untuned."""

from __future__ import annotations

from torch import Tensor

from inception_fused import FusedInception
from inception_fused.backends import choose
from inception_fused.fusion import fusion_of
from inception_fused.plan import Step
from inception_fused.spec import Spec

from . import steps

SECONDS = 0.2
"""For all steps of a module together."""


def measure(spec: Spec, x: Tensor) -> dict[str, float]:
    """Median ms of every step, by its name, for an input of the shape, dtype and device of x.

    On a GPU it is the device's own time. Weights and the inputs of steps are random.
    """
    fusion = fusion_of(FusedInception(spec).to(x.device, x.dtype).eval().requires_grad_(False))
    assert fusion is not None
    backend = choose(fusion.plan, x).backend
    part = ("", fusion, backend, backend.tuning(fusion.plan, x), x)
    (found,) = steps.measure([part], SECONDS)
    return {name(s.step): s.ms.median for s in found.steps}


def name(step: Step) -> str:
    """Like "1x1 192 to 64+96+16": the kernel, after a pool if one is folded in, and the widths."""
    kernel = f"{step.window.kernel[0]}x{step.window.kernel[1]}"
    pool = "pool + " if step.pre else ""
    widths = "+".join(str(d.slice.channels) for d in step.dst)
    return f"{pool}{kernel} {step.src.channels} to {widths}"
