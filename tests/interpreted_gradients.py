"""The Triton kernels of gradients in Triton's interpreter; test_triton.py runs this file.

Needs TRITON_INTERPRET=1 before Triton is imported.
"""

import itertools
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from inception_fused.triton_kernels import cache, gradients, measured
from inception_fused.triton_kernels.choose import Tile
from nine import FORMATS, tensors
from test_cpu import ODD

import inception_fused
from inception_fused import ops, reference
from inception_fused.backends import TABLE
from inception_fused.lower import lower
from inception_fused.reference import aten_gradients
from inception_fused.spec import GOOGLENET, GOOGLENET_SIZE, Spec, Stage, Window

OP = torch.ops.inception_fused
TRITON = next(b for b in TABLE if b.name == "triton")
V1 = Spec.v1(16, 8, 4, 8, 4, 8, 8)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
WINDOWS = {
    "1x1": Window(),
    "3x3": Window((3, 3), (1, 1), (1, 1)),
    "strided": Window((3, 2), (2, 1), (1, 0)),
    "padded": Window((1, 2), (1, 1), (0, 1)),
}


@pytest.fixture
def poisoned():
    """Memory that a kernel gets to write on holds NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def relative_error(y, exact):
    assert y.isfinite().all()
    return float((y.double() - exact).abs().max() / exact.abs().max())


def close(ours, stock, exact, dtype):
    """As near to the exact result as torch's, but for bfloat16, which the interpreter truncates."""
    eps = torch.finfo(dtype).eps if dtype is torch.bfloat16 else 8 * torch.finfo(torch.float32).eps
    return relative_error(ours, exact) <= 2 * relative_error(stock, exact) + eps


def step_cases():
    """Every window in both formats; every combination in a full run."""
    for window, fmt, dtype in itertools.product(WINDOWS, FORMATS, DTYPES):
        is_default = (fmt, dtype) in (("nhwc", torch.float16), ("nchw", torch.float32))
        yield pytest.param(window, fmt, dtype, marks=[] if is_default else pytest.mark.full)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(("window", "fmt", "dtype"), [*step_cases()])
def test_the_gradients_of_a_step(window, fmt, dtype):
    """Three convolutions of one input, one of which needs no weight gradient."""
    w = WINDOWS[window]
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator).to(dtype)

    x = random(2, 21, 7, 9).to(memory_format=FORMATS[fmt])
    weights = [random(n, 21, *w.kernel) for n in (8, 5, 16)]
    size = w.output_size((7, 9))
    grads = [random(2, len(v), *size).to(memory_format=FORMATS[fmt]) for v in weights]
    needs = (w, True, [True, False, True], [True, True, False])
    ours = gradients.step_gradients(grads, x, weights, *needs)
    stock = aten_gradients(grads, x, weights, *needs)
    wide = [g.double() for g in grads], x.double(), [v.double() for v in weights]
    exact = aten_gradients(*wide, *needs)
    assert close(ours.x, stock.x, exact.x, dtype)
    for kind in ("weights", "biases"):
        triples = zip(getattr(ours, kind), getattr(stock, kind), getattr(exact, kind), strict=True)
        for mine, theirs, right in triples:
            assert (mine is None) == (theirs is None)
            assert mine is None or close(mine, theirs, right, dtype)


def backward(plan, x, weights, biases, grad, dtype, by):
    args = x.to(dtype), [w.to(dtype) for w in weights], [b.to(dtype) for b in biases]
    needs = [True] * (1 + 2 * len(weights))
    grad_x, *rest = reference.backward(plan, *args, grad.to(dtype), needs, by)
    return [grad_x, *(g for grads in rest for g in grads)]


