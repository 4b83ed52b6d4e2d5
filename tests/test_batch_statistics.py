"""Fused modules in training mode: the statistics of the batch, gradients, and what is kept."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torchvision
import zoo
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from inception_fused import explain, fuse, training
from inception_fused.lower import lower
from inception_fused.models import Branches
from inception_fused.plan import Pool
from inception_fused.spec import GOOGLENET, Fork, Kind, Spec, Stage, Window
from inception_fused.trace import all_modules

FORMATS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
V1 = Spec.v1(8, 4, 3, 5, 2, 3, 4)


def _taken(model: nn.Module) -> set[str]:
    return {line.backend for line in explain(model).lines if line.fused}


def _pair(stock: nn.Module) -> tuple[nn.Module, nn.Module]:
    """A model in training mode and its fused copy."""
    fused = fuse(copy.deepcopy(stock).eval())
    for a, b in zip(stock.modules(), fused.modules(), strict=True):
        b.training = a.training
    return stock, fused


def _step(model: nn.Module, x: Tensor, **autocast: Any) -> list[Tensor]:
    """Output, and gradients of the input and of the parameters; those of two calls add up."""
    model.zero_grad()
    leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
    for seed in range(2):
        torch.manual_seed(seed)  # of a dropout
        with torch.autocast("cpu", **({"enabled": False} | autocast)):
            y = model(leaf + seed)
        torch.manual_seed(seed)
        y.backward(torch.randn_like(y))
    assert leaf.grad is not None
    return [y.detach(), leaf.grad, *(p.grad for p in model.parameters() if p.grad is not None)]


def _same_step(stock: nn.Module, fused: nn.Module, x: Tensor, rtol: float = 1e-9) -> None:
    wanted, got = _step(stock, x), _step(fused, x)
    assert got[0].stride() == wanted[0].stride()
    for ours, theirs in zip(got, wanted, strict=True):
        scale = float(theirs.abs().max())
        torch.testing.assert_close(ours, theirs, rtol=0, atol=rtol * scale + 1e-3 * rtol)
    for (name, ours), theirs in zip(fused.named_buffers(), stock.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=rtol, msg=name)


CHECKPOINT = "branches under checkpoint"  # updates statistics twice in stock


@pytest.mark.parametrize("name", zoo.FUSED.keys() - {CHECKPOINT})
def test_a_training_step_equals_stock(name: str) -> None:
    model = zoo.make(name).train()
    for module in all_modules(model):  # also those in a plain list
        module.double()
    stock, fused = _pair(model)
    torch.manual_seed(0)
    _same_step(stock, fused, torch.randn(3, zoo.C, 7, 9, dtype=torch.float64))


def _norms(change: Callable[[nn.BatchNorm2d], object]) -> nn.Module:
    model = Branches(V1, batch_norm=True)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            change(module)
    return model


def _frozen() -> nn.Module:
    model = Branches(V1, batch_norm=True)
    for path in (0, 1):
        model.branches[path][0].norm.eval()
    nn.init.uniform_(model.branches[1][0].norm.running_var, 0.5, 2)
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "module": lambda: Branches(V1, batch_norm=True),
    "no norms": lambda: Branches(V1),
    "frozen norms among others": _frozen,
    "cumulative average": lambda: _norms(lambda n: setattr(n, "momentum", None)),
    "another momentum": lambda: _norms(lambda n: setattr(n, "momentum", 0.7)),
    "statistics kept as they are": lambda: _norms(
        lambda n: setattr(n, "track_running_stats", False)
    ),
    "naive, two pools": lambda: Branches(Spec.naive(6, 3, 4, 2), batch_norm=True),
    "forks and pools": lambda: Branches(
        Spec(
            6,
            (
                (Stage.conv(3), Fork(((Stage.conv(3),), (Stage.conv(2, 3),)))),
                (Stage.pool(Kind.AVGPOOL), Stage.conv(3, 3)),
                (Stage.pool(), Fork(((Stage.conv(2),), (Stage.conv(2, (1, 3)),)))),
            ),
        ),
        batch_norm=True,
    ),
    "stride 2": lambda: Branches(
        Spec(
            6,
            (
                (Stage.conv(3, 3, 2, 1),),
                (Stage.conv(4), Stage.conv(4, 3, 2, 1)),
                (Stage.pool(stride=2), Stage.conv(3)),
            ),
        ),
        batch_norm=True,
    ),
}


@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_styles_of_norms_and_plans(
    make: Callable[[], nn.Module], memory_format: torch.memory_format
) -> None:
    torch.manual_seed(0)
    stock, fused = _pair(make().double())
    x = torch.randn(3, stock.spec.in_channels, 7, 9, dtype=torch.float64)
    _same_step(stock, fused, x.contiguous(memory_format=memory_format))
    assert _taken(fused) == {"training"}


@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("name", ["3a", "5b"])
def test_the_paper_s_modules_in_float32(name: str, memory_format: torch.memory_format) -> None:
    """As near to float64 as stock is, up to the rounding of Winograd's filtering."""
    torch.manual_seed(0)
    stock, fused = _pair(Branches(GOOGLENET[name], batch_norm=True))
    exact = copy.deepcopy(stock).double()
    size = 16 if name == "3a" else 7
    x = torch.randn(4, stock.spec.in_channels, size, size).relu()
    x = x.contiguous(memory_format=memory_format)
    for ours, theirs, wanted in zip(
        _step(fused, x), _step(stock, x), _step(exact, x.double()), strict=True
    ):
        error, allowed = (float((v - wanted).abs().max()) for v in (ours, theirs))
        assert error <= 4 * allowed + 2e-5 * float(wanted.abs().max())
    assert _taken(fused) == {"training"}


