"""Gradients of convolutions: Triton's kernels against torch's, checked and then timed.

What is faster is kept where training finds it (:mod:`inception_fused.triton_kernels.measured`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from inception_fused.triton_kernels import check as triton
from inception_fused.triton_kernels.gradients import step_gradients
from torch import Tensor

from inception_fused.lower import lower
from inception_fused.plan import Plan, Step
from inception_fused.reference import Gradients, StepGradients, aten_gradients
from inception_fused.spec import GOOGLENET, GOOGLENET_SIZE

from .arguments import FORMATS, precision
from .correctness import FACTOR, SLACK
from .job import Job
from .record import FAILED, OK, SKIPPED, Record, Row

STAGE = "gradients"
BATCH = 32
CHECKED = 2  # images that are compared with float64
QUICK = {"warmup": 5, "rep": 20}
"""Ms for each function that is timed."""


def errors(
    plan: Plan, number: int, edge: int, fmt: str, device: str, dtype: torch.dtype, by: StepGradients
) -> list[tuple[float, float]]:
    """Of a step's input gradient and of each weight's: (by's error, torch's), against float64.

    Relative to the largest value; infinity where there is none.
    """
    generator = torch.Generator().manual_seed(number)
    step: Step = plan.steps[number]

    def make(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    x = make(CHECKED, step.src.channels, edge, edge)
    grads = [make(CHECKED, d.slice.channels, edge, edge) for d in step.dst]
    weights = [make(g.shape[1], x.shape[1], *step.window.kernel) for g in grads]
    none = [False] * len(grads)

    def run(function: StepGradients, kind: torch.dtype, where: str) -> Sequence[Tensor | None]:
        def moved(t: Tensor) -> Tensor:
            return t.to(where, kind).contiguous(memory_format=FORMATS[fmt])

        every = [True] * len(grads)
        given = [moved(g) for g in grads], moved(x), [w.to(where, kind) for w in weights]
        found: Gradients = function(*given, step.window, True, every, none)
        return [found.x, *found.weights]

    ours, stock = (run(function, dtype, device) for function in (by, aten_gradients))
    exact = run(aten_gradients, torch.float64, "cpu")
    return [
        (_error(one, right), _error(other, right))
        for one, other, right in zip(ours, stock, exact, strict=True)
    ]


def _error(y: Tensor | None, exact: Tensor | None) -> float:
    if y is None or exact is None:
        return float("inf")
    return float((y.cpu().double() - exact).abs().max() / exact.abs().max())


def check(
    module: str, precision_: str, fmt: str, device: str, by: StepGradients = step_gradients
) -> Row:
    """Figures: by step and gradient, whether Triton's is faster. Not timed if one is wrong."""
    row = Row(STAGE, f"{module} b{BATCH} {precision_} {fmt}")
    plan, edge = lower(GOOGLENET[module]), GOOGLENET_SIZE[module]
    with precision(precision_) as dtype:
        like = torch.empty(
            (BATCH, plan.in_channels, edge, edge),
            dtype=dtype,
            device=device,
            memory_format=FORMATS[fmt],
        )
        reason = triton.unavailable() or triton.why_not(plan, like)
        if reason:
            row.status, row.detail = SKIPPED, reason
            return row
        for number in range(len(plan.steps)):
            for ours, stock in errors(plan, number, edge, fmt, device, dtype, by):
                if not ours <= FACTOR * stock + SLACK:
                    row.status = FAILED
                    row.detail = f"step {number}: error {ours:.2e}, torch's {stock:.2e}"
                    return row
        row.status, row.figures = OK, {"faster": measure(plan, like)}
    return row


def measure(plan: Plan, like: Tensor) -> dict[str, bool]:
    """Which gradients are faster by Triton; kept for later training on this device."""
    from triton.testing import do_bench

    measured: Any = triton.load_module("measured")
    faster: dict[str, bool] = measured.measure(plan, like, partial(do_bench, **QUICK))
    return faster


def jobs(device: str) -> Iterator[Job]:
    """Every module in both kinds of products and both formats."""
    for precision_ in ("float16", "tf32"):
        for fmt in FORMATS:
            for module in GOOGLENET:
                name = f"{module} b{BATCH} {precision_} {fmt}"
                yield Job(STAGE, name, partial(check, module, precision_, fmt, device), seconds=10)


def lines(record: Record) -> Iterator[str]:
    """A table in markdown: by case, the gradients that were faster by Triton, and torch's."""
    rows = [row for row in record.of(STAGE) if "faster" in row.figures]
    if not rows:
        return
    yield "## Gradients\n"
    yield "| case | faster by Triton | torch's are kept |"
    yield "|---|---|---|"
    for row in rows:
        faster = row.figures["faster"]
        ours, stock = (", ".join(n for n, is_ in faster.items() if is_ is w) for w in (True, False))
        yield f"| {row.name} | {ours or 'none'} | {stock or 'none'} |"
    yield ""
