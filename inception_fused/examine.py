"""The verdict on one module: traced with probes, matched, and checked against the original."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from . import reference, training, weights
from .lower import lower
from .match import Match, Source, match
from .network import match_network
from .ops import allows_tf32
from .outline import Outline
from .trace import Refused, all_modules, evaluating, names_in_code, originals, places, trace

_PROBES = (
    (2, 14, 14, torch.contiguous_format),
    (1, 9, 11, torch.contiguous_format),
    (2, 14, 14, torch.channels_last),
    (257, 229, 231, torch.contiguous_format),
)
"""Batch, height, width and memory format of the inputs that a module is traced with.

The last one is large, for a forward that does something else with large inputs.
"""

NETWORK_SIZES = (64, 96, 128, 224, 256, 299, 448, 32, 14)
"""Height and width of the inputs that a whole network may want, in the order of trying."""

_CHANNELS_TRIED = 4

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest difference from the original that is let through, relative to its maximum."""


def tolerance(x: Tensor) -> float:
    """That for such a tensor; TF32, which convolutions on a GPU may use, rounds as float16 does."""
    if x.is_cuda and x.dtype is torch.float32 and allows_tf32():
        return TOLERANCE[torch.float16]
    return TOLERANCE[x.dtype]


@dataclass(frozen=True, slots=True)
class Found:
    """A verdict on one module: ``match`` if it can be fused, else the ``reason`` why not.

    ``outline`` is given if the module is a part of the forward of another, ``outline.owner``.
    ``network`` says that it is about all that the module computes, with fused modules inside.
    """

    name: str
    module: nn.Module
    match: Match | None
    reason: str = ""
    checked: bool = True
    outline: Outline | None = None
    network: bool = False

    @property
    def owner(self) -> nn.Module:
        """The module of the model that is changed if this is fused."""
        return self.outline.owner if self.outline else self.module


def examine(
    module: nn.Module, name: str = "", shape: Any = None, channels: int | None = None
) -> Found | None:
    """The verdict on this one module, as if nothing were around it; None if it has no cat at all.

    Args:
        shape: (N, C, H, W) of an input that it is known to take.
        channels: of its input, if they are known.
    """
    reason = forbidden(module)
    if reason is not None and not mentions_cat(module):
        return None
    if reason is None:
        try:
            matched, cats = _probe(module, shape, [channels] if channels else None)
            if not cats:
                return None
            assert matched is not None
            n, h, w, _ = _PROBES[1]
            checked = gate(module, matched, (n, matched.spec.in_channels, h, w))
            return Found(name, module, matched, checked=checked)
        except Refused as error:
            if error.args[-1] is None:
                return None
            reason = str(error.args[0])
    return Found(name, module, None, reason)


def examine_network(module: nn.Module, name: str = "", shape: Any = None) -> Found:
    """The verdict on a module with Inception modules inside: whether it can run as one plan.

    Args:
        shape: (N, C, H, W) of an input that it is known to take.
    """
    if (reason := forbidden(module)) is not None:
        return Found(name, module, None, reason, network=True)
    try:
        matched, size = _probe_network(module, shape)
        checked = gate(module, matched, (1, matched.spec.in_channels, *size))
    except Refused as error:
        return Found(name, module, None, str(error.args[0]), network=True)
    return Found(name, module, matched, checked=checked, network=True)


