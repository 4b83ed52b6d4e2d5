"""What the steps of a plan compute in training, in torch's operators."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import reference
from ..plan import Pool, Step
from ..spec import Window
from . import norm

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

    def normalise(self, z: Tensor, constants: Tensor | None, relu: bool, out: Tensor) -> None:
        """What a norm and perhaps a ReLU make of z (N, C, H, W), into ``out``.

        Args:
            constants: those of :mod:`norm` for z's channels; None: there is no norm.
            out: of z's shape, perhaps a channel range of a larger tensor.
        """
        if constants is None and relu:
            torch.clamp_min(z, 0, out=out)
            return
        norm.apply(z, constants, out)
        if relu:
            out.clamp_min_(0)

    def grad_norm(
        self,
        grads: Sequence[Tensor],
        z: Tensor,
        constants: Tensor,
        relus: Sequence[bool],
        batch: bool,
        needs: Sequence[bool],
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of z, gamma and beta, each None where ``needs`` is False.

        Args:
            grads: of what :meth:`normalise` gave, for adjacent channel ranges of z.
            relus: whether each of them is behind a ReLU.
            batch: whether the statistics are those of z.
        """
        masked = self.grad_relus(grads, z, constants, relus)
        return norm.backward(masked, z, constants, batch, needs)

    def grad_relus(
        self,
        grads: Sequence[Tensor],
        z: Tensor,
        constants: Tensor | None,
        relus: Sequence[bool],
    ) -> Tensor:
        """The gradients in one tensor, behind the masks of the ReLUs."""
        masked = torch.empty_like(z, memory_format=reference.output_format(z))
        start = 0
        for grad, relu in zip(grads, relus, strict=True):
            channels = grad.shape[1]
            target = masked.narrow(1, start, channels)
            if relu:
                own = z.narrow(1, start, channels)
                if constants is not None:
                    own = norm.apply(own, constants.narrow(1, start, channels), target)
                aten.threshold_backward.grad_input(grad, own, 0, grad_input=target)
            else:
                target.copy_(grad)
            start += channels
        return masked

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
