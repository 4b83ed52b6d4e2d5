"""Which modules of a model are Inception modules, and why the others that come close are not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from . import reference, weights
from .match import Match, Source, match
from .outline import Outline, Site, outline, sites
from .plan import lower
from .trace import FUSION, Refused, all_modules, evaluating, names_in_code, places, trace

_PROBES = (
    (2, 14, 14, torch.contiguous_format),
    (1, 9, 11, torch.contiguous_format),
    (2, 14, 14, torch.channels_last),
    (257, 229, 231, torch.contiguous_format),
)
"""Batch, height, width and memory format of the inputs that a module is traced with.

The last one is large, for a forward that does something else with large inputs.
"""

_SIZES = (14, 32, 64, 96, 128, 224, 256, 299, 448)
"""Height and width of the inputs that a whole network may want."""

_CHANNELS_TRIED = 4

_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest difference from the original that the gate lets through, relative to its maximum."""


@dataclass(frozen=True, slots=True)
class Found:
    """A verdict on one module: ``match`` if it can be fused, else the ``reason`` why not.

    ``outline`` is given if the module is a part of the forward of another, ``outline.owner``.
    """

    name: str
    module: nn.Module
    match: Match | None
    reason: str = ""
    checked: bool = True
    outline: Outline | None = None


def find(model: nn.Module, example_input: Tensor | None = None) -> list[Found]:
    """Verdicts on the modules of the model that are, or come close to, an Inception module.

    The innermost module that matches is taken. A module inside or around another one of the list
    is not listed again.

    Args:
        example_input: an input of the model, for modules whose input the probes cannot guess;
            the model is then run once on it.
    """
    shapes = _shapes(model, example_input) if example_input is not None else {}
    found: list[Found] = []
    _visit("", model, shapes, set(), found)
    return found


def examine(
    module: nn.Module, name: str = "", shape: Any = None, channels: int | None = None
) -> Found | None:
    """The verdict on this one module, as if nothing were around it; None if it has no cat at all.

    Args:
        shape: (N, C, H, W) of an input that it is known to take.
        channels: of its input, if they are known.
    """
    reason = _forbidden(module)
    if reason is not None and not _mentions_cat(module):
        return None
    if reason is None:
        try:
            matched, cats = _probe(module, shape, [channels] if channels else None)
            if not cats:
                return None
            assert matched is not None
            return Found(name, module, matched, checked=_gate(module, matched))
        except Refused as error:
            if error.args[-1] is None:
                return None
            reason = str(error.args[0])
    return Found(name, module, None, reason)


def _visit(
    name: str, module: nn.Module, shapes: dict[int, Any], seen: set[int], found: list[Found]
) -> bool:
    """Visits children first; returns whether anything at or below the module was listed."""
    if id(module) in seen:
        return False
    seen.add(id(module))
    fusion = module.__dict__.get(FUSION)
    if fusion is not None and not isinstance(fusion, Outline):
        found.append(Found(name, module, fusion.match))
        return True
    below = False
    for child_name, child in _children(module):
        below |= _visit(_join(name, child_name), child, shapes, seen, found)
    if fusion is not None:
        for region in fusion.regions:
            match_ = region.__dict__[FUSION].match
            found.append(Found(_join(name, region.place), region, match_, outline=fusion))
        return True
    if _convolution_count(module) < 2:
        return below
    shape = shapes.get(id(module))
    verdict = None if below else examine(module, name, shape)
    if verdict is None or verdict.match is None:
        try:
            parts = _parts(module, name, shape)
        except Refused as error:
            parts = []
            if verdict is not None and str(error) != verdict.reason:
                verdict = replace(verdict, reason=f"{verdict.reason}, and {error}")
        if any(part.match for part in parts) or (parts and verdict is not None):
            found += parts
            return True
    if verdict is not None:
        found.append(verdict)
    return below or verdict is not None


def _join(name: str, child: str) -> str:
    return f"{name}.{child}" if name else child


def _parts(module: nn.Module, name: str, shape: Any) -> list[Found]:
    """Verdicts on the parts of the module's own forward; all can be fused, or none.

    Raises:
        Refused: the forward cannot be rewritten.
    """
    if not _mentions_cat(module) or _forbidden(module) is not None:
        return []
    guesses = [(2, c, size, size) for size in _SIZES for c in _channel_guesses(module)]
    chosen: list[tuple[Site, Found]] = []
    refused: list[Found] = []
    taken: set[Any] = set()
    for site in sites(module, [shape] if shape else guesses):
        if taken & site.nodes or _convolution_count(site.region) < 2:
            continue
        verdict = examine(site.region, _join(name, site.name), channels=site.channels)
        if verdict is not None and verdict.match is not None:
            chosen.append((site, verdict))
            taken |= site.nodes
        elif verdict is not None:
            refused.append(verdict)
    if not chosen:
        return refused[::-1]
    chosen.reverse()
    made = outline(module, [site for site, _ in chosen])
    _check_outline(module, made)
    return [replace(verdict, outline=made) for _, verdict in chosen]


