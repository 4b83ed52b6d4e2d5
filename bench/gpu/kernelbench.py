"""Problems 6 and 7 of KernelBench's level 3: an Inception module and GoogLeNet, without batch norm.

Shapes as published there; weights by our own seed. No convolution of a module has an activation.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from inception_fused.models import Branches
from inception_fused.spec import GOOGLENET, Activation, Spec

MODULE_SHAPE = (10, 480, 224, 224)
NETWORK_SHAPE = (10, 3, 224, 224)


def _module(name: str) -> Branches:
    spec = GOOGLENET[name]
    branches = (
        (replace(s, activation=Activation.NONE) if s.kind.has_weight else s for s in branch)
        for branch in spec.branches
    )
    return Branches(Spec(spec.in_channels, tuple(map(tuple, branches))))


def problem6() -> nn.Module:
    """The module of problem 6, for inputs of :data:`MODULE_SHAPE`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _module("4a").eval().requires_grad_(False)


class Problem7(nn.Module):
    """The network of problem 7: (N, 3, H, W) to logits (N, 1000)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3)
        self.conv2 = nn.Conv2d(64, 64, 1)
        self.conv3 = nn.Conv2d(64, 192, 3, padding=1)
        self.inception = nn.ModuleDict({name: _module(name) for name in GOOGLENET})
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.fc = nn.Linear(1024, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.conv1(x).relu())
        x = self.conv2(x).relu()
        x = self.pool(self.conv3(x).relu())
        for name, module in self.inception.items():
            if name in ("4a", "5a"):
                x = self.pool(x)
            x = module(x)
        output: Tensor = self.fc(x.mean((2, 3)))
        return output


def problem7() -> nn.Module:
    """The network of problem 7, for inputs of :data:`NETWORK_SHAPE`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Problem7().eval().requires_grad_(False)
