"""What the user means: an Inception module as a list of branches, and the paper's nine.

Only the standard library is needed here; nothing in this file knows torch, memory or hardware.
"""

from __future__ import annotations

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

    @property
    def is_pool(self) -> bool:
        return self in (Kind.MAXPOOL, Kind.AVGPOOL)


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
    """The sliding window of a convolution or a pool, each entry (height, width) in pixels."""

    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        for name, least in (("kernel", 1), ("stride", 1), ("padding", 0)):
            object.__setattr__(self, name, _pair(name, getattr(self, name), least))

    @property
    def keeps_size(self) -> bool:
        """True if the output has the input's height and width, whatever they are."""
        return self.stride == (1, 1) and all(
            2 * p == k - 1 for k, p in zip(self.kernel, self.padding, strict=True)
        )

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width after the window; ValueError if nothing is left."""
        height, width = (
            (n + 2 * p - k) // s + 1
            for n, k, s, p in zip(size, self.kernel, self.stride, self.padding, strict=True)
        )
        if height < 1 or width < 1:
            raise ValueError(
                f"a {self.kernel} window with padding {self.padding} does not fit into "
                f"an image of {size[0]}x{size[1]} pixels"
            )
        return height, width


@dataclass(frozen=True, slots=True)
class Stage:
    """One link of a branch. ``out_channels`` is 0 for a pool, which keeps its channels."""

    kind: Kind
    out_channels: int
    window: Window = Window()
    activation: Activation = Activation.NONE

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", Kind(self.kind))
        object.__setattr__(self, "activation", Activation(self.activation))
        _natural("out_channels", self.out_channels, 0 if self.kind.is_pool else 1)
        if self.kind.is_pool:
            if self.out_channels or self.activation:
                raise ValueError("a pool has out_channels 0 and no activation")
            if any(2 * p > k for k, p in zip(self.window.kernel, self.window.padding, strict=True)):
                raise ValueError(
                    f"padding {self.window.padding} of a pool must be at most half its kernel "
                    f"{self.window.kernel}"
                )
        elif (self.kind is Kind.POINTWISE) != (self.window == Window()):
            raise ValueError(f"kind {self.kind.name} does not go with {self.window}")

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
    ) -> Stage:
        """A pool; the default is the one inside the paper's modules (3x3, stride 1, same size)."""
        window = Window(
            _pair("kernel", kernel, 1), _pair("stride", stride, 1), _pair("padding", padding, 0)
        )
        return cls(kind, 0, window)


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
    """The end of a branch that splits: each of its branches reads what the stages before gave.

    SqueezeNet's Fire module is one branch of a 1x1 stage and a fork into a 1x1 and a 3x3; the
    last modules of Inception v3 fork into a 1x3 and a 3x1.
    """

    branches: tuple[Branch, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "branches", _branches(self.branches))


Branch: TypeAlias = tuple[Stage | Fork, ...]
"""Stages, the first one first; the last item may be a fork, if a stage is before it."""


def _branches(given: Iterable[Iterable[Stage | Fork]]) -> tuple[Branch, ...]:
    branches = tuple(tuple(b) for b in given)
    if not all(isinstance(item, Stage | Fork) for branch in branches for item in branch):
        raise TypeError(f"branches must be sequences of Stage, got {branches!r}")
    if not branches or not all(branches):
        raise ValueError("branches must hold at least one branch of at least one stage each")
    if any(isinstance(item, Fork) for b in branches for item in (b[0], *b[:-1])):
        raise ValueError("a fork must be the last item of a branch and follow a stage")
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
        return tuple(
            sum(
                next((s.out_channels for s in reversed(p) if not s.kind.is_pool), self.in_channels)
                for p in _paths(branch)
            )
            for branch in self.branches
        )

    def paths(self) -> Iterator[tuple[Stage, ...]]:
        """Every way from the input to the output, in the order of the output's channels."""
        for branch in self.branches:
            yield from _paths(branch)

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


def _paths(branch: Branch) -> Iterator[tuple[Stage, ...]]:
    stages = tuple(item for item in branch if isinstance(item, Stage))
    fork = branch[-1]
    if isinstance(fork, Fork):
        yield from (stages + rest for b in fork.branches for rest in _paths(b))
    else:
        yield stages


def _convolutions(branch: Branch, channels: int) -> Iterator[Convolution]:
    for item in branch:
        if isinstance(item, Fork):
            for b in item.branches:
                yield from _convolutions(b, channels)
        elif not item.kind.is_pool:
            yield Convolution(channels, item.out_channels, item.window.kernel)
            channels = item.out_channels


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
