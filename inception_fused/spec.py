"""What the user means: an Inception module as a list of branches, and the paper's nine.

Only the standard library is needed here; nothing in this file knows torch, memory or hardware.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType
from typing import TypeAlias


class Kind(IntEnum):
    """What a stage or a step computes. Mirrored by ``csrc/kinds.def``."""

    POINTWISE = 0
    CONV = 1
    MAXPOOL = 2
    AVGPOOL = 3
    AVGPOOL_INSIDE = 4
    MEAN = 5
    LRN = 6

    @property
    def is_pool(self) -> bool:
        """Whether it reduces a window of each channel."""
        return self in (Kind.MAXPOOL, Kind.AVGPOOL, Kind.AVGPOOL_INSIDE)

    @property
    def has_weight(self) -> bool:
        """Whether it is a convolution; what is none keeps its channels and has no activation."""
        return self in (Kind.POINTWISE, Kind.CONV)


class Activation(IntEnum):
    """What is applied to each sum after the bias. Mirrored by ``csrc/kinds.def``."""

    NONE = 0
    RELU = 1


def _natural(name: str, value: object, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if not least <= value < 2**31:
        raise ValueError(f"{name} must be at least {least} and below 2**31, got {value}")
    return int(value)


def _pair(name: str, value: int | tuple[int, int], least: int) -> tuple[int, int]:
    pair = value if isinstance(value, tuple) else (value, value)
    if len(pair) != 2:
        raise ValueError(f"{name} must be an int or a pair (height, width), got {value!r}")
    return _natural(name, pair[0], least), _natural(name, pair[1], least)


@dataclass(frozen=True, slots=True)
class Window:
    """The sliding window of a convolution or a pool, each entry (height, width) in pixels.

    ``ceil_mode``: a last window of a pool that ends outside the image, padding included, counts if
    it starts inside.
    """

    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    ceil_mode: bool = False

    def __post_init__(self) -> None:
        for name, least in (("kernel", 1), ("stride", 1), ("padding", 0)):
            object.__setattr__(self, name, _pair(name, getattr(self, name), least))
        # With stride 1 there is no such window; equal windows compare equal.
        object.__setattr__(self, "ceil_mode", bool(self.ceil_mode) and self.stride != (1, 1))

    @property
    def keeps_size(self) -> bool:
        """True if the output has the input's height and width, whatever they are."""
        return self.stride == (1, 1) and all(
            2 * p == k - 1 for k, p in zip(self.kernel, self.padding, strict=True)
        )

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width after the window; ValueError if nothing is left."""
        height, width = (
            _windows(*axis, self.ceil_mode)
            for axis in zip(size, self.kernel, self.stride, self.padding, strict=True)
        )
        if height < 1 or width < 1:
            raise ValueError(
                f"a {self.kernel} window with padding {self.padding} does not fit into "
                f"an image of {size[0]}x{size[1]} pixels"
            )
        return height, width


def _windows(size: int, kernel: int, stride: int, padding: int, ceil_mode: bool) -> int:
    """How many windows fit into an axis of this size, in pixels."""
    reach = size + 2 * padding - kernel
    if not ceil_mode:
        return reach // stride + 1
    count = -(-reach // stride) + 1
    return count - 1 if (count - 1) * stride >= size + padding else count


@dataclass(frozen=True, slots=True)
class Response:
    """Local response normalisation of each pixel across channels, as ``nn.LocalResponseNorm``.

    Channel c is divided by ``(k + alpha / size * sum of squares) ** beta``, the sum over the
    ``size`` channels from ``c - size // 2`` on that exist (ImageNet classification with deep
    convolutional neural networks, section 3.3). The factors are rounded to float32.
    """

    size: int
    alpha: float
    beta: float
    k: float

    def __post_init__(self) -> None:
        _natural("size", self.size, 1)
        for name in ("alpha", "beta", "k"):
            value = struct.unpack("f", struct.pack("f", getattr(self, name)))[0]
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be finite and at least 0, got {value}")
            object.__setattr__(self, name, abs(value))


@dataclass(frozen=True, slots=True)
class Stage:
    """One link of a branch. ``out_channels`` is 0 for what keeps its channels.

    ``response`` belongs to kind LRN alone.
    """

    kind: Kind
    out_channels: int
    window: Window = Window()
    activation: Activation = Activation.NONE
    response: Response | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", Kind(self.kind))
        object.__setattr__(self, "activation", Activation(self.activation))
        _natural("out_channels", self.out_channels, 1 if self.kind.has_weight else 0)
        window = self.window
        if not self.kind.has_weight and (self.out_channels or self.activation):
            raise ValueError(f"kind {self.kind.name} has out_channels 0 and no activation")
        if (self.kind is Kind.LRN) != (self.response is not None):
            raise ValueError("a response is for kind LRN, which needs one")
        if self.kind.is_pool:
            if any(2 * p > k for k, p in zip(window.kernel, window.padding, strict=True)):
                raise ValueError(
                    f"padding {window.padding} of a pool must be at most half its kernel "
                    f"{window.kernel}"
                )
        elif (self.kind is not Kind.CONV) != (window == Window()) or window.ceil_mode:
            raise ValueError(f"kind {self.kind.name} does not go with {window}")

    @property
    def keeps_size(self) -> bool:
        """True if the output has the input's height and width, whatever they are."""
        return self.kind is not Kind.MEAN and self.window.keeps_size

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the output, in pixels; ValueError if nothing is left."""
        return (1, 1) if self.kind is Kind.MEAN else self.window.output_size(size)

    @classmethod
    def conv(
        cls,
        out_channels: int,
        kernel: int | tuple[int, int] = 1,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | None = None,
        activation: Activation = Activation.RELU,
    ) -> Stage:
        """A convolution; ``padding=None`` keeps the size at stride 1 (odd kernels only)."""
        kernel = _pair("kernel", kernel, 1)
        if padding is None:
            if kernel[0] % 2 == 0 or kernel[1] % 2 == 0:
                raise ValueError(f"padding must be given for the even kernel {kernel}")
            padding = (kernel[0] // 2, kernel[1] // 2)
        window = Window(kernel, _pair("stride", stride, 1), _pair("padding", padding, 0))
        kind = Kind.POINTWISE if window == Window() else Kind.CONV
        return cls(kind, out_channels, window, Activation(activation))

    @classmethod
    def pool(
        cls,
        kind: Kind = Kind.MAXPOOL,
        kernel: int | tuple[int, int] = 3,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 1,
        ceil_mode: bool = False,
    ) -> Stage:
        """A pool; the default is the one inside the paper's modules (3x3, stride 1, same size)."""
        window = Window(
            _pair("kernel", kernel, 1),
            _pair("stride", stride, 1),
            _pair("padding", padding, 0),
            ceil_mode,
        )
        return cls(kind, 0, window)

    @classmethod
    def mean(cls) -> Stage:
        """The average over the whole image, which leaves one pixel (``AdaptiveAvgPool2d(1)``)."""
        return cls(Kind.MEAN, 0)

    @classmethod
    def local_response_norm(
        cls, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
    ) -> Stage:
        """Local response normalisation, see :class:`Response`."""
        return cls(Kind.LRN, 0, response=Response(size, alpha, beta, k))


