"""Hypothesis strategies: random branch-and-concat modules, written in many styles.

A module is sound, then it has to be fused, or it has one flaw: something that no plan has, or that
a careless finder would overlook.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import random_layers as layers
import torch
import torch.nn.functional as F
import zoo
from hypothesis import strategies as st
from torch import Tensor, nn

SMALLEST = 5
"""Height and width that every module takes."""

JOINS: dict[str, Callable[[list[Tensor]], Tensor]] = {
    "cat": lambda parts: torch.cat(parts, 1),
    "concat, dim=-3": lambda parts: torch.concat(parts, dim=-3),
    "concatenate of a tuple": lambda parts: torch.concatenate(tuple(parts), axis=1),
    "hstack": torch.hstack,
    "nested": lambda parts: torch.cat([torch.cat(parts[:2], 1), *parts[2:]], 1),
}

BEFORE: dict[str, Callable[[Tensor], Tensor]] = {
    "": lambda x: x,
    "relu": F.relu,
    "scale": lambda x: x * 2,
    "max pool": lambda x: F.max_pool2d(x, 3, 1, 1),
}

BEHIND: dict[str, Callable[[Tensor], Tensor]] = {
    "": lambda y: y,
    "relu": F.relu,
    "relu in place": lambda y: y.relu_(),
    "scale": lambda y: y * 0.5,
    "scale in place": lambda y: y.mul_(0.5),
    "residual": lambda y: F.relu(y + 0.1 * y.mean((2, 3), keepdim=True), inplace=True),
    "gate": lambda y: y * torch.sigmoid(F.adaptive_avg_pool2d(y, 1)),
    "max pool": lambda y: F.max_pool2d(y, 3, 2, ceil_mode=True),
    "tanh": torch.tanh,
    "dropout": lambda y: F.dropout(y, 0.5, training=False),
    "mean": lambda y: y.mean((2, 3)),
    "slice": lambda y: y[:, 1:],
    "flipped channels": lambda y: y.flip(1),
}

FLAWED_PARTS: dict[str, Callable[[Tensor, list[Tensor]], list[Tensor]]] = {
    "a branch twice": lambda x, parts: [*parts, parts[0]],
    "the input itself": lambda x, parts: [*parts, x],
    "a sum of branches": lambda x, parts: [*parts, parts[0][:, :1] + parts[-1][:, :1]],
    "a slice of a branch": lambda x, parts: [*parts, parts[0][:, :1]],
    "a constant": lambda x, parts: [*parts, torch.ones_like(parts[0])],
    "scaled behind": lambda x, parts: [parts[0].mul_(2), *parts[1:]],
    "flipped channels of a branch": lambda x, parts: [parts[0].flip(1), *parts[1:]],
}
"""Flaws in what is concatenated, from the input and the branches' outputs."""

FLAWED_FORWARDS = (
    *("writes to its input", "writes between the branches", "depends on values"),
    *("depends on the size", "stores state", "two results", "autocast", "cat along the height"),
)


@dataclass
class Style:
    """How a block's forward is written: keys of the tables above; ``flaw`` may be ""."""

    join: str = "cat"
    before: str = ""
    behind: str = ""
    flaw: str = ""
    order: list[int] = field(default_factory=list)
    listed: bool = False


class Block(nn.Module):
    """Branches and a concatenation, in the order given, what is before it and what behind it."""

    def __init__(self, branches: list[nn.Module], style: Style) -> None:
        super().__init__()
        self.branches = branches if style.listed else nn.ModuleList(branches)
        self.unused = nn.Conv2d(1, 1, 1)
        self.quantisable = torch.ao.nn.quantized.FloatFunctional()
        self.style = style

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        style = self.style
        if style.flaw == "writes to its input":
            x.mul_(2)
        if style.flaw == "depends on values" and x.sum() > 0:
            return x
        if style.flaw == "depends on the size" and x.shape[2] > 12:
            x = x * 2
        if style.flaw == "stores state":
            self.last = x
        x = BEFORE[style.before](x)
        parts = self.parts(x)
        if style.flaw == "cat along the height":
            return torch.cat([part[:, :1] for part in parts], 2)
        parts = [parts[i] for i in style.order]
        if style.flaw in FLAWED_PARTS:
            parts = FLAWED_PARTS[style.flaw](x, parts)
        if style.join == "FloatFunctional":
            y = self.quantisable.cat(parts, 1)
        else:
            y = JOINS[style.join](parts)
        y = BEHIND[style.behind](y)
        return (y, parts[0]) if style.flaw == "two results" else y

    def parts(self, x: Tensor) -> list[Tensor]:
        """The outputs of the branches in the order in which they were made."""
        first, *others = self.branches
        y = first(x)
        if self.style.flaw == "writes between the branches":
            x.add_(1)
        return [y, *(branch(x) for branch in others)]

    def extra_repr(self) -> str:
        return str(self.style)


