"""Random branch-and-concat modules: fused they give the original's numbers, or they are refused."""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
import zoo
from hypothesis import event, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from inception_fused import explain, fuse, unfuse

_ODD = (nn.Tanh, nn.Identity, nn.Dropout, nn.ReLU6, lambda: nn.ZeroPad2d(0), nn.Sigmoid)


class _Branches(nn.Module):
    """Branches and a concatenation, in the order given, and what is behind it."""

    def __init__(self, branches: list[nn.Module], order: list[int], behind: str) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.order = order
        self.behind = behind

    def forward(self, x: Tensor) -> Tensor:
        parts = [branch(x) for branch in self.branches]
        y = torch.cat([parts[i] for i in self.order], 1)
        if self.behind == "relu":
            return F.relu(y)
        if self.behind == "scale":
            return y * 0.5
        if self.behind == "residual":
            return F.relu(y + 0.1 * y.mean((2, 3), keepdim=True), inplace=True)
        return y


@st.composite
def _convolutions(draw: st.DrawFn, channels: int, halve: bool) -> nn.Conv2d:
    kernel = 3 if halve else draw(st.sampled_from((1, 1, 3, 5, (1, 3), (3, 1))))
    sides = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    width = draw(st.integers(1, 20))
    other = draw(st.integers(0, 59))
    dilation = 2 if other == 0 and not halve else 1
    return nn.Conv2d(
        channels,
        width,
        kernel,
        stride=2 if halve else 1,
        padding=tuple(dilation * (side // 2) for side in sides),
        dilation=dilation,
        groups=2 if other == 1 and channels % 2 == 0 and width % 2 == 0 else 1,
        padding_mode="replicate" if other == 2 else "zeros",
        bias=draw(st.booleans()),
    )


@st.composite
def _pools(draw: st.DrawFn, halve: bool) -> nn.Module:
    padded = draw(st.integers(0, 19)) > 0
    kind = draw(st.sampled_from((nn.MaxPool2d, nn.AvgPool2d)))
    options = {} if kind is nn.MaxPool2d else {"count_include_pad": padded}
    return kind(3, 2 if halve else 1, 1, **options)


@st.composite
def _chains(draw: st.DrawFn, channels: int, halve: bool, depth: int) -> tuple[nn.Sequential, int]:
    """Layers, and the channels that they give; one of them halves the image if asked for."""
    layers: list[nn.Module] = []
    length = draw(st.integers(1, 4))
    halving = draw(st.integers(0, length - 1)) if halve else -1
    for i in range(length):
        rare = ("norm", "relu", "odd") if draw(st.integers(0, 11)) == 0 else ()
        kind = draw(st.sampled_from(rare or ("conv", "conv", "pool")))
        if i == halving:
            kind = draw(st.sampled_from(("conv", "pool")))
        if kind == "conv":
            layers.append(draw(_convolutions(channels, i == halving)))
            channels = layers[-1].out_channels
            if draw(st.booleans()):
                layers += [nn.BatchNorm2d(channels), nn.ReLU(draw(st.booleans()))]
        elif kind == "norm":
            layers.append(nn.BatchNorm2d(channels))
        elif kind == "relu":
            layers.append(nn.ReLU(inplace=len(layers) > 0 and draw(st.booleans())))
        elif kind == "odd":
            layers.append(draw(st.sampled_from(_ODD))())
        else:
            layers.append(draw(_pools(i == halving)))
    if depth and draw(st.integers(0, 4)) == 0:
        fork, channels = draw(_blocks(channels, depth - 1))
        layers.append(fork)
    return nn.Sequential(*layers), channels


@st.composite
def _blocks(draw: st.DrawFn, channels: int, depth: int) -> tuple[nn.Module, int]:
    halve = depth == 1 and draw(st.booleans())
    count = draw(st.integers(2, 4))
    chains = [draw(_chains(channels, halve, depth)) for _ in range(count)]
    order = draw(st.permutations(range(len(chains))))
    if draw(st.integers(0, 19)) == 0:
        order = [*order, order[0]]
    behind = draw(st.sampled_from(("", "", "relu", "scale", "residual")))
    block = _Branches([chain for chain, _ in chains], order, behind)
    return block, sum(chains[i][1] for i in order)


@st.composite
def _modules(draw: st.DrawFn) -> nn.Module:
    torch.manual_seed(draw(st.integers(0, 2**31)))
    return zoo._random(draw(_blocks(zoo.C, 1))[0])


@settings(deadline=None)
@given(model=_modules(), height=st.integers(1, 12), width=st.integers(1, 12))
@torch.no_grad()
def test_fused_right_or_refused(model: nn.Module, height: int, width: int) -> None:
    x = torch.randn(2, zoo.C, height, width)
    wanted = model(x.clone())  # a model may write to its input
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        fuse(model)
    _close(model(x.clone()), wanted)
    event(str(warned[0].message).partition("\n")[2].strip()[:90] if warned else "fused")
    lines = () if warned else explain(model).lines
    assert all(line.backend == "cpu" if line.fused else line.reason for line in lines)

    for parameter in model.parameters():
        parameter.mul_(-1)
    got = model(x.clone())
    _close(got, unfuse(model)(x.clone()))


def _close(got: Tensor, wanted: Tensor) -> None:
    scale = max(1.0, float(wanted.abs().max()))
    torch.testing.assert_close(got, wanted, rtol=0, atol=2e-5 * scale)