def _probe_network(module: nn.Module, shape: Any) -> tuple[Match, tuple[int, int]]:
    """The match on which all probes agree, and the height and width of the first.

    Raises:
        Refused: with the reason.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    guesses = [(2, c, s, s) for s in NETWORK_SIZES for c in channel_guesses(module)]
    first = None
    failure: Refused | None = None
    for n, c, height, width in [shape] if shape else guesses:
        try:
            first = trace(module, (n, c, height, width), mode)
            break
        except Refused as error:
            failure = failure or error
    if first is None:
        raise failure or Refused("it has no convolution")
    matched = match_network(first)
    agree = [trace(module, (1, c, height, width), mode, torch.channels_last)]
    many = _PROBES[-1][0]
    try:
        agree.append(trace(module, (many, c, height + 9, width + 14), mode))
    except Refused as error:  # its classifier may want one size; where that is left is seen
        if not matched.flat:
            raise Refused(f"it takes images of {height}x{width} pixels alone") from error
        agree.append(trace(module, (many, c, height, width), mode))
    if any(match_network(t) != matched for t in agree):
        raise Refused("its forward depends on the size or the memory format of its input")
    return matched, (height, width)


def _weights(module: nn.Module) -> Iterator[tuple[nn.Module, Tensor]]:
    for owner in all_modules(module):
        for tensor in owner._parameters.values():
            if tensor is not None and (_lazy(tensor) or tensor.dim() == 4):
                yield owner, tensor


def _lazy(tensor: Tensor) -> bool:
    return nn.parameter.is_lazy(tensor)


def convolution_count(module: nn.Module) -> int:
    return sum(1 for _ in _weights(module))


def forbidden(module: nn.Module) -> str | None:
    """A reason that can be seen without running anything."""
    for m in all_modules(module):
        kind = type(m).__name__
        if isinstance(m, torch.jit.ScriptModule):
            return "it is, or holds, a ScriptModule; fuse before scripting"
        if getattr(m, "_compiled_call_impl", None) is not None or kind == "OptimizedModule":
            return "it is, or holds, a compiled module; fuse before compiling"
        if any(t is not None and _lazy(t) for t in m._parameters.values()):
            return f"its {kind} is not initialised yet; run the model once, then fuse"
        if m is not module and (
            m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks
        ):
            return f"its {kind} has hooks, which would not run"
        if m is not module and "forward" in m.__dict__:
            return f"the forward of its {kind} is replaced on the instance"
    if "forward" in module.__dict__:
        return "its forward is replaced on the instance"
    return None


def _probe(module: nn.Module, shape: Any, guesses: list[int] | None) -> tuple[Match | None, bool]:
    """The match on which all probes agree, and whether a concatenation was seen at all.

    Raises:
        Refused: its last argument is None if the module is nothing like an Inception module.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    first = None
    failure: Refused | None = None
    for channels in [shape[1]] if shape else guesses or channel_guesses(module):
        n, h, w = _PROBES[0][:3] if shape is None else (shape[0], *shape[2:])
        try:
            first = trace(module, (n, channels, h, w), mode)
            break
        except Refused as error:
            failure = failure or error
    if first is None:
        if failure is None:
            raise Refused("it has no convolution", None)
        close = mentions_cat(module) or "values of a tensor" in str(failure)
        raise Refused(str(failure), "a near miss" if close else None)
    if not first.cats:
        return None, False
    matched = match(first)
    channels = first.input.shape[1]
    for n, h, w, memory_format in _PROBES[1:] if shape is None else ():
        again = match(trace(module, (n, channels, h, w), mode, memory_format))
        if again != matched:
            raise Refused("its forward depends on the size or the memory format of its input")
    return matched, True


def mentions_cat(module: nn.Module) -> bool:
    """Whether the code of a module that cannot be traced may concatenate."""
    return bool(names_in_code(type(module)) & {"cat", "concat", "concatenate", "hstack"})


def layers_alone(module: nn.Module) -> bool:
    """Whether the module is made of torch's own layers and containers, none of which concatenates.

    What is written by someone else may concatenate in a function that its code calls.
    """
    return all(type(m).__module__.startswith("torch.nn.") for m in all_modules(module))


def channel_guesses(module: nn.Module) -> list[int]:
    guesses: dict[int, None] = {}
    for owner, tensor in _weights(module):
        if not _lazy(tensor):
            guesses[tensor.shape[1] * int(getattr(owner, "groups", 1))] = None
    return list(guesses)[:_CHANNELS_TRIED]


