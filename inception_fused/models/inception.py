"""The Inception modules of figure 2, as anybody would write them: branches and torch.cat."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from ..spec import Activation, Branch, Fork, Kind, Spec, Stage


class ConvUnit(nn.Sequential):
    """A convolution, batch norm if asked for, and the stage's activation.

    With ``batch_norm`` the convolution has no bias, as the norm's beta does its work, and eps is
    1e-3, as in the authors' later networks and in torchvision.
    """

    def __init__(self, in_channels: int, stage: Stage, batch_norm: bool = False) -> None:
        window = stage.window
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["conv"] = nn.Conv2d(
            in_channels,
            stage.out_channels,
            window.kernel,
            window.stride,
            window.padding,
            bias=not batch_norm,
        )
        if batch_norm:
            layers["norm"] = nn.BatchNorm2d(stage.out_channels, eps=1e-3)
        if stage.activation is Activation.RELU:
            layers["relu"] = nn.ReLU(inplace=True)
        super().__init__(layers)


class Branches(nn.Module):
    """The plain module of any spec: every branch reads x, the outputs are concatenated.

    Input (N, spec.in_channels, H, W), output (N, spec.out_channels, H', W').
    """

    def __init__(self, spec: Spec, batch_norm: bool = False) -> None:
        super().__init__()
        self.spec = spec
        self.branches = _layers(spec.branches, spec.in_channels, batch_norm)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class ForkUnit(nn.Module):
    """The end of a branch that splits; its outputs are concatenated."""

    def __init__(self, in_channels: int, fork: Fork, batch_norm: bool = False) -> None:
        super().__init__()
        self.branches = _layers(fork.branches, in_channels, batch_norm)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class Inception(Branches):
    """The module with dimension reduction, figure 2b; the arguments are those of `Spec.v1`."""

    def __init__(
        self,
        in_channels: int,
        c1: int,
        r3: int,
        c3: int,
        r5: int,
        c5: int,
        pp: int,
        k5: int | tuple[int, ...] = 5,
        batch_norm: bool = False,
    ) -> None:
        super().__init__(Spec.v1(in_channels, c1, r3, c3, r5, c5, pp, k5), batch_norm)

    @staticmethod
    def from_spec(spec: Spec, batch_norm: bool = False) -> Branches:
        """The plain module of any spec, whatever its branches."""
        return Branches(spec, batch_norm)


class NaiveInception(Branches):
    """The naive module, figure 2a: no reduction, and the pooled input is concatenated as it is."""

    def __init__(
        self, in_channels: int, c1: int, c3: int, c5: int, batch_norm: bool = False
    ) -> None:
        super().__init__(Spec.naive(in_channels, c1, c3, c5), batch_norm)


def _layers(branches: tuple[Branch, ...], in_channels: int, batch_norm: bool) -> nn.ModuleList:
    made = nn.ModuleList()
    for branch in branches:
        layers = nn.Sequential()
        channels = in_channels
        for item in branch:
            if isinstance(item, Fork):
                layers.append(ForkUnit(channels, item, batch_norm))
            elif item.kind.is_pool:
                layers.append(_pool(item))
            else:
                layers.append(ConvUnit(channels, item, batch_norm))
                channels = item.out_channels
        made.append(layers)
    return made


def _pool(stage: Stage) -> nn.Module:
    pool = nn.MaxPool2d if stage.kind is Kind.MAXPOOL else nn.AvgPool2d
    window = stage.window
    return pool(window.kernel, window.stride, window.padding)
