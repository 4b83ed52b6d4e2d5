"""Inception code written inside a larger forward: outlined, fused, and left alone where it must."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import zoo
from torch import Tensor, nn
from zoo import Block, Conv

from inception_fused import FusedInception, explain, fuse, unfuse


class Flat(nn.Module):
    """A network without modules for its two Inception modules, as many are written."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Conv(3, 16, 7, stride=2)
        for n, channels in (("a", 16), ("b", 40)):
            self.add_module(f"one_{n}", Conv(channels, 8))
            self.add_module(f"reduce3_{n}", Conv(channels, 8))
            self.add_module(f"three_{n}", Conv(8, 16, 3))
            self.add_module(f"reduce5_{n}", nn.Conv2d(channels, 4, 1))
            self.add_module(f"five_{n}", nn.Conv2d(4, 8, 5, padding=2))
            self.add_module(f"project_{n}", nn.Conv2d(channels, 8, 1))
        self.fc, self.aux = nn.Linear(40, 10), nn.Linear(40, 10)
        self.pooled = True

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = F.max_pool2d(self.stem(x), 3, 2, 1)
        a = self.one_a(x)
        b = self.three_a(self.reduce3_a(x))
        c = F.relu(self.five_a(F.relu(self.reduce5_a(x))), inplace=True)
        d = F.relu_(self.project_a(F.max_pool2d(x, 3, 1, 1)))
        x = torch.cat([a, b, c, d], 1)
        if self.training:
            aux = self.aux(x.mean((2, 3)))
        if self.pooled:
            x = F.max_pool2d(x, 3, 2, ceil_mode=True)
        x = torch.cat(
            (
                self.one_b(x),
                self.three_b(self.reduce3_b(x)),
                self.five_b(self.reduce5_b(x)),
                self.project_b(F.max_pool2d(x, 3, 1, 1)),
            ),
            dim=1,
        )
        x = F.dropout(F.relu(x).mean((2, 3)), 0.4, training=self.training)
        return (self.fc(x), aux) if self.training else self.fc(x)


@pytest.fixture(scope="module")
def made() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    stock = zoo._random(Flat())
    return stock, fuse(copy.deepcopy(stock), network=False)


@pytest.fixture
def pair(made: tuple) -> tuple[nn.Module, nn.Module, Tensor]:
    stock, fused = copy.deepcopy(made)
    return stock, fused, torch.randn(2, 3, 40, 44)


def _close(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


def _taken(model: nn.Module) -> list[str]:
    return [line.backend for line in explain(model).lines if not line.network]


@torch.no_grad()
def _same(stock: nn.Module, fused: nn.Module, x: Tensor) -> None:
    _close(fused(x), stock(x))
    assert _taken(fused) == ["cpu", "cpu"]


def test_both_modules_of_a_flat_network_run_fused(pair: tuple) -> None:
    stock, fused, x = pair
    assert isinstance(fused, FusedInception)
    assert isinstance(fused, Flat)
    _same(stock, fused, x)
    assert [line.name for line in explain(fused).lines if not line.network] == ["cat", "relu_2"]
    assert fused.state_dict().keys() == stock.state_dict().keys()
    assert dict(fused.named_modules()).keys() == dict(stock.named_modules()).keys()


def test_unfused_it_is_the_original(pair: tuple) -> None:
    stock, fused, x = pair
    unfuse(fused)
    assert type(fused) is Flat
    assert fused.__dict__.keys() == stock.__dict__.keys()
    assert torch.equal(fused(x), stock(x))


def test_pickled_it_is_the_original(pair: tuple) -> None:
    stock, fused, x = pair
    loaded = pickle.loads(pickle.dumps(fused))
    assert type(loaded) is Flat
    assert torch.equal(loaded(x), stock(x))


@torch.no_grad()
def test_a_copy_has_its_own_weights(pair: tuple) -> None:
    stock, fused, x = pair
    twin = copy.deepcopy(fused)
    twin.one_a.layers[0].weight.zero_()
    _same(stock, fused, x)
    stock.one_a.layers[0].weight.zero_()
    _same(stock, twin, x)


def test_training_is_the_original(pair: tuple) -> None:
    stock, fused, x = pair
    outputs = []
    for model in (stock, fused):
        model.train()
        torch.manual_seed(1)
        logits, aux = model(x)
        (logits.sum() + aux.sum()).backward()
        outputs.append((logits, aux, *(p.grad for p in model.parameters())))
    assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))
    assert _taken(fused) == ["original", "original"]
    assert "training mode" in explain(fused).lines[0].reason
    _same(stock.eval(), fused.eval(), x)  # with the statistics of that step