def _arguments(spec: Spec) -> tuple[list[training.Parameters], list[training.BatchNorm]]:
    """Parameters that need no gradient, and norms without running statistics, in float64."""
    make = partial(torch.randn, dtype=torch.float64)
    parameters = [
        training.Parameters(
            make(c.weight_shape), make(c.out_channels), make(c.out_channels), make(c.out_channels)
        )
        for c in spec.convolutions()
    ]
    return parameters, [training.BatchNorm(0.1, batch=True) for _ in parameters]


def test_gradcheck() -> None:
    torch.manual_seed(0)
    spec = Spec.v1(3, 2, 2, 2, 1, 2, 2, k5=3)
    plan = lower(spec)
    parameters, norms = _arguments(spec)
    x = torch.randn(2, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    leaves = [t.requires_grad_() for p in parameters for t in p]

    def run(x: Tensor, *tensors: Tensor) -> Tensor:
        grouped = [training.Parameters(*tensors[i : i + 4]) for i in range(0, len(tensors), 4)]
        return training.run(plan, x, grouped, norms, training.Operators())

    assert torch.autograd.gradcheck(run, (x, *leaves), fast_mode=True)


class Counting(training.Operators):
    """Counts what the backward pass computes."""

    def __init__(self) -> None:
        self.inputs: list[tuple[int, ...]] = []
        self.weights: list[tuple[int, ...]] = []

    def grad_input(self, grad: Tensor, x: Tensor, weight: Tensor, window: Window) -> Tensor:
        self.inputs.append(tuple(weight.shape))
        return super().grad_input(grad, x, weight, window)

    def grad_weight(self, grad: Tensor, x: Tensor, weight: Tensor, window: Window) -> Tensor:
        self.weights.append(tuple(weight.shape))
        return super().grad_weight(grad, x, weight, window)

    def grad_pool(self, grad: Tensor, x: Tensor, pool: Pool, indices: Tensor | None) -> Tensor:
        self.inputs.append(("pool",))
        return super().grad_pool(grad, x, pool, indices)


MERGED, POOLED = (9, 8, 1, 1), (4, 8, 1, 1)
THREE, FIVE = (5, 3, 3, 3), (3, 2, 5, 5)

NEEDS: dict[str, tuple[list[tuple[int, str]], bool, list[Any], list[Any]]] = {
    "x": ([], True, [("pool",), POOLED, FIVE, THREE, MERGED], []),
    "all weights": (
        [(i, "weight") for i in range(6)],
        False,
        [FIVE, THREE],
        [POOLED, FIVE, THREE, MERGED],
    ),
    "one of the merged weights": ([(1, "weight")], False, [THREE], [(3, 8, 1, 1)]),
    "a weight at the end": ([(2, "weight")], False, [], [THREE]),
    "a gamma at the end": ([(2, "gamma")], False, [], []),
    "a beta before a convolution": ([(3, "beta")], False, [FIVE], []),
    "a bias": ([(0, "bias")], False, [], []),
}


@pytest.mark.parametrize("needs", NEEDS.values(), ids=NEEDS)
def test_only_the_gradients_that_are_needed_are_computed(needs: tuple) -> None:
    torch.manual_seed(0)
    names, needs_x, inputs, weights = needs
    plan = lower(V1)
    parameters, norms = _arguments(V1)
    x = torch.randn(2, 8, 5, 5, dtype=torch.float64)
    all_names = [(i, field) for i in range(6) for field in training.Parameters._fields]

    def gradients(operators: training.Operators, wanted: list[tuple[int, str]]) -> list[Any]:
        leaves = [training.Parameters(*(t.clone() for t in p)) for p in parameters]
        leaf = x.clone().requires_grad_(needs_x)
        for i, field in wanted:
            getattr(leaves[i], field).requires_grad_()
        y = training.run(plan, leaf, leaves, norms, operators)
        torch.manual_seed(1)
        y.backward(torch.randn_like(y))
        return [leaf.grad, *(getattr(leaves[i], field).grad for i, field in all_names)]

    counting = Counting()
    got, everything = gradients(counting, names), gradients(training.Operators(), all_names)
    for name, ours, theirs in zip(["x", *all_names], got, everything, strict=True):
        if name in names or (name == "x" and needs_x):
            torch.testing.assert_close(ours, theirs)
        else:
            assert ours is None, name
    assert sorted(counting.inputs, key=str) == sorted(inputs, key=str)
    assert sorted(counting.weights, key=str) == sorted(weights, key=str)


def _saved(model: nn.Module, x: Tensor) -> tuple[int, list[Tensor]]:
    """Bytes of the storages that a step keeps, x's and the parameters' not counted; the tensors."""
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = model(x)
    known = {t.untyped_storage().data_ptr() for t in (x, *model.parameters(), *model.buffers())}
    sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in (*kept, y)}
    return sum(size for pointer, size in sizes.items() if pointer not in known), kept


