"""Networks around fused modules: run as one plan, or left to the modules inside."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
import zoo
from torch import Tensor, nn

from inception_fused import FusedInception, FusedNetwork, explain, fuse, unfuse
from inception_fused.fusion import network_of
from inception_fused.module import original_class
from inception_fused.spec import Kind


class Net(nn.Module):
    """A small GoogLeNet: a stem, two modules with a pool between, a classifier."""

    def __init__(self, classifier: Callable[[], nn.Module] = lambda: nn.AdaptiveAvgPool2d(1)):
        super().__init__()
        self.stem = nn.Sequential(
            zoo.Conv(3, 20, 7, stride=2),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            nn.LocalResponseNorm(5),
            zoo.Conv(20, zoo.C, 3),
        )
        self.first = zoo.Block()
        self.pool = nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False)
        self.squeeze = zoo.Conv(self.first(torch.zeros(1, zoo.C, 4, 4)).shape[1], zoo.C)
        self.second = zoo.Block()
        self.average = classifier()
        self.dropout = nn.Dropout(0.5)
        self.linear = nn.Linear(self.second(torch.zeros(1, zoo.C, 4, 4)).shape[1], 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.stem(x))
        x = self.second(self.squeeze(self.pool(x)))
        logits: Tensor = self.linear(self.dropout(torch.flatten(self.average(x), 1)))
        return logits


class Scaled(Net):
    """As with ``transform_input``: the channels are scaled and concatenated again first."""

    def forward(self, x: Tensor) -> Tensor:
        parts = [x[:, i : i + 1] * (0.5 + i) - 0.1 * i for i in range(3)]
        return torch.softmax(super().forward(torch.cat(parts, 1)), 1)


class Skip(Net):
    """Adds something around a module."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.first(self.stem(x)))
        x = self.squeeze(x)
        x = self.second(x) + x.mean(1, keepdim=True)
        return self.linear(torch.flatten(self.average(x), 1))


def made(kind: Callable[[], nn.Module] = Net) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    stock = zoo._random(kind()).eval()
    return stock, fuse(copy.deepcopy(stock))


@pytest.fixture(scope="module")
def shared() -> tuple[nn.Module, nn.Module]:
    return made()


@pytest.fixture
def pair(shared: tuple[nn.Module, nn.Module]) -> tuple[nn.Module, nn.Module]:
    stock, fused = copy.deepcopy(shared)
    return stock, fused


X = torch.randn(2, 3, 64, 61, generator=torch.Generator().manual_seed(1))


def close(got: Tensor, wanted: Tensor) -> None:
    scale = float(wanted.abs().max()) if wanted.numel() else 1.0
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5 * scale)


def taken(model: nn.Module) -> list[tuple[str, str]]:
    """Back end and reason of the network, then of its modules."""
    lines = explain(model).lines
    ordered = [*(x for x in lines if x.network), *(x for x in lines if not x.network)]
    return [(line.backend, line.reason) for line in ordered]


@torch.no_grad()
def same(stock: nn.Module, fused: nn.Module, x: Tensor = X) -> None:
    close(fused(x), stock(x))


AS_ONE = [("cpu", ""), *[("cpu", "in (the model itself) as a whole")] * 2]


def runs(model: nn.Module, x: Tensor = X) -> int:
    """Calls of the operator in one forward."""
    with torch.no_grad():
        model(x)
        with torch.profiler.profile() as profile:
            model(x)
    return sum(e.count for e in profile.key_averages() if e.key == "inception_fused::run")


def test_a_network_is_one_call(pair: tuple[nn.Module, nn.Module]) -> None:
    stock, fused = pair
    assert isinstance(fused, FusedNetwork)
    assert isinstance(fused, Net)
    assert [type(m) for m in fused.modules() if isinstance(m, FusedInception)] == [
        type(fused.first),
        type(fused.second),
    ]
    same(stock, fused)
    assert taken(fused) == AS_ONE
    assert runs(fused) == 1
    assert fused.state_dict().keys() == stock.state_dict().keys()
    assert dict(fused.named_modules()).keys() == dict(stock.named_modules()).keys()
    network = network_of(fused)
    assert network is not None
    pools = {s.pre.kind for s in network.plan.steps if s.pre}
    kinds = {s.kind for s in network.plan.steps} | pools
    assert kinds == set(Kind) - {Kind.AVGPOOL}


