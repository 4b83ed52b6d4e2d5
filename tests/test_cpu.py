"""The CPU back end and its operator against the reference interpreter."""

import json
import os
import subprocess
import sys
import time
import timeit
from math import prod, sqrt

import nine
import pytest
import torch
from nine import CPU, FORMATS, tensors

from inception_fused import ops, reference
from inception_fused.lower import lower
from inception_fused.spec import GOOGLENET, Activation, Fork, Kind, Spec, Stage

OP = torch.ops.inception_fused
ODD = {
    "naive": Spec.naive(10, 3, 5, 7),
    "stacked": Spec.v1(67, 11, 13, 17, 5, 19, 23, (3, 3)),
    "k7 linear": Spec.v1(5, 1, 2, 3, 4, 5, 6, 7, Activation.NONE),
    "forked": Spec(
        9,
        (
            (Stage.conv(5), Fork(((Stage.conv(7),), (Stage.conv(6, 3),)))),
            (
                Stage.conv(4, 3),
                Fork(
                    (
                        (Stage.conv(3, (1, 3)), Fork(((Stage.pool(),), (Stage.conv(2),)))),
                        (Stage.pool(), Stage.conv(8, 5)),
                    )
                ),
            ),
        ),
    ),
    "strided": Spec(
        6,
        (
            (Stage.conv(7, 3, 2),),
            (Stage.pool(stride=2),),
            (Stage.conv(3), Stage.conv(4, (1, 7)), Stage.conv(5, (7, 1), (2, 2))),
            (Stage.pool(), Stage.conv(9, 3, 2)),
        ),
    ),
}


def check_exact(spec, shape, fmt):
    plan = lower(spec)
    x, weights, biases = tensors(spec, shape, integers=True)
    x = x.to(memory_format=fmt)
    y = CPU.run(plan, x, CPU.pack(plan, weights, biases))
    expected = reference.run(plan, x, weights, biases)
    assert y.stride() == expected.stride()
    assert torch.equal(y, expected)


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("shape", [(0, 5, 5), (1, 1, 1), (2, 9, 11), (5, 3, 1), (7, 14, 14)])
@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("threads", [1, 2])
def test_odd_modules_are_exact_on_integers(name, shape, fmt, threads):
    torch.set_num_threads(threads)
    check_exact(ODD[name], shape, FORMATS[fmt])


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    path = tmp_path_factory.mktemp("nine") / "problems.pt"
    nine.save(path)
    return path


KERNELS = {"base": [4, False], "avx2": [8, False], "avx512": [16, False], "avx512_bf16": [16, True]}


