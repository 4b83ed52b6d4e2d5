"""The kernels of every target against torch: one set of tests for CPU, emulated CUDA and a GPU.

A default run emulates each of the paper's modules at two or three of the five precisions, formats
and seeds in turn; ``-m full`` takes every combination (``make test-full``).
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import emulated
import pytest
import targets
import torch
from hypothesis import given, settings
from strategies import specs
from targets import CASES, EMULATED, FORMATS, PRECISIONS, run_poisoned

from inception_fused import cuda
from inception_fused.lower import lower
from inception_fused.spec import GOOGLENET, GOOGLENET_SIZE, Activation, Kind, Spec, Stage

SEEDS = (0, 1, 2)
ODD = {
    "pruned": Spec.v1(67, 11, 13, 17, 5, 19, 23),
    "stacked": Spec.v1(32, 8, 16, 24, 8, 16, 8, (3, 3)),
    "k7 linear": Spec.v1(24, 16, 8, 8, 8, 8, 8, 7, Activation.NONE),
    "flat kernels": Spec(
        16,
        (
            (Stage.conv(8), Stage.conv(8, (1, 7)), Stage.conv(9, (7, 1))),
            (Stage.conv(8, 3),),
            (Stage.pool(kernel=5, padding=2), Stage.conv(8)),
        ),
    ),
    "many": Spec(8, tuple((Stage.conv(8, k),) for k in (3, 5, 1, 3, 5, 1, 3, 5, 3))),
    "large kernel": Spec(8, ((Stage.conv(8, 9),), (Stage.conv(16),))),
}
# (N, H, W), with first channels of the slices of x and the output: whole vectors or not.
SHAPES = {(0, 5, 5): (8,), (1, 1, 1): (8,), (2, 9, 11): (8, 5), (5, 3, 1): (5,)}


def module_cases():
    """(target, precision, module, format, seed); what is not marked full has every value."""
    cases = []
    for number, (target, precision) in enumerate(CASES):
        for row, name in enumerate(GOOGLENET):
            for fmt, seed in itertools.product(FORMATS, SEEDS if target is EMULATED else (0,)):
                chosen = (list(FORMATS)[(row // 2 + number // 2) % 2], row % len(SEEDS))
                usual = (fmt, seed) == chosen and (row + number) % 2 == 0
                usual |= target is not EMULATED
                cases.append(
                    pytest.param(
                        *(target, precision, name, fmt, seed),
                        marks=() if usual else pytest.mark.full,
                        id=f"{target}-{precision}-{name}-{fmt}-{seed}",
                    )
                )
    return cases


def bytes_are_as_predicted(counted: dict[str, Any], fmt: str) -> None:
    """By choose.h; where it loads elements, it counts windows of a pool at the border as whole."""
    moved = sum(b["read"] + b["written"] for b in counted["buffers"].values())
    predicted = sum(launch["bytes"] for launch in counted["launches"])
    assert 0.999 * moved <= predicted <= (1.01 if fmt == "nhwc" else 1.1) * moved


@pytest.mark.parametrize(("target", "precision", "name", "fmt", "seed"), module_cases())
def test_paper_modules(target, precision, name, fmt, seed):
    """Twice the error of torch at the same precision, against float64; and the bytes predicted."""
    spec, size = GOOGLENET[name], GOOGLENET_SIZE[name]
    plan = lower(spec)
    arguments = targets.random_arguments(spec, (1, size, size), seed)
    options = {"seed": seed} if target is EMULATED else {}
    counted: list[Any] = []

    def run_into(*args: Any, **kwargs: Any) -> None:
        counted.append(target.run_into(*args, **kwargs))

    counting = replace(target, run_into=run_into)
    ours = run_poisoned(counting, plan, precision, arguments, FORMATS[fmt], **options)
    if target is EMULATED:
        bytes_are_as_predicted(counted[0], fmt)
    targets.check_error(ours, plan, precision, arguments)


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize(("target", "precision"), CASES, ids=lambda v: str(v))
def test_odd_modules_are_exact_on_integers(target, precision, name, fmt):
    plan = lower(ODD[name])
    for shape, offsets in SHAPES.items():
        arguments = targets.small_integers(ODD[name], shape)
        expected = targets.exact(plan, precision, arguments)
        assert expected.numel() == 0 or expected.abs().max() <= 256  # whole numbers of bfloat16
        for offset in offsets:
            ours = run_poisoned(target, plan, precision, arguments, FORMATS[fmt], offset)
            assert torch.equal(ours.double(), expected), (shape, offset)


@pytest.mark.parametrize(("target", "precision"), CASES, ids=lambda v: str(v))
def test_average_pools(target, precision):
    pool = Stage.pool(Kind.AVGPOOL)
    spec = Spec(16, ((pool, Stage.conv(9)), (Stage.pool(Kind.AVGPOOL, 5, 1, 2), Stage.conv(8))))
    plan = lower(spec)
    arguments = targets.random_arguments(spec, (2, 9, 7))
    ours = run_poisoned(target, plan, precision, arguments, torch.channels_last)
    targets.check_error(ours, plan, precision, arguments)


@pytest.mark.parametrize(("target", "precision"), CASES, ids=lambda v: str(v))
def test_any_strides(target, precision):
    spec = ODD["stacked"]
    plan = lower(spec)
    arguments = targets.small_integers(spec, (2, 12, 14)).to(PRECISIONS[precision])
    last = arguments.x.to(memory_format=torch.channels_last)
    on_device = arguments.to(target.device)
    for x in (
        arguments.x[:, :, 1:11:2, 2:13:3],
        arguments.x.transpose(2, 3),
        last[:, :, 2:9, 1:],
        last[::2],
        arguments.x[:1].expand(3, -1, -1, -1),
    ):
        given_x = targets.Arguments(x, arguments.weights, arguments.biases)
        expected = targets.exact(plan, precision, given_x)
        large = torch.full(
            (*expected.shape[:3], 2 * expected.shape[3]), float("nan"), dtype=x.dtype
        ).to(target.device)
        view = targets.copy_with_storage(x, target.device)
        target.run_into(plan, precision, view, on_device.weights, on_device.biases, large[..., ::2])
        assert torch.equal(large[..., ::2].cpu().double(), expected), x.stride()
        assert large[..., 1::2].isnan().all()


@pytest.mark.parametrize(("target", "precision"), CASES, ids=lambda v: str(v))
def test_nan_goes_through_relu_and_pool(target, precision):
    spec = Spec.v1(16, 8, 8, 8, 8, 8, 8)
    plan = lower(spec)
    arguments = targets.random_arguments(spec, (1, 7, 7))
    arguments.x[0, 3, 2, 4] = float("nan")
    expected = targets.stock(plan, precision, arguments).isnan()
    assert expected.any()
    assert not expected.all()
    ours = run_poisoned(target, plan, precision, arguments, torch.channels_last)
    assert torch.equal(ours.isnan(), expected)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("fmt", FORMATS)
def test_every_tile_shape(precision, fmt):
    """Forced, on sizes that leave tails of rows, columns and depth."""
    spec = Spec.v1(40, 24, 40, 136, 8, 24, 24)
    plan = lower(spec)
    arguments = targets.small_integers(spec, (3, 7, 9))
    expected = targets.exact(plan, precision, arguments)
    for shape in range(len(emulated.library().shapes())):
        ours = run_poisoned(EMULATED, plan, precision, arguments, FORMATS[fmt], shape=shape)
        assert torch.equal(ours.double(), expected), shape


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_order_of_threads_changes_no_bit(precision):
    spec = Spec.v1(136, 24, 32, 40, 8, 24, 24)
    plan = lower(spec)
    arguments = targets.random_arguments(spec, (2, 7, 7))
    first, *others = (
        run_poisoned(EMULATED, plan, precision, arguments, torch.channels_last, seed=seed)
        for seed in SEEDS
    )
    for other in others:
        assert torch.equal(first, other)


@settings(max_examples=60, deadline=None)
@given(specs())
def test_python_and_cpp_agree_on_plans(spec):
    plan = lower(spec)
    code = list(plan.code)
    reason = cuda.why_not(plan)
    assert emulated.library().why_not(code) == reason
    if reason:
        return
    for precision, dtype in PRECISIONS.items():
        math = emulated.MATHS[precision]
        size = emulated.library().pack_bytes(code, math) + emulated.library().telling_bytes(math)
        called = emulated.FLOAT32.get(precision, "tf32")
        assert cuda.pack_elements(plan, dtype, called) * dtype.itemsize == size


def test_a_gpu_runs_the_same_tests():
    reason = targets.why_no_gpu()
    if reason:
        pytest.skip(f"no GPU in this file's tests: {reason}")
    assert targets.GPU in targets.TARGETS
