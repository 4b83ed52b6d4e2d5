"""The CPU back end's choice per step: direct convolution, or Winograd's minimal filtering.

F(m x m, r x r) computes an m x m tile of outputs from (m + r - 1)^2 products per pair of channels
(Lavin and Gray, arXiv 1509.09308). A larger tile needs fewer products and more weights. A
convolution of stride 2 over the input is one of stride 1 over the input's four phases, the pixels
of even and odd rows and columns, with a filter of half the edge, rounded up.
"""

from __future__ import annotations

from .plan import IN, Plan, Slice, Step
from .spec import Kind

_TILES = {((3, 3), (1, 1)): (2, 4), ((5, 5), (1, 1)): (2,)}
_TILES_OF_PHASES = {((5, 5), (2, 2)): (4,), ((7, 7), (2, 2)): (3,)}
"""Edges of the output tile by kernel and stride; ``has_winograd`` of ``csrc/cpu/winograd.cpp``."""
_MOST_PHASES = 16  # channels of all phases together: one group of the kernels

# Costs in multiply-adds, set by hand so that GoogLeNet's nine modules at batch 1 and 8 get what was
# measured as fastest with AVX-512, but for 7x7 at batch 1: there the larger tile wins only while
# its weights, more than twice as many, are in the cache, and a network leaves no difference.
_PER_WEIGHT = 8.0  # to fetch one, once per call
_PER_INPUT = 6.0  # to transform one value of an input tile
_PER_OUTPUT = 4.0  # and one product
_HALF = 0.55  # of a product in bfloat16


def cpu_tuning(
    plan: Plan, batch: int, height: int, width: int, half: bool = False
) -> tuple[int, ...]:
    """Per step the edge of Winograd's output tile, 0 for direct convolution.

    The choice depends on the shape of the input alone, not on the machine or its threads.

    Args:
        batch, height, width: of the plan's input, in images and pixels.
        half: bfloat16, whose tiles are float32: direct convolution takes about half the time.
    """
    sizes = plan.sizes(height, width)
    return tuple(
        _choose(step, _tiles(plan, step), batch, *sizes[step.dst[0].slice.buffer], half)
        for step in plan.steps
    )


def cpu_options(plan: Plan) -> tuple[tuple[int, ...], ...]:
    """Per step every value that its place in a tuning may have."""
    return tuple((0, *_tiles(plan, step)) for step in plan.steps)


def cpu_describe(plan: Plan, tuning: tuple[int, ...]) -> str:
    """A tuning in words: "direct", or the steps of each of Winograd's F(m x m, r x r) by number."""
    by_algorithm: dict[str, list[int]] = {}
    for number, (step, tile) in enumerate(zip(plan.steps, tuning, strict=False)):
        if tile:
            edge = _edge(step)
            by_algorithm.setdefault(f"F({tile}x{tile},{edge}x{edge})", []).append(number)
    named = [
        f"{name} in step{'s' * (len(numbers) > 1)} {' '.join(map(str, numbers))}"
        for name, numbers in by_algorithm.items()
    ]
    return ", ".join(named) or "direct"


def cpu_taps(step: Step, tile: int) -> tuple[int, int]:
    """Products of a column and their depth: of a tile of this edge, or of a pixel if it is 0."""
    if tile == 0:
        return step.window.kernel[0] * step.window.kernel[1], step.src.channels
    phases = step.window.stride[0] * step.window.stride[1]
    return (tile + _edge(step) - 1) ** 2, phases * step.src.channels


def _edge(step: Step) -> int:
    """Of the filter of one phase."""
    return -(-step.window.kernel[0] // step.window.stride[0])


def _tiles(plan: Plan, step: Step) -> tuple[int, ...]:
    """Edges of the output tiles in which a step can be computed."""
    window = step.window
    if step.kind is not Kind.CONV or len({d.slice.buffer for d in step.dst}) > 1:
        return ()
    key = (window.kernel, window.stride)
    if (
        step.src == Slice(IN, 0, plan.in_channels)
        and 4 * plan.in_channels <= _MOST_PHASES
        and sum(s.src.buffer == IN for s in plan.steps) == 1
    ):
        return (_TILES | _TILES_OF_PHASES).get(key, ())
    return _TILES.get(key, ())


def _choose(
    step: Step, possible: tuple[int, ...], batch: int, height: int, width: int, half: bool
) -> int:
    outputs = step.out_channels

    def cost(tile: int) -> float:
        products, inputs = cpu_taps(step, tile)
        if tile == 0:
            direct = (batch * height * width + _PER_WEIGHT) * products * inputs * outputs
            return direct * (_HALF if half else 1.0)
        tiles = batch * -(-height // tile) * -(-width // tile)
        transforms = tiles * (_PER_INPUT * inputs + _PER_OUTPUT * outputs)
        return products * ((tiles + _PER_WEIGHT) * inputs * outputs + transforms)

    return min((0, *possible), key=cost)
