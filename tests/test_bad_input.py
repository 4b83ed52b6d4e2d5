"""Arguments that do not fit, hostile plans and extreme tensors: an answer or an error, no crash."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from inception_fused import FusedInception, explain, fuse, models, reference
from inception_fused.backends import TABLE
from inception_fused.lower import lower
from inception_fused.plan import OUT, Plan
from inception_fused.spec import Kind, Spec, Stage, Window

OP = torch.ops.inception_fused
SPEC = Spec.v1(6, 3, 2, 5, 2, 3, 4, (3, 3))
PLAN = lower(SPEC)
CODE = list(PLAN.code)
NAN, INF = float("nan"), float("inf")


def parameters(spec: Spec) -> tuple[list[Tensor], list[Tensor]]:
    """Random weights and biases by weight index."""
    weights = [torch.randn(c.weight_shape) for c in spec.convolutions()]
    return weights, [torch.randn(len(w)) for w in weights]


WEIGHTS, BIASES = parameters(SPEC)
PACK = OP.pack(WEIGHTS, BIASES, CODE)
X = torch.randn(2, 6, 7, 5)


def empty() -> Tensor:
    return torch.empty(2, SPEC.out_channels, 7, 5)


def expected(x: Tensor) -> Tensor:
    return reference.run(PLAN, x, WEIGHTS, BIASES)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: OP.run(X[0], PACK, CODE), r"x must have 4 dimensions .*, got shape \(6, 7, 5\)"),
        (lambda: OP.run(X[None], PACK, CODE), "x must have 4 dimensions"),
        (lambda: OP.run(X[:, 1:], PACK, CODE), r"x must have 6 channels, got shape \(2, 5, 7, 5\)"),
        (lambda: OP.run(X[:, :, :0], PACK, CODE), "window does not fit into an image of 0x5"),
        (lambda: OP.run(X.double(), PACK, CODE), "x must be Float or BFloat16, got Double"),
        (lambda: OP.run(X.to(torch.complex64), PACK, CODE), "x must be .*, got ComplexFloat"),
        (lambda: OP.run(X.int(), PACK, CODE), "x must be Float or BFloat16, got Int"),
        (lambda: OP.run(X.bfloat16(), PACK, CODE), "pack must be BFloat16, got Float"),
        (lambda: OP.run(X, PACK.bfloat16(), CODE), "pack must be Float, got BFloat16"),
        (lambda: OP.run(X.bfloat16(), PACK.bfloat16(), CODE), "pack must be what"),
        (lambda: OP.run(X.bfloat16(), PACK.bfloat16()[:-1], CODE), "pack must be what"),
        (lambda: OP.run(X, PACK.half(), CODE), "pack must be Float, got Half"),
        (lambda: OP.run(X, PACK[1:], CODE), "pack must be what"),
        (lambda: OP.run(X, PACK[:3], CODE), "pack must be what"),
        (lambda: OP.run(X, torch.full_like(PACK, NAN), CODE), "pack must be what"),
        (lambda: OP.run(X, PACK[None], CODE), "pack must be what"),
        (lambda: OP.run(X, PACK.repeat_interleave(2)[::2], CODE), "pack must be what"),
        (lambda: OP.run(X, PACK, []), "plan: ends after 0 ints"),
        (lambda: OP.run(X, PACK, CODE[:-1]), "plan: ends after"),
        (lambda: OP.run(X, PACK, [*CODE, 1]), "plan: 1 ints left over"),
        (lambda: OP.pack(WEIGHTS[1:], BIASES, CODE), "needs 7 weights and biases, got 6 and 7"),
        (lambda: OP.pack([*WEIGHTS, X], BIASES, CODE), "needs 7 weights and biases, got 8 and 7"),
        (lambda: OP.pack([X, *WEIGHTS[1:]], BIASES, CODE), r"weights\[0\] must be of shape \(3, 6"),
        (lambda: OP.pack([WEIGHTS[0][0], *WEIGHTS[1:]], BIASES, CODE), r"weights\[0\] must be"),
        (lambda: OP.pack(WEIGHTS, [*BIASES[:-1], X], CODE), r"biases\[6\] must be of shape \(4\)"),
        (
            lambda: OP.pack([w.double() for w in WEIGHTS], BIASES, CODE),
            "weights must be Float or BFloat16",
        ),
        (lambda: OP.pack(WEIGHTS, [b.half() for b in BIASES], CODE), "biases must be Float"),
        (
            lambda: OP.pack([w.bfloat16() for w in WEIGHTS], BIASES, CODE),
            "biases must be BFloat16, got Float",
        ),
        (
            lambda: OP.pack(
                *[[t.bfloat16() for t in ts] for ts in (WEIGHTS, BIASES)],
                CODE,
                [3 * (s.window.kernel == (3, 3)) for s in PLAN.steps],
            ),
            "cannot be computed in Winograd tiles of edge 3",
        ),
        (lambda: OP.run.out(X.double(), PACK, CODE, out=empty()), "out must be Double, got Float"),
        (lambda: OP.run.out(X, PACK, CODE, out=empty()[:1]), r"out must be of shape \(2, 15, 7"),
        (lambda: OP.run.out(X, PACK, CODE, out=empty()[0]), "out must be of shape"),
        (lambda: OP.run.out(X, PACK, CODE, out=empty().double()), "out must be Float, got Double"),
        (
            lambda: OP.run.out(X, PACK, CODE, out=empty()[:1].expand(2, -1, -1, -1)),
            "out must not have two indices for one element",
        ),
        (
            lambda: OP.run.out(X, PACK, CODE, out=PACK[:1050].view(2, 15, 7, 5)),
            "out must not overlap pack",
        ),
    ],
)
def test_an_argument_that_does_not_fit_is_named(call: Callable[[], object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        call()


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: OP.run(X.to("meta"), PACK, CODE), "pack must be on meta as x is, got cpu"),
        (lambda: OP.run(X, PACK.to("meta"), CODE), "pack must be on cpu as x is, got meta"),
        (
            lambda: OP.run.out(X, PACK, CODE, out=empty().to("meta")),
            "out must be on cpu as x is, got meta",
        ),
        (
            lambda: OP.pack([*WEIGHTS[:-1], WEIGHTS[-1].to("meta")], BIASES, CODE),
            r"weights\[6\] must be on cpu as weights\[0\] is, got meta",
        ),
        (
            lambda: OP.pack(WEIGHTS, [BIASES[0].to("meta"), *BIASES[1:]], CODE),
            r"biases\[0\] must be on cpu as weights\[0\] is, got meta",
        ),
    ],
)
def test_tensors_on_two_devices_are_refused(call: Callable[[], object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        call()


def test_on_the_meta_device_shapes_are_those_of_the_cpu() -> None:
    weights, biases = [w.to("meta") for w in WEIGHTS], [b.to("meta") for b in BIASES]
    pack = OP.pack(weights, biases, CODE)
    assert pack.shape == PACK.shape
    y = OP.run(X.to("meta"), pack, CODE)
    assert (y.shape, y.stride()) == (expected(X).shape, expected(X).stride())
    with pytest.raises(ValueError, match="x must have 4 dimensions"):
        OP.run(X[0].to("meta"), pack, CODE)
    with pytest.raises(ValueError, match="x must have 6 channels"):
        OP.run(X[:, 1:].to("meta"), pack, CODE)


def test_weights_and_a_negated_view_are_read_as_they_are() -> None:
    apart = [w.transpose(0, 1).contiguous().transpose(0, 1) for w in WEIGHTS]
    sliced = [b.repeat_interleave(2)[::2] for b in BIASES]
    assert torch.equal(OP.pack(apart, sliced, CODE), PACK)
    assert torch.equal(OP.run(torch._neg_view(X), PACK, CODE), OP.run(-X, PACK, CODE))


def refusal(call: Callable[[], object]) -> str | None:
    """What the error says; None if there was none."""
    try:
        call()
    except (ValueError, RuntimeError, MemoryError) as error:
        return str(error) or "nothing"
    return None


CHANNELS = SPEC.in_channels, SPEC.out_channels


def of_one_tensor(name: str) -> tuple[Tensor, Tensor]:
    """x and out as parts of one tensor."""
    cin, cout = CHANNELS
    both = torch.randn(2, cin + cout, 5, 4)
    wide = torch.randn(1, cout, 6, 6)
    last = torch.channels_last
    return {
        "channels, contiguous": lambda: (both[:, :cin], both[:, cin:]),
        "channels, channels_last": lambda: (
            (t := both.to(memory_format=last))[:, :cin],
            t[:, cin:],
        ),
        "channels, out first": lambda: (both[:, cout:], both[:, :cout]),
        "channels of 1x1 images": lambda: (
            (t := torch.randn(3, cin + cout, 1, 1))[:, :cin],
            t[:, cin:],
        ),
        "one channel too many": lambda: (both[:, :cin], both[:, cin - 1 : -1]),
        "one channel too many, channels_last": lambda: (
            (t := both.to(memory_format=last))[:, :cin],
            t[:, cin - 1 : -1],
        ),
        "the same rows": lambda: (wide[:, :cin], wide),
        "columns of a turned image": lambda: (
            (t := wide.to(memory_format=last).transpose(2, 3))[:, :cin, :, :-1],
            t[:, :, :, 1:],
        ),
    }[name]()


@pytest.mark.parametrize(
    "name",
    [
        "channels, contiguous",
        "channels, channels_last",
        "channels, out first",
        "channels of 1x1 images",
    ],
)
def test_parts_of_one_tensor_that_share_nothing(name: str) -> None:
    x, out = of_one_tensor(name)
    before = x.clone()
    wanted = expected(before)
    OP.run.out(x, PACK, CODE, out=out)
    torch.testing.assert_close(out, wanted)
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    "name",
    [
        "one channel too many",
        "one channel too many, channels_last",
        "the same rows",
        "columns of a turned image",
    ],
)
def test_a_destination_that_overlaps_the_source_is_refused(name: str) -> None:
    x, out = of_one_tensor(name)
    before = x.clone()
    with pytest.raises(ValueError, match="out must not overlap x"):
        OP.run.out(x, PACK, CODE, out=out)
    assert torch.equal(x, before)


ranges = st.tuples(st.integers(0, 3), st.integers(1, 3))  # first, length


@settings(deadline=None)
@given(st.permutations(range(4)), st.lists(ranges, min_size=4, max_size=4), st.data())
def test_a_destination_is_taken_only_if_it_shares_nothing(
    order: list[int], parts: list[tuple[int, int]], data: st.DataObject
) -> None:
    """Two blocks of one tensor, in any order of the dimensions in memory."""
    spec = Spec(parts[1][1], ((Stage.conv(data.draw(st.integers(1, 3)), 3),),))
    plan = lower(spec)
    large = torch.zeros(6, 6, 6, 6).permute(*order)
    numbers = torch.arange(6**4).view(6, 6, 6, 6).permute(*order)
    starts = [data.draw(st.integers(0, 3)) for _ in range(4)]
    sizes = [n for _, n in parts]
    sizes[1] = spec.out_channels
    source = tuple(slice(a, a + n) for a, n in parts)
    target = tuple(slice(a, a + n) for a, n in zip(starts, sizes, strict=True))
    pack = OP.pack(*parameters(spec), plan.code)
    shared = set(numbers[source].flatten().tolist()) & set(numbers[target].flatten().tolist())
    x, out = large[source], large[target]
    copied = 1 not in (x.stride(1), x.stride(3), x.size(1), x.size(3))  # then x may be overwritten
    refused = refusal(lambda: OP.run.out(x, pack, plan.code, out=out))
    assert refused is None or "out must not overlap x" in refused
    assert refused or not shared or copied
    if sum(a != b for a, b in zip(source, target, strict=True)) == 1 and not shared:
        assert refused is None  # ranges of one dimension


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_a_hostile_plan_is_refused_or_run(data: st.DataObject) -> None:
    code = list(CODE)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(code) - 1))
        code[place] = data.draw(st.integers(-2, 9) | st.sampled_from([2**30, 2**31 - 1, 2**63 - 1]))
    found: list[Tensor] = []
    if not refusal(lambda: found.append(OP.run(X, PACK, code))):
        plan = Plan.decode(code)
        assert found[0].shape == (2, plan.out_channels, *plan.sizes(7, 5)[OUT])


def test_a_pool_larger_than_any_image() -> None:
    window = Window((2**31 - 1,) * 2, (2, 2), (2**30 - 1,) * 2)
    for kind in (Kind.MAXPOOL, Kind.AVGPOOL):
        plan = lower(Spec(6, ((Stage(kind, 0, window), Stage.conv(4)), (Stage(kind, 0, window),))))
        weights = [torch.eye(4, 6).view(4, 6, 1, 1)]
        y = OP.run(X.abs(), OP.pack(weights, [torch.zeros(4)], plan.code), plan.code)
        whole = X.abs().amax((2, 3)) if kind is Kind.MAXPOOL else torch.zeros(2, 6)
        wanted = torch.cat([whole[:, :4], whole], 1)[:, :, None, None].expand_as(y)
        torch.testing.assert_close(y, wanted, rtol=0, atol=1e-12)


def test_a_border_larger_than_any_memory_is_refused() -> None:
    window = Window((3, 3), (2**31 - 1,) * 2, (2**31 - 1,) * 2)
    plan = lower(Spec(6, ((Stage(Kind.CONV, 4, window),),)))
    pack = OP.pack([torch.randn(4, 6, 3, 3)], [torch.randn(4)], plan.code)
    with pytest.raises(ValueError, match="plan: padded by 2147483647 and 2147483647 pixels"):
        OP.run(X, pack, plan.code)


@pytest.mark.parametrize(
    "make",
    [
        lambda v: Stage.conv(v),
        lambda v: Stage.conv(1, v),
        lambda v: Stage.conv(1, 3, v),
        lambda v: Stage.conv(1, 3, padding=(1, v)),
        lambda v: Stage.pool(Kind.MAXPOOL, v),
        lambda v: Spec(v, ((Stage.conv(1),),)),
        lambda v: Spec.v1(192, 64, v, 128, 16, 32, 32),
        lambda v: Spec.naive(3, 1, 1, v),
    ],
)
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_size_that_is_not_finite_is_refused(make: Callable, value: float) -> None:
    with pytest.raises(TypeError, match=f"must be an int, got {value}"):
        make(value)


def with_eps(model: nn.Module, eps: float) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = eps
    return model


@pytest.mark.parametrize("eps", [NAN, INF])
def test_an_eps_that_is_no_number_is_refused_by_name(eps: float) -> None:
    model = models.Inception(8, 4, 4, 8, 4, 8, 4, batch_norm=True).eval()
    with pytest.warns(UserWarning, match=f"the eps of a batch norm is {eps}"):
        fuse(with_eps(model, eps))
    assert explain(model).lines[0].reason == f"the eps of a batch norm is {eps}"
    fuse(with_eps(model, 1e-3))
    x = torch.randn(1, 8, 5, 5)
    with torch.no_grad():
        model(x)
        with_eps(model, eps)
        with pytest.raises(ValueError, match=f"eps must be finite and at least 0, got {eps}"):
            model(x)


def test_modules_without_a_convolution_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="spec cannot be fused: it has no convolution"):
        FusedInception(Spec(5, ((Stage.pool(),), (Stage.pool(Kind.AVGPOOL),))))
    with pytest.raises(ValueError, match="ReLU cannot be fused"):
        FusedInception.from_module(nn.ReLU())


def untouched(elements: int) -> Tensor:
    """Zeros that take address space only, until they are written."""
    try:
        return torch.from_numpy(np.zeros(elements, dtype=np.float32))
    except MemoryError:
        pytest.skip(f"no address space for {elements} elements")


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "nhwc"])
def test_offsets_beyond_2_to_the_31_elements(last: bool) -> None:
    far = 2**31 + 8
    shape = (2, SPEC.in_channels, 7, 5)

    def view(shape: tuple[int, ...]) -> Tensor:
        _, c, h, w = shape
        strides = (far, 1, w * c, c) if last else (far, h * w, w, 1)
        return untouched(far + c * h * w).as_strided(shape, strides)

    x = view(shape).copy_(X)
    out = view((2, SPEC.out_channels, 7, 5)).fill_(NAN)
    OP.run.out(x, PACK, CODE, out=out)
    torch.testing.assert_close(out, expected(X), rtol=1e-4, atol=1e-4)


def test_an_input_of_more_than_2_to_the_31_elements() -> None:
    channels, height, width, step = 8, 16384, 16400, 8
    spec = Spec(
        channels,
        ((Stage.conv(3, 1, step),), (Stage.pool(Kind.MAXPOOL, 3, step, 1), Stage.conv(2))),
    )
    plan = lower(spec)
    x = untouched(channels * height * width).view(1, height, width, channels).permute(0, 3, 1, 2)
    assert x.numel() > 2**31
    pixels = [(0, 0), (step, 2 * step), (height - step, width - step)]
    for i, (row, column) in enumerate(pixels):
        x[0, :, row, column] = torch.arange(channels).float() + 10 * i
    weights = [torch.ones(3, channels, 1, 1), torch.ones(2, channels, 1, 1)]
    biases = [torch.full((3,), 1.0), torch.full((2,), 2.0)]
    y = OP.run(x, OP.pack(weights, biases, plan.code), plan.code)
    assert y.shape == (1, 5, height // step, width // step)
    wanted = torch.tensor([1.0, 1, 1, 2, 2])
    for i, (row, column) in enumerate(pixels):
        pixel = y[0, :, row // step, column // step]
        assert torch.equal(pixel, wanted + 28 + channels * 10 * i)
        pixel.copy_(wanted)
    assert torch.equal(y, wanted.view(1, 5, 1, 1).expand_as(y))


def test_the_cpu_back_end_says_what_it_cannot_take() -> None:
    cpu = next(b for b in TABLE if b.name == "cpu")
    reason = "x is torch.float64, the CPU kernels are float32 or bfloat16"
    assert cpu.why_not(PLAN, X.double()) == reason
    assert cpu.why_not(PLAN, X.to("meta")) == "x is on meta"
    assert cpu.why_not(PLAN, X) is None
