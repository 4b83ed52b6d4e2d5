"""Small models in the many styles in which people write Inception modules.

:data:`FUSED` must be fused with equal numbers; :data:`REFUSED` must be left alone, with a reason
that contains the text given. Every entry takes (N, 16, H, W).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.parametrize import register_parametrization
from torch.utils.checkpoint import checkpoint

C = 16


class Conv(nn.Module):
    """Convolution, norm and activation in any order; ``None`` leaves one out."""

    def __init__(
        self,
        cin: int,
        cout: int,
        kernel: int = 1,
        order: str = "cna",
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
        act: Callable[[], nn.Module] = nn.ReLU,
        **conv: object,
    ) -> None:
        super().__init__()
        conv = {"padding": kernel // 2, "bias": False} | conv
        channels = cout if order.index("c") < order.find("n") or "n" not in order else cin
        made = {
            "c": lambda: nn.Conv2d(cin, cout, kernel, **conv),
            "n": lambda: norm(channels),
            "a": act,
        }
        self.layers = nn.Sequential(*(made[letter]() for letter in order))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Block(nn.Module):
    """Four branches of ``unit``; ``behind`` gets the concatenation."""

    def __init__(
        self,
        unit: Callable[..., nn.Module] = Conv,
        pool: nn.Module | None = None,
        third: Callable[[], nn.Module] | None = None,
        behind: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.one = unit(C, 8)
        self.two = nn.Sequential(unit(C, 8), unit(8, 16, 3))
        self.three = third() if third else nn.Sequential(unit(C, 8), unit(8, 8, 5))
        self.four = nn.Sequential(pool or nn.MaxPool2d(3, 1, 1), unit(C, 8))
        self.behind = behind or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.behind(torch.cat([self.one(x), self.two(x), self.three(x), self.four(x)], 1))


def unit(**fixed: object) -> Callable[..., nn.Module]:
    def make(cin: int, cout: int, kernel: int = 1) -> nn.Module:
        return Conv(cin, cout, kernel, **fixed)

    return make


class Written(Block):
    """A block whose forward is the function given."""

    def __init__(self, function: Callable[[Block, Tensor], object], **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.function = function

    def forward(self, x: Tensor) -> object:
        return self.function(self, x)


class SameConv(nn.Conv2d):
    """Pads by itself, as ports from TensorFlow do."""

    def __init__(self, cin: int, cout: int, kernel: int = 1, odd: bool = False) -> None:
        super().__init__(cin, cout, kernel)
        self.odd = odd

    def forward(self, x: Tensor) -> Tensor:
        p = self.kernel_size[0] // 2
        return super().forward(F.pad(x, (p - self.odd, p + self.odd, p - self.odd, p + self.odd)))


class Listed(nn.Module):
    """Branches in a plain Python list, which PyTorch does not see."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = [Conv(C, 8), nn.Sequential(Conv(C, 8), Conv(8, 8, 3))]
        for branch in self.branches:
            _random(branch)  # neither eval() of the model nor its modules() reach them

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([b(x) for b in self.branches], 1)


