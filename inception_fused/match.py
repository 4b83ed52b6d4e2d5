"""From the record of a forward to a spec and to the places of its parameters."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

from torch import nn

from .spec import Activation, Branch, Fork, Kind, Spec, Stage
from .trace import Place, Refused, Trace, Value


@dataclass(frozen=True, slots=True)
class NormSource:
    """Where an eval-mode batch norm finds its tensors. ``gamma`` and ``beta`` may be missing.

    ``eps_owner`` is the module whose attribute ``eps`` is read on every fold; None: ``eps`` holds.
    """

    mean: Place
    var: Place
    gamma: Place | None
    beta: Place | None
    eps: float
    eps_owner: nn.Module | None


@dataclass(frozen=True, slots=True)
class Source:
    """Where one convolution of a spec finds its parameters."""

    weight: Place
    bias: Place | None
    norm: NormSource | None = None

    def places(self) -> Iterator[Place]:
        """Every place that is read."""
        n = self.norm
        found = (self.weight, self.bias, *((n.mean, n.var, n.gamma, n.beta) if n else ()))
        return (p for p in found if p is not None)


@dataclass(frozen=True, slots=True)
class Match:
    """A spec, and the source of each of its convolutions in the order of the spec."""

    spec: Spec
    sources: tuple[Source, ...]


_NORMS = {
    "native_batch_norm": True,
    "cudnn_batch_norm": True,
    "miopen_batch_norm": True,
    "_native_batch_norm_legit": True,
    "_native_batch_norm_legit_no_training": False,
    "_batch_norm_no_update": False,
    "_batch_norm_with_update": False,
}
"""Batch norm operators, and whether their sixth argument says that they use batch statistics."""

_ACTIVATIONS = {
    "leaky_relu": "LeakyReLU",
    "hardtanh": "ReLU6 (or another Hardtanh)",
    "gelu": "GELU",
    "tanh": "Tanh",
    "silu": "SiLU",
    "elu": "ELU (or SELU, CELU)",
    "sigmoid": "Sigmoid",
    "hardswish": "Hardswish",
    "hardsigmoid": "Hardsigmoid",
    "mish": "Mish",
    "softplus": "Softplus",
    "_prelu_kernel": "PReLU",
    "rrelu_with_noise": "RReLU",
}

_LAYOUT_ONLY = ("alias", "detach", "clone", "lift_fresh")


def match(trace: Trace) -> Match:
    """Matches a whole forward: one input, branches, one concatenation, perhaps a ReLU behind it.

    Raises:
        Refused: with the reason, if it is anything else.
    """
    if trace.refused:
        raise Refused(trace.refused)
    if not isinstance(trace.output, Value):
        raise Refused("its forward does not return one tensor")
    return match_cat(trace.output, trace.input)


def match_cat(output: Value, source: Value) -> Match:
    """Matches a concatenation, perhaps with a ReLU behind it, whose branches all read source."""
    output, relu_behind = _peel(output)
    if output.op != "cat":
        raise Refused(f"its output comes from {_name(output)}, not from a concatenation")
    chains = [
        _chain(leaf, source) + ([Value("relu")] if relu else [])
        for leaf, relu in _leaves(output, relu_behind)
    ]
    branches, sources = _branches(chains)
    spec = Spec(source.shape[1], branches)
    _check_worthwhile(spec)
    return Match(spec, tuple(sources))


def _branches(chains: list[list[Value]]) -> tuple[tuple[Branch, ...], list[Source]]:
    """The branches of chains that start at one value; a convolution that several share forks."""
    groups: list[list[list[Value]]] = []
    firsts: list[int | None] = []
    for chain in chains:
        first = next((id(v) for v in chain if v.op == "convolution"), None)
        if groups and first is not None and first == firsts[-1]:
            groups[-1].append(chain)
        elif first is not None and first in firsts:
            raise Refused("branches that share a convolution are not next to each other")
        else:
            groups.append([chain])
            firsts.append(first)
    branches: list[Branch] = []
    sources: list[Source] = []
    for group in groups:
        common = len(group[0]) if len(group) == 1 else _common(group)
        stages, found = _stages(group[0][:common])
        sources += found
        if len(group) > 1:
            if any(len(chain) == common for chain in group):
                raise Refused("one branch is a part of another")
            inner, found = _branches([chain[common:] for chain in group])
            sources += found
            branches.append((*stages, Fork(inner)))
        else:
            branches.append(stages)
    return tuple(branches), sources


def _common(chains: list[list[Value]]) -> int:
    """The number of operators that all chains start with."""
    positions = enumerate(zip_longest(*chains))
    apart = (i for i, values in positions if any(v is not values[0] for v in values))
    return next(apart, len(chains[0]))


def _check_worthwhile(spec: Spec) -> None:
    kinds = [{s.kind for s in p} for p in spec.paths()]
    if sum(bool(k & {Kind.POINTWISE, Kind.CONV}) for k in kinds) < 2:
        raise Refused("fewer than two branches have a convolution")
    if not any(Kind.CONV in k for k in kinds):
        raise Refused("no branch has a convolution larger than 1x1")


def _name(value: Value) -> str:
    if value.op in _ACTIVATIONS:
        return f"the activation {_ACTIVATIONS[value.op]}"
    if value.op in ("input", "parameter", "constant"):
        return {"input": "its input", "parameter": "a parameter"}.get(value.op, "a constant")
    return f"aten.{value.op}" if "." not in value.op else value.op


def is_relu(value: Value) -> bool:
    """Whether the value is a ReLU of its first argument, however that is written."""
    if value.op in ("relu", "relu_"):
        return True
    if value.op in ("clamp", "clamp_", "clamp_min", "clamp_min_"):
        low, high = (*value.args[1:], None, None)[:2]
        kwargs = value.kwargs or {}
        return kwargs.get("min", low) == 0 and kwargs.get("max", high) is None
    if value.op in ("threshold", "threshold_"):
        return value.args[1:3] == (0, 0)
    return False


def _peel(value: Value) -> tuple[Value, bool]:
    """The value behind any ReLU and copy, and whether there was a ReLU."""
    relu = False
    while is_relu(value) or _keeps_values(value):
        relu |= is_relu(value)
        value = value.args[0]
    return value, relu


def _keeps_values(value: Value) -> bool:
    if value.op == "_to_copy":
        given = {k for k, v in (value.kwargs or {}).items() if v is not None}
        return given <= {"memory_format", "non_blocking"}
    return value.op in _LAYOUT_ONLY


def _leaves(cat: Value, relu: bool) -> Iterator[tuple[Value, bool]]:
    """The concatenated values, nested concatenations opened, and whether a ReLU follows."""
    dim = cat.args[1] if len(cat.args) > 1 else (cat.kwargs or {}).get("dim", 0)
    if dim not in (1, -3):
        raise Refused(f"it concatenates along dimension {dim}, not along the channels")
    for part in cat.args[0]:
        inner, inner_relu = _peel(part)
        if inner.op == "cat":
            yield from _leaves(inner, relu or inner_relu)
        else:
            yield part, relu


def _chain(value: Value, source: Value) -> list[Value]:
    """The operators from the source to the value, first one first."""
    chain = []
    while value is not source:
        if value.op in ("input", "parameter", "constant"):
            raise Refused(f"a branch reads {_name(value)} instead of the common input")
        if not _keeps_values(value):
            chain.append(value)
        tensors = [a for a in value.args if isinstance(a, Value)]
        if not tensors or value.args[0] is not tensors[0]:
            raise Refused(f"a branch contains {_name(value)}")
        value = tensors[0]
    if not chain:
        raise Refused("a branch passes the input on unchanged")
    return chain[::-1]


def _pair(value: Any) -> tuple[int, int]:
    pair = tuple(value)
    return pair if len(pair) == 2 else (pair[0], pair[0])


def _stages(chain: list[Value]) -> tuple[tuple[Stage, ...], list[Source]]:
    stages: list[Stage] = []
    sources: list[Source] = []
    pad = (0, 0)
    before: Value | None = None
    for value in chain:
        if pad != (0, 0) and value.op != "convolution":
            raise Refused(f"zero padding is followed by {_name(value)}, not by a convolution")
        if value.op == "convolution":
            stage, source = _convolution(value, pad)
            stages.append(stage)
            sources.append(source)
            pad = (0, 0)
        elif value.op in _NORMS:
            norm = _norm(value)
            if before is None or before.op != "convolution":
                where = "before any convolution" if before is None else f"after {_name(before)}"
                raise Refused(f"a batch norm {where} cannot be folded into a convolution")
            sources[-1] = replace(sources[-1], norm=norm)
        elif is_relu(value):
            _activate(stages)
        elif value.op in ("max_pool2d_with_indices", "avg_pool2d", "max_pool2d"):
            stages.append(_pool(value))
        elif value.op == "constant_pad_nd":
            pad = _padding(value)
        elif value.op in _ACTIVATIONS:
            raise Refused(f"{_name(value)} is not an activation of any plan (only ReLU is)")
        else:
            raise Refused(f"a branch contains {_name(value)}")
        before = value
    if pad != (0, 0):
        raise Refused("a branch ends in zero padding")
    return tuple(stages), sources


def _activate(stages: list[Stage]) -> None:
    """Applies ReLU after the stages; max pools commute with it."""
    for i in reversed(range(len(stages))):
        if not stages[i].kind.is_pool:
            stages[i] = replace(stages[i], activation=Activation.RELU)
            return
        if stages[i].kind is not Kind.MAXPOOL:
            break
    raise Refused("a ReLU does not follow a convolution")


def _convolution(value: Value, pad: tuple[int, int]) -> tuple[Stage, Source]:
    _, weight, bias, stride, padding, dilation, transposed, _, groups = value.args
    if transposed:
        raise Refused("a convolution is transposed")
    if groups != 1:
        raise Refused(f"a convolution has {groups} groups")
    if any(d != 1 for d in dilation):
        raise Refused(f"a convolution has dilation {tuple(dilation)}")
    if len(weight.shape) != 4:
        raise Refused("a convolution is not two-dimensional")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.place is None:
            raise Refused(f"the {name} of a convolution is computed, not a parameter")
    padding = _pair(padding)
    total = (padding[0] + pad[0], padding[1] + pad[1])
    stage = Stage.conv(
        weight.shape[0], tuple(weight.shape[2:]), _pair(stride), total, Activation.NONE
    )
    return stage, Source(weight.place, bias.place if bias is not None else None)


def _norm(value: Value) -> NormSource:
    _, gamma, beta, mean, var, *rest = value.args
    if mean is None or var is None or (_NORMS[value.op] and rest[0]):
        raise Refused("a batch norm uses the statistics of the batch")
    for tensor in (gamma, beta, mean, var):
        if tensor is not None and tensor.place is None:
            raise Refused("a tensor of a batch norm is computed, not a parameter")
    eps = float(rest[-1])
    if not 0 <= eps < math.inf:
        raise Refused(f"the eps of a batch norm is {eps}")
    owner = mean.place.owner
    live = owner.__dict__.get("eps") == eps
    return NormSource(
        mean.place,
        var.place,
        gamma.place if gamma is not None else None,
        beta.place if beta is not None else None,
        eps,
        owner if live else None,
    )


def _with_defaults(args: list[Any], defaults: tuple[Any, ...]) -> list[Any]:
    """ATen drops trailing arguments that have their default."""
    return [*args, *defaults[len(args) :]]


def _pool(value: Value) -> Stage:
    args = list(value.args[1:])
    kernel = _pair(args[0])
    stride = _pair(args[1]) if len(args) > 1 and args[1] else kernel
    padding = _pair(args[2]) if len(args) > 2 else (0, 0)
    average = value.op == "avg_pool2d"
    if average:
        ceil, with_pad, divisor = _with_defaults(args[3:], (False, True, None))
        if divisor is not None:
            raise Refused(f"an average pool has divisor_override={divisor}")
        if not with_pad and padding != (0, 0):
            raise Refused("an average pool has count_include_pad=False")
    else:
        dilation, ceil = _with_defaults(args[3:], ((1, 1), False))
        if any(d != 1 for d in _pair(dilation)):
            raise Refused(f"a max pool has dilation {tuple(dilation)}")
        if value.index != 0:
            raise Refused("the indices of a max pool are used")
    if ceil and stride != (1, 1):
        raise Refused(f"a pool has ceil_mode=True with stride {stride}")
    return Stage.pool(Kind.AVGPOOL if average else Kind.MAXPOOL, kernel, stride, padding)


def _padding(value: Value) -> tuple[int, int]:
    pads = list(value.args[1])
    fill = value.args[2] if len(value.args) > 2 else 0
    left, right, top, bottom = (*pads, 0, 0, 0, 0)[:4]
    if fill != 0 or any(pads[4:]) or left != right or top != bottom or min(left, top) < 0:
        raise Refused(f"F.pad({pads}, value={fill}) is not a symmetric zero padding")
    return top, left