@pytest.mark.parametrize("shape", [(0, 3, 40, 40), (1, 3, 33, 65), (17, 3, 64, 64), (3, 3, 17, 30)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_shapes(pair: tuple, shape: tuple[int, ...], memory_format: torch.memory_format) -> None:
    stock, fused = pair
    same(stock, fused, torch.randn(shape).contiguous(memory_format=memory_format))
    assert taken(fused) == AS_ONE


def test_unfused_copied_and_pickled(pair: tuple) -> None:
    stock, fused = pair
    twin = copy.deepcopy(fused)
    with torch.no_grad():
        fused.linear.bias.add_(1)
        close(twin(X), stock(X))
        close(fused(X), stock(X) + 1)
    assert taken(twin) == taken(fused) == AS_ONE
    assert type(pickle.loads(pickle.dumps(twin))) is Net
    file = io.BytesIO()
    torch.save(twin, file)
    file.seek(0)
    assert type(torch.load(file, weights_only=False)) is Net
    unfuse(twin)
    assert type(twin) is Net
    assert twin.__dict__.keys() == stock.__dict__.keys()
    with torch.no_grad():
        assert torch.equal(twin(X), stock(X))


@torch.no_grad()
def test_changes_are_seen(pair: tuple) -> None:
    stock, fused = pair
    same(stock, fused)
    for model in pair:
        model.stem[0].layers[0].weight.mul_(1.5)
        model.linear.weight.add_(0.1)
    same(stock, fused)
    state = {k: v + 0.01 if v.is_floating_point() else v for k, v in stock.state_dict().items()}
    for model in pair:
        model.load_state_dict(state)
    same(stock, fused)
    assert taken(fused) == AS_ONE
    for model in pair:
        model.pool.stride = 1
    same(stock, fused)
    assert taken(fused)[0][0] == "original"
    assert "a setting of a module inside was changed" in taken(fused)[0][1]
    assert {backend for backend, _ in taken(fused)[1:]} == {"cpu"}
    fuse(fused)
    same(stock, fused)
    assert taken(fused) == AS_ONE
    for model in pair:
        model.pool = nn.MaxPool2d(2)
    same(stock, fused)
    assert taken(fused)[0] == ("original", "a module inside was replaced; fuse it again")


def test_training_and_back(pair: tuple) -> None:
    stock, fused = pair
    for model in pair:
        torch.manual_seed(0)
        model.train()
        model(X).square().mean().backward()
    for (name, p), q in zip(stock.named_parameters(), fused.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-3, atol=1e-4, msg=name)
    same(stock.eval(), fused.eval())
    assert taken(fused) == AS_ONE


def test_gradients_in_eval_mode(pair: tuple) -> None:
    stock, fused = pair
    inputs = [X.clone().requires_grad_() for _ in pair]
    for model, x in zip(pair, inputs, strict=True):
        model(x).square().sum().backward()
    assert taken(fused) == AS_ONE
    close(inputs[1].grad, inputs[0].grad)
    for p, q in zip(stock.parameters(), fused.parameters(), strict=True):
        close(q.grad, p.grad)


def test_hooks_inside_run_and_leave_the_modules_fused(pair: tuple) -> None:
    stock, fused = pair
    seen: list[int] = []
    handle = fused.pool.register_forward_hook(lambda *_: seen.append(1))
    same(stock, fused)
    assert seen == [1]
    assert taken(fused)[0] == ("original", "a module inside has hooks")
    assert [backend for backend, _ in taken(fused)[1:]] == ["cpu", "cpu"]
    handle.remove()
    same(stock, fused)
    assert taken(fused) == AS_ONE


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled(pair: tuple, dynamic: bool) -> None:
    stock, fused = pair
    torch._dynamo.reset()
    compiled = torch.compile(fused, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    with torch.no_grad():
        for x in (X, torch.randn(3, 3, 48, 40)):
            close(compiled(x), stock(x))


def test_exported(pair: tuple) -> None:
    stock, fused = pair
    with torch.no_grad():
        exported = torch.export.export(fused, (X,))
        close(exported.module()(X), stock(X))


def test_the_part_that_is_a_network_runs_as_one() -> None:
    stock, fused = made(Scaled)
    assert isinstance(fused, FusedNetwork)
    assert sum(isinstance(m, FusedInception) for m in fused.modules()) == 2
    same(stock, fused)
    (network,) = (line for line in explain(fused).lines if line.network)
    assert (network.name, network.backend) == ("cat to linear", "cpu")
    assert runs(fused) == 1
    twin = copy.deepcopy(fused)
    same(stock, twin)
    assert explain(twin).lines[-1].backend == "cpu"
    assert fuse(fused) is fused
    same(stock, fused)
    for model in (stock, fused):
        model.train()
        model(X)
    assert explain(fused).lines[-1].backend == "original"
    same(stock.eval(), fused.eval())
    unfuse(fused)
    assert type(fused) is Scaled
    assert not any(isinstance(m, FusedInception) for m in fused.modules())


def test_what_is_no_chain_is_left_to_the_modules() -> None:
    stock, fused = made(Skip)
    assert original_class(fused.first) is zoo.Block
    same(stock, fused)
    lines = explain(fused).lines
    assert [line.backend for line in lines if not line.network] == ["cpu", "cpu"]


def test_another_image_size_fails_as_in_the_original() -> None:
    stock, fused = made(lambda: Net(lambda: nn.AvgPool2d(8)))
    x = torch.randn(2, 3, 64, 64)
    same(stock, fused, x)
    assert taken(fused) == AS_ONE
    for model in (stock, fused):
        with pytest.raises(RuntimeError, match="mat1 and mat2"):
            model(torch.randn(2, 3, 128, 128))


def test_the_modules_alone_if_asked_for() -> None:
    torch.manual_seed(0)
    stock = zoo._random(Net()).eval()
    fused = fuse(copy.deepcopy(stock), network=False)
    assert type(fused) is Net
    same(stock, fused)
    assert [backend for backend, _ in taken(fused)[1:]] == ["cpu", "cpu"]
    assert "fuse was not asked" in taken(fused)[0][1]


def test_other_types_take_the_original() -> None:
    stock, fused = made(lambda: Net().double())
    same(stock, fused, X.double())
    assert taken(fused)[0][0] == "original"
