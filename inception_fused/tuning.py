"""The CPU back end's choice per step: direct convolution, or Winograd's minimal filtering.

F(m x m, r x r) computes an m x m tile of outputs from (m + r - 1)^2 products per pair of channels
(Lavin and Gray, arXiv 1509.09308). A larger tile needs fewer products and more weights.
"""

from __future__ import annotations

from .plan import Plan, Step
from .spec import Kind

_TILES = {(3, 3): (2, 4), (5, 5): (2,)}
"""Edges of the output tile by kernel; ``has_winograd`` of ``csrc/cpu/winograd.h``."""

# Costs in multiply-adds, set by hand so that GoogLeNet's nine modules at batch 1 and 8 get what was
# measured as fastest with AVX-512, but for 7x7 at batch 1: there the larger tile wins only while
# its weights, more than twice as many, are in the cache, and a network leaves no difference.
_PER_WEIGHT = 8.0  # to fetch one, once per call
_PER_INPUT = 6.0  # to transform one value of an input tile
_PER_OUTPUT = 4.0  # and one product


def cpu_tuning(plan: Plan, batch: int, height: int, width: int) -> tuple[int, ...]:
    """Per step the edge of Winograd's output tile, 0 for direct convolution.

    The choice depends on the shape of the input alone, not on the machine or its threads.

    Args:
        batch, height, width: of the plan's input, in images and pixels.
    """
    sizes = plan.sizes(height, width)
    return tuple(_choose(step, batch, *sizes[step.dst[0].slice.buffer]) for step in plan.steps)


def cpu_options(plan: Plan) -> tuple[tuple[int, ...], ...]:
    """Per step every value that its place in a tuning may have."""
    return tuple((0, *_tiles(step)) for step in plan.steps)


def cpu_describe(plan: Plan, tuning: tuple[int, ...]) -> str:
    """A tuning in words: "direct", or Winograd's F(m x m, r x r) by number of step."""
    named = [
        f"step {number} F({tile}x{tile},{step.window.kernel[0]}x{step.window.kernel[1]})"
        for number, (step, tile) in enumerate(zip(plan.steps, tuning, strict=False))
        if tile
    ]
    return ", ".join(named) or "direct"


def _tiles(step: Step) -> tuple[int, ...]:
    """Edges of the output tiles in which a step can be computed."""
    window = step.window
    if step.kind is not Kind.CONV or window.stride != (1, 1) or window.kernel not in _TILES:
        return ()
    if len({destination.slice.buffer for destination in step.dst}) > 1:
        return ()
    return _TILES[window.kernel]


def _choose(step: Step, batch: int, height: int, width: int) -> int:
    if not (possible := _tiles(step)):
        return 0
    edge = step.window.kernel[0]
    inputs, outputs = step.src.channels, step.out_channels

    def cost(tile: int) -> float:
        if tile == 0:
            return (batch * height * width + _PER_WEIGHT) * edge * edge * inputs * outputs
        products = (tile + edge - 1) ** 2
        tiles = batch * -(-height // tile) * -(-width // tile)
        transforms = tiles * (_PER_INPUT * inputs + _PER_OUTPUT * outputs)
        return products * ((tiles + _PER_WEIGHT) * inputs * outputs + transforms)

    return min((0, *possible), key=cost)