@pytest.mark.parametrize("name", ["3a", "4e", "5b"])
def test_a_module_keeps_its_input_once_and_little_else(name: str) -> None:
    stock, fused = _pair(Branches(GOOGLENET[name], batch_norm=True))
    x = torch.randn(2, stock.spec.in_channels, 7, 7).requires_grad_()
    wanted, _ = _saved(stock, x)
    got, kept = _saved(fused, x)
    assert got <= 0.5 * wanted  # the output in both
    assert sum(t.untyped_storage().data_ptr() == x.untyped_storage().data_ptr() for t in kept) == 1
    convolutions = sum(c.out_channels for c in stock.spec.convolutions())
    pixels, floats = 2 * 7 * 7, got / 4
    assert floats <= pixels * (convolutions + stock.spec.out_channels) + 6 * 4 * convolutions


def test_autocast() -> None:
    torch.manual_seed(0)
    stock, fused = _pair(Branches(V1, batch_norm=True))
    exact = copy.deepcopy(stock).double()
    x = torch.randn(4, 8, 9, 9)
    bfloat16 = {"dtype": torch.bfloat16, "enabled": True}
    ours, theirs = _step(fused, x, **bfloat16), _step(stock, x, **bfloat16)
    assert _taken(fused) == {"training"}
    assert [t.dtype for t in ours] == [t.dtype for t in theirs]
    for a, b, wanted in zip(ours, theirs, _step(exact, x.double()), strict=True):
        error, allowed = (float((v - wanted).abs().max()) for v in (a, b))
        assert error <= 2 * allowed + 1e-2 * float(wanted.abs().max())


def test_half_precision_parameters() -> None:
    torch.manual_seed(0)
    stock, fused = _pair(Branches(V1, batch_norm=True).bfloat16())
    x = torch.randn(4, 8, 9, 9).bfloat16()
    exact = copy.deepcopy(stock).double()
    for a, b, wanted in zip(
        _step(fused, x), _step(stock, x), _step(exact, x.double()), strict=True
    ):
        assert a.dtype is b.dtype is torch.bfloat16
        error, allowed = (float((v.double() - wanted).abs().max()) for v in (a, b))
        assert error <= 2 * allowed + 2e-2 * float(wanted.abs().max())
    assert _taken(fused) == {"training"}


@pytest.mark.parametrize("reentrant", [False, True])
def test_under_checkpoint(reentrant: bool) -> None:
    class Checkpointed(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.module, x, use_reentrant=reentrant)

    stock, fused = _pair(Branches(V1, batch_norm=True).double())
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    _same_step(Checkpointed(stock), Checkpointed(fused), x)
    assert _taken(fused) == {"training"}


@pytest.fixture
def _deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_deterministic")
def test_deterministic_mode_gives_the_same_bits_twice() -> None:
    _, fused = _pair(Branches(V1, batch_norm=True))
    x = torch.randn(4, 8, 9, 9)
    first, second = _step(copy.deepcopy(fused), x), _step(copy.deepcopy(fused), x)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    fused(x)
    assert _taken(fused) == {"training"}


def test_without_gradients_the_statistics_are_updated() -> None:
    stock, fused = _pair(Branches(V1, batch_norm=True))
    x = torch.randn(4, 8, 9, 9)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), stock(x))
    assert _taken(fused) == {"training"}
    with torch.inference_mode():
        torch.testing.assert_close(fused(x), stock(x))
    for (name, ours), theirs in zip(fused.named_buffers(), stock.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=name)