def parameters_of(source: Source) -> tuple[Tensor, Tensor | None, weights.Norm | None]:
    """The tensors that are at the places of a source now, as arguments of ``weights.fold``."""
    weight = source.weight.tensor()
    assert weight is not None
    bias = source.bias.tensor() if source.bias else None
    if (n := source.norm) is None:
        return weight, bias, None
    assert n.mean is not None
    assert n.var is not None
    mean, var = n.mean.tensor(), n.var.tensor()
    assert mean is not None
    assert var is not None
    norm = weights.Norm(
        mean,
        var,
        n.gamma.tensor() if n.gamma else None,
        n.beta.tensor() if n.beta else None,
        n.eps if n.eps_owner is None else float(n.eps_owner.__dict__["eps"]),
    )
    return weight, bias, norm


def fold_all(sources: tuple[Source, ...]) -> tuple[list[Tensor], list[Tensor]]:
    """Weights and biases of all convolutions, norms folded, from what the modules hold now."""
    folded = [weights.fold(*parameters_of(s)) for s in sources]
    return [w for w, _ in folded], [b for _, b in folded]


def gate(module: nn.Module, matched: Match, shape: tuple[int, ...], as_set: bool = False) -> bool:
    """Runs the original and the plan on random numbers; False if that is not possible.

    Args:
        shape: (N, C, H, W) of the input.
        as_set: with the flags ``training`` as they are, instead of in eval mode.

    Raises:
        Refused: they differ.
    """
    modules = all_modules(module)
    x = random_input(modules, shape)
    if x is None:
        return False
    try:
        flags = evaluating([] if as_set else modules)
        with torch.no_grad(), flags, originals(modules):
            with _own_buffers(modules) as wanted_buffers:
                wanted = type(module).forward(module, x.clone())
            with _own_buffers(modules) as buffers:
                got = _run(matched, x)
        got = got.flatten(1) if matched.flat else got
    except (RuntimeError, ValueError) as error:
        raise Refused(f"the check against the original failed: {error}") from error
    if got.shape != wanted.shape:
        raise Refused(f"the fused module gives {tuple(got.shape)}, not {tuple(wanted.shape)}")
    if not bool(wanted.isfinite().all()) or not bool(got.isfinite().all()):
        return False
    for what, ours, theirs in (
        ("result", got, wanted),
        *(
            (f"buffer {name}", b, t)
            for (name, b), (_, t) in zip(buffers, wanted_buffers, strict=True)
        ),
    ):
        scale = float(theirs.abs().max())
        difference = float((ours - theirs).abs().max())
        if difference > tolerance(x) * scale:
            raise Refused(f"the fused {what} differs by {difference:.3g} (maximum {scale:.3g})")
    return True


def _run(matched: Match, x: Tensor) -> Tensor:
    plan = lower(matched.spec)
    if not matched.batch:
        return reference.run(plan, x, *fold_all(matched.sources))
    tensors, norms = training.parameters_of(matched.sources), training.norms_of(matched.sources)
    return training.run(plan, x, tensors, norms, training.Operators())


@contextmanager
def _own_buffers(modules: list[nn.Module]) -> Iterator[list[tuple[str, Tensor]]]:
    """Copies in the place of all buffers of the modules, which are put back; gives the copies."""
    kept = [(m._buffers, m._buffers.copy()) for m in modules]
    copies: list[tuple[str, Tensor]] = []
    for buffers, before in kept:
        for name, tensor in before.items():
            if tensor is not None:
                buffers[name] = own = tensor.clone()
                if own.numel():
                    copies.append((name, own))
    try:
        yield copies
    finally:
        for buffers, before in kept:
            buffers.update(before)


def random_input(modules: list[nn.Module], shape: tuple[int, ...]) -> Tensor | None:
    """Random numbers of the modules' dtype and device; None if a tensor of theirs has no values."""
    tensors = [p.tensor() for p in places(modules).values()]
    if any(t is None or t.is_meta or type(t) not in (Tensor, nn.Parameter) for t in tensors):
        return None
    like = next(t for t in tensors if t is not None and t.is_floating_point())
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator).to(like)