@dataclass(frozen=True, slots=True)
class Convolution:
    """The weight that one stage needs, in the order in which back ends expect them."""

    in_channels: int
    out_channels: int
    kernel: tuple[int, int]

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """(out channels, in channels, height, width), as in ``torch.nn.Conv2d.weight``."""
        return (self.out_channels, self.in_channels, *self.kernel)


@dataclass(frozen=True, slots=True)
class Fork:
    """Branches that read what the items before gave; the items behind read their concatenation.

    SqueezeNet's Fire module is one branch of a 1x1 stage and a fork into a 1x1 and a 3x3; the
    last modules of Inception v3 fork into a 1x3 and a 3x1; a network is one branch of stages and
    forks in turn.
    """

    branches: tuple[Branch, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "branches", _branches(self.branches))


Branch: TypeAlias = tuple[Stage | Fork, ...]
"""Stages and forks, the first one first; not a fork alone."""


def _branches(given: Iterable[Iterable[Stage | Fork]]) -> tuple[Branch, ...]:
    branches = tuple(tuple(b) for b in given)
    if not all(isinstance(item, Stage | Fork) for branch in branches for item in branch):
        raise TypeError(f"branches must be sequences of Stage, got {branches!r}")
    if not branches or not all(branches):
        raise ValueError("branches must hold at least one branch of at least one stage each")
    if any(len(b) == 1 and isinstance(b[0], Fork) for b in branches):
        raise ValueError("a fork must not be the only item of a branch, its branches can be there")
    return branches


