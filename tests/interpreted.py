"""The Triton kernels in Triton's interpreter, against the reference; test_triton.py runs this file.

Needs TRITON_INTERPRET=1 before Triton is imported. Alone: TRITON_INTERPRET=1 pytest
tests/interpreted.py
"""

import itertools
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from inception_fused.triton_kernels import choose as tiles
from inception_fused.triton_kernels import operator
from strategies import specs
from test_cpu import FORMATS, ODD, tensors

import inception_fused
from inception_fused import reference
from inception_fused.backends import TABLE, choose
from inception_fused.lower import lower
from inception_fused.plan import IN
from inception_fused.spec import GOOGLENET, GOOGLENET_SIZE, Kind, Spec, Stage

OP = torch.ops.inception_fused
TRITON = next(b for b in TABLE if b.name == "triton")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SMALL = tiles.Tile(64, 16, 32, 4, 1)
V1 = Spec.v1(6, 3, 4, 5, 2, 3, 4)
POOLS = Spec(
    5,
    (
        (Stage.pool(Kind.AVGPOOL), Stage.conv(9)),
        (Stage.pool(Kind.AVGPOOL, 5, 1, 2),),
        (Stage.pool(Kind.MAXPOOL, (3, 5), 1, (1, 2)), Stage.conv(3), Stage.pool()),
    ),
)


@pytest.fixture
def small_tiles(monkeypatch):
    """Many tiles where the interpreter's own would be one."""
    monkeypatch.setattr(tiles, "interpreted", lambda launch: SMALL)
    monkeypatch.setattr(operator, "_programs", {})


def run(plan, x, weights, biases):
    return TRITON.run(plan, x, TRITON.pack(plan, weights, biases))


def cast(tensors, dtype):
    return [t.to(dtype) for t in tensors]


def run_exact(plan, x, weights, biases):
    return reference.run(plan, x.double(), cast(weights, torch.double), cast(biases, torch.double))


def relative_error(y, exact):
    assert y.isfinite().all()
    return (y.double() - exact).abs().max() / exact.abs().max()


def paper_cases():
    """Every module in one of two ways, in turn, the last in all four; every way in a full run."""
    ways = (("nhwc", torch.float32), ("nchw", torch.float16))
    for number, name in enumerate(GOOGLENET):
        for fmt, dtype in itertools.product(FORMATS, DTYPES):
            last = name == "5b" and dtype is not torch.bfloat16
            sampled = last or (fmt, dtype) == ways[number % 2]
            yield pytest.param(name, fmt, dtype, marks=[] if sampled else pytest.mark.full)


def odd_cases():
    """Every module, shape and format at least once; every combination in a full run."""
    for name, shape, fmt in itertools.product(ODD, [(0, 5, 5), (2, 7, 9), (5, 3, 1)], FORMATS):
        one_column = shape[2] == 1
        sampled = name == "strided" or (fmt == "nhwc" and not one_column)
        yield pytest.param(name, shape, fmt, marks=[] if sampled else pytest.mark.full)


@pytest.mark.parametrize(("name", "fmt", "dtype"), [*paper_cases()])
def test_paper_modules(name, fmt, dtype):
    spec, size = GOOGLENET[name], GOOGLENET_SIZE[name]
    plan = lower(spec)
    x, weights, biases = tensors(spec, (1, size, size))
    x = x.to(dtype, memory_format=FORMATS[fmt])
    weights, biases = cast(weights, dtype), cast(biases, dtype)
    exact = run_exact(plan, x, weights, biases)
    stock = reference.run(plan, x, weights, biases)
    ours = run(plan, x, weights, biases)
    assert ours.stride() == stock.stride()
    if dtype is torch.bfloat16:
        assert relative_error(ours, exact) <= bfloat16_bound(plan)
        return
    eps = 8 * torch.finfo(torch.float32).eps
    assert relative_error(ours, exact) <= 2 * relative_error(stock, exact) + eps


def bfloat16_bound(plan):
    """The interpreter truncates where the hardware rounds: an error of one unit, not a half."""
    return len(plan.waves) * torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("name", ["stacked", "strided"])
def test_bfloat16(name, fmt):
    plan = lower(ODD[name])
    x, weights, biases = tensors(ODD[name], (2, 9, 11))
    x = x.to(torch.bfloat16, memory_format=FORMATS[fmt])
    weights, biases = cast(weights, torch.bfloat16), cast(biases, torch.bfloat16)
    exact = run_exact(plan, x, weights, biases)
    ours = run(plan, x, weights, biases)
    assert ours.dtype is torch.bfloat16
    assert relative_error(ours, exact) <= bfloat16_bound(plan)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(("name", "shape", "fmt"), [*odd_cases()])
