"""Table 1 of "Going deeper with convolutions", computed from a model, beside what was printed.

Two units are the paper's: "params" are weights without biases in units of K = 1024, "ops" are
multiply-adds in units of M = 10**6. With these the computed figures match the printed ones but for
the cells that :func:`render` marks.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .models import Branches, GoogLeNet

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

K, M = 1024, 10**6

IMAGE = 224
"""Height and width in pixels of the image that Table 1 is for."""

# As printed: params in K and ops in M, by the name of the row's module in our GoogLeNet.
_PRINTED = {
    "conv1": (2.7, 34),
    "conv2": (112, 360),
    "inception_3a": (159, 128),
    "inception_3b": (380, 304),
    "inception_4a": (364, 73),
    "inception_4b": (437, 88),
    "inception_4c": (463, 100),
    "inception_4d": (580, 119),
    "inception_4e": (840, 170),
    "inception_5a": (1072, 54),
    "inception_5b": (1388, 71),
    "linear": (1000, 1),
}

# AlexNet, the paper's reference [9], on two GPUs: out channels, in channels per group, kernel area.
ALEXNET = {
    "conv1": (96, 3, 11 * 11),
    "conv2": (256, 48, 5 * 5),
    "conv3": (384, 256, 3 * 3),
    "conv4": (384, 192, 3 * 3),
    "conv5": (256, 192, 3 * 3),
    "fc6": (4096, 256, 6 * 6),
    "fc7": (4096, 4096, 1),
    "fc8": (1000, 4096, 1),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One row of Table 1, computed. ``columns`` are the six channel counts, 0 where not used."""

    name: str
    type: str
    patch: str
    output: tuple[int, ...]
    depth: int
    columns: tuple[int, int, int, int, int, int]
    params: int
    ops: int


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim of the paper, what the model gives, and whether they agree to 10 %."""

    text: str
    printed: float
    computed: float
    arithmetic: str

    @property
    def holds(self) -> bool:
        return abs(self.computed / self.printed - 1) <= 0.1


def rows(model: GoogLeNet) -> list[Row]:
    """The rows of Table 1 from one forward pass of a copy of the model without data.

    Dropout and response normalisation are not shown, and the softmax is left to the loss.
    """
    model = copy.deepcopy(model).to("meta").eval()
    ops: dict[nn.Module, int] = {}
    outputs: dict[nn.Module, Tensor] = {}

    def record(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        outputs[module] = output
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            # Each weight is used once for every pixel of the output.
            ops[module] = module.weight.numel() * prod(output.shape[2:])

    for module in model.modules():
        module.register_forward_hook(record)
    first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    model(torch.empty(1, first.in_channels, IMAGE, IMAGE, device="meta"))

    found = []
    for name, module in model.named_children():
        hidden = (nn.Dropout, nn.Identity, nn.LocalResponseNorm)
        if module in outputs and not isinstance(module, hidden):
            used = [m for m in module.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
            _, channels, *size = outputs[module].shape
            found.append(
                Row(
                    name,
                    _type(name, module),
                    _patch(module),
                    (*size, channels) if size else (1, 1, channels),
                    _depth(module),
                    _columns(module),
                    sum(m.weight.numel() for m in used),
                    sum(ops[m] for m in used),
                )
            )
    return found


def claims(model: GoogLeNet) -> tuple[Claim, Claim]:
    """The paper's two claims about the network's size, checked; auxiliary classifiers excluded."""
    total = rows(model)
    ops = sum(row.ops for row in total)
    printed_ops = sum(ops for _, ops in _PRINTED.values())
    params = sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if not name.startswith(("aux1.", "aux2."))
    )
    alexnet = alexnet_parameters()
    terms = " + ".join(f"{o}*({i}*{area}+1)" for o, i, area in ALEXNET.values())
    printed_params = sum(params for params, _ in _PRINTED.values()) * K
    return (
        Claim(
            "1.5 billion multiply-adds at inference (section 1)",
            1.5e9,
            ops,
            f"{' + '.join(f'{row.ops / M:.0f}' for row in total if row.ops)} = {ops / M:.0f} M; "
            f"the printed column adds up to {printed_ops} M",
        ),
        Claim(
            "12 times fewer parameters than AlexNet (section 1)",
            12,
            alexnet / params,
            f"AlexNet {terms} = {alexnet:,}; GoogLeNet with biases {params:,}; the printed column "
            f"adds up to {printed_params / M:.2f} M, which is {alexnet / printed_params:.1f} times "
            f"fewer; 12 times would be {alexnet / 12 / M:.1f} M",
        ),
    )


def alexnet_parameters() -> int:
    """Weights and biases of AlexNet from its published shapes, about 60 million."""
    return sum(out * (channels * area + 1) for out, channels, area in ALEXNET.values())


def table(model: GoogLeNet) -> Table:
    """Table 1 as a rich table; printed figures stand beside ours where they differ."""
    from rich.table import Table

    result = Table(title='Table 1 of "Going deeper with convolutions", computed from the model')
    result.add_column("type", no_wrap=True)
    result.add_column("patch/stride")
    result.add_column("output size", no_wrap=True)
    names = ("depth", "#1x1", "#3x3r", "#3x3", "#5x5r", "#5x5", "pool")
    for name in (*names, "params K", "printed", "ops M", "printed"):
        result.add_column(name, justify="right")
    found = rows(model)
    for row in found:
        params, ops = _PRINTED.get(row.name, (0, 0))
        result.add_row(
            row.type,
            row.patch,
            "x".join(map(str, row.output)),
            str(row.depth),
            *(str(n) if n else "" for n in row.columns),
            *_beside(row.params / K, params),
            *_beside(row.ops / M, ops),
        )
    result.add_section()
    params, ops = (sum(column) for column in zip(*_PRINTED.values(), strict=True))
    result.add_row(
        "total",
        "",
        "",
        str(sum(row.depth for row in found)),
        *[""] * 6,
        *_beside(sum(row.params for row in found) / K, params),
        *_beside(sum(row.ops for row in found) / M, ops),
    )
    return result


def render(console: Console, model: GoogLeNet) -> None:
    """Prints the table, then both claims: whether each holds, both figures, the arithmetic."""
    console.print(table(model))
    console.print(
        "K = 1024 weights without biases, M = 10^6 multiply-adds, for one image of 224x224. "
        "Marked *: printed figures more than 2 % and half a unit away from the shapes printed in "
        "the same row. 2.7 K and 34 M of the first row are about what 7x1 and 1x7 filters give.",
        style="dim",
    )
    for claim in claims(model):
        verdict = "[green]holds[/]" if claim.holds else "[red]does not hold[/]"
        console.print(
            f"{verdict}: {claim.text}: computed {claim.computed:,.4g}, claimed {claim.printed:,.4g}"
        )
        console.print(f"    {claim.arithmetic}", style="dim", highlight=False)


def _beside(computed: float, printed: float) -> tuple[str, str]:
    if not computed and not printed:
        return "", ""
    differs = abs(computed - printed) > max(0.02 * printed, 0.5)
    digits = 1 if printed and printed < 10 and computed < 10 else 0
    shown = f"{printed:g}"
    return f"{computed:.{digits}f}", f"[yellow]{shown} *[/]" if differs else shown


def _type(name: str, module: nn.Module) -> str:
    kinds: tuple[tuple[type[nn.Module], str], ...] = (
        (nn.MaxPool2d, "max pool"),
        (nn.AdaptiveAvgPool2d, "avg pool"),
        (nn.Linear, "linear"),
        (Branches, f"inception ({name.removeprefix('inception_')})"),
    )
    return next((text for kind, text in kinds if isinstance(module, kind)), "convolution")


def _patch(module: nn.Module) -> str:
    if isinstance(module, nn.MaxPool2d):
        return f"{module.kernel_size}x{module.kernel_size}/{module.stride}"
    if isinstance(module, nn.AdaptiveAvgPool2d):
        side = IMAGE // 32
        return f"{side}x{side}/1"
    if isinstance(module, (Branches, nn.Linear)):
        return ""
    last = _convolutions(module)[-1]
    return f"{last.kernel_size[0]}x{last.kernel_size[1]}/{last.stride[0]}"


def _convolutions(module: nn.Module) -> list[nn.Conv2d]:
    return [m for m in module.modules() if isinstance(m, nn.Conv2d)]


def _depth(module: nn.Module) -> int:
    """Layers with weights on the longest way through."""
    if isinstance(module, Branches):
        return max(len(_convolutions(branch)) for branch in module.branches)
    return len(_convolutions(module)) + isinstance(module, nn.Linear)


def _columns(module: nn.Module) -> tuple[int, int, int, int, int, int]:
    if isinstance(module, Branches):
        channels = [[c.out_channels for c in _convolutions(b)] for b in module.branches]
        (c1,), (r3, c3), (r5, *c5), (pp,) = channels
        return c1, r3, c3, r5, c5[-1], pp
    widths = [c.out_channels for c in _convolutions(module)]
    if len(widths) == 2:
        return 0, widths[0], widths[1], 0, 0, 0
    return 0, 0, 0, 0, 0, 0
