"""The paper's nine modules with the CPU kernels of this process, for every ISA in one of its own.

    INCEPTION_FUSED_ISA=avx2 python nine.py PROBLEMS float32,bfloat16

PROBLEMS is what :func:`save` wrote. Prints one JSON object: "kernels", their lanes and whether they
multiply bfloat16, and, by case, the figures that ``test_cpu.py`` judges.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inception_fused import reference
from inception_fused.backends import TABLE
from inception_fused.lower import lower
from inception_fused.spec import GOOGLENET, GOOGLENET_SIZE, Spec

FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
BATCHES = (1, 2, 8)
RANDOM_BATCH = 2  # also of the outputs that are slices
TUNINGS = ("direct", "winograd 2", "winograd 4")

CPU = next(b for b in TABLE if b.name == "cpu")


def tensors(
    spec: Spec, shape: tuple[int, int, int], integers: bool = False
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """x (batch, in channels, height, width), weights and biases.

    Integers are small, so that every sum in float32 is exact; random numbers keep their scale.

    Args:
        shape: batch, height, width.
    """
    generator = torch.Generator().manual_seed(0)

    def make(*size: int) -> Tensor:
        if integers:
            return torch.randint(-3, 4, size, generator=generator).float()
        return torch.randn(size, generator=generator)

    convs = list(spec.convolutions())
    scale = [1 if integers else (c.in_channels * c.kernel[0] * c.kernel[1]) ** -0.5 for c in convs]
    weights = [make(*c.weight_shape) * s for c, s in zip(convs, scale, strict=True)]
    batch, height, width = shape
    x = make(batch, spec.in_channels, height, width)
    return x, weights, [make(c.out_channels) for c in convs]


def case(name: str, batch: int, fmt: str) -> str:
    return f"{name} {batch} {fmt}"


def save(path: Path) -> None:
    """Writes the problems of all modules with what they must give."""
    problems: dict[str, Any] = {}
    for name, spec in GOOGLENET.items():
        size = GOOGLENET_SIZE[name]
        integers = tensors(spec, (max(BATCHES), size, size), integers=True)
        random = tensors(spec, (RANDOM_BATCH, size, size))
        plan = lower(spec)
        x, weights, biases = random
        doubles = [[t.double() for t in ts] for ts in (weights, biases)]
        problems[name] = {
            "integers": (*integers, reference.run(plan, *integers)),
            "random": (*random, reference.run(plan, x.double(), *doubles)),
            "stock": reference.run(plan, *random),
            "bfloat16": _of_bfloat16(spec, random),
        }
    torch.save(problems, path)


def _of_bfloat16(spec: Spec, random: tuple[Tensor, list[Tensor], list[Tensor]]) -> dict[str, Any]:
    plan = lower(spec)
    x, weights, biases = random[0].bfloat16(), *([t.bfloat16() for t in ts] for ts in random[1:])
    doubles = [[t.double() for t in ts] for ts in (weights, biases)]
    with_nan = x.clone()
    with_nan[0, 3, 2, 4] = float("nan")
    with_nan[1, 5, 4, 0] = -float("nan")
    return {
        "arguments": (x, with_nan, weights, biases),
        "exact": reference.run(plan, x.double(), *doubles),
        "stock": reference.run(plan, x, weights, biases),
        "nan": reference.run(plan, with_nan, weights, biases).isnan(),
    }


def figures_of_bfloat16(name: str, problem: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """By format: the errors of ours and of stock, relative to the largest output."""
    plan = lower(GOOGLENET[name])
    x, with_nan, weights, biases = problem["arguments"]
    exact, stock, nan = problem["exact"], problem["stock"], problem["nan"]
    pack = CPU.pack(plan, weights, biases)
    tuned = {t: CPU.pack(plan, weights, biases, tuning=tiles(plan, t)) for t in TUNINGS}
    found: dict[str, dict[str, Any]] = {}

    def error(y: Tensor) -> float:
        return float((y - exact).abs().max() / exact.abs().max())

    for fmt, memory_format in FORMATS.items():
        y, y_nan = (
            CPU.run(plan, t.clone(memory_format=memory_format), pack) for t in (x, with_nan)
        )
        found[case(name, RANDOM_BATCH, f"{fmt} bfloat16")] = {
            "stock": error(stock),
            "nan": torch.equal(y_nan.isnan(), nan),
            "slice": into_slice(plan, x.clone(memory_format=memory_format), pack[0], y),
        } | {
            t: error(CPU.run(plan, x.clone(memory_format=memory_format), packed))
            for t, packed in tuned.items()
        }
    return found


def into_slice(plan: Any, x: Tensor, pack: Tensor, expected: Tensor) -> bool:
    """Whether an output slice of a NaN-filled tensor is as expected and all around it still NaN."""
    n, channels, height, width = expected.shape
    large = torch.full((n, channels + 8, height, width), float("nan"), dtype=x.dtype)
    large = large.to(memory_format=reference.output_format(x))
    out = large.narrow(1, 5, channels)
    torch.ops.inception_fused.run.out(x, pack, plan.code, out=out)
    around = torch.cat([large[:, :5], large[:, 5 + channels :]], 1)
    return torch.equal(out, expected) and bool(around.isnan().all())


def figures(name: str, problem: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """By case: whether integers give the exact output; errors relative to the largest output."""
    plan = lower(GOOGLENET[name])
    x, weights, biases, expected = problem["integers"]
    r, *parameters, exact = problem["random"]
    pack = CPU.pack(plan, weights, biases)
    tuned = {t: CPU.pack(plan, *parameters, tuning=tiles(plan, t)) for t in TUNINGS}
    scale = exact.abs().max()

    def error(y: Tensor) -> float:
        return float((y - exact).abs().max() / scale)

    found: dict[str, dict[str, Any]] = {}
    for fmt, memory_format in FORMATS.items():
        for batch in BATCHES:
            part = x[:batch].clone(memory_format=memory_format)
            y = CPU.run(plan, part, pack)
            found[case(name, batch, fmt)] = {
                "exact": torch.equal(y, expected[:batch]),
                "format": y.is_contiguous(memory_format=memory_format),
            }
        part, random = (t[:RANDOM_BATCH].clone(memory_format=memory_format) for t in (x, r))
        found[case(name, RANDOM_BATCH, fmt)] |= {
            "slice": into_slice(plan, part, pack[0], expected[:RANDOM_BATCH]),
            "stock": error(problem["stock"]),
        } | {t: error(CPU.run(plan, random, packed)) for t, packed in tuned.items()}
    return found


def tiles(plan: Any, tuning: str) -> tuple[int, ...]:
    """Per step the edge of Winograd's tile: 2 or 4 where the kernel is 3x3, 2 where it is 5x5."""
    if tuning == "direct":
        return ()
    edge = {(3, 3): int(tuning[-1]), (5, 5): 2}
    return tuple(0 if not s.kind.has_weight else edge.get(s.window.kernel, 0) for s in plan.steps)


if __name__ == "__main__":
    operators = torch.ops.inception_fused
    kernels = (operators.cpu_lanes(), operators.cpu_multiplies_bfloat16())
    found: dict[str, Any] = {"kernels": kernels}
    for name, problem in torch.load(sys.argv[1]).items():
        if "float32" in sys.argv[2]:
            found |= figures(name, problem)
        if "bfloat16" in sys.argv[2]:
            found |= figures_of_bfloat16(name, problem["bfloat16"])
    print(json.dumps(found))
