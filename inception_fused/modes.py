"""What a module computes with its flags ``training`` as they are, and if a plan holds for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn

from .examine import gate
from .match import Match, has_stock_forward, match
from .trace import Refused, all_modules, names_in_code, trace

_LARGE = (257, 229, 231)
"""Batch, height and width of a probe for forwards that do something else with large inputs."""

_PIXELS = 512
"""Of the input of the numeric check, about: statistics of a few amplify the rounding error."""


class Modes:
    """The matches of a fused module by the flags ``training`` of all modules inside."""

    def __init__(self, module: nn.Module, evaluated: Match) -> None:
        self._module = module
        self._evaluated = evaluated
        self._found: dict[tuple[bool, ...], Match | str] = {}

    def match(self, flags: tuple[bool, ...], shape: torch.Size) -> Match | str:
        """The match for the flags, which are set; or why there is none, for a user.

        Args:
            shape: (N, C, H, W) of an input that the module takes.
        """
        if not any(flags):
            return self._evaluated
        if flags not in self._found:
            try:
                self._found[flags] = match_as_set(self._module, self._evaluated, shape)
            except Refused as error:
                self._found[flags] = f"in training mode: {error}"
        return self._found[flags]


def match_as_set(module: nn.Module, evaluated: Match, shape: torch.Size) -> Match:
    """The match of a fused module's original with the flags of all modules inside as they are.

    It has the spec and the places of the match in eval mode, and tells which norms use the
    statistics of the batch. Nothing of the module changes.

    Args:
        shape: (N, C, H, W) of an input that it takes.

    Raises:
        Refused: there is no such match; the message says why.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    modules = all_modules(module)
    if any(isinstance(m, nn.SyncBatchNorm) and m.training for m in modules):
        raise Refused("a SyncBatchNorm takes the statistics of all processes together")
    if any("checkpoint" in names_in_code(type(m)) for m in modules):
        raise Refused("its forward may run under checkpoint, which updates statistics twice")
    n, channels, height, width = shape
    probes = (
        ((n, channels, height, width), torch.contiguous_format),
        ((n, channels, height, width), torch.channels_last),
        ((_LARGE[0], channels, _LARGE[1], _LARGE[2]), torch.contiguous_format),
    )
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    weight = evaluated.sources[0].weight.tensor()
    assert weight is not None
    with torch.inference_mode(False), torch.autocast(weight.device.type, enabled=False):
        with _uncounted(modules):
            first, *others = (match(trace(module, p, mode, f, as_set=True)) for p, f in probes)
        if any(other != first for other in others):
            raise Refused("its forward depends on the size or the memory format of its input")
        _compare(first, evaluated)
        images = 1 + _PIXELS // (height * width)
        gate(module, first, (images, channels, height, width), as_set=True)
    return first


def _compare(found: Match, evaluated: Match) -> None:
    """Raises Refused unless both do the same with the same parameters, up to the statistics."""
    owners: list[nn.Module] = []
    same = found.spec == evaluated.spec
    for source, other in zip(found.sources, evaluated.sources, strict=same):
        norm = source.norm
        if norm is not None and norm.batch and norm.mean is not None:
            owners.append(norm.mean.owner)
        if norm is not None and other.norm is not None:
            ours, theirs = (
                replace(n, mean=None, var=None, batch=False) for n in (norm, other.norm)
            )
            source, other = replace(source, norm=ours), replace(other, norm=theirs)
        same = same and source == other
    if not same:
        raise Refused("its forward does something else in training mode")
    if len({id(owner) for owner in owners}) < len(owners):
        raise Refused("a batch norm behind two convolutions takes statistics from both")


@contextmanager
def _uncounted(modules: list[nn.Module]) -> Iterator[None]:
    """Batch norms that do not count their updates, which a trace would see as a written buffer."""
    name = "num_batches_tracked"
    counts = [(m._buffers, m._buffers[name]) for m in modules if has_stock_forward(m)]
    for buffers, _ in counts:
        buffers[name] = None
    try:
        yield
    finally:
        for buffers, count in counts:
            buffers[name] = count
