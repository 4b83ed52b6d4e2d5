"""What only a GPU can show: graphs, streams, threads and errors of the CUDA and Triton back ends.

Errors that need no GPU to be shown are in test_cuda.py; the kernels' results in test_kernels.py.
"""

from __future__ import annotations

import pytest
import targets
import torch
from inception_fused.bench.gpu import behaviour, device
from inception_fused.bench.gpu.arguments import Arguments, precision, precisions
from inception_fused.bench.gpu.record import OK, SKIPPED

import inception_fused
from inception_fused import FusedInception
from inception_fused.backends import TABLE
from inception_fused.spec import Spec

NO_GPU = device.missing()
NO_CUDA = NO_GPU or targets.why_no_gpu()
pytestmark = pytest.mark.skipif(NO_GPU is not None, reason=f"needs a GPU: {NO_GPU}")
needs_cuda = pytest.mark.skipif(NO_CUDA is not None, reason=f"needs the CUDA library: {NO_CUDA}")

OP = torch.ops.inception_fused
SPEC = Spec.v1(16, 8, 8, 8, 8, 8, 8)


def packed(dtype=torch.float16):
    a = Arguments.random(SPEC, (1, 6, 6)).to("cuda", dtype)
    return a, OP.pack(a.weights, a.biases, a.plan.code)


@pytest.mark.parametrize("name", behaviour.CHECKS)
@pytest.mark.parametrize(
    ("backend", "precision_"),
    [pytest.param(b, p, id=f"{b.name}-{p}") for b in TABLE[:2] for p in precisions(b.name)],
)
def test_behaviour(backend, precision_, name):
    row = behaviour.check(backend, "cuda", precision_, name, behaviour.CHECKS[name])
    if row.status == SKIPPED:
        pytest.skip(row.detail)
    assert row.status == OK, row.detail


@needs_cuda
def test_a_pack_of_another_dtype_is_refused():
    a, pack = packed()
    with pytest.raises(RuntimeError, match="pack must be"):
        OP.run(a.x.float(), pack, a.plan.code)
    with pytest.raises(RuntimeError, match=r"biases\[0\] must be"):
        OP.pack(a.weights, [b.float() for b in a.biases], a.plan.code)
    with pytest.raises(RuntimeError, match="x must be float16, bfloat16 or float32 on CUDA"):
        OP.run(a.x.double(), pack.double(), a.plan.code)


@needs_cuda
def test_tensors_of_another_device_are_refused():
    a, pack = packed()
    for arguments in ((a.x, pack.cpu()), (a.x.cpu(), pack)):
        with pytest.raises(RuntimeError, match="must be"):
            OP.run(*arguments, a.plan.code)
    with pytest.raises(RuntimeError, match=r"weights\[1\] must be on"):
        OP.pack([a.weights[0], *(w.cpu() for w in a.weights[1:])], a.biases, a.plan.code)


@needs_cuda
def test_another_device_than_the_current_one():
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    a = Arguments.random(SPEC, (1, 6, 6)).to("cuda:1", torch.float16)
    pack = OP.pack(a.weights, a.biases, a.plan.code)
    y = OP.run(a.x, pack, a.plan.code)
    assert y.device == torch.device("cuda:1")
    assert torch.cuda.current_device() == 0
    torch.testing.assert_close(y, a.run(), rtol=1e-2, atol=1e-2)


@needs_cuda
def test_an_invalid_launch_leaves_no_error_behind():
    a, pack = packed()
    before = OP.run(a.x, pack, a.plan.code)
    with pytest.raises(RuntimeError):
        OP.run(a.x[:, :8], pack, a.plan.code)
    assert torch.equal(OP.run(a.x, pack, a.plan.code), before)


@needs_cuda
def test_a_pack_stays_valid_on_another_stream():
    """Weights are packed on one stream and used at once on another that waits for it."""
    a, _ = packed()
    stream = torch.cuda.Stream()
    expected = OP.run(a.x, OP.pack(a.weights, a.biases, a.plan.code), a.plan.code)
    pack = OP.pack(a.weights, a.biases, a.plan.code)
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        got = OP.run(a.x, pack, a.plan.code)
    stream.synchronize()
    assert torch.equal(got, expected)


def test_auto_takes_a_back_end_and_says_which():
    module = FusedInception(SPEC).eval().cuda().half()
    with torch.no_grad():
        module(torch.randn(1, 16, 6, 6, device="cuda", dtype=torch.float16))
    (line,) = inception_fused.explain(module).lines
    assert line.backend in ("cuda", "triton"), line
    assert line.backend == "cuda" or NO_CUDA in line.reason


@pytest.mark.parametrize("mixed", ["weights", "input"])
def test_mixed_dtypes_run_as_torch_does(mixed):
    """Where torch refuses a mixture of dtypes, so do we, whatever the back end."""
    module = FusedInception(SPEC).eval().cuda()
    x = torch.randn(1, 16, 6, 6, device="cuda")
    module, x = (module.half(), x) if mixed == "weights" else (module, x.half())
    with torch.no_grad(), pytest.raises((RuntimeError, ValueError), match=r"type|must be"):
        module(x)


def test_float32_follows_the_switches():
    module = FusedInception(Spec.v1(256, 64, 64, 64, 32, 32, 64)).eval().cuda()
    x = torch.randn(2, 256, 14, 14, device="cuda")
    outputs = {}
    with torch.no_grad():
        for name in ("float32", "bf16x3", "tf32"):
            with precision(name):
                outputs[name] = module(x)
    exact = outputs["float32"]
    apart = {n: float((y - exact).abs().max() / exact.abs().max()) for n, y in outputs.items()}
    assert 1e-5 < apart["tf32"] < 1e-2
    if NO_CUDA is None:
        assert 0 < apart["bf16x3"] < apart["tf32"] / 8