def test_gradients_equal_stock(pair: tuple) -> None:
    stock, fused, x = pair
    for model in (stock, fused):
        model(x).square().mean().backward()
    assert _taken(fused) == ["cpu", "cpu"]
    for (name, a), b in zip(fused.named_parameters(), stock.parameters(), strict=True):
        if not name.startswith("aux"):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5)


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "weights": lambda m: m.one_a.layers[0].weight.data.copy_(torch.ones(8, 16, 1, 1)),
    "a setting of its own": lambda m: setattr(m, "pooled", False),
    "a setting of a child": lambda m: (
        setattr(m.five_b, "padding", (1, 1))
        or setattr(m.five_b, "weight", nn.Parameter(m.five_b.weight[..., 1:4, 1:4].clone()))
    ),
    "a child": lambda m: setattr(m, "one_b", nn.Conv2d(40, 8, 1).eval()),
    "a child outside": lambda m: setattr(m, "fc", nn.Linear(40, 3)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@torch.no_grad()
def test_changes_are_noticed(pair: tuple, change: Callable) -> None:
    stock, fused, x = pair
    fused(x)
    for model in (stock, fused):
        torch.manual_seed(2)
        change(model)
    fused.refresh()
    for _ in range(2):
        _close(fused(x), stock(x))
    _same(stock, fuse(fused, network=False), x)


@torch.no_grad()
def test_hooks_run(pair: tuple) -> None:
    _, fused, x = pair
    calls = []
    fused.stem.register_forward_hook(lambda *_: calls.append("outside"))
    inside = fused.one_a.register_forward_hook(lambda *_: calls.append("inside"))
    fused.register_forward_hook(lambda *_: calls.append("itself"))
    fused(x)
    assert calls == ["outside", "inside", "itself"]
    assert _taken(fused) == ["original", "cpu"]
    inside.remove()
    fused(x)
    assert calls == ["outside", "inside", "itself", "outside", "itself"]
    assert _taken(fused) == ["cpu", "cpu"]


@torch.no_grad()
def test_compile_and_export(pair: tuple) -> None:
    stock, fused, x = pair
    torch._dynamo.reset()
    compiled = torch.compile(fused, fullgraph=True, dynamic=True, backend="eager")
    for batch in (2, 3):
        _close(compiled(x[:1].expand(batch, -1, -1, -1)), stock(x[:1]).expand(batch, -1))
    program = torch.export.export(fused, (x,), dynamic_shapes=({0: torch.export.Dim("n")},))
    assert sum("inception_fused.run" in str(n.target) for n in program.graph.nodes) == 2
    _close(program.module()(x), stock(x))


@torch.no_grad()
def test_other_tracers_record_the_original(pair: tuple) -> None:
    stock, fused, x = pair
    assert torch.equal(torch.jit.trace(fused, x)(x), stock(x))
    assert torch.equal(torch.fx.symbolic_trace(fused)(x), stock(x))


class _Written(Block):
    """A block whose forward is made of ``parts`` of a block written inline."""

    def parts(self, x: Tensor) -> list[Tensor]:
        return [self.one(x), self.two(x), self.three(x), self.four(x)]


class ReusesBranch(_Written):
    def forward(self, x: Tensor) -> Tensor:
        parts = self.parts(x)
        return torch.cat(parts, 1).sum(1) + parts[0].sum(1)


class OverwritesSource(_Written):
    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        first = self.one(y)
        y.mul_(-1)
        return torch.cat([first, *self.parts(y)], 1) * 2


class WritesToTheResult(_Written):
    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat(self.parts(x + 1), 1)
        y += 1
        return y.relu_() * 2


class OneBehindTheOther(_Written):
    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.one(x), self.three(x)], 1)  # as many channels as x
        return torch.cat([self.one(y), self.two(y)], 1) * 2


class ReadsASlice(_Written):
    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat(self.parts(x), 1)
        return torch.cat([self.one(y[:, :16]), self.two(y[:, :16])], 1) * 2


class LooksAtItsType(_Written):
    def forward(self, x: Tensor) -> Tensor:
        y = x if type(x) is Tensor else x * 2
        return torch.cat(self.parts(y), 1) * 2


class WithoutGrad(_Written):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat(self.parts(x), 1) * 2


class TwoInputs(_Written):
    def forward(self, x: Tensor, scale: float = 2.0) -> Tensor:
        return torch.cat(self.parts(x), 1) * scale


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (ReusesBranch, "not from a concatenation"),
        (OverwritesSource, "not from a concatenation"),
        (LooksAtItsType, "the check of the rewritten forward failed"),
        (WithoutGrad, "changes the grad mode"),
        (TwoInputs, "more than one input"),
    ],
)
@torch.no_grad()
def test_left_alone(kind: type, reason: str) -> None:
    torch.manual_seed(0)
    model = zoo._random(kind())
    x = torch.randn(2, zoo.C, 9, 9)
    wanted = model(x)
    with pytest.warns(UserWarning, match="no Inception module"):
        fuse(model)
    assert type(model) is kind
    assert torch.equal(model(x), wanted)
    assert reason in explain(model).lines[0].reason


@pytest.mark.parametrize("kind", [WritesToTheResult, OneBehindTheOther, ReadsASlice])
@torch.no_grad()
def test_fused(kind: type) -> None:
    torch.manual_seed(0)
    model = zoo._random(kind())
    x = torch.randn(2, zoo.C, 9, 9)
    wanted = model(x)
    assert isinstance(fuse(model), FusedInception)
    _close(model(x), wanted)
    assert set(_taken(model)) == {"cpu"}