def run_nine(problems, isa, precisions):
    """What nine.py found with these kernels; skipped, and said so, where the machine lacks them."""
    done = subprocess.run(
        [sys.executable, nine.__file__, problems, precisions],
        env=os.environ | {"INCEPTION_FUSED_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    kernels = found.pop("kernels")
    if kernels < KERNELS[isa]:
        pytest.skip(f"no {isa} here: {kernels} ran instead of {KERNELS[isa]}")
    assert kernels == KERNELS[isa]
    return found


@pytest.fixture(scope="module", params=["base", "avx2", "avx512"])
def figures(request, problems):
    return run_nine(problems, request.param, "float32")


@pytest.fixture(scope="module", params=KERNELS)
def figures_of_bfloat16(request, problems):
    return run_nine(problems, request.param, "bfloat16")


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("batch", nine.BATCHES)
@pytest.mark.parametrize("name", GOOGLENET)
def test_paper_modules_are_exact_on_integers(figures, name, batch, fmt):
    case = figures[nine.case(name, batch, fmt)]
    assert case["exact"]
    assert case["format"]


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("name", GOOGLENET)
def test_paper_modules_write_their_slice_and_nothing_else(figures, name, fmt):
    assert figures[nine.case(name, nine.RANDOM_BATCH, fmt)]["slice"]


@pytest.mark.parametrize("tuning", nine.TUNINGS)
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("name", GOOGLENET)
def test_paper_modules_on_random_numbers(figures, name, fmt, tuning):
    case = figures[nine.case(name, nine.RANDOM_BATCH, fmt)]
    # Stock may sum in blocks. One term after the other, rounding errors are a random walk.
    terms = max(c.in_channels * prod(c.kernel) for c in GOOGLENET[name].convolutions())
    assert case[tuning] <= 2 * case["stock"] + sqrt(terms) * 2**-24


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("name", GOOGLENET)
def test_paper_modules_in_bfloat16(figures_of_bfloat16, name, fmt):
    case = figures_of_bfloat16[nine.case(name, nine.RANDOM_BATCH, f"{fmt} bfloat16")]
    assert all(case[tuning] <= 2 * case["stock"] for tuning in nine.TUNINGS)
    assert case["slice"]
    assert case["nan"]


def test_wrong_instruction_set_is_refused():
    done = subprocess.run(
        [sys.executable, "-c", "import inception_fused as f; f.backends()"],
        env=os.environ | {"INCEPTION_FUSED_ISA": "sse9"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode
    assert (
        "INCEPTION_FUSED_ISA must be base, avx2, avx512, avx512_vnni or avx512_bf16" in done.stderr
    )


def test_average_pool():
    spec = Spec(
        5, ((Stage.pool(Kind.AVGPOOL), Stage.conv(9)), (Stage.pool(Kind.AVGPOOL, 5, 1, 2),))
    )
    plan = lower(spec)
    x, weights, biases = tensors(spec, (2, 9, 7))
    y = CPU.run(plan, x, CPU.pack(plan, weights, biases))
    torch.testing.assert_close(y, reference.run(plan, x, weights, biases))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", ["strided", "naive", "k7 linear"])
def test_out_is_written_whole_and_nothing_else(name, channels_last):
    spec = ODD[name]
    plan = lower(spec)
    x, weights, biases = tensors(spec, (3, 9, 10))
    pack = CPU.pack(plan, weights, biases)[0]
    expected = CPU.run(plan, x, [pack])
    shape = (3, spec.out_channels + 8, *expected.shape[2:])
    large = torch.full(shape, float("nan"))
    if channels_last:
        large = large.to(memory_format=torch.channels_last)
    out = large.narrow(1, 5, spec.out_channels)
    OP.run.out(x, pack, plan.code, out=out)
    torch.testing.assert_close(out, expected, rtol=0, atol=0)
    assert large.narrow(1, 0, 5).isnan().all()
    assert large.narrow(1, 5 + spec.out_channels, 3).isnan().all()


def test_strided_inputs_and_outputs():
    spec = ODD["stacked"]
    plan = lower(spec)
    x, weights, biases = tensors(spec, (2, 12, 14))
    pack = CPU.pack(plan, weights, biases)[0]
    for view in (
        x[:, :, 1:11:2, 2:13:3],
        x.transpose(2, 3),
        x.to(memory_format=torch.channels_last)[:, :, 2:9, 1:],
    ):
        expected = reference.run(plan, view.contiguous(), weights, biases)
        torch.testing.assert_close(CPU.run(plan, view, [pack]), expected, rtol=1e-5, atol=1e-5)
        out = torch.full((*expected.shape[:3], 2 * expected.shape[3]), float("nan"))
        OP.run.out(view, pack, plan.code, out=out[..., ::2])
        torch.testing.assert_close(out[..., ::2], expected, rtol=1e-5, atol=1e-5)
        assert out[..., 1::2].isnan().all()


def test_nan_goes_through_relu_and_pool():
    spec = GOOGLENET["5a"]
    plan = lower(spec)
    x, weights, biases = tensors(spec, (1, 7, 7))
    x[0, 3, 2, 4] = float("nan")
    y = CPU.run(plan, x, CPU.pack(plan, weights, biases))
    expected = reference.run(plan, x, weights, biases)
    assert torch.equal(y.isnan(), expected.isnan())


def arguments(dtype):
    spec = ODD["stacked"]
    x, weights, biases = tensors(spec, (2, 6, 6))
    x, weights, biases = x.to(dtype), [w.to(dtype) for w in weights], [b.to(dtype) for b in biases]
    code = lower(spec).encode()
    return x, weights, biases, code, OP.pack(weights, biases, code)


@pytest.mark.parametrize("dtype", ops.CPU_DTYPES)
def test_opcheck_and_compile(dtype):
    x, weights, biases, code, pack = arguments(dtype)
    torch.library.opcheck(OP.pack.default, (weights, biases, code))
    for fmt in FORMATS.values():
        view = x.to(memory_format=fmt)
        torch.library.opcheck(OP.run.default, (view, pack, code))
        out = torch.empty_like(OP.run(view, pack, code))
        torch.library.opcheck(OP.run.out, (view, pack, code), {"out": out})
        compiled = torch.compile(lambda x: OP.run(x, pack, code) + 1, fullgraph=True)
        torch.testing.assert_close(compiled(view), OP.run(view, pack, code) + 1)


def test_gradients():
    spec = Spec.v1(3, 2, 3, 2, 2, 3, 2)
    plan = lower(spec)
    x, weights, biases = tensors(spec, (2, 5, 6))
    parameters = [x, *weights, *biases]
    for tensor in parameters:
        tensor.requires_grad_()
    packed = CPU.pack(plan, [w.detach() for w in weights], [b.detach() for b in biases])
    y = ops.differentiable(CPU.run, plan, x, packed, weights, biases)
    expected = reference.run(plan, x, weights, biases)
    grad = torch.randn_like(expected)
    for ours, stock in zip(
        torch.autograd.grad(y, parameters, grad),
        torch.autograd.grad(expected, parameters, grad),
        strict=True,
    ):
        torch.testing.assert_close(ours, stock)


def test_a_call_costs_microseconds(record_property):
    """All but the sums: a module of one channel and one pixel. In CPU time of this process."""
    spec = Spec.v1(1, 1, 1, 1, 1, 1, 1)
    plan = lower(spec)
    x, weights, biases = tensors(spec, (1, 1, 1))
    pack = OP.pack(weights, biases, plan.code)
    calls = 1000
    with torch.inference_mode():
        timer = timeit.Timer(lambda: OP.run(x, pack, plan.code), timer=time.process_time)
        microseconds = min(timer.repeat(9, calls)) / calls * 1e6
    record_property("microseconds", microseconds)
    print(f"{microseconds:.1f} us a call")
    assert microseconds < 30
