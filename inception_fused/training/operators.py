"""The convolutions and pools of a training step, in torch's operators."""

from __future__ import annotations

import torch
from torch import Tensor

from ..plan import Pool
from ..spec import Kind, Window

aten = torch.ops.aten


class Operators:
    """Torch's own, for any device and dtype."""

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None, window: Window) -> Tensor:
        """The convolution of x (N, C, H, W)."""
        z: Tensor = aten.convolution(x, weight, bias, *_geometry(window))
        return z

    def grad_input(self, grad: Tensor, x: Tensor, weight: Tensor, window: Window) -> Tensor:
        """The gradient of a convolution's input; of x only size and memory format matter."""
        mask = [True, False, False]
        found: Tensor = aten.convolution_backward(grad, x, weight, None, *_geometry(window), mask)[0]
        return found

    def grad_weight(self, grad: Tensor, x: Tensor, weight: Tensor, window: Window) -> Tensor:
        """The gradient of a convolution's weight; of that only size and memory format matter."""
        mask = [False, True, False]
        found: Tensor = aten.convolution_backward(grad, x, weight, None, *_geometry(window), mask)[1]
        return found

    def pool(self, x: Tensor, pool: Pool) -> Tensor:
        """The pooled x."""
        w = pool.window
        operator = aten.max_pool2d if pool.kind is Kind.MAXPOOL else aten.avg_pool2d
        pooled: Tensor = operator(x, w.kernel, w.stride, w.padding)
        return pooled

    def grad_pool(self, grad: Tensor, x: Tensor, pool: Pool) -> Tensor:
        """The gradient of a pool's input x."""
        w = pool.window
        found: Tensor
        if pool.kind is Kind.MAXPOOL:
            _, indices = aten.max_pool2d_with_indices(x, w.kernel, w.stride, w.padding)
            found = aten.max_pool2d_with_indices_backward(
                grad, x, w.kernel, w.stride, w.padding, (1, 1), False, indices
            )
        else:
            found = aten.avg_pool2d_backward(
                grad, x, w.kernel, w.stride, w.padding, False, True, None
            )
        return found


def _geometry(window: Window) -> tuple[object, ...]:
    return (window.stride, window.padding, (1, 1), False, (0, 0), 1)
