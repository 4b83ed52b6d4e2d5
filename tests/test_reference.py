"""The plan interpreter against the plain modules, and its gradients against autograd's."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import specs
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from inception_fused import models, reference
from inception_fused.lower import lower
from inception_fused.plan import Plan
from inception_fused.spec import GOOGLENET, Activation, Fork, Kind, Spec, Stage

RUN = settings(deadline=None, max_examples=60)
SMALL = Spec.v1(4, 3, 2, 3, 2, 3, 2)
FORMATS = (torch.contiguous_format, torch.channels_last)


def integers(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Integers from -2 to 2, so that sums in float32 and float64 are exact."""
    return torch.randint(-2, 3, shape).to(dtype)


def parameters(module: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Weights and biases of a plain module without norms, in the order of the spec."""
    found = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
    return [c.weight for c in found], [c.bias for c in found if c.bias is not None]


def plain(spec: Spec, dtype: torch.dtype = torch.float32) -> models.Branches:
    module = models.Inception.from_spec(spec).to(dtype)
    for parameter in module.parameters():
        parameter.data = integers(tuple(parameter.shape), dtype)
    return module


def case(
    spec: Spec, dtype: torch.dtype, size: tuple[int, int] = (6, 5), batch: int = 2
) -> tuple[Plan, Tensor, list[Tensor], list[Tensor]]:
    torch.manual_seed(3)
    x = torch.randn(batch, spec.in_channels, *size, dtype=torch.float64).to(dtype)
    weights = [
        torch.randn(c.weight_shape, dtype=torch.float64).to(dtype) for c in spec.convolutions()
    ]
    biases = [torch.randn(len(w), dtype=torch.float64).to(dtype) for w in weights]
    return lower(spec), x, weights, biases


@RUN
@given(specs(), st.integers(0, 3), st.integers(1, 9), st.integers(1, 9), st.sampled_from(FORMATS))
def test_run_is_the_plain_module(
    spec: Spec, batch: int, height: int, width: int, memory_format: torch.memory_format
) -> None:
    # In float64 integers stay exact through some stages; what divides is compared by error.
    module = plain(spec, torch.float64)
    x = integers((batch, spec.in_channels, height, width), torch.float64)
    x = x.to(memory_format=memory_format)
    before = x.clone()
    plan = lower(spec)
    kinds = {kind for s in plan.steps for kind in (s.kind, s.pre.kind if s.pre else s.kind)}
    exact = kinds <= {Kind.POINTWISE, Kind.CONV, Kind.MAXPOOL}
    with torch.no_grad():
        got, wanted = reference.run(plan, x, *parameters(module)), module(x)
        scale = float(wanted.abs().max()) if wanted.numel() else 0.0
        torch.testing.assert_close(got, wanted, rtol=0, atol=0 if exact else 1e-12 * scale)
    assert torch.equal(x, before)
    assert got.is_contiguous(memory_format=reference.output_format(x))


@pytest.mark.parametrize("name", GOOGLENET)
def test_run_is_the_paper_s_module_bitwise(name: str) -> None:
    spec = GOOGLENET[name]
    module = plain(spec)
    x = integers((1, spec.in_channels, 7, 5))
    with torch.no_grad():
        assert torch.equal(reference.run(lower(spec), x, *parameters(module)), module(x))


def test_run_is_the_naive_module_bitwise() -> None:
    module = models.NaiveInception(6, 3, 4, 5)
    for parameter in module.parameters():
        parameter.data = integers(tuple(parameter.shape))
    x = integers((2, 6, 8, 8))
    with torch.no_grad():
        assert torch.equal(reference.run(lower(module.spec), x, *parameters(module)), module(x))


@pytest.mark.parametrize("dtype", reference.DTYPES)
@pytest.mark.parametrize("memory_format", FORMATS)
def test_every_dtype_and_format(dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    plan, x, weights, biases = case(SMALL, dtype)
    got = reference.run(plan, x.to(memory_format=memory_format), weights, biases)
    exact = reference.run(
        plan, x.double(), [w.double() for w in weights], [b.double() for b in biases]
    )
    assert got.dtype == dtype
    assert got.is_contiguous(memory_format=memory_format)
    # Two roundings of the result's scale per convolution, in a chain of two.
    error = (got.double() - exact).abs().max() / exact.abs().max()
    assert error <= 8 * torch.finfo(dtype).eps


def test_a_slice_and_a_strided_view_are_read_as_they_are() -> None:
    plan, x, weights, biases = case(SMALL, torch.float32)
    expected = reference.run(plan, x, weights, biases)
    for memory_format in FORMATS:
        wide = torch.full((2, 9, 12, 5), torch.nan).to(memory_format=memory_format)
        view = wide[:, 3:7, ::2]
        view.copy_(x)
        torch.testing.assert_close(reference.run(plan, view, weights, biases), expected)
    in_channels_last = torch.zeros(2, 9, 6, 5).to(memory_format=torch.channels_last)[:, 3:7]
    assert reference.output_format(in_channels_last) is torch.channels_last


@pytest.mark.parametrize("dtype", reference.DTYPES)
def test_relu_and_max_pool_keep_nan(dtype: torch.dtype) -> None:
    spec = Spec(1, ((Stage.conv(1),), (Stage.pool(),), (Stage.pool(), Stage.conv(1))))
    x = torch.zeros(1, 1, 5, 5, dtype=dtype)
    x[0, 0, 2, 2] = torch.nan
    one, zero = torch.ones(1, 1, 1, 1, dtype=dtype), torch.zeros(1, dtype=dtype)
    got = reference.run(lower(spec), x, [one, one], [zero, zero])[0].isnan()
    near = torch.zeros(5, 5, dtype=torch.bool)
    near[1:4, 1:4] = True
    assert torch.equal(got, torch.stack([x[0, 0].isnan(), near, near]))


def test_pools_at_the_border() -> None:
    """A max pool ignores its padding, an average pool may count it as zeros (csrc/kinds.def)."""
    kinds = (Kind.MAXPOOL, Kind.AVGPOOL, Kind.AVGPOOL_INSIDE)
    spec = Spec(1, tuple((Stage.pool(kind),) for kind in kinds))
    got = reference.run(lower(spec), torch.full((1, 1, 3, 3), -9.0), [], [])
    assert torch.equal(got[0, 2], got[0, 0])
    assert torch.equal(got[0, 0], torch.full((3, 3), -9.0))
    assert got[0, 1].tolist() == [[-4, -6, -4], [-6, -9, -6], [-4, -6, -4]]


GRADIENT_SPECS = {
    "v1": SMALL,
    "naive": Spec.naive(2, 2, 1, 1),
    "linear": Spec.v1(3, 2, 2, 2, 1, 2, 2, (3, 3), Activation.NONE),
    "averages": Spec(2, ((Stage.pool(Kind.AVGPOOL), Stage.conv(2)), (Stage.pool(Kind.AVGPOOL),))),
    "halving": Spec(3, ((Stage.conv(2), Stage.conv(2, 3, stride=2)), (Stage.pool(stride=2),))),
    "network": Spec(
        2,
        (
            (
                Stage.pool(Kind.AVGPOOL_INSIDE, 2, 2, 1, ceil_mode=True),
                Stage.local_response_norm(3, 1.0),
                Fork(((Stage.conv(3),), (Stage.conv(2), Stage.conv(2, 3)))),
                Stage.local_response_norm(4, 1.0, 0.5, 2.0),
                Stage.mean(),
                Stage.conv(3, activation=Activation.NONE),
            ),
        ),
    ),
    "pools": Spec(2, ((Stage.pool(), Stage.pool(), Stage.conv(2)), (Stage.conv(1), Stage.pool()))),
}


class Function(torch.autograd.Function):
    """run and backward joined, with only the arguments saved."""

    @staticmethod
    def forward(ctx, plan, x, *parameters):  # type: ignore[no-untyped-def]
        ctx.plan, ctx.count = plan, len(parameters) // 2
        ctx.save_for_backward(x, *parameters)
        return reference.run(plan, x, parameters[: ctx.count], parameters[ctx.count :])

    @staticmethod
    def backward(ctx, grad_out):  # type: ignore[no-untyped-def]
        x, *parameters = ctx.saved_tensors
        weights, biases = parameters[: ctx.count], parameters[ctx.count :]
        grad_x, grad_weights, grad_biases = reference.backward(
            ctx.plan, x, weights, biases, grad_out, ctx.needs_input_grad[1:]
        )
        return None, grad_x, *grad_weights, *grad_biases


@pytest.mark.parametrize("name", GRADIENT_SPECS)
def test_gradcheck(name: str) -> None:
    plan, x, weights, biases = case(GRADIENT_SPECS[name], torch.float64, (4, 5), 1)
    tensors = [t.requires_grad_() for t in (x, *weights, *biases)]

    def run(*tensors: Tensor) -> Tensor:
        return Function.apply(plan, *tensors)

    assert torch.autograd.gradcheck(run, tensors)
    assert torch.autograd.gradgradcheck(run, tensors)


@RUN
@given(specs(), st.data())
def test_backward_is_autograd_s_and_computes_what_is_needed(
    spec: Spec, data: st.DataObject
) -> None:
    plan, x, weights, biases = case(spec, torch.float64)
    count = len(weights)
    size = 1 + 2 * count
    needs = data.draw(st.lists(st.booleans(), min_size=size, max_size=size))
    tensors = [t.requires_grad_(n) for t, n in zip((x, *weights, *biases), needs, strict=True)]
    out = reference.run(plan, x, weights, biases)
    grad_out = torch.randn_like(out)
    with torch.no_grad():
        grad_x, grad_weights, grad_biases = reference.backward(
            plan, x, weights, biases, grad_out, needs
        )
    got = [grad_x, *grad_weights, *grad_biases]
    assert [g is not None for g in got] == needs
    if not any(needs):
        return
    wanted = [t for t, n in zip(tensors, needs, strict=True) if n]
    expected = torch.autograd.grad(out, wanted, grad_out)
    for g, e in zip([g for g in got if g is not None], expected, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-9, atol=1e-9)


def test_run_and_backward_are_traced_by_make_fx() -> None:
    plan, x, weights, biases = case(SMALL, torch.float32)
    grad = torch.randn_like(reference.run(plan, x, weights, biases))
    needs = [True] * (1 + 2 * len(weights))

    def both(x: Tensor, weights: list[Tensor], biases: list[Tensor], grad: Tensor):  # type: ignore[no-untyped-def]
        y = reference.run(plan, x, weights, biases)
        return y, reference.backward(plan, x, weights, biases, grad, needs)

    for mode in ("fake", "symbolic"):
        traced = make_fx(both, tracing_mode=mode)(x, weights, biases, grad)
        torch.testing.assert_close(traced(x, weights, biases, grad), both(x, weights, biases, grad))


def test_run_compiles_in_one_graph() -> None:
    plan, x, weights, biases = case(SMALL, torch.float32)
    compiled = torch.compile(reference.run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        compiled(plan, x, weights, biases), reference.run(plan, x, weights, biases)
    )


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda x, w, b: (x[0], w, b), r"x must have 4 dimensions .* got shape \(4, 6, 5\)"),
        (lambda x, w, b: (x[:, :3], w, b), "x must have 4 channels, got 3"),
        (lambda x, w, b: (x.int(), w, b), "x must be one of .* got torch.int32"),
        (lambda x, w, b: (x, w[:-1], b), "weights must be 6 tensors, got 5"),
        (lambda x, w, b: (x, w, [*b, b[0]]), "biases must be 6 tensors, got 7"),
        (lambda x, w, b: (x, w, [b[0][:1], *b[1:]]), r"biases\[0\] must have the shape \(3,\)"),
        (lambda x, w, b: (x, w[::-1], b), r"weights\[0\] must have the shape \(3, 4, 1, 1\)"),
        (lambda x, w, b: (x.half(), w, b), r"weights\[0\] must be torch.float16 like x"),
        (lambda x, w, b: (x.to("meta"), w, b), r"weights\[0\] must be on meta like x, got cpu"),
        (lambda x, w, b: (x[:, :, :0], w, b), "does not fit into an image of 0x5"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change, text) -> None:  # type: ignore[no-untyped-def]
    plan, *arguments = case(SMALL, torch.float32)
    with pytest.raises(ValueError, match=text):
        reference.run(plan, *change(*arguments))


def test_backward_refuses_what_does_not_fit() -> None:
    plan, x, weights, biases = case(SMALL, torch.float32)
    with pytest.raises(ValueError, match="needs must be 13 bools, got 1"):
        reference.backward(plan, x, weights, biases, x, [True])
    with pytest.raises(ValueError, match=r"grad_out must have the shape \(2, 11, 6, 5\)"):
        reference.backward(plan, x, weights, biases, x, [True] * 13)
