"""fuse, unfuse and explain on whole models."""

from __future__ import annotations

import pytest
import torch
import torchvision
import zoo
from torch import Tensor, nn

from inception_fused import FusedInception, FusedNetwork, explain, fuse, models, unfuse


def _run(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        y: Tensor = model(x)
    return y


def _fused(model: nn.Module) -> int:
    return sum(isinstance(m, FusedInception) for m in model.modules())


def _torchvision() -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.googlenet(weights=None, init_weights=False).eval()


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (_torchvision, 9),
        (lambda: models.googlenet(batch_norm=True).eval(), 9),
        (lambda: models.googlenet().eval(), 9),
        (lambda: torchvision.models.inception_v3(weights=None, init_weights=False).eval(), 11),
        (lambda: torchvision.models.squeezenet1_1(weights=None).eval(), 8),
    ],
    ids=["torchvision", "paper with norms", "paper", "inception_v3", "squeezenet1_1"],
)
def test_whole_networks(make: object, count: int) -> None:
    torch.manual_seed(0)
    model = make()
    x = torch.randn(2, 3, 224, 224)
    wanted = _run(model, x)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    parameters = list(model.parameters())

    assert fuse(model) is model
    assert _fused(model) == count
    got = _run(model, x)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-4 * float(wanted.abs().max()))
    fused = [line for line in explain(model).lines if line.fused]
    assert [line.backend for line in fused] == ["cpu"] * (count + 1)
    assert isinstance(model, FusedNetwork)
    assert fused[-1].network
    assert fused[0].reason == "in (the model itself) as a whole"
    assert list(model.state_dict()) == list(state)
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))

    assert unfuse(model) is model
    assert _fused(model) == 0
    assert torch.equal(_run(model, x), wanted)
    model.load_state_dict(state, strict=True)


def test_the_outermost_module_that_matches_is_fused() -> None:
    model = fuse(zoo.make("branch that ends in a module that concatenates"))
    assert [m for m in model.modules() if isinstance(m, FusedInception)] == [model]
    assert len(explain(model).lines) == 1


def test_fusing_twice_changes_nothing() -> None:
    model = fuse(_torchvision())
    classes = [type(m) for m in model.modules()]
    assert [type(m) for m in fuse(model).modules()] == classes


def test_example_input_gives_the_same() -> None:
    model = fuse(_torchvision(), torch.randn(1, 3, 96, 96))
    assert _fused(model) == 9


def test_one_block_under_two_names() -> None:
    block = zoo.make("conv, norm, ReLU")
    model = nn.ModuleDict({"a": block, "b": nn.Sequential(nn.Conv2d(40, zoo.C, 1), block)}).eval()
    x = torch.randn(1, zoo.C, 6, 6)
    wanted = _run(model["b"], _run(model["a"], x))
    keys = list(model.state_dict())
    fuse(model)
    got = _run(model["b"], _run(model["a"], x))
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
    assert model["a"] is model["b"][1]
    assert list(model.state_dict()) == keys
    blocks = [line for line in explain(model).lines if not line.network]
    # "b" is a block too: one convolution, then the branches.
    assert [(line.name, line.backend) for line in blocks] == [("a", "cpu"), ("b", "cpu")]


def test_not_a_module() -> None:
    with pytest.raises(TypeError, match=r"model must be an nn\.Module, got int"):
        fuse(3)


def test_nothing_to_fuse_warns() -> None:
    with pytest.warns(UserWarning, match="no Inception module"):
        fuse(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))


def test_a_refused_block_is_explained() -> None:
    report = str(explain(torchvision.models.densenet121(weights=None).features.denseblock1))
    assert report.count("not fused: ") == 6


def test_explain_before_and_after_fuse() -> None:
    model = _torchvision()
    assert str(explain(model)).count("fuse was not called") == 9
    fuse(model)
    assert str(explain(model)).count("fused, not called yet") == 10
    assert str(explain(model)).count(") as a whole: ") == 1
    model.train()
    model.inception3a(torch.randn(1, 192, 8, 8))
    assert str(explain(model).lines[0]).endswith("fused, training")


def test_reference_must_be_asked_for() -> None:
    model = _torchvision().double()
    x = torch.randn(1, 192, 8, 8, dtype=torch.float64)
    wanted = _run(model.inception3a, x)
    fuse(model)
    assert torch.equal(_run(model.inception3a, x), wanted)
    assert explain(model).lines[0].backend == "original"
    fuse(unfuse(model), backend="reference")
    torch.testing.assert_close(_run(model.inception3a, x), wanted)
    assert explain(model).lines[0].backend == "reference"
