"""Random branch-and-concat modules: fused they give the original's numbers, or they are refused."""

from __future__ import annotations

import warnings
from collections import Counter

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_modules import SMALLEST, Made, modules
from torch import Tensor

from inception_fused import explain, fuse, unfuse

LEAST_FUSED = 0.6
"""Share of the modules that has to be fused, so that the numbers of fused ones are what is seen."""

PROGRESS = 100
"""A line is printed whenever so many modules were tried: 2,000 of them take a while."""


def test_fused_right_or_refused() -> None:
    """``make test-random`` prints how many were fused, and why the others were not."""
    results: Counter[str] = Counter()

    @settings(deadline=None)
    @given(
        made=modules(),
        batch=st.integers(0, 3),
        height=st.integers(SMALLEST, 16),
        width=st.integers(SMALLEST, 16),
        last=st.booleans(),
    )
    @torch.no_grad()
    def check(made: Made, batch: int, height: int, width: int, last: bool) -> None:
        x = torch.randn(batch, made.channels, height, width)
        if last:
            x = x.contiguous(memory_format=torch.channels_last)
        results[_result(made, x)] += 1
        if results.total() % PROGRESS == 0:
            print(f"{results.total()} random modules", flush=True)

    check()
    fused = sum(count for result, count in results.items() if result.startswith("fused"))
    print(f"\n{results.total()} random modules, {fused} fused")
    for result, count in results.most_common():
        print(f"{count:6} {result}")
    assert fused >= LEAST_FUSED * results.total()


def _result(made: Made, x: Tensor) -> str:
    """Fuses the module and checks it; "fused", or the flaw and the reason."""
    model = made.module
    wanted = _run(model, x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fuse(model)
    lenient = made.flaw == "autocast"  # what is fused inside rounds to bfloat16 less often
    error = 2e-2 if lenient else 2e-5
    _close(_run(model, x), wanted, error)
    lines = [line for line in explain(model).lines if not line.network]
    assert all(line.backend == "cpu" if line.fused else line.reason for line in lines)
    fused = any(line.fused for line in lines)
    if not made.flaw:
        assert fused, lines
        assert all(line.fused for line in lines), lines

    for parameter in model.parameters():
        parameter.mul_(-1)
    got = _run(model, x)
    _close(got, _run(unfuse(model), x), error)
    name = made.flaw or "no flaw"
    reasons = "; ".join(line.reason for line in lines)
    return f"fused, {name}" if fused else f"{name}: {reasons}"


def _run(model: torch.nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    """What the model returns, and what it makes of its input."""
    x = x.clone()
    y = model(x)
    return (*(y if isinstance(y, tuple) else (y,)), x)


def _close(got: tuple[Tensor, ...], wanted: tuple[Tensor, ...], error: float) -> None:
    """Compares, up to an error relative to the largest number."""
    for a, b in zip(got, wanted, strict=True):
        scale = max(1.0, float(b.abs().max()) if b.numel() else 1.0)
        torch.testing.assert_close(a, b, rtol=0, atol=error * scale)