def check_module(spec, shape, fmt, dtype):
    plan = lower(spec)
    x, weights, biases = tensors(spec, shape)
    # A ReLU must cut off the same values in every precision.
    biases = [b + 100 for b in biases]
    x = x.to(memory_format=FORMATS[fmt])
    grad = torch.randn(reference.empty_output(plan, x).shape)
    args = [t.to(dtype) for t in (x, *weights, *biases, grad)]
    n = len(weights)
    args = args[0], args[1 : 1 + n], args[1 + n : -1], args[-1]
    ours = backward(plan, *args, dtype, gradients.step_gradients)
    stock = backward(plan, *args, dtype, aten_gradients)
    exact = backward(plan, *args, torch.double, aten_gradients)
    assert ours[0].stride() == stock[0].stride()
    for mine, theirs, right in zip(ours, stock, exact, strict=True):
        assert mine.dtype is dtype
        assert close(mine, theirs, right, dtype)


@pytest.mark.full
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("name", GOOGLENET)
def test_every_paper_module(name, fmt, dtype):
    size = GOOGLENET_SIZE[name]
    check_module(GOOGLENET[name], (1, size, size), fmt, dtype)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    ("name", "fmt", "dtype"),
    [
        ("stacked", "nhwc", torch.float16),
        pytest.param("forked", "nchw", torch.float32, marks=pytest.mark.full),
        pytest.param("strided", "nhwc", torch.float32, marks=pytest.mark.full),
    ],
)
def test_odd_modules(name, fmt, dtype):
    check_module(ODD[name], (2, 6, 5), fmt, dtype)


def counted(monkeypatch):
    """The gradients that the kernels were asked for."""
    asked = []
    for name in ("input_gradient", "weight_gradient"):
        real = getattr(gradients, name)

        def record(*args, name=name, real=real):
            asked.append(name)
            return real(*args)

        monkeypatch.setattr(gradients, name, record)
    return asked


def gradients_of(module, x):
    x = x.detach().requires_grad_()
    module.zero_grad()
    y = module(x)
    y.square().sum().backward()
    return [x.grad, *(p.grad for p in module.parameters())]