def test_looking_at_a_module_leaves_it_as_it_was() -> None:
    _, fused = _pair(Branches(V1, batch_norm=True))
    state = {k: (v.clone(), v._version) for k, v in fused.state_dict().items()}
    buffers = [id(b) for b in fused.buffers()]
    random = torch.get_rng_state()
    from inception_fused.fusion import fusion_of
    from inception_fused.modes import match_as_set

    fusion = fusion_of(fused)
    assert fusion is not None
    assert match_as_set(fused, fusion.match, torch.Size((2, 8, 6, 6))).batch
    assert torch.equal(random, torch.get_rng_state())
    assert buffers == [id(b) for b in fused.buffers()]
    for name, tensor in fused.state_dict().items():
        assert torch.equal(tensor, state[name][0])
        assert tensor._version == state[name][1]


def test_what_is_behind_may_write_into_the_output() -> None:
    stock, fused = _pair(Branches(V1, batch_norm=True).double())
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    _same_step(nn.Sequential(stock, nn.ReLU(True)), nn.Sequential(fused, nn.ReLU(True)), x)


def test_a_gradient_is_not_differentiated_again() -> None:
    _, fused = _pair(Branches(V1, batch_norm=True))
    x = torch.randn(2, 8, 6, 6, requires_grad=True)
    y = fused(x).square().sum()
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        torch.autograd.grad(y, x, create_graph=True)


def test_one_value_per_channel_is_stock_s_error() -> None:
    _, fused = _pair(Branches(V1, batch_norm=True))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        fused(torch.randn(1, 8, 1, 1))
    assert "too few values per channel" in explain(fused).lines[0].reason


class Own(nn.BatchNorm2d):
    """A norm whose update is its own."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.5
        )


class Noisy(nn.ReLU):
    """Does something else in training mode."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + 1 if self.training else x)


ORIGINAL: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "dropout in a branch": (
        lambda: zoo.Block(third=lambda: nn.Sequential(zoo.Conv(zoo.C, 8), nn.Dropout())),
        "contains aten.mul",
    ),
    "a norm of its own": (lambda: zoo.Block(zoo.unit(norm=Own)), "Own has a forward of its own"),
    "SyncBatchNorm": (lambda: zoo.Block(zoo.unit(norm=nn.SyncBatchNorm)), "SyncBatchNorm"),
    "another forward": (lambda: zoo.Block(zoo.unit(act=Noisy)), "contains aten.add"),
    "one norm for two": (lambda: _shared(), "computed, not a parameter"),
    "counted, but not tracked": (
        lambda: zoo.Block(zoo.unit(norm=_uncounted)),
        "buffer num_batches_tracked differs",
    ),
    "checkpoint": (lambda: Checkpointing(), "checkpoint"),
}


def _uncounted(channels: int) -> nn.Module:
    norm = nn.BatchNorm2d(channels)
    norm.running_mean = norm.running_var = None
    return norm


class Checkpointing(zoo.Block):
    """Computes its branches again in the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        branches = (self.one, self.two, self.three, self.four)
        return torch.cat([checkpoint(b, x, use_reentrant=False) for b in branches], 1)


def _shared() -> nn.Module:
    block = zoo.Block()
    block.three[0].layers[1] = block.two[0].layers[1]
    return block


@pytest.mark.parametrize("name", ORIGINAL)
def test_what_stays_with_the_original_and_why(name: str) -> None:
    make, reason = ORIGINAL[name]
    torch.manual_seed(0)
    stock, fused = _pair(make().train())
    x = torch.randn(2, zoo.C, 6, 6)
    outputs = []
    for model in (stock, fused):
        torch.manual_seed(0)  # of the dropout
        outputs.append(model(x))
    assert torch.equal(*outputs)
    (line,) = explain(fused).lines
    assert line.backend == "original"
    assert line.reason.startswith("in training mode: ")
    assert reason in line.reason
    for ours, theirs in zip(fused.buffers(), stock.buffers(), strict=True):
        assert torch.equal(ours, theirs)


def test_torch_compile_takes_the_original() -> None:
    stock, fused = _pair(Branches(V1, batch_norm=True))
    torch._dynamo.reset()
    x = torch.randn(2, 8, 6, 6)
    _same_step(stock, torch.compile(fused, backend="aot_eager"), x, 1e-5)


def test_a_whole_network() -> None:
    torch.manual_seed(0)
    stock = torchvision.models.googlenet(weights=None, init_weights=False, aux_logits=False)
    stock, fused = _pair(stock.train())
    x = torch.randn(2, 3, 64, 64)
    losses = []
    for model in (stock, fused):
        torch.manual_seed(1)  # of the dropout
        loss = model(x).square().mean()
        loss.backward()
        losses.append(float(loss.detach()))
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert sorted(_taken(fused)) == ["original", "training"]  # the network, and its modules
    for (name, ours), theirs in zip(fused.named_buffers(), stock.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4, msg=name)


def test_the_bench_counts_what_is_kept() -> None:
    from bench.training import measure

    result = measure("5b", batch=2, rounds=1)
    assert 0 < result.kept[1] < 0.5 * result.kept[0]
    assert min(result.ms) > 0
