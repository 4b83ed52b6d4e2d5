"""The two problems of KernelBench's level 3 that are GoogLeNet: shapes and layers, random weights.

Problem 6 is module 4a's widths on 224x224 pixels, problem 7 the whole network. Neither has batch
norm, and their modules have no ReLU at all. Both are asked for at a batch size of 10 and float32.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from inception_fused.models import Branches
from inception_fused.spec import GOOGLENET, Activation, Spec, Stage

BATCH = 10


def module() -> nn.Module:
    """Problem 6: (N, 480, 224, 224) to (N, 512, 224, 224)."""
    return Branches(_linear(GOOGLENET["4a"]))


class Network(nn.Module):
    """Problem 7: (N, 3, 224, 224) to (N, 1000), ReLU after the three convolutions of the stem."""

    def __init__(self) -> None:
        super().__init__()
        modules = {name: Branches(_linear(spec)) for name, spec in GOOGLENET.items()}
        self.layers = nn.Sequential(
            nn.Conv2d(3, 64, 7, stride=2, padding=3),
            nn.ReLU(),
            _pool(),
            nn.Conv2d(64, 64, 1),
            nn.ReLU(),
            nn.Conv2d(64, 192, 3, padding=1),
            nn.ReLU(),
            _pool(),
            modules["3a"],
            modules["3b"],
            _pool(),
            *(modules[name] for name in ("4a", "4b", "4c", "4d", "4e")),
            _pool(),
            modules["5a"],
            modules["5b"],
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(GOOGLENET["5b"].out_channels, 1000),
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x)
        return logits


def activations(batch: int) -> Tensor:
    """The input of problem 6: normal values, (batch, 480, 224, 224), 96 MB an image."""
    shape = (batch, GOOGLENET["4a"].in_channels, 224, 224)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def images(batch: int) -> Tensor:
    """The input of problem 7: normal values, (batch, 3, 224, 224)."""
    return torch.randn((batch, 3, 224, 224), generator=torch.Generator().manual_seed(1))


def _linear(spec: Spec) -> Spec:
    """The same branches without activation."""
    return Spec(
        spec.in_channels, tuple(tuple(_without(stage) for stage in b) for b in spec.branches)
    )


def _without(stage: object) -> Stage:
    assert isinstance(stage, Stage)
    return Stage(stage.kind, stage.out_channels, stage.window, Activation.NONE)


def _pool() -> nn.Module:
    return nn.MaxPool2d(3, stride=2, padding=1)