def test_odd_modules_are_exact_on_integers(name, shape, fmt):
    plan = lower(ODD[name])
    x, weights, biases = tensors(ODD[name], shape, integers=True)
    x = x.to(memory_format=FORMATS[fmt])
    expected = reference.run(plan, x, weights, biases)
    ours = run(plan, x, weights, biases)
    assert ours.stride() == expected.stride()
    assert torch.equal(ours, expected)


@settings(
    max_examples=6,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@pytest.mark.usefixtures("small_tiles")
@given(specs(), st.integers(1, 2), st.integers(3, 7), st.integers(3, 7), st.booleans())
@example(Spec(3, ((Stage.conv(2, 2, 1, 0),),)), 1, 4, 4, True)
@example(Spec(1, ((Stage.pool(),),)), 1, 3, 3, False)
def test_any_plan(spec, batch, height, width, channels_last):
    plan = lower(spec)
    x, weights, biases = tensors(spec, (batch, height, width))
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    if (reason := TRITON.why_not(plan, x)) is not None:
        assert not weights or "step" in reason
        with pytest.raises(ValueError, match=re.escape(reason)):
            choose(plan, x, "triton")
        return
    expected = reference.run(plan, x, weights, biases)
    torch.testing.assert_close(run(plan, x, weights, biases), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("fmt", FORMATS)
def test_pools(fmt, dtype):
    plan = lower(POOLS)
    x, weights, biases = tensors(POOLS, (2, 9, 7))
    x = x.to(dtype, memory_format=FORMATS[fmt])
    weights, biases = cast(weights, dtype), cast(biases, dtype)
    expected = reference.run(plan, x, weights, biases)
    torch.testing.assert_close(run(plan, x, weights, biases), expected)


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_go_through_relu_and_pool(value, dtype):
    spec = Spec(6, (*V1.branches, (Stage.pool(),)))
    plan = lower(spec)
    x, weights, biases = tensors(spec, (1, 7, 7))
    x[0, 3, 2, 4] = value
    x[0, 5] = value  # windows that hold nothing else
    args = x.to(dtype), cast(weights, dtype), cast(biases, dtype)
    ours, expected = run(plan, *args), reference.run(plan, *args)
    assert torch.equal(ours.isnan(), expected.isnan())
    assert torch.equal(ours.isinf(), expected.isinf())


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", ["strided", "naive"])
def test_out_is_written_whole_and_nothing_else(name, channels_last):
    spec = ODD[name]
    plan = lower(spec)
    x, weights, biases = tensors(spec, (2, 6, 7))
    pack = TRITON.pack(plan, weights, biases)[0]
    expected = TRITON.run(plan, x, [pack])
    shape = (2, spec.out_channels + 8, *expected.shape[2:])
    large = torch.full(shape, float("nan"))
    if channels_last:
        large = large.to(memory_format=torch.channels_last)
    out = large.narrow(1, 5, spec.out_channels)
    OP.triton_run.out(x, pack, plan.code, out=out)
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)
    assert large.narrow(1, 0, 5).isnan().all()
    assert large.narrow(1, 5 + spec.out_channels, 3).isnan().all()


def test_strided_inputs_and_outputs():
    plan = lower(V1)
    x, weights, biases = tensors(V1, (2, 12, 14))
    pack = TRITON.pack(plan, weights, biases)[0]
    for view in (
        x[:, :, 1:11:2, 2:13:3],
        x.transpose(2, 3),
        x.to(memory_format=torch.channels_last)[:, :, 2:9, 1:],
        x[:1, :, :1, :1].expand(2, -1, 3, 4),
    ):
        expected = reference.run(plan, view.contiguous(), weights, biases)
        ours = TRITON.run(plan, view, [pack])
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
        out = torch.full((*expected.shape[:3], 2 * expected.shape[3]), float("nan"))
        OP.triton_run.out(view, pack, plan.code, out=out[..., ::2])
        torch.testing.assert_close(out[..., ::2], expected, rtol=1e-5, atol=1e-5)
        assert out[..., 1::2].isnan().all()


def test_channel_slices_of_the_input():
    """A plan's steps may read a part of IN, aligned or not."""
    spec = Spec(8, ((Stage.conv(5),), (Stage.conv(3, 3),), (Stage.pool(), Stage.conv(2))))
    plan = lower(spec)
    x, weights, biases = tensors(spec, (2, 5, 6))
    for first in (3, 4):
        wide = replace(
            plan,
            buffers=(16, *plan.buffers[1:]),
            steps=tuple(
                replace(s, src=replace(s.src, offset=first)) if s.src.buffer == IN else s
                for s in plan.steps
            ),
        )
        wide.check()
        for fmt in FORMATS.values():
            large = torch.full((2, 16, 5, 6), float("nan")).to(memory_format=fmt)
            large[:, first : first + 8] = x
            expected = reference.run(plan, x, weights, biases)
            ours = run(wide, large, weights, biases)
            torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def arguments():
    x, weights, biases = tensors(V1, (2, 4, 5))
    code = lower(V1).encode()
    return x, weights, biases, code, OP.triton_pack(weights, biases, code)


def test_wrong_arguments_are_named():
    x, weights, biases, code, pack = arguments()
    out = torch.empty(2, V1.out_channels, 4, 5)
    wide = torch.empty(2, V1.out_channels + 3, 4, 5)
    cases = [
        (lambda: OP.triton_run(x[0], pack, code), "x must have 4 dimensions"),
        (lambda: OP.triton_run(x[:, 1:], pack, code), "x must have 6 channels"),
        (lambda: OP.triton_run(x.double(), pack, code), "x is torch.float64, the Triton kernels"),
        (lambda: OP.triton_run(x.half(), pack, code), "pack must be torch.float16"),
        (lambda: OP.triton_run(x, pack[1:], code), "pack must be what"),
        (lambda: OP.triton_run(x, pack, code[:-1]), "plan: ends after"),
        (lambda: OP.triton_pack(weights[1:], biases, code), "needs 6 weights and biases, got 5"),
        (
            lambda: OP.triton_pack([*weights[:-1], weights[0]], biases, code),
            r"weights\[5\] must be of shape",
        ),
        (
            lambda: OP.triton_pack(weights, [*biases[:-1], biases[-1].half()], code),
            r"biases\[5\] must be torch.float32",
        ),
        (lambda: OP.triton_run.out(x, pack, code, out=out[:1]), "out must be of shape"),
        (lambda: OP.triton_run.out(x, pack, code, out=out.half()), "out must be torch.float32"),
        (
            lambda: OP.triton_run.out(x, pack, code, out=out[:1].expand(out.shape)),
            "two indices for one",
        ),
        (lambda: OP.triton_run.out(wide[:, :6], pack, code, out=wide[:, 3:]), "overlap x"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()


def test_output_beside_the_input_in_one_tensor():
    """Channels of one tensor, in both formats; a program that was prepared is not taken blindly."""
    x, weights, biases, code, pack = arguments()
    expected = reference.run(lower(V1), x, weights, biases)
    for fmt in FORMATS.values():
        large = torch.full((2, 8 + V1.out_channels, 4, 5), float("nan")).to(memory_format=fmt)
        large[:, :6] = x
        OP.triton_run.out(large[:, :6], pack, code, out=large[:, 8:])
        torch.testing.assert_close(large[:, 8:], expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(large[:, :6], x)
        with pytest.raises(ValueError, match="overlap x"):
            OP.triton_run.out(large[:, 4:10], pack, code, out=large[:, 8:])


def test_opcheck():
    x, weights, biases, code, pack = arguments()
    torch.library.opcheck(OP.triton_pack.default, (weights, biases, code))
    out = torch.empty_like(OP.triton_run(x, pack, code))
    torch.library.opcheck(OP.triton_run.out, (x, pack, code), {"out": out})
    last = x.to(memory_format=torch.channels_last)
    torch.library.opcheck(OP.triton_run.default, (last, pack, code))


def test_a_fused_module_runs_eager_and_compiled():
    spec = Spec.v1(16, 8, 4, 8, 4, 8, 8)
    module = inception_fused.FusedInception(spec, backend="triton").eval()
    x = torch.randn(2, 16, 6, 5)
    with torch.no_grad():
        y = module(x)
        assert "fused, triton" in str(inception_fused.explain(module))
        torch.testing.assert_close(torch.compile(module, fullgraph=True)(x), y)
        inception_fused.unfuse(module)
        torch.testing.assert_close(y, module(x), rtol=1e-5, atol=1e-5)


def test_reasons_against_arguments():
    plan = lower(GOOGLENET["3a"])
    x = torch.empty(1, 192, 28, 28)
    assert choose(plan, x, "triton").backend is TRITON
    for wrong, reason in (
        (x.double(), "x is torch.float64"),
        (x.to("meta"), "x is on meta, TRITON_INTERPRET is set"),
        (x.expand(2_000_000, -1, -1, -1), "pixels, the kernels count to"),
    ):
        with pytest.raises(ValueError, match=reason):
            choose(plan, wrong, "triton")
