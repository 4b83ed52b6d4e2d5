"""Products of float32 as three of bfloat16, against float64, TF32 and bfloat16."""

from __future__ import annotations

import emulated
import pytest
import targets
import torch
from targets import EMULATED, FORMATS, run_poisoned
from torch import Tensor

from inception_fused import reference
from inception_fused.lower import lower
from inception_fused.plan import Plan
from inception_fused.spec import GOOGLENET, GOOGLENET_SIZE, Activation, Spec, Stage


def linear(channels: int, kernel: int) -> Stage:
    return Stage.conv(channels, kernel, activation=Activation.NONE)


ALONE = {
    "pointwise": Spec(72, ((linear(40, 1),),)),
    "conv": Spec(24, ((linear(40, 3),), (linear(16, 5),))),
    "pooled": Spec(40, ((Stage.pool(), linear(24, 1)),)),
}
"""One product from x to the output: a bound of its error is known."""


def without_bias(spec: Spec, shape: tuple[int, int, int], scale: float = 1) -> targets.Arguments:
    a = targets.random_arguments(spec, shape)
    return targets.Arguments(a.x * scale, a.weights, [torch.zeros_like(b) for b in a.biases])


def run(plan: Plan, precision: str, a: targets.Arguments, fmt: str = "nhwc") -> Tensor:
    return run_poisoned(EMULATED, plan, precision, a, FORMATS[fmt]).double()


@pytest.mark.parametrize("scale", [1, 2.0**100, 2.0**-90])
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("name", ALONE)
def test_sixteen_bits_of_every_product(name, fmt, scale):
    """2^-16 of the sum of magnitudes; 2^-15 is the bound, of all operands at their worst.

    float32 sums are within the slack of it. TF32 is at least 16 times as far off, bfloat16 100
    times. Numbers up to 2^100 and down to 2^-90 keep all their bits: the exponents are float32's.
    """
    plan = lower(ALONE[name])
    a = without_bias(ALONE[name], (2, 6, 7), scale)
    if name == "pooled":
        a.x.abs_()  # the maximum of magnitudes is the magnitude of the maximum
    exact = targets.exact(plan, "float32", a)
    magnitude = reference.run(
        plan, a.x.double().abs(), [w.double().abs() for w in a.weights], a.to(torch.float64).biases
    )

    def error(precision: str) -> float:
        return float(((run(plan, precision, a, fmt) - exact).abs() / magnitude).max())

    ours = error("bf16x3")
    assert ours <= 2**-16
    assert error("tf32") >= 16 * ours
    if scale == 1:
        assert error("bfloat16") >= 100 * ours
    assert error("float32") <= 2**-20


def test_a_module_is_far_better_than_in_tf32():
    """Through scratch too, relative to the largest output."""
    plan = lower(GOOGLENET["5a"])
    a = targets.random_arguments(GOOGLENET["5a"], (1, *[GOOGLENET_SIZE["5a"]] * 2))
    exact = targets.exact(plan, "float32", a)
    scale = exact.abs().max()
    ours, tf32 = (float((run(plan, p, a) - exact).abs().max() / scale) for p in ("bf16x3", "tf32"))
    assert ours <= 2**-16
    assert tf32 >= 16 * ours


@pytest.mark.parametrize("precision", emulated.FLOAT32)
@pytest.mark.parametrize("name", ALONE)
def test_infinities_and_the_largest_numbers(name, precision):
    """Infinities and NaN are where float32 has them.

    The largest numbers of float32 may round to infinity, as they do in TF32, but not to NaN.
    """
    plan = lower(ALONE[name])
    a = without_bias(ALONE[name], (1, 9, 9))
    a.weights[0][3, 5, 0, 0] = 0.5  # has no low part
    a.x[0, 1, 1, 2], a.x[0, 5, 3, 4] = float("inf"), -float("inf")
    a.x[0, 2, 8, 8] = torch.finfo(torch.float32).max
    expected = targets.stock(plan, "float32", a)
    got = run(plan, precision, a).float()
    assert expected.isinf().any()
    assert torch.equal(got.isnan(), expected.isnan())
    near = expected.new_zeros(1, plan.in_channels, 9, 9)
    near[0, :, 8, 8] = 1
    near = reference.run(plan, near, [torch.ones_like(w) for w in a.weights], a.biases) > 0
    infinite = expected.isinf() & ~near
    assert torch.equal(got.isinf() & ~near, infinite)
    assert torch.equal(got[infinite], expected[infinite])