@dataclass(frozen=True, slots=True)
class Spec:
    """A module: every branch reads the same input, the outputs are concatenated on dim 1."""

    in_channels: int
    branches: tuple[Branch, ...]

    def __post_init__(self) -> None:
        _natural("in_channels", self.in_channels, 1)
        object.__setattr__(self, "branches", _branches(self.branches))

    @property
    def out_channels(self) -> int:
        return sum(self.branch_channels)

    @property
    def branch_channels(self) -> tuple[int, ...]:
        """Channels that each branch adds to the concatenated output."""
        return tuple(channels_behind(branch, self.in_channels) for branch in self.branches)

    def convolutions(self) -> Iterator[Convolution]:
        """Every convolution, branch by branch, first stage first: the order of the weights."""
        for branch in self.branches:
            yield from _convolutions(branch, self.in_channels)

    @classmethod
    def v1(
        cls,
        in_channels: int,
        c1: int,
        r3: int,
        c3: int,
        r5: int,
        c5: int,
        pp: int,
        k5: int | tuple[int, ...] = 5,
        activation: Activation = Activation.RELU,
    ) -> Spec:
        """The module with dimension reduction (figure 2b of "Going deeper with convolutions").

        Args:
            in_channels: channels of the input.
            c1: output channels of the 1x1 branch ("#1x1" in the paper's Table 1).
            r3, c3: reduce and output channels of the 3x3 branch ("#3x3 reduce", "#3x3").
            r5, c5: reduce and output channels of the 5x5 branch ("#5x5 reduce", "#5x5").
            pp: output channels of the pool projection ("pool proj").
            k5: kernel of the "5x5" branch: 5 in the paper, 3 in torchvision
                (pytorch/vision#906), ``(3, 3)`` for two stacked 3x3 of ``c5`` channels each.
            activation: of every convolution.
        """

        def conv(channels: int, kernel: int = 1) -> Stage:
            return Stage.conv(channels, kernel, activation=activation)

        kernels = k5 if isinstance(k5, tuple) else (k5,)
        return cls(
            in_channels,
            (
                (conv(c1),),
                (conv(r3), conv(c3, 3)),
                (conv(r5), *(conv(c5, k) for k in kernels)),
                (Stage.pool(), conv(pp)),
            ),
        )

    @classmethod
    def naive(cls, in_channels: int, c1: int, c3: int, c5: int) -> Spec:
        """The naive module (figure 2a of the paper): no reduction, the pool is concatenated."""
        return cls(
            in_channels,
            (
                (Stage.conv(c1),),
                (Stage.conv(c3, 3),),
                (Stage.conv(c5, 5),),
                (Stage.pool(),),
            ),
        )


def channels_behind(branch: Branch, channels: int) -> int:
    """The channels that a branch gives whose input has ``channels``."""
    for item in branch:
        if isinstance(item, Fork):
            channels = sum(channels_behind(b, channels) for b in item.branches)
        else:
            channels = item.out_channels or channels
    return channels


def convolves(branch: Branch) -> bool:
    """Whether all that a branch gives has gone through a convolution of it."""
    return any(
        all(map(convolves, item.branches)) if isinstance(item, Fork) else item.kind.has_weight
        for item in branch
    )


def _convolutions(branch: Branch, channels: int) -> Iterator[Convolution]:
    for item in branch:
        if isinstance(item, Fork):
            for b in item.branches:
                yield from _convolutions(b, channels)
        elif item.kind.has_weight:
            yield Convolution(channels, item.out_channels, item.window.kernel)
        channels = channels_behind((item,), channels)


# The paper's Table 1: in, #1x1, #3x3 reduce, #3x3, #5x5 reduce, #5x5, pool proj.
_TABLE_1 = {
    "3a": (192, 64, 96, 128, 16, 32, 32),
    "3b": (256, 128, 128, 192, 32, 96, 64),
    "4a": (480, 192, 96, 208, 16, 48, 64),
    "4b": (512, 160, 112, 224, 24, 64, 64),
    "4c": (512, 128, 128, 256, 24, 64, 64),
    "4d": (512, 112, 144, 288, 32, 64, 64),
    "4e": (528, 256, 160, 320, 32, 128, 128),
    "5a": (832, 256, 160, 320, 32, 128, 128),
    "5b": (832, 384, 192, 384, 48, 128, 128),
}


def googlenet(k5: int | tuple[int, ...] = 5) -> Mapping[str, Spec]:
    """The nine modules of GoogLeNet by their name in Table 1, "3a" to "5b"."""
    return MappingProxyType({name: Spec.v1(*row, k5=k5) for name, row in _TABLE_1.items()})


GOOGLENET: Mapping[str, Spec] = googlenet()
"""The paper's nine modules, with a true 5x5 branch."""

GOOGLENET_SIZE: Mapping[str, int] = MappingProxyType(
    {name: {"3": 28, "4": 14, "5": 7}[name[0]] for name in _TABLE_1}
)
"""Height and width in pixels of each module's input for a 224x224 image."""
