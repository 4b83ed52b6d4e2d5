"""Layers of random modules: the many ways to write what a plan has, and flaws, which it has not."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

_RELU = nn.ReLU()
_RELU_IN_PLACE = nn.ReLU(inplace=True)
POOL = nn.MaxPool2d(3, 1, 1)


class Function(nn.Module):
    """A function of the input as a layer."""

    def __init__(self, name: str, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function, self.named = function, name

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)

    def extra_repr(self) -> str:
        return self.named


def _layer(name: str, function: Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
    return lambda: Function(name, function)


RELUS: tuple[Callable[[], nn.Module], ...] = (
    nn.ReLU,
    lambda: nn.ReLU(inplace=True),
    lambda: _RELU,
    lambda: _RELU_IN_PLACE,
    lambda: nn.Threshold(0, 0),
    _layer("clamp(min=0)", lambda x: x.clamp(min=0)),
    _layer("F.relu_", lambda x: F.relu_(x)),
    _layer("maximum", lambda x: torch.clamp_min(x, 0.0)),
)

NORMS: tuple[Callable[[int], nn.Module], ...] = (
    nn.BatchNorm2d,
    lambda c: nn.BatchNorm2d(c, eps=32),
    lambda c: nn.BatchNorm2d(c, eps=1e-3),
    lambda c: nn.BatchNorm2d(c, affine=False),
)

FILLERS: tuple[Callable[[], nn.Module], ...] = (
    nn.Identity,
    nn.Dropout,
    nn.Dropout2d,
    lambda: nn.ZeroPad2d(0),
    _layer("contiguous", lambda x: x.contiguous()),
    _layer("channels_last", lambda x: x.contiguous(memory_format=torch.channels_last)),
)
"""Layers that do nothing in eval mode."""

INSERTED: dict[str, Callable[[int], nn.Module]] = {
    "Tanh": lambda c: nn.Tanh(),
    "ReLU6": lambda c: nn.ReLU6(),
    "GELU": lambda c: nn.GELU(),
    "SiLU": lambda c: nn.SiLU(inplace=True),
    "LeakyReLU": lambda c: nn.LeakyReLU(0.1, inplace=True),
    "Sigmoid": lambda c: nn.Sigmoid(),
    "Hardswish": lambda c: nn.Hardswish(),
    "PReLU": nn.PReLU,
    "ELU": lambda c: nn.ELU(),
    "Softplus": lambda c: nn.Softplus(),
    "clamp(0, 1)": lambda c: Function("clamp(0, 1)", lambda x: x.clamp(0, 1)),
    "clamp(min=0.1)": lambda c: Function("clamp(min=0.1)", lambda x: x.clamp(min=0.1)),
    "Threshold(0.1, 0)": lambda c: nn.Threshold(0.1, 0.0),
    "square": lambda c: Function("square", torch.square),
    "scale": lambda c: Function("x * 0.5", lambda x: x * 0.5),
    "negation": lambda c: Function("-x", torch.neg),
    "residual": lambda c: Function("x + relu(x)", lambda x: x + F.relu(x)),
    "flip": lambda c: Function("flip", lambda x: x.flip(3)),
    "softmax": lambda c: nn.Softmax2d(),
    "shuffled channels": lambda c: nn.ChannelShuffle(c),
    "rolled channels": lambda c: Function("roll", lambda x: x.roll(1, 1)),
    "batch norm anywhere": nn.BatchNorm2d,
    "ReLU anywhere": lambda c: nn.ReLU(),
    "ReLU in place anywhere": lambda c: nn.ReLU(inplace=True),
    "group norm": lambda c: nn.GroupNorm(1, c),
    "instance norm": nn.InstanceNorm2d,
    "statistics of the batch": lambda c: nn.BatchNorm2d(c, track_running_stats=False),
    "response norm": lambda c: nn.LocalResponseNorm(3),
    "padding excluded": lambda c: nn.AvgPool2d(3, 1, 1, count_include_pad=False),
    "divisor": lambda c: nn.AvgPool2d(3, 1, 1, divisor_override=5),
    "dilated pool": lambda c: nn.MaxPool2d(2, 1, 1, dilation=2),
    "power pool": lambda c: nn.Sequential(nn.ConstantPad2d(1, 0.5), nn.LPPool2d(2, 3, 1)),
    "pads with ones": lambda c: nn.Sequential(nn.ConstantPad2d(1, 1.0), nn.MaxPool2d(3, 1)),
    "pads with zeros": lambda c: nn.Sequential(nn.ZeroPad2d(1), nn.MaxPool2d(3, 1)),
    "asymmetric padding": lambda c: nn.Sequential(
        nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(c, c, 2, bias=False)
    ),
    "even kernel": lambda c: nn.Conv2d(c, c, 2, padding="same"),
    "replicate": lambda c: nn.Conv2d(c, c, 3, padding=1, padding_mode="replicate"),
    "reflect": lambda c: nn.Conv2d(c, c, 3, padding=1, padding_mode="reflect"),
    "circular": lambda c: nn.Conv2d(c, c, 3, padding=1, padding_mode="circular"),
    "depthwise": lambda c: nn.Conv2d(c, c, 3, padding=1, groups=c),
    "grouped": lambda c: nn.Sequential(nn.Conv2d(c, 2 * c, 1, groups=c), nn.Conv2d(2 * c, c, 1)),
    "dilated": lambda c: nn.Conv2d(c, c, 3, padding=2, dilation=2),
    "transposed": lambda c: nn.ConvTranspose2d(c, c, 3, padding=1),
    "weight norm": lambda c: parametrizations.weight_norm(nn.Conv2d(c, c, 1)),
    "hook": lambda c: _hooked(nn.Conv2d(c, c, 1)),
    "upsampled": lambda c: nn.Sequential(nn.Upsample(scale_factor=2), nn.AvgPool2d(2)),
}
"""Flaws that are a layer of a branch; it keeps the size, given the channels that it gets."""


def _hooked(layer: nn.Module) -> nn.Module:
    layer.register_forward_hook(lambda m, args, y: y * 2)
    return layer
