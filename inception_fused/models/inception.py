"""The Inception modules of figure 2, as anybody would write them: branches and torch.cat."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from ..spec import Activation, Branch, Fork, Kind, Spec, Stage, channels_behind


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
    """A fork: its branches read one tensor, their outputs are concatenated."""

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
            elif item.kind.has_weight:
                layers.append(ConvUnit(channels, item, batch_norm))
            else:
                layers.append(_layer(item))
            channels = channels_behind((item,), channels)
        made.append(layers)
    return made


def _layer(stage: Stage) -> nn.Module:
    """The layer of a stage without weights."""
    if (r := stage.response) is not None:
        return nn.LocalResponseNorm(r.size, r.alpha, r.beta, r.k)
    if stage.kind is Kind.MEAN:
        return nn.AdaptiveAvgPool2d(1)
    window = stage.window
    args = (window.kernel, window.stride, window.padding)
    if stage.kind is Kind.MAXPOOL:
        return nn.MaxPool2d(*args, ceil_mode=window.ceil_mode)
    return nn.AvgPool2d(
        *args, ceil_mode=window.ceil_mode, count_include_pad=stage.kind is Kind.AVGPOOL
    )