def _check_outline(module: nn.Module, made: Outline) -> None:
    """Runs the original and the rewritten forward on random numbers.

    Raises:
        Refused: they differ.
    """
    modules = all_modules(module)
    x = _random_input(modules, made.shape)
    if x is None:
        return
    try:
        with torch.no_grad(), evaluating(modules):
            wanted = type(module).forward(module, x.clone())
            got = made.run(x.clone())
        torch.testing.assert_close(got, wanted, rtol=0, atol=0, equal_nan=True)
    except Exception as error:
        text = str(error).strip().partition("\n")[0]
        raise Refused(f"the check of the rewritten forward failed: {text}") from error


def _children(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    yield from ((n, c) for n, c in module._modules.items() if c is not None)
    for name, value in module.__dict__.items():
        if name.startswith("_"):
            continue
        items: Iterable[tuple[Any, Any]] = ((None, value),)
        if isinstance(value, dict):
            items = value.items()
        elif isinstance(value, (list, tuple)):
            items = enumerate(value)
        for key, item in items:
            if isinstance(item, nn.Module):
                yield (name if key is None else f"{name}[{key!r}]"), item


def _weights(module: nn.Module) -> Iterator[tuple[nn.Module, Tensor]]:
    for owner in all_modules(module):
        for tensor in owner._parameters.values():
            if tensor is not None and (_lazy(tensor) or tensor.dim() == 4):
                yield owner, tensor


def _lazy(tensor: Tensor) -> bool:
    return nn.parameter.is_lazy(tensor)


def _convolution_count(module: nn.Module) -> int:
    return sum(1 for _ in _weights(module))


def _forbidden(module: nn.Module) -> str | None:
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
    for channels in [shape[1]] if shape else guesses or _channel_guesses(module):
        n, h, w = _PROBES[0][:3] if shape is None else (shape[0], *shape[2:])
        try:
            first = trace(module, (n, channels, h, w), mode)
            break
        except Refused as error:
            failure = failure or error
    if first is None:
        if failure is None:
            raise Refused("it has no convolution", None)
        close = _mentions_cat(module) or "values of a tensor" in str(failure)
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


def _mentions_cat(module: nn.Module) -> bool:
    """Whether the code of a module that cannot be traced may concatenate."""
    return bool(names_in_code(type(module)) & {"cat", "concat", "concatenate", "hstack"})


def _channel_guesses(module: nn.Module) -> list[int]:
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


def _gate(module: nn.Module, matched: Match) -> bool:
    """Runs the original and the plan on random numbers; False if that is not possible.

    Raises:
        Refused: they differ.
    """
    modules = all_modules(module)
    n, h, w, _ = _PROBES[1]
    x = _random_input(modules, (n, matched.spec.in_channels, h, w))
    if x is None:
        return False
    try:
        with torch.no_grad(), evaluating(modules):
            wanted = type(module).forward(module, x.clone())
            got = reference.run(lower(matched.spec), x, *fold_all(matched.sources))
    except (RuntimeError, ValueError) as error:
        raise Refused(f"the check against the original failed: {error}") from error
    if got.shape != wanted.shape:
        raise Refused(f"the fused module gives {tuple(got.shape)}, not {tuple(wanted.shape)}")
    if not bool(wanted.isfinite().all()) or not bool(got.isfinite().all()):
        return False
    scale = float(wanted.abs().max())
    difference = float((got - wanted).abs().max())
    if difference > _TOLERANCE[x.dtype] * scale:
        raise Refused(f"the fused result differs by {difference:.3g} (maximum {scale:.3g})")
    return True


def _random_input(modules: list[nn.Module], shape: tuple[int, ...]) -> Tensor | None:
    """Random numbers of the modules' dtype and device; None if a tensor of theirs has no values."""
    tensors = [p.tensor() for p in places(modules).values()]
    if any(t is None or t.is_meta or type(t) not in (Tensor, nn.Parameter) for t in tensors):
        return None
    like = next(t for t in tensors if t is not None and t.is_floating_point())
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator).to(like)


def _shapes(model: nn.Module, example_input: Tensor) -> dict[int, Any]:
    """The shape of the first input of every module that gets one 4-D tensor."""
    shapes: dict[int, Any] = {}

    def note(module: nn.Module, args: tuple[Any, ...]) -> None:
        if len(args) == 1 and isinstance(args[0], Tensor) and args[0].dim() == 4:
            shapes.setdefault(id(module), tuple(args[0].shape))

    modules = all_modules(model)
    handles = [m.register_forward_pre_hook(note) for m in modules]
    try:
        with torch.no_grad(), evaluating(modules):
            model(example_input)
    finally:
        for handle in handles:
            handle.remove()
    return shapes
