"""Which modules of a model are Inception modules, and why the others that come close are not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .examine import (
    NETWORK_SIZES,
    Found,
    channel_guesses,
    convolution_count,
    examine,
    examine_network,
    forbidden,
    layers_alone,
    mentions_cat,
    random_input,
)
from .outline import Outline, Site, network_site, outline, sites
from .trace import FUSION, NETWORK, Refused, all_modules, evaluating


def find(
    model: nn.Module, example_input: Tensor | None = None, network: bool = True
) -> list[Found]:
    """Verdicts on the modules of the model that are, or come close to, an Inception module.

    The outermost module that matches is taken. A module inside or around another one of the list
    is not listed again, but for the verdicts of kind ``network``, which come last: the outermost
    modules that can run as one plan with all that is inside, or why the model cannot.

    Args:
        example_input: an input of the model, for modules whose input the probes cannot guess;
            the model is then run once on it.
        network: whether to look for what can run as one around the modules.
    """
    shapes = _shapes(model, example_input) if example_input is not None else {}
    found: list[Found] = []
    _visit("", model, shapes, set(), found)
    fusible = {id(f.module) for f in found if f.match and not f.outline}
    inline = {id(f.owner) for f in found if f.match and f.outline}
    if network and len(found) > 1:
        found += _networks("", model, shapes, fusible, inline)
    return found


def _networks(
    name: str, module: nn.Module, shapes: dict[int, Any], fusible: set[int], inline: set[int]
) -> Iterator[Found]:
    """Verdicts on the outermost modules around what can be fused; a refusal of the model alone.

    Args:
        fusible, inline: ids of the modules that can be fused, and of those with parts that can.
    """
    inside = {id(m) for m in all_modules(module)}
    if id(module) in fusible or not inside & (fusible | inline):
        return
    if (known := module.__dict__.get(NETWORK)) is not None:
        yield Found(name, module, known.match, network=True)
        return
    outlined = module.__dict__.get(FUSION)
    if isinstance(outlined, Outline) and outlined.network:
        (region,) = outlined.regions
        place = _join(name, region.place)
        match_ = region.__dict__[FUSION].match
        yield Found(place, region, match_, outline=outlined, network=True)
        return
    shape = shapes.get(id(module))
    verdict = examine_network(module, name, shape)
    if verdict.match is None and id(module) not in inline:
        verdict = _network_part(module, name, shape) or verdict
    if verdict.match is not None or not name:
        yield verdict
    if verdict.match is None:
        for child_name, child in _children(module):
            yield from _networks(_join(name, child_name), child, shapes, fusible, inline)


def _network_part(module: nn.Module, name: str, shape: Any) -> Found | None:
    """The verdict on the largest part of the module's own forward that can run as one, if any."""
    if forbidden(module) is not None:
        return None
    channels = channel_guesses(module)
    shapes = [shape] if shape else [(2, c, size, size) for size in NETWORK_SIZES for c in channels]
    try:
        found = network_site(module, shapes)
        if found is None:
            return None
        site, region_shape = found
        verdict = examine_network(site.region, _join(name, site.region.place), region_shape)
        if verdict.match is None:
            return None
        made = outline(module, [site], network=True)
        _check_outline(module, made)
    except Refused:
        return None
    return replace(verdict, outline=made)


def _visit(
    name: str, module: nn.Module, shapes: dict[int, Any], seen: set[int], found: list[Found]
) -> bool:
    """Visits the module and its children; returns whether anything at or below it was listed.

    What matches as a whole takes the place of what is inside it.
    """
    if id(module) in seen:
        return False
    seen.add(id(module))
    fusion = module.__dict__.get(FUSION)
    if fusion is not None and not isinstance(fusion, Outline):
        found.append(Found(name, module, fusion.match))
        return True
    start = len(found)
    shape = shapes.get(id(module))
    asked = fusion is None and NETWORK not in module.__dict__ and convolution_count(module) > 1
    concatenates = asked and mentions_cat(module)
    verdict = examine(module, name, shape) if concatenates else None
    if verdict is not None and verdict.match is not None:
        seen |= {id(m) for m in all_modules(module)}
        found.append(verdict)
        return True
    below = False
    for child_name, child in _children(module):
        below |= _visit(_join(name, child_name), child, shapes, seen, found)
    if isinstance(fusion, Outline) and not fusion.network:
        _drop_inside(found, start, fusion.regions)
        for region in fusion.regions:
            match_ = region.__dict__[FUSION].match
            found.append(Found(_join(name, region.place), region, match_, outline=fusion))
        return True
    if not asked or (not concatenates and (below or layers_alone(module))):
        return below
    if not concatenates:
        verdict = examine(module, name, shape)
    listed = [verdict] if verdict is not None else []
    if verdict is None or verdict.match is None:
        try:
            listed = _parts(module, name, shape) or listed
        except Refused as error:
            if verdict is not None and str(error) != verdict.reason:
                listed = [replace(verdict, reason=f"{verdict.reason}, and {error}")]
    if below and not any(verdict.match for verdict in listed):
        return True
    _drop_inside(found, start, [verdict.module for verdict in listed])
    found += listed
    return below or bool(listed)


def _drop_inside(found: list[Found], start: int, modules: Iterable[nn.Module]) -> None:
    """Drops the verdicts from ``start`` on that are on modules inside these."""
    inside = {id(m) for module in modules for m in all_modules(module)}
    found[start:] = [f for f in found[start:] if id(f.owner) not in inside]


def _join(name: str, child: str) -> str:
    return f"{name}.{child}" if name else child


def _parts(module: nn.Module, name: str, shape: Any) -> list[Found]:
    """Verdicts on the parts of the module's own forward; all can be fused, or none.

    Raises:
        Refused: the forward cannot be rewritten.
    """
    if not mentions_cat(module) or forbidden(module) is not None:
        return []
    channels = channel_guesses(module)
    guesses = [(2, c, size, size) for size in sorted(NETWORK_SIZES) for c in channels]
    chosen: list[tuple[Site, Found]] = []
    refused: dict[Any, Found] = {}  # by the concatenation
    taken: set[Any] = set()
    for site in sites(module, [shape] if shape else guesses):
        if taken & site.nodes or convolution_count(site.region) < 2:
            continue
        verdict = examine(site.region, _join(name, site.name), channels=site.channels)
        if verdict is not None and verdict.match is not None:
            chosen.append((site, verdict))
            taken |= site.nodes
        elif verdict is not None:
            refused[site.cat] = verdict
    if not chosen:
        return [*refused.values()][::-1]
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
    x = random_input(modules, made.shape)
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
