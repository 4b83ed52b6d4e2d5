"""From the record of a forward to a spec and to the places of its parameters."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

from torch import nn

from .spec import Activation, Branch, Fork, Kind, Response, Spec, Stage
from .trace import Place, Refused, Trace, Value


@dataclass(frozen=True, slots=True)
class NormSource:
    """Where a batch norm finds its tensors. ``gamma`` and ``beta`` may be missing.

    ``eps_owner`` is the module whose attribute ``eps`` is read on every call; None: ``eps`` holds.
    ``batch`` says that it normalises by the statistics of the batch; then ``mean`` and ``var`` are
    what it updates, and may be missing, too.
    """

    mean: Place | None
    var: Place | None
    gamma: Place | None
    beta: Place | None
    eps: float
    eps_owner: nn.Module | None
    batch: bool = False


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
    """A spec, and the source of each of its convolutions in the order of the spec.

    ``flat``: the output is (N, C), which a spec gives as (N, C, 1, 1).
    """

    spec: Spec
    sources: tuple[Source, ...]
    flat: bool = False

    @property
    def batch(self) -> bool:
        """Whether a norm uses the statistics of the batch."""
        return any(s.norm is not None and s.norm.batch for s in self.sources)


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
    output, relu = _peel(output)
    if output.op != "cat":
        raise Refused(f"its output comes from {describe(output)}, not from a concatenation")
    if len(output.shape) != 4:
        raise Refused(f"its output has {len(output.shape)} dimensions")
    branches, sources = _branches(chains_of(output, source, relu))
    spec = Spec(source.shape[1], branches)
    check_worthwhile(spec.branches)
    return Match(spec, tuple(sources))


def chains_of(cat: Value, source: Value, relu: bool) -> list[list[Value]]:
    """The operators of each concatenated branch, the source's reader first.

    Args:
        relu: whether a ReLU follows the concatenation.
    """
    return [
        _chain(leaf, source) + ([Value("relu")] if with_relu else [])
        for leaf, with_relu in _leaves(cat, relu)
    ]


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
        stages, found = match_chain(group[0][:common])
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


def check_worthwhile(branches: tuple[Branch, ...]) -> None:
    """Raises Refused unless these are the branches of an Inception module."""
    kinds = [*_kinds(branches)]
    if sum(bool(k & {Kind.POINTWISE, Kind.CONV}) for k in kinds) < 2:
        raise Refused("fewer than two branches have a convolution")
    if not any(Kind.CONV in k for k in kinds):
        raise Refused("no branch has a convolution larger than 1x1")


def _kinds(branches: tuple[Branch, ...]) -> Iterator[set[Kind]]:
    """For each way to the concatenated outputs the kinds of its stages."""
    for branch in branches:
        stages = {item.kind for item in branch if isinstance(item, Stage)}
        if isinstance(branch[-1], Fork):
            yield from (stages | kinds for kinds in _kinds(branch[-1].branches))
        else:
            yield stages


def describe(value: Value) -> str:
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
    while is_relu(value) or keeps_values(value):
        relu |= is_relu(value)
        value = value.args[0]
    return value, relu


def keeps_values(value: Value) -> bool:
    """Whether the operator hands its tensor on, (N, C, 1, 1) perhaps as (N, C)."""
    if value.op == "as_strided_":  # of adaptive pools to one pixel, for their memory format
        n, c, *image = value.args[0].shape
        layout = [*map(list, value.args[1:])]
        return image == [1, 1] and layout == [[n, c, 1, 1], [c, 1, c, c]]
    if value.op in ("view", "_unsafe_view", "squeeze", "flatten"):
        before = value.args[0].shape
        return bool(value.shape in (before, before[:2] if before[2:] == (1, 1) else before))
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
            raise Refused(f"a branch reads {describe(value)} instead of the common input")
        found, value = step_back(value)
        if found is not None:
            chain.append(found)
    if not chain:
        raise Refused("a branch passes the input on unchanged")
    return chain[::-1]


def step_back(value: Value) -> tuple[Value | None, Value]:
    """The operator that gave a value, None if it keeps the values, and the value that it read.

    Several of ATen's are one here: ``linear`` (x, weight, bias) and ``local_response_norm`` (x, a
    :class:`Response`).
    """
    if keeps_values(value):
        return None, value.args[0]
    if value.op in ("addmm", "mm"):
        found = _linear(value)
    elif value.op == "div" and (response := _response(value)) is not None:
        found = response
    else:
        found = value
    tensors = [a for a in found.args if isinstance(a, Value)]
    if not tensors or found.args[0] is not tensors[0]:
        raise Refused(f"a branch contains {describe(value)}")
    return found, tensors[0]


def _linear(value: Value) -> Value:
    """``x @ weight.t() + bias`` of a linear layer."""
    bias, x, transposed = value.args if value.op == "addmm" else (None, *value.args)
    if any(v != 1 for v in (value.kwargs or {}).values()) or transposed.op != "t":
        raise Refused(f"a branch contains {describe(value)}")
    return Value("linear", (x, transposed.args[0], bias), shape=value.shape)


def _response(value: Value) -> Value | None:
    """``F.local_response_norm``, taken from its last operator, a division; None if it is another.

    x / (k + alpha * mean of squares) ** beta, the mean by an average pool over padded channels.
    """
    x, *path = value.args
    found: dict[str, Any] = {}
    for op, argument in (("pow", "beta"), ("add", "k"), ("mul", "alpha")):
        if len(path) != 1 or not isinstance(path[0], Value) or path[0].op != op:
            return None
        *path, found[argument] = path[0].args
    at = path[0]
    for op in ("view", "squeeze", "avg_pool3d", "constant_pad_nd", "view", "mul"):
        if not isinstance(at, Value) or at.op != op:
            return None
        found[op] = at.args[1:]
        at = at.args[0]
    kernel, *rest = found["avg_pool3d"]
    pads, *fill = found["constant_pad_nd"]
    size = kernel[0]
    plain = (
        at is x
        and found["mul"] == (x,)
        and len(x.shape) == 4
        and list(kernel[1:]) == [1, 1]
        and [list(r) for r in rest] == [[1, 1, 1]]
        and list(pads) == [0, 0, 0, 0, size // 2, (size - 1) // 2]
        and fill in ([], [0.0])
    )
    factors = (found["alpha"], found["beta"], found["k"])
    if not plain or not all(isinstance(f, (int, float)) and 0 <= f < math.inf for f in factors):
        return None
    response = Response(size, *map(float, factors))
    return Value("local_response_norm", (x, response), shape=value.shape)


def _pair(value: Any) -> tuple[int, int]:
    pair = tuple(value)
    return pair if len(pair) == 2 else (pair[0], pair[0])


def match_chain(chain: list[Value]) -> tuple[Branch, list[Source]]:
    """The stages and forks of operators in a row, and the sources of their convolutions.

    Beside ATen's operators there may be those of :func:`step_back` and ``fork`` (chains,).
    """
    stages: list[Stage | Fork] = []
    sources: list[Source] = []
    pad = (0, 0)
    before: Value | None = None
    for value in chain:
        if pad != (0, 0) and value.op != "convolution":
            raise Refused(f"zero padding is followed by {describe(value)}, not by a convolution")
        if value.op == "convolution":
            stage, source = _convolution(value, pad)
            stages.append(stage)
            sources.append(source)
            pad = (0, 0)
        elif value.op in _NORMS:
            norm = _norm(value)
            if before is None or before.op != "convolution":
                where = "before any convolution" if before is None else f"after {describe(before)}"
                raise Refused(f"a batch norm {where} cannot be folded into a convolution")
            sources[-1] = replace(sources[-1], norm=norm)
        elif is_relu(value):
            _activate(stages)
        elif value.op in ("max_pool2d_with_indices", "avg_pool2d", "max_pool2d"):
            stages.append(_pool(value))
        elif value.op == "constant_pad_nd":
            pad = _padding(value)
        elif value.op == "fork":
            branches, found = _branches(value.args[0])
            stages.append(Fork(branches))
            sources += found
        elif value.op == "mean":
            stages.append(_mean(value))
        elif value.op == "linear":
            stage, source = _linear_stage(value)
            stages.append(stage)
            sources.append(source)
        elif value.op == "local_response_norm":
            stages.append(Stage(Kind.LRN, 0, response=value.args[1]))
        elif value.op in _ACTIVATIONS:
            raise Refused(f"{describe(value)} is not an activation of any plan (only ReLU is)")
        else:
            raise Refused(f"a branch contains {describe(value)}")
        before = value
    if pad != (0, 0):
        raise Refused("a branch ends in zero padding")
    return tuple(stages), sources


def _activate(stages: list[Stage | Fork]) -> None:
    """Applies ReLU after the stages; max pools commute with it."""
    for i in reversed(range(len(stages))):
        stage = stages[i]
        if isinstance(stage, Fork):
            break
        if stage.kind.has_weight:
            stages[i] = replace(stage, activation=Activation.RELU)
            return
        if stage.kind is not Kind.MAXPOOL:
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
    args = list(value.args)
    if value.op == "_native_batch_norm_legit" and len(args) == 6:  # its overload no_stats
        args[3:3] = None, None
    _, *tensors = args[:5]
    if any(t is not None and t.place is None for t in tensors):
        raise Refused("a tensor of a batch norm is computed, not a parameter")
    gamma, beta, mean, var = (None if t is None else t.place for t in tensors)
    batch = bool(args[5]) if _NORMS[value.op] else value.op == "_batch_norm_with_update"
    if (mean is None or var is None) and not (batch and mean is var):
        raise Refused("a batch norm has no running statistics")
    if batch and mean is not None and not has_stock_forward(mean.owner):
        raise Refused(f"the batch norm {type(mean.owner).__name__} has a forward of its own")
    eps = float(args[-1])
    if not 0 <= eps < math.inf:
        raise Refused(f"the eps of a batch norm is {eps}")
    owner = next((p.owner for p in (mean, gamma, beta) if p is not None), None)
    live = owner is not None and owner.__dict__.get("eps") == eps
    return NormSource(mean, var, gamma, beta, eps, owner if live else None, batch)


def has_stock_forward(module: nn.Module) -> bool:
    """Whether the module updates its running statistics as ``nn.BatchNorm2d`` does."""
    return type(module).forward is nn.modules.batchnorm._BatchNorm.forward


def _mean(value: Value) -> Stage:
    x, dims, *_ = (*value.args, None)
    if {d % 4 for d in dims or ()} != {2, 3} or len(x.shape) != 4 or value.kwargs:
        raise Refused("a mean is not over the pixels of the image")
    return Stage.mean()


def _linear_stage(value: Value) -> tuple[Stage, Source]:
    _, weight, bias = value.args
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.place is None:
            raise Refused(f"the {name} of a linear layer is computed, not a parameter")
    stage = Stage.conv(weight.shape[0], activation=Activation.NONE)
    return stage, Source(weight.place, bias.place if bias is not None else None)


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
        inside = not with_pad and padding != (0, 0)
        kind = Kind.AVGPOOL_INSIDE if inside else Kind.AVGPOOL
    else:
        kind = Kind.MAXPOOL
        dilation, ceil = _with_defaults(args[3:], ((1, 1), False))
        if any(d != 1 for d in _pair(dilation)):
            raise Refused(f"a max pool has dilation {tuple(dilation)}")
        if value.index != 0:
            raise Refused("the indices of a max pool are used")
    return Stage.pool(kind, kernel, stride, padding, ceil)


def _padding(value: Value) -> tuple[int, int]:
    pads = list(value.args[1])
    fill = value.args[2] if len(value.args) > 2 else 0
    left, right, top, bottom = (*pads, 0, 0, 0, 0)[:4]
    if fill != 0 or any(pads[4:]) or left != right or top != bottom or min(left, top) < 0:
        raise Refused(f"F.pad({pads}, value={fill}) is not a symmetric zero padding")
    return top, left