def assert_all_close(a, b):
    for one, other in zip(a, b, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_the_public_choice(monkeypatch, tmp_path):
    monkeypatch.setenv("INCEPTION_FUSED_CACHE", str(tmp_path))
    asked = counted(monkeypatch)
    module = inception_fused.FusedInception(V1, backend="triton").eval()
    x = torch.randn(2, 16, 6, 5)
    expected = gradients_of(module, x)
    assert asked == []  # nothing was measured
    with inception_fused.gradients("triton"):
        assert_all_close(gradients_of(module, x), expected)
    steps = ["input_gradient", "weight_gradient"] * 4  # two 1x1, one of them pooled, 3x3 and 5x5
    assert asked == steps
    with inception_fused.gradients("aten"):
        gradients_of(module, x)
    gradients_of(module, x)  # "auto" again
    assert asked == steps
    with pytest.raises(ValueError, match="by one of auto, aten, triton, got 'cudnn'"):
        inception_fused.gradients("cudnn")


def test_the_public_choice_in_training_mode(monkeypatch):
    asked = counted(monkeypatch)
    torch.manual_seed(0)
    module = inception_fused.FusedInception(V1, batch_norm=True).train()
    x = torch.randn(2, 16, 6, 5)
    with inception_fused.gradients("aten"):
        expected = gradients_of(module, x)
    assert asked == []
    with inception_fused.gradients("triton"):
        assert_all_close(gradients_of(module, x), expected)
    assert sorted(asked) == ["input_gradient"] * 4 + ["weight_gradient"] * 4


def test_what_was_measured_as_faster_is_taken(monkeypatch, tmp_path):
    """A file of the cache that has two gradients of the 3x3 convolution, one of them faster."""
    monkeypatch.setenv("INCEPTION_FUSED_CACHE", str(tmp_path))
    asked = counted(monkeypatch)
    module = inception_fused.FusedInception(V1, backend="triton").eval()
    x = torch.randn(2, 16, 6, 5)
    expected = gradients_of(module, x)
    window = WINDOWS["3x3"]
    shapes = torch.empty(2, 8, 6, 5), torch.empty(2, 12, 6, 5)[:, :4]
    found = {}
    real = measured.key

    def note(what, grad, operand, window_):
        key = real(what, grad, operand, window_)
        if window_ == window:
            found[what] = key
        return key

    monkeypatch.setattr(measured, "_decisions", {})
    monkeypatch.setattr(measured, "key", note)
    # Any gradient at all, so that the file is asked.
    some = real("weight", *shapes, Window((7, 7), (1, 1), (3, 3)))
    cache.TILES.save("interpreter", {some: (Tile(64, 64, 64, 8, 3),)})
    assert_all_close(gradients_of(module, x), expected)
    assert asked == []
    entries = {found["weight"]: (Tile(64, 64, 64, 8, 3),), found["input"]: ()}
    cache.TILES.save("interpreter", entries)
    monkeypatch.setattr(measured, "_decisions", {})
    assert_all_close(gradients_of(module, x), expected)
    assert asked == ["weight_gradient"]


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("training", [False, True])
def test_what_measure_keeps_is_what_a_backward_pass_asks_for(monkeypatch, training, fmt):
    asked = counted(monkeypatch)
    monkeypatch.setattr(measured, "_decisions", {})
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    module = inception_fused.FusedInception(V1, batch_norm=training, backend="triton")
    module.train(training)
    x = torch.randn(2, 16, 6, 5).contiguous(memory_format=FORMATS[fmt])
    timed = []

    def winner(grads, operand, weights, window, timer):
        timed.append([g.shape[1] for g in grads])
        return (Tile(64, 64, 64, 8, 3),)

    with monkeypatch.context() as patched:
        patched.setattr(measured, "launch", SimpleNamespace(INTERPRETS=False))
        patched.setattr(measured, "input_winner", winner)
        patched.setattr(measured, "weight_winner", winner)
        found = measured.measure(lower(V1), x)
    assert [*found.values()] == [True] * 8
    assert sorted(timed[::2]) == sorted(timed[1::2]) == [[8], [8], [8], [8, 4, 4]]
    gradients_of(module, x)
    assert sorted(asked) == ["input_gradient"] * 4 + ["weight_gradient"] * 4


def test_a_compiled_training_step():
    spec = Spec(16, ((Stage.conv(8), Stage.conv(4, 3)), (Stage.conv(4),)))
    module = inception_fused.FusedInception(spec, backend="triton").eval()
    x = torch.randn(2, 16, 6, 5)
    expected = gradients_of(module, x)
    with inception_fused.gradients("triton"):
        compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
        assert_all_close(gradients_of(compiled, x), expected)


def test_gradients_of_gradients_are_those_of_torch(monkeypatch):
    asked = counted(monkeypatch)
    plan = lower(V1)
    x, weights, biases = tensors(V1, (1, 4, 4))
    x.requires_grad_()
    packed = TRITON.pack(plan, weights, biases)
    seconds = []
    for by in (gradients.step_gradients, aten_gradients):
        y = ops.differentiable(TRITON.run, plan, x, packed, weights, biases, by)
        (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        assert asked == []
        seconds += torch.autograd.grad(first.square().sum(), x)
        asked.clear()  # by the backward pass that is not recorded itself
    torch.testing.assert_close(*seconds)


def test_opcheck():
    x, grad = torch.randn(2, 6, 5, 7), torch.randn(2, 4, 5, 7)
    last = [t.to(memory_format=torch.channels_last) for t in (grad, x)]
    torch.library.opcheck(OP.triton_weight_gradient.default, (*last, (3, 3), (1, 1), (1, 1)))
    empty = OP.triton_weight_gradient(grad[:0], x[:0], (3, 3), (1, 1), (1, 1))
    assert torch.equal(empty, torch.zeros(4, 6, 3, 3))


def test_wrong_arguments_are_named():
    x, grad = torch.randn(2, 6, 5, 7), torch.randn(2, 4, 5, 7)
    for args, message in (
        ((grad[:1], x), "with one N"),
        ((grad[0], x), r"of shape \(N, C, H, W\)"),
        ((grad[:, :, 1:], x), "must have 5x7 pixels"),
        ((grad.half(), x), "grad must be torch.float32"),
        ((grad.double(), x.double()), "x is torch.float64"),
    ):
        with pytest.raises(ValueError, match=message):
            OP.triton_weight_gradient(*args, (3, 3), (1, 1), (1, 1))