class Autocast(Block):
    """A block whose branches run under autocast."""

    def parts(self, x: Tensor) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            return [part.float() for part in super().parts(x)]


@dataclass(frozen=True)
class Made:
    """A module, the number of channels that it takes, and its flaw; "" if it has to be fused."""

    module: nn.Module
    channels: int
    flaw: str


@st.composite
def convolutions(draw: st.DrawFn, channels: int, geometry: str) -> tuple[list[nn.Module], int]:
    """A convolution, what belongs to it, and its output channels.

    ``geometry``: "same" keeps the size, "halve" has stride 2, "valid" loses 2 pixels and "grow"
    adds 2.
    """
    square = draw(st.sampled_from((1, 1, 3, 5)))
    flat = draw(st.sampled_from(((1, 3), (3, 1), (1, 7), (7, 1))))
    kernel = flat if geometry == "same" and draw(st.integers(0, 4)) == 4 else (square, square)
    if geometry == "valid":
        kernel = (max(kernel[0], 3),) * 2
    change = {"valid": -1, "grow": 1}.get(geometry, 0)
    padding = (kernel[0] // 2 + change, kernel[1] // 2 + change)
    width = draw(st.integers(1, 20))
    bias, stride = draw(st.booleans()), 2 if geometry == "halve" else 1
    written = draw(st.sampled_from(("numbers", "numbers", "numbers", "same", "pad")))
    made: list[nn.Module] = []
    if written == "same" and geometry == "same":
        made.append(nn.Conv2d(channels, width, kernel, padding="same", bias=bias))
    elif written == "pad":
        made.append(nn.ZeroPad2d((padding[1], padding[1], padding[0], padding[0])))
        made.append(nn.Conv2d(channels, width, kernel, stride, bias=bias))
    else:
        made.append(nn.Conv2d(channels, width, kernel, stride, padding, bias=bias))
    if draw(st.booleans()):
        made.append(draw(st.sampled_from(layers.NORMS))(width))
    if draw(st.integers(0, 3)):
        made.append(draw(st.sampled_from(layers.RELUS))())
    return made, width


@st.composite
def pools(draw: st.DrawFn, geometry: str) -> nn.Module:
    """A pool of the geometry; "valid" and "grow" as for :func:`convolutions`."""
    kind = draw(st.sampled_from((nn.MaxPool2d, nn.AvgPool2d)))
    if geometry == "halve":
        return kind(3, 2, 1)
    if geometry == "valid":
        return kind(3, 1)
    if draw(st.integers(0, 3)) == 3:
        return layers.POOL
    return kind(*draw(st.sampled_from(((3, 1, 1), (5, 1, 2), ((3, 1), 1, (1, 0))))))


@st.composite
def chains(
    draw: st.DrawFn,
    channels: int,
    geometry: str,
    must: str = "",
    relu: bool = False,
    depth: int = 0,
) -> tuple[nn.Sequential, int]:
    """Layers of the geometry "same", "halve" or "valid", and the channels that they give.

    Args:
        must: "conv" for at least one convolution, "large" for one that is larger than 1x1.
        relu: whether a ReLU may follow, so that the last layer but for max pools must be a
            convolution.
        depth: of blocks that may end the chain.
    """
    made: list[nn.Module] = []
    length = draw(st.integers(1, 4))
    place = draw(st.integers(0, length - 1))
    for i in range(length):
        step = geometry if i == place else "same"
        last = must and i == length - 1 and not any(isinstance(m, nn.Conv2d) for m in made)
        if i < length - 1 and step == "same" and draw(st.integers(0, 7)) == 7:
            grown, channels = draw(convolutions(channels, "grow"))
            made += [*grown, draw(pools("valid"))]
        elif not last and draw(st.integers(0, 2)) == 2:
            made.append(draw(pools(step)))
        else:
            found, channels = draw(convolutions(channels, step))
            made += found
        if draw(st.integers(0, 9)) == 9:
            made.append(draw(st.sampled_from(layers.FILLERS))())
    if must == "large" or relu:
        found, width = draw(convolutions(channels, "same"))
        if must == "large":
            conv = next(m for m in found if isinstance(m, nn.Conv2d))
            place = found.index(conv)
            found[place : place + 1] = [nn.Conv2d(channels, width, 3, padding=1)]
            if isinstance(found[0], nn.ZeroPad2d):
                del found[0]
        made, channels = [*made, *found], width
    if depth and must and draw(st.integers(0, 3)) == 3:
        fork, channels = draw(blocks(channels, "same", relu, depth - 1))
        made.append(fork)
    return nn.Sequential(*made), channels


@st.composite
def blocks(
    draw: st.DrawFn, channels: int, geometry: str, relu: bool, depth: int
) -> tuple[Block, int]:
    """A block with nothing before it and nothing or a ReLU behind it, and its output channels."""
    behind = draw(st.sampled_from(("", "", "relu", "relu in place")))
    relu = relu or behind != ""
    count = draw(st.integers(2, 5))
    musts = ["conv", "large", *["conv" if relu else ""] * (count - 2)]
    made = [draw(chains(channels, geometry, must, relu, depth)) for must in musts]
    order = draw(st.permutations(range(count)))
    style = Style(
        join=draw(st.sampled_from((*JOINS, "FloatFunctional"))),
        behind=behind,
        order=order,
        listed=depth == 1 and draw(st.integers(0, 5)) == 5,
    )
    return Block([chain for chain, _ in made], style), sum(width for _, width in made)


@st.composite
def modules(draw: st.DrawFn) -> Made:
    """Sound modules, and one of three with a flaw; norms have statistics and weights."""
    torch.manual_seed(draw(st.integers(0, 2**31)))
    channels = draw(st.integers(1, 20))
    geometry = draw(st.sampled_from(("same", "same", "same", "halve", "valid")))
    block, _ = draw(blocks(channels, geometry, relu=False, depth=1))
    style, flaw = block.style, ""
    if style.behind == "" and not style.listed:
        style.before = draw(st.sampled_from(list(BEFORE)))
        style.behind = draw(st.sampled_from(list(BEHIND)))
    if draw(st.integers(0, 2)) == 2:
        kinds = (layers.INSERTED, FLAWED_PARTS, FLAWED_FORWARDS)
        flaw = draw(st.sampled_from([name for kind in kinds for name in kind]))
        if flaw in layers.INSERTED:
            _insert(draw, block, channels, layers.INSERTED[flaw])
        else:
            style.flaw = flaw
            block.__class__ = Autocast if flaw == "autocast" else Block
    for chain in block.branches:
        zoo._random(chain)  # a plain list hides them from the block
    model: nn.Module = block
    if not flaw and draw(st.integers(0, 3)) == 3 and style.behind != "mean":
        stem = nn.Conv2d(3, channels, 3, padding=1)
        model = nn.Sequential(stem, nn.ReLU(), block, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        channels = 3
    return Made(zoo._random(model), channels, flaw)


def _insert(draw: st.DrawFn, block: Block, channels: int, make: Callable[[int], nn.Module]) -> None:
    """Puts a layer into one of the block's branches."""
    chain = block.branches[draw(st.integers(0, len(block.branches) - 1))]
    place = draw(st.integers(0, len(chain)))
    for layer in chain[:place]:
        if isinstance(layer, nn.Conv2d):
            channels = layer.out_channels
        elif isinstance(layer, Block):
            return _insert(draw, layer, channels, make)
    chain.insert(place, make(channels))
