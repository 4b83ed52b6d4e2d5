"""Gradients through the fused operator, and training that equals stock."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torchvision
import zoo
from torch import nn

from inception_fused import explain, fuse


@pytest.mark.parametrize("name", ["conv with bias and ReLU", "conv with bias, norm, ReLU"])
def test_gradients_equal_stock(name: str) -> None:
    stock = zoo.make(name)
    fused = fuse(copy.deepcopy(stock))
    x = torch.randn(2, zoo.C, 9, 7)
    grads = []
    for model in (stock, fused):
        leaf = x.clone().requires_grad_()
        model(leaf).square().mean().backward()
        grads.append([leaf.grad, *(p.grad for p in model.parameters())])
    assert explain(fused).lines[0].backend == "cpu"
    for got, wanted in zip(grads[1], grads[0], strict=True):
        scale = float(wanted.abs().max())
        torch.testing.assert_close(got, wanted, rtol=0, atol=2e-5 * scale + 1e-7)


def test_gradcheck() -> None:
    model = zoo.make("conv with bias, norm, ReLU").double()
    fuse(model, backend="reference")
    x = torch.randn(1, zoo.C, 3, 4, dtype=torch.float64, requires_grad=True)
    weight = model.two[1].layers[0].weight
    name = "two.1.layers.0.weight"
    # gradcheck writes to its inputs through .data, which no cache can see: w * 1 is always new.
    assert torch.autograd.gradcheck(
        lambda x, w: torch.func.functional_call(model, {name: w * 1}, (x,)),
        (x, weight),
        fast_mode=True,
    )
    assert explain(model).lines[0].backend == "reference"


def test_frozen_parameters_get_no_gradient() -> None:
    model = fuse(zoo.make("conv with bias, norm, ReLU"))
    model.requires_grad_(False)
    x = torch.randn(1, zoo.C, 5, 5, requires_grad=True)
    assert not model(x.detach()).requires_grad
    model.one.layers[0].weight.requires_grad_()
    model(x).sum().backward()
    assert x.grad is not None
    assert [n for n, p in model.named_parameters() if p.grad is not None] == ["one.layers.0.weight"]


def _small() -> nn.Module:
    """The first blocks of torchvision's GoogLeNet with a classifier behind them."""
    net = torchvision.models.googlenet(weights=None, init_weights=False)
    names = ("conv1", "maxpool1", "conv2", "conv3", "inception3a", "inception3b", "avgpool")
    return nn.Sequential(*(getattr(net, n) for n in names), nn.Flatten(), nn.Linear(480, 10))


def _fire() -> nn.Module:
    """The first blocks of SqueezeNet with a classifier behind them."""
    blocks = torchvision.models.squeezenet1_1(weights=None).features[:5]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


def _third() -> nn.Module:
    """A block of Inception v3 that halves the image, and one whose branches fork."""
    blocks = torchvision.models.inception
    layers = (
        blocks.BasicConv2d(3, 16, kernel_size=3, stride=2),
        blocks.InceptionB(16),
        blocks.InceptionE(480 + 16),
    )
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 10))


def _losses(model: nn.Module, steps: int = 20) -> list[float]:
    torch.manual_seed(1)
    x, target = torch.randn(4, 3, 32, 32), torch.arange(4)
    optimiser = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    losses = []
    for _ in range(steps):
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(model(x), target)
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("training", [False, True], ids=["norms frozen", "batch statistics"])
@pytest.mark.parametrize("make", [_small, _fire, _third], ids=["googlenet", "squeezenet", "v3"])
def test_twenty_steps_equal_stock(make: Callable[[], nn.Module], training: bool) -> None:
    torch.manual_seed(0)
    stock = make()
    stock.train(training)
    fused = fuse(copy.deepcopy(stock))
    wanted, got = _losses(stock), _losses(fused)
    assert wanted[-1] < wanted[0]
    assert got == pytest.approx(wanted, rel=1e-4)
    lines = explain(fused).lines
    taken = {line.backend for line in lines if not line.network}
    assert taken == {"training" if training else "cpu"}