class Concat(nn.ModuleDict):
    """A container that applies its children and concatenates."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.values()], 1)


class Bare(nn.Module):
    """Parameters and buffers of its own in place of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.randn(8, C, 1, 1))
        self.three = nn.Parameter(torch.randn(8, C, 3, 3))
        self.register_buffer("mean", torch.randn(8))
        self.register_buffer("var", torch.rand(8) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        one = F.batch_norm(F.conv2d(x, self.one), self.mean, self.var).relu()
        return torch.cat([one, F.conv2d(x, self.three, padding=1)], 1)


class Streams(Block):
    """Every branch on a stream of its own."""

    def forward(self, x: Tensor) -> Tensor:
        results = []
        for branch in (self.one, self.two, self.three, self.four):
            with torch.cpu.stream(torch.cpu.Stream()):
                results.append(branch(x))
        torch.cpu.synchronize()
        return torch.cat(results, 1)


class Quantisable(nn.Module):
    """Ready to be quantised, but not quantised."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = torch.ao.quantization.QuantStub(), nn.Identity()
        self.block = Block()
        self.join = torch.ao.nn.quantized.FloatFunctional()

    def forward(self, x: Tensor) -> Tensor:
        return self.dequant(self.join.cat(_branches(self.block, self.quant(x)), 1))


def _branches(m: Block, x: Tensor) -> list[Tensor]:
    return [m.one(x), m.two(x), m.three(x), m.four(x)]


def _random(module: nn.Module) -> nn.Module:
    """Norms with statistics and weights of both signs, so that a wrong fold shows."""
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d) and m.track_running_stats:
            nn.init.uniform_(m.running_mean, -1, 1)
            nn.init.uniform_(m.running_var, 0.5, 2)
            if m.affine:
                nn.init.uniform_(m.weight, -2, 2)
                nn.init.uniform_(m.bias, -1, 1)
    return module.eval()


def _hooked() -> nn.Module:
    block = Block()
    block.two[0].register_forward_hook(lambda *_: None)
    return block


def _reparametrised(change: Callable[[nn.Module], object]) -> nn.Module:
    block = Block()
    change(block.two[1].layers[0])
    return block


def _masked(layer: nn.Module) -> None:
    prune.l1_unstructured(layer, "weight", 0.5)


def _pruned() -> nn.Module:
    block = _reparametrised(_masked)
    prune.remove(block.two[1].layers[0], "weight")
    return block


def _autocast(m: Block, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return torch.cat(_branches(m, x), 1).float()


def _one_norm_missing() -> nn.Module:
    block = Block()
    block.two[1].layers[1] = nn.Identity()
    return block


def _two_names() -> nn.Module:
    block = Block()
    block.again = block.one
    return block


def _called_once() -> nn.Module:
    block = Block(third=lambda: nn.LazyConv2d(8, 3, padding=1))
    block(torch.zeros(1, C, 5, 5))
    return block


class _Scaled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 0.5


class _Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Conv2d(40, 40, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.fc(x.mean((2, 3), keepdim=True)))


_RELU = nn.ReLU(inplace=True)
_POOL = nn.MaxPool2d(3, 1, 1)

FUSED: dict[str, Callable[[], nn.Module]] = {
    "conv, norm, ReLU": Block,
    "conv with bias and ReLU": lambda: Block(unit(order="ca", bias=True)),
    "conv with bias, norm, ReLU": lambda: Block(unit(bias=True)),
    "no activation anywhere": lambda: Block(unit(order="cn")),
    "one norm missing": _one_norm_missing,
    "ReLU once after the cat": lambda: Block(unit(order="cn"), behind=nn.ReLU()),
    "ReLU once after the cat, a pool concatenated": lambda: Written(
        lambda m, x: F.relu(torch.cat([m.one(x), m.two(x), F.max_pool2d(x, 3, 1, 1)], 1)),
        unit=unit(order="cn"),
    ),
    "ReLU after the reduces only": lambda: Written(
        lambda m, x: torch.cat(
            [m.one(x), m.two[1](F.relu(m.two[0](x))), m.three[1](F.relu(m.three[0](x))), m.four(x)],
            1,
        ),
        unit=unit(order="cn"),
    ),
    "functional ReLU, in place": lambda: Block(unit(order="cna", act=lambda: nn.ReLU(True))),
    "one ReLU object for all": lambda: Block(unit(act=lambda: _RELU)),
    "clamp(min=0) for ReLU": lambda: Written(
        lambda m, x: torch.cat([b.clamp(min=0) for b in _branches(m, x)], 1),
        unit=unit(order="cn"),
    ),
    "third branch one 3x3": lambda: Block(third=lambda: nn.Sequential(Conv(C, 8), Conv(8, 8, 3))),
    "third branch two stacked 3x3 of unequal width": lambda: Block(
        third=lambda: nn.Sequential(Conv(C, 5), Conv(5, 7, 3), Conv(7, 9, 3))
    ),
    "1x7 then 7x1": lambda: Block(
        third=lambda: nn.Sequential(
            nn.Conv2d(C, 8, (1, 7), padding=(0, 3)), nn.Conv2d(8, 8, (7, 1), padding=(3, 0))
        )
    ),
    "eps 1e-3": lambda: Block(unit(norm=lambda c: nn.BatchNorm2d(c, eps=1e-3))),
    "eps 32": lambda: Block(unit(norm=lambda c: nn.BatchNorm2d(c, eps=32))),
    "norm without affine": lambda: Block(unit(norm=lambda c: nn.BatchNorm2d(c, affine=False))),
    "norm without running statistics": lambda: Block(
        unit(norm=lambda c: nn.BatchNorm2d(c, track_running_stats=False))
    ),
    "average pool": lambda: Block(pool=nn.AvgPool2d(3, 1, 1)),
    "average pool, count_include_pad=False": lambda: Block(
        pool=nn.AvgPool2d(3, 1, 1, count_include_pad=False)
    ),
    "pool with ceil_mode at stride 1": lambda: Block(pool=nn.MaxPool2d(3, 1, 1, ceil_mode=True)),
    "pool with ceil_mode at stride 2": lambda: Written(
        lambda m, x: torch.cat([m.three(x), F.max_pool2d(x, 2, 2, ceil_mode=True), m.two(x)], 1),
        third=lambda: Conv(C, 8, 3, stride=2),
        unit=lambda i, o, k=1: Conv(i, o, k, stride=1 + (k == 3)),
    ),
    "response norm in a branch": lambda: Block(
        third=lambda: nn.Sequential(Conv(C, 8), nn.LocalResponseNorm(5), Conv(8, 8, 3))
    ),
    "pool, then 3x3": lambda: Block(
        third=lambda: nn.Sequential(nn.MaxPool2d(3, 1, 1), Conv(C, 8, 3))
    ),
    "cat in another order": lambda: Written(
        lambda m, x: torch.cat(_branches(m, x)[::-1], 1), unit=Conv
    ),
    "torch.concat, dim=-3": lambda: Written(lambda m, x: torch.concat(_branches(m, x), dim=-3)),
    "nested cats": lambda: Written(
        lambda m, x: torch.cat([torch.cat([m.one(x), m.two(x)], 1), m.three(x), m.four(x)], 1)
    ),
    "cat through FloatFunctional": lambda: Written(
        lambda m, x: torch.ao.nn.quantized.FloatFunctional().cat(_branches(m, x), 1)
    ),
    "branches in a plain list": Listed,
    "one module under two names": _two_names,
    "a branch that is not used": lambda: Written(
        lambda m, x: torch.cat([m.one(x), m.two(x), m.four(x)], 1)
    ),
    "conv that pads itself": lambda: Block(unit=SameConv),
    "padding='same'": lambda: Block(unit(padding="same")),
    "branches that share a convolution": lambda: Written(
        lambda m, x: torch.cat([m.two[1](y := m.two[0](x)), m.three[1](y), m.four(x)], 1)
    ),
    "residual add behind the cat": lambda: Written(
        lambda m, x: F.relu(0.5 * torch.cat(_branches(m, x), 1) + torch.cat([x, x, x[:, :8]], 1))
    ),
    "the input added behind the cat": lambda: Written(
        lambda m, x: x + torch.cat([m.three(x), m.four(x)], 1)
    ),
    "scale behind the cat": lambda: Block(behind=_Scaled()),
    "squeeze and excitation": lambda: Block(behind=_Gate()),
    "dropout behind the cat": lambda: Block(behind=nn.Dropout(0.5)),
    "ReLU before the branches": lambda: Written(lambda m, x: torch.cat(_branches(m, F.relu(x)), 1)),
    "ReLU before the branches, in place": lambda: Written(
        lambda m, x: torch.cat(_branches(m, F.relu_(x)), 1)
    ),
    "two blocks written in one forward": lambda: Written(
        lambda m, x: torch.cat(_branches(m, torch.cat(_branches(m, x), 1)[:, :16]), 1)
    ),
    "ReLU on some convolutions only": lambda: Written(
        lambda m, x: torch.cat(
            [m.one(x), m.two[1](F.relu(m.two[0](x))), F.relu(m.three(x)), m.four(x)], 1
        ),
        unit=unit(order="cn"),
    ),
    "branches through a generator": lambda: Written(
        lambda m, x: torch.cat(tuple(b(x) for b in (m.one, m.two, m.three, m.four)), 1)
    ),
    "branches in a container that concatenates": lambda: Concat(
        {"a": Conv(C, 8), "b": nn.Sequential(Conv(C, 4), Conv(4, 8, 5))}
    ),
    "branch that ends in a module that concatenates": lambda: Concat(
        {
            "a": Conv(C, 8),
            "b": nn.Sequential(
                Conv(C, 6), Concat({"c": Conv(6, 4), "d": nn.Sequential(Conv(6, 5, 3))})
            ),
        }
    ),
    "one pool object for all": lambda: Block(
        pool=_POOL, third=lambda: nn.Sequential(_POOL, Conv(C, 8))
    ),
    "parameters of its own, no layers": Bare,
    "pool without padding, 1x1 with padding 1": lambda: Block(
        third=lambda: nn.Sequential(nn.MaxPool2d(3, 1), Conv(C, 8, padding=1))
    ),
    "stride 2, pool concatenated": lambda: Written(
        lambda m, x: torch.cat([m.three(x), F.max_pool2d(x, 3, 2, 1), m.two(x)], 1),
        third=lambda: Conv(C, 8, 3, stride=2),
        unit=lambda i, o, k=1: Conv(i, o, k, stride=1 + (k == 3)),
    ),
    "branches on streams of their own": Streams,
    "branches under checkpoint": lambda: Written(
        lambda m, x: torch.cat(
            [checkpoint(b, x, use_reentrant=False) for b in (m.one, m.two, m.three, m.four)], 1
        )
    ),
    "quantisation stubs": Quantisable,
    "pruned with a mask, made permanent": _pruned,
    "lazy layers after a first call": _called_once,
    "pruned, odd widths": lambda: Block(
        third=lambda: nn.Sequential(Conv(C, 3), Conv(3, 5, 5), Conv(5, 1))
    ),
}

REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "LeakyReLU": (lambda: Block(unit(act=lambda: nn.LeakyReLU(0.1))), "LeakyReLU"),
    "ReLU6": (lambda: Block(unit(act=nn.ReLU6)), "ReLU6"),
    "GELU": (lambda: Block(unit(act=nn.GELU)), "GELU"),
    "Tanh": (lambda: Block(unit(act=nn.Tanh)), "Tanh"),
    "SiLU": (lambda: Block(unit(act=nn.SiLU)), "SiLU"),
    "conv, ReLU, norm": (lambda: Block(unit(order="can")), "a batch norm after aten.relu"),
    "norm, ReLU, conv": (lambda: Block(unit(order="nac")), "before any convolution"),
    "GroupNorm": (lambda: Block(unit(norm=lambda c: nn.GroupNorm(1, c))), "native_group_norm"),
    "grouped": (lambda: Block(unit(groups=2)), "groups"),
    "dilated": (
        lambda: Block(third=lambda: Conv(C, 8, 3, padding=2, dilation=2)),
        "dilation",
    ),
    "reflect padding": (lambda: Block(unit(padding_mode="reflect")), "reflection_pad2d"),
    "asymmetric padding": (
        lambda: Block(third=lambda: nn.Sequential(SameConv(C, 8, 3, odd=True))),
        "symmetric zero padding",
    ),
    "cat along the height": (
        lambda: Written(lambda m, x: torch.cat([m.one(x), m.one(x)], 2)),
        "dimension 2",
    ),
    "hook on an inner layer": (_hooked, "hooks"),
    "weight_norm": (lambda: _reparametrised(parametrizations.weight_norm), "computed"),
    "spectral_norm": (lambda: _reparametrised(parametrizations.spectral_norm), "computed"),
    "weight_norm by a hook": (lambda: _reparametrised(torch.nn.utils.weight_norm), "hooks"),
    "parametrised weight": (
        lambda: _reparametrised(lambda c: register_parametrization(c, "weight", nn.Hardtanh())),
        "computed",
    ),
    "pruned with a mask": (lambda: _reparametrised(_masked), "hooks"),
    "instance norm": (lambda: Block(unit(norm=nn.InstanceNorm2d)), "aten.view"),
    "a branch that is also returned": (
        lambda: Written(lambda m, x: (torch.cat([y := m.one(x), m.two(x)], 1), y)),
        "does not return one tensor",
    ),
    "autocast inside": (
        lambda: Written(lambda m, x: _autocast(m, x)),
        "aten._to_copy",
    ),
    "a GELU and squeeze and excitation": (
        lambda: Block(unit(act=nn.GELU), behind=_Gate()),
        "GELU",
    ),
    "lazy layers": (
        lambda: Block(third=lambda: nn.LazyConv2d(8, 3, padding=1)),
        "not initialised",
    ),
    "depends on the size": (
        lambda: Written(lambda m, x: torch.cat(_branches(m, x)[: 4 if x.shape[2] > 10 else 3], 1)),
        "depends on the size",
    ),
    "depends on values": (
        lambda: Written(lambda m, x: torch.cat(_branches(m, x), 1) if x.sum() > 0 else x),
        "depends on the values",
    ),
    "stores state": (
        lambda: Written(lambda m, x: setattr(m, "last", x) or torch.cat(_branches(m, x), 1)),
        "stores state",
    ),
    "one branch is a part of another": (
        lambda: Written(lambda m, x: torch.cat([m.two[1](y := m.two[0](x)), y, m.one(x)], 1)),
        "a part of another",
    ),
    "branches that share a convolution, apart in the cat": (
        lambda: Written(
            lambda m, x: torch.cat([m.two[1](y := m.two[0](x)), m.one(x), m.three[1](y)], 1)
        ),
        "not next to each other",
    ),
    "computed weights": (
        lambda: Written(
            lambda m, x: torch.cat([m.two(x), F.conv2d(x, m.one.layers[0].weight * 2)], 1)
        ),
        "computed",
    ),
}


def make(name: str) -> nn.Module:
    """The named model in eval mode, with norms that are not the identity."""
    torch.manual_seed(0)
    return _random(FUSED[name]() if name in FUSED else REFUSED[name][0]())
