"""Which gradients of convolutions were measured as faster in Triton than in aten, on this device.

They are kept in the file of :mod:`cache`: by the key of a gradient one tile, or none where aten's
was as fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from ..plan import Plan
from ..reference import aten_gradients
from ..spec import Window
from . import cache, gradients, launch, tune, weight_gradient
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
            operand, grad = (
                _filled(x, channels, pixels)
                for channels, pixels in ((step.src.channels, inner), (step.out_channels, size))
            )
            weight = torch.randn(
                (step.out_channels, step.src.channels, *step.window.kernel),
                dtype=x.dtype,
                device=x.device,
            )
            entries = {
                key("input", grad, operand, step.window): input_winner(
                    grad, operand, weight, step.window, timer
                ),
                key("weight", grad, operand, step.window): weight_winner(
                    grad, operand, weight, step.window, timer
                ),
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


def input_winner(
    grad: Tensor, x: Tensor, weight: Tensor, window: Window, timer: Timer
) -> tuple[Tile, ...]:
    """The tile of the input's gradient if that is faster than aten's, else none."""
    plan = gradients.turned(weight.shape[1], weight.shape[0], window)
    if plan is None:
        return ()
    packed = gradients.pack_turned(plan, weight)
    tiles = tune.tune(plan, grad, packed[0], timer)
    ours = timer(lambda: gradients.input_gradient(grad, weight, window))
    aten = timer(lambda: aten_gradients([grad], x, [weight], window, True, [False], [False]))
    return tiles if ours < aten else ()


def weight_winner(
    grad: Tensor, x: Tensor, weight: Tensor, window: Window, timer: Timer
) -> tuple[Tile, ...]:
    """The fastest tile of the weight's gradient if that is faster than aten's, else none."""
    least = timer(lambda: aten_gradients([grad], x, [weight], window, False, [True], [False]))
    winner: tuple[Tile, ...] = ()
    for tile in weight_gradient.ranked(Problem.of(grad, x, window), device_of(x)):
        program = weight_gradient.prepare(grad, x, window, tile)
        try:
            time = timer(lambda program=program: program(grad, x))
        except triton.OutOfResources:
            continue
        if time < least:
            least, winner = time, (tile,)
    return winner
