"""The CPU's int8 kernels against integers in PyTorch, bit for bit, with every instruction set."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import quantised
import torch
from nine import FORMATS, tensors
from test_cpu import ODD
from torch import Tensor

from inception_fused import ops, reference
from inception_fused.backends import int8
from inception_fused.lower import lower
from inception_fused.plan import OUT, Plan
from inception_fused.quantise import Ranges, Scale, flat
from inception_fused.spec import GOOGLENET, Activation, Fork, Kind, Spec, Stage

OP = torch.ops.inception_fused
LRN = Stage.local_response_norm()
SPECS = ODD | {
    "3a": GOOGLENET["3a"],
    "5b": GOOGLENET["5b"],
    "averages": Spec(
        5,
        (
            (Stage.pool(Kind.AVGPOOL), Stage.conv(9)),
            (Stage.pool(Kind.AVGPOOL_INSIDE, 5, 1, 2),),
            (Stage.pool(Kind.AVGPOOL), Stage.conv(4, 3)),
            (Stage.pool(Kind.AVGPOOL_INSIDE), Stage.conv(3, 5)),
        ),
    ),
    "network": Spec(
        3,
        (
            (
                Stage.conv(12, 7, 2),
                Stage.pool(stride=2, padding=0, ceil_mode=True),
                Stage.conv(10, activation=Activation.NONE),
                Stage.conv(70, 3),
                Stage.pool(stride=2),
                Fork(((Stage.conv(8),), (Stage.conv(7), Stage.conv(9, 3)), (Stage.pool(),))),
                Stage.pool(Kind.AVGPOOL, 3, 2, 1, ceil_mode=True),
                Stage.mean(),
                Stage.conv(11, activation=Activation.NONE),
            ),
        ),
    ),
}
SHAPES = [(0, 14, 13), (1, 9, 11), (8, 14, 14), (5, 17, 16)]


def scales_of(plan: Plan, x: Tensor, weights: list[Tensor], biases: list[Tensor]) -> list[Scale]:
    ranges = Ranges(plan)
    ranges.see(x, weights, biases)
    return [*ranges.scales()]


def compute(
    plan: Plan, x: Tensor, weights: list[Tensor], biases: list[Tensor], scales: list[Scale]
) -> Tensor:
    backend = int8(flat(scales))
    return backend.run(plan, x, backend.pack(plan, weights, biases))


def check_equal(spec: Spec, shape: tuple[int, int, int], fmt: torch.memory_format) -> None:
    plan = lower(spec)
    x, weights, biases = tensors(spec, (max(shape[0], 1), *shape[1:]))
    scales = scales_of(plan, x, weights, biases)
    x = x[: shape[0]].contiguous(memory_format=fmt)
    y = compute(plan, x, weights, biases, scales)
    expected = quantised.run(plan, x, weights, biases, scales)
    assert y.stride() == reference.empty_output(plan, x).stride()
    assert torch.equal(y, expected)


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("threads", [1, 2])
def test_integers_are_exact(name: str, shape: tuple[int, int, int], fmt: str, threads: int) -> None:
    torch.set_num_threads(threads)
    check_equal(SPECS[name], shape, FORMATS[fmt])


@pytest.mark.parametrize("isa", ["base", "avx2", "avx512", "avx512_vnni"])
def test_every_instruction_set_gives_the_same_bits(isa: str) -> None:
    """In a process of its own, as the kernels are chosen once; the limit may be above the CPU's."""
    done = subprocess.run(
        [sys.executable, __file__],
        env=os.environ | {"INCEPTION_FUSED_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [*SPECS]


@pytest.mark.parametrize("activation", Activation)
def test_halves_are_rounded_to_even_and_the_ends_saturate(activation: Activation) -> None:
    """A weight of 127 has the scale 1; so the middle has x / 2."""
    conv = Stage.conv(1, activation=activation)
    plan = lower(Spec(1, ((conv, conv),)))
    x = torch.arange(-140.0, 140.0).reshape(1, 1, 10, 28)
    weights, biases = [torch.full((1, 1, 1, 1), 127.0)] * 2, [torch.zeros(1)] * 2
    scales = [Scale(1.0, 128), Scale(), Scale(254.0, 17)]
    y = compute(plan, x, weights, biases, scales)
    halves = torch.round(x.clamp(-128, 127) / 2).clamp(0 if activation else -17, None)
    assert torch.equal(y, halves * (127 * 254))
    saturated = compute(plan, x, weights, biases, [*scales[:2], Scale(25.4, 255)])
    top = 0 if activation else -255
    assert saturated.unique().tolist()[0] == pytest.approx(top * 127 * 25.4)
    assert saturated.max() == 0


def test_inputs_are_rounded_to_even_and_saturate() -> None:
    plan = lower(Spec.naive(1, 1, 1, 1))
    values = torch.tensor([-1e9, -3.5, -2.5, -0.5, 0.5, 1.5, 2.5, 1e9, -torch.inf, torch.inf])
    numbers = quantised.quantise(values, Scale(1.0, 3))
    assert numbers.tolist() == [0, 0, 1, 3, 3, 5, 5, 255, 0, 255]
    x = values.reshape(1, 1, 10, 1)
    weights = [torch.ones(c.weight_shape) for c in plan.convolutions()]
    biases = [torch.zeros(1)] * 3
    scales = [Scale(1.0, 3)] * len(plan.buffers)
    y = compute(plan, x, weights, biases, scales)
    assert torch.equal(y, quantised.run(plan, x, weights, biases, scales))
    assert y[0, 0, :, 0].tolist() == pytest.approx((numbers - 3).relu().tolist(), rel=1e-6)


def test_sums_may_be_as_large_as_they_can() -> None:
    """Every product is 127 * 255, of both signs; the sums have more bits than float32."""
    spec = Spec(832, ((Stage.conv(3, 5, activation=Activation.NONE),),))
    plan = lower(spec)
    x = torch.full((1, 832, 6, 6), 255.0)
    weights = [torch.ones(c.weight_shape) for c in spec.convolutions()]
    weights[0][1] *= -1
    weights[0][2, ::2] *= -1
    weights[0][2, 0, 0, 0] *= 0.5
    biases = [torch.tensor([1e4, -1e4, 0.1])]
    scales = [Scale(), Scale()]
    y = compute(plan, x, weights, biases, scales)
    assert torch.equal(y, quantised.run(plan, x, weights, biases, scales))
    assert float(y[0, 0, 3, 3]) == pytest.approx(255 * 832 * 25 + 1e4, rel=1e-6)


def test_weights_of_zero_keep_their_bias() -> None:
    spec = Spec(3, ((Stage.conv(4, activation=Activation.NONE),),))
    plan = lower(spec)
    biases = [torch.tensor([0.0, 0.3, -7.7, 1e-30])]
    x = torch.randn(1, 3, 4, 4)
    y = compute(plan, x, [torch.zeros(4, 3, 1, 1)], biases, [Scale(0.01, 100), Scale()])
    assert y[0, :, 0, 0].tolist() == pytest.approx(biases[0].tolist(), rel=1e-6)


@pytest.mark.parametrize("channels_last", [False, True])
def test_out_is_written_whole_and_nothing_else(channels_last: bool) -> None:
    spec = SPECS["naive"]
    plan = lower(spec)
    x, weights, biases = tensors(spec, (3, 9, 10))
    backend = int8(flat(scales_of(plan, x, weights, biases)))
    (pack,) = backend.pack(plan, weights, biases)
    expected = backend.run(plan, x, [pack])
    large = torch.full((3, spec.out_channels + 8, 9, 10), float("nan"))
    if channels_last:
        large = large.to(memory_format=torch.channels_last)
    OP.run.out(x, pack, plan.code, out=large.narrow(1, 5, spec.out_channels))
    assert torch.equal(large[:, 5:-3], expected)
    assert large[:, :5].isnan().all()
    assert large[:, -3:].isnan().all()


def test_response_normalisation() -> None:
    spec = Spec(3, ((Stage.conv(20, 3, 2), LRN, Stage.conv(9)), (Stage.conv(4, 3, 2), LRN)))
    plan = lower(spec)
    x, weights, biases = tensors(spec, (2, 15, 14))
    scales = scales_of(plan, x, weights, biases)
    y = compute(plan, x, weights, biases, scales)
    expected = quantised.run(plan, x, weights, biases, scales)
    # In float32 in between: a number may be on the other side of a half.
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=0.02 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s[:-1], "scales must be two numbers per buffer of the plan"),
        (lambda s: [replace(s[0], zero=256), *s[1:]], "a zero must be an integer from 0 to 255"),
        (lambda s: [replace(s[0], scale=0.0), *s[1:]], "scales: buffer 0 cannot have scale 0"),
        (lambda s: [replace(s[0], scale=float("nan")), *s[1:]], "scales: buffer 0 cannot have"),
        (
            lambda s: [replace(scale, scale=scale.scale * (1 + i)) for i, scale in enumerate(s)],
            "a max pool reads buffer",
        ),
    ],
)
def test_wrong_scales_are_refused(change: object, message: str) -> None:
    spec = SPECS["forked"]
    plan = lower(spec)
    x, weights, biases = tensors(spec, (1, 9, 9))
    scales = change(scales_of(plan, x, weights, biases))  # type: ignore[operator]
    with pytest.raises(ValueError, match=message):
        int8(flat(scales)).pack(plan, weights, biases)


