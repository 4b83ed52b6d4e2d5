"""Which gradients of convolutions were measured as faster in Triton than in aten, on this device.

They are kept in the file of :mod:`cache`: by the key of a gradient one tile, or none where aten's
was as fast.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from ..examine import tolerance
from ..plan import Plan
from ..reference import aten_gradients
from ..spec import Window
from . import cache, gradients, launch, operator, tune, weight_gradient
from .choose import Tile
from .execute import device_of
from .tune import Timer
from .weight_gradient import PREFIX, Problem, device_name

_REMEMBERED = 4096
_decisions: dict[Any, bool] = {}


def key(what: str, grad: Tensor, x: Tensor, window: Window) -> str:
    """Of the gradient ("input" or "weight") of a convolution of x; grad is its output's."""
    return Problem.of(grad, x, window).key(what)


def any_for(x: Tensor) -> bool:
    """Whether any gradient was measured as faster on x's device."""
    return any(t and k.startswith(PREFIX) for k, t in cache.TILES.load(device_name(x)).items())


def is_faster(what: str, grad: Tensor, x: Tensor, window: Window) -> bool:
    """Whether this gradient was measured as faster in Triton."""
    shapes = ((t.shape, t.stride(), t.dtype, t.data_ptr() % 16) for t in (grad, x))
    place = (what, window, x.device, *shapes)
    found = _decisions.get(place)
    if found is None:
        if len(_decisions) >= _REMEMBERED:
            _decisions.clear()
        known = cache.TILES.load(device_name(x)).get(key(what, grad, x, window), ())
        found = _decisions[place] = len(known) > 0
    return found


def measure(plan: Plan, x: Tensor, timer: Timer = triton.testing.do_bench) -> dict[str, bool]:
    """Measures the gradients of all convolutions of a plan for inputs like x, and remembers them.

    ``gradients("auto")``, the default, takes the faster ones from then on.

    Args:
        x: (N, plan.in_channels, H, W) on a GPU, of any values.

    Returns:
        For each gradient, by step and name, whether Triton's is faster.

    Raises:
        RuntimeError: Triton interprets, so that times mean nothing.
    """
    if launch.INTERPRETS:
        raise RuntimeError("Triton's interpreter runs the kernels: there is nothing to measure")
    found: dict[str, bool] = {}
    sizes = plan.sizes(x.shape[2], x.shape[3])
    with torch.cuda.device(x.device), torch.no_grad():
        for number, step in enumerate(plan.steps):
            if not step.kind.has_weight:
                continue
            size = sizes[step.dst[0].slice.buffer]
            inner = size if step.pre else sizes[step.src.buffer]
            operand = _filled(x, step.src.channels, inner)
            widths = [d.slice.channels for d in step.dst]
            grads = [_filled(x, width, size) for width in widths]
            shape = (step.out_channels, step.src.channels, *step.window.kernel)
            weights = torch.randn(shape, dtype=x.dtype, device=x.device).split(widths)
            arguments = (grads, operand, weights, step.window)
            grad = _joined(grads, 1)
            entries = {
                key("input", grad, operand, step.window): input_winner(*arguments, timer),
                key("weight", grad, operand, step.window): weight_winner(*arguments, timer),
            }
            cache.TILES.save(device_name(x), entries)
            for what, tiles in zip(("input", "weight"), entries.values(), strict=True):
                found[f"step {number}: {what}"] = len(tiles) > 0
    _decisions.clear()
    gradients.forget()
    return found


def _filled(x: Tensor, channels: int, size: Sequence[int]) -> Tensor:
    """Random values (x's images, channels, *size), with x's dtype, device and memory format."""
    like = torch.empty((x.shape[0], channels, *size), dtype=x.dtype, device=x.device)
    if not x.is_contiguous():
        like = like.to(memory_format=torch.channels_last)
    return like.normal_()


def _joined(tensors: Sequence[Tensor], dim: int) -> Tensor:
    """Side by side in a dimension."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim)


def input_winner(
    grads: Sequence[Tensor], x: Tensor, weights: Sequence[Tensor], window: Window, timer: Timer
) -> tuple[Tile, ...]:
    """The tile of the input's gradient if that is faster than aten's, else none.

    Args:
        grads, weights: of the convolutions of one step; putting them side by side is timed, too.
    """
    grad, weight = _joined(grads, 1), _joined(weights, 0)
    plan = gradients.turned(weight.shape[1], weight.shape[0], window)
    if plan is None:
        return ()

    def aten() -> Tensor | None:
        no = [False] * len(grads)
        return aten_gradients(grads, x, weights, window, True, no, no).x

    def ours() -> Tensor | None:
        return gradients.input_gradient(_joined(grads, 1), _joined(weights, 0), window)

    tiles = tune.tune(plan, grad, gradients.pack_turned(plan, weight)[0], timer)
    operator.forget()
    if not _agree(ours(), aten(), f"input gradient by {tiles}"):
        return ()
    return tiles if timer(ours) < timer(aten) else ()


def weight_winner(
    grads: Sequence[Tensor], x: Tensor, weights: Sequence[Tensor], window: Window, timer: Timer
) -> tuple[Tile, ...]:
    """The fastest tile of the weights' gradient if that is faster than aten's, else none."""

    def aten() -> list[Tensor | None]:
        yes, no = [True] * len(grads), [False] * len(grads)
        return aten_gradients(grads, x, weights, window, False, yes, no).weights

    expected = torch.cat([w for w in aten() if w is not None])
    least = timer(aten)
    winner: tuple[Tile, ...] = ()
    grad = _joined(grads, 1)
    for tile in weight_gradient.ranked(Problem.of(grad, x, window), device_of(x)):
        try:
            program = weight_gradient.prepare(grad, x, window, tile)
            result = program(grad, x)
            time = timer(lambda program=program: program(_joined(grads, 1), x))
        except triton.OutOfResources:
            continue
        if _agree(result, expected, f"weight gradient by {tile}") and time < least:
            least, winner = time, (tile,)
    return winner


def _agree(ours: Tensor | None, aten: Tensor | None, what: str) -> bool:
    """Whether a result may be taken for aten's; warns if not."""
    if ours is None or aten is None:
        return False
    apart = float((ours - aten).abs().max())
    scale = float(aten.abs().max())
    if apart <= tolerance(aten) * scale:
        return True
    warnings.warn(
        f"the {what} differs from torch's by {apart:.2g}, of {scale:.2g}: it is not taken",
        stacklevel=4,
    )
    return False
