"""What the steps of a plan compute in training, in torch's operators."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from ..plan import Pool, Step
from ..spec import Window

aten = torch.ops.aten


class Operators:
    """Torch's own, for any device and dtype."""

    def convolve(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, window: Window, pool: Pool | None
    ) -> Tensor:
        """The convolution of x (N, C, H, W), or of the pooled x."""
        if pool:
            x, _ = self.pool(x, pool)
        z: Tensor = aten.convolution(x, weight, bias, *_geometry(window))
        return z

    def grad_input(self, grad: Tensor, x: Tensor, weight: Tensor, window: Window) -> Tensor:
        """The gradient of a convolution's input; of x only size and memory format matter."""
        mask = [True, False, False]
        found: Tensor = aten.convolution_backward(grad, x, weight, None, *_geometry(window), mask)[
            0
        ]
        return found

    def grad_weight(self, grad: Tensor, x: Tensor, weight: Tensor, window: Window) -> Tensor:
        """The gradient of a convolution's weight; of that only size and memory format matter."""
        mask = [False, True, False]
        found: Tensor = aten.convolution_backward(grad, x, weight, None, *_geometry(window), mask)[
            1
        ]
        return found

    def pool(self, x: Tensor, pool: Pool) -> tuple[Tensor, Tensor | None]:
        """The pooled x and, of a max pool, the indices of the maxima."""
        return reference.pooled(x, pool)

    def grad_pool(self, grad: Tensor, x: Tensor, pool: Pool, indices: Tensor | None) -> Tensor:
        """The gradient of a pool's input x."""
        return reference.grad_pooled(pool, grad, x, indices)

    def unweighted(self, step: Step, x: Tensor) -> Tensor:
        """The result of a step that is no convolution."""
        if step.kind.is_pool:
            return self.pool(x, Pool(step.kind, step.window))[0]
        return reference.unweighted(step, x)

    def grad_unweighted(self, step: Step, grad: Tensor, x: Tensor) -> Tensor:
        """The gradient of its input x."""
        if step.kind.is_pool:
            pool = Pool(step.kind, step.window)
            return self.grad_pool(grad, x, pool, self.pool(x, pool)[1])
        return reference.grad_unweighted(step, grad, x)


class StepOperators(Operators):
    """Torch's own, but for the gradients of convolutions.

    Args:
        step_gradients: computes those.
    """

    def __init__(self, step_gradients: reference.StepGradients) -> None:
        self._step_gradients = step_gradients

    def grad_input(self, grad: Tensor, x: Tensor, weight: Tensor, window: Window) -> Tensor:
        found = self._step_gradients([grad], x, [weight], window, True, [False], [False]).x
        assert found is not None
        return found

    def grad_weight(self, grad: Tensor, x: Tensor, weight: Tensor, window: Window) -> Tensor:
        found = self._step_gradients([grad], x, [weight], window, False, [True], [False])
        assert found.weights[0] is not None
        return found.weights[0]


def _geometry(window: Window) -> tuple[object, ...]:
    return (window.stride, window.padding, (1, 1), False, (0, 0), 1)