def test_weights_that_are_not_finite_are_refused() -> None:
    spec = SPECS["naive"]
    plan = lower(spec)
    x, weights, biases = tensors(spec, (1, 9, 9))
    scales = scales_of(plan, x, weights, biases)
    weights[1][2, 3, 1, 1] = float("inf")
    with pytest.raises(ValueError, match="channel 2 of convolution 1 has a weight or bias"):
        int8(flat(scales)).pack(plan, weights, biases)


def test_a_plan_whose_sums_could_overflow_is_refused() -> None:
    spec = Spec(2**17, ((Stage.conv(1),),))
    plan = lower(spec)
    weights, biases = [torch.zeros(1, 2**17, 1, 1)], [torch.zeros(1)]
    with pytest.raises(ValueError, match="too many for the int32 sums of int8"):
        int8(flat([Scale()] * 2)).pack(plan, weights, biases)


def test_opcheck_and_the_size_of_a_pack() -> None:
    spec = SPECS["stacked"]
    plan = lower(spec)
    x, weights, biases = tensors(spec, (2, 6, 6))
    numbers = flat(scales_of(plan, x, weights, biases))
    pack = OP.pack_int8(weights, biases, plan.code, numbers)
    assert pack.dtype is torch.int8
    assert pack.shape == (ops.cpu_pack_size(plan, dtype=torch.int8),)
    torch.library.opcheck(OP.pack_int8.default, (weights, biases, plan.encode(), numbers))
    torch.library.opcheck(OP.run.default, (x, pack, plan.encode()))
    with pytest.raises(ValueError, match="x must be Float, got Double"):
        OP.run(x.double(), pack, plan.code)
    with pytest.raises(ValueError, match="weights must be Float"):
        OP.pack_int8([w.bfloat16() for w in weights], biases, plan.code, numbers)


def test_spin_counts_four_products_a_lane() -> None:
    assert OP.cpu_spin(10, int8=True) == 4 * OP.cpu_spin(10)
    with pytest.raises(ValueError, match="bfloat16 and int8 must not both be asked for"):
        OP.cpu_spin(10, int8=True, bfloat16=True)


def test_max_pools_keep_the_scale_of_their_source() -> None:
    plan = lower(SPECS["forked"])
    x, weights, biases = tensors(SPECS["forked"], (2, 9, 9))
    scales = scales_of(plan, x, weights, biases)
    pools = [s for s in plan.steps if s.kind is Kind.MAXPOOL and s.dst[0].slice.buffer != OUT]
    assert pools
    for step in pools:
        assert scales[step.src.buffer] == scales[step.dst[0].slice.buffer]


if __name__ == "__main__":
    for name, spec in SPECS.items():
        check_equal(spec, (3, 14, 13), torch.channels_last)
        print(name)
