"""Float32 convolutions of a training step by the CPU kernels, where these are faster than torch's."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import ops
from ..lower import lower
from ..plan import Plan
from ..spec import Activation, Spec, Stage, Window
from ..tuning import cpu_tuning
from .operators import Operators


class CpuOperators(Operators):
    """Winograd's minimal filtering for 3x3 and 5x5, forward and for the gradient of the input.

    That gradient is a convolution, too, with the weight turned around and its channels swapped.
    """

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None, window: Window) -> Tensor:
        z = _filtered(x, weight, bias, window)
        return super().convolve(x, weight, bias, window) if z is None else z

    def grad_input(self, grad: Tensor, x: Tensor, weight: Tensor, window: Window) -> Tensor:
        found = None
        if window.keeps_size:
            found = _filtered(grad, weight.flip(2, 3).transpose(0, 1), None, window)
        return super().grad_input(grad, x, weight, window) if found is None else found


def _filtered(x: Tensor, weight: Tensor, bias: Tensor | None, window: Window) -> Tensor | None:
    """The convolution, or None where torch's is faster."""
    if x.shape[2] * x.shape[3] < _LEAST_PIXELS:
        return None
    plan = _plan(weight.shape[1], weight.shape[0], window)
    tuning = cpu_tuning(plan, x.shape[0], x.shape[2], x.shape[3])
    if not any(tuning):
        return None
    bias = weight.new_zeros(weight.shape[0]) if bias is None else bias
    pack = torch.ops.inception_fused.pack([weight], [bias], plan.code, tuning)
    z: Tensor = torch.ops.inception_fused.run(x, pack, plan.code)
    return z
