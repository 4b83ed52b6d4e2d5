"""The drop-in: ``fuse`` a model in place, ``unfuse`` it, ``explain`` what was done and why."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from torch import Tensor, nn

from .find import find
from .fusion import Options, fusion_of
from .module import FusedInception, changed, swap, swap_outlined, unswap
from .trace import all_modules


@dataclass(frozen=True, slots=True)
class Line:
    """One module of a report. ``backend`` is "" if the module is not fused or was not called."""

    name: str
    module: str
    fused: bool
    backend: str
    reason: str

    def __str__(self) -> str:
        where = f"{self.name or '(the model itself)'} ({self.module})"
        if not self.fused:
            return f"{where}: not fused: {self.reason}"
        if not self.backend:
            return f"{where}: fused, not called yet"
        if self.backend == "original":
            return f"{where}: fused, but the last call took the original path: {self.reason}"
        return f"{where}: fused, {self.backend}" + (f" ({self.reason})" if self.reason else "")


@dataclass(frozen=True, slots=True)
class Report:
    """What :func:`explain` returns; ``str`` gives one line per module."""

    lines: tuple[Line, ...]

    def __str__(self) -> str:
        return "\n".join(map(str, self.lines)) or "no Inception module was found"


def fuse(
    model: nn.Module,
    example_input: Tensor | None = None,
    backend: str = "auto",
    winograd: bool = True,
) -> nn.Module:
    """Fuses every Inception module of the model, in place, and returns the model.

    Modules are found by what their forward executes, and each is compared with the original on
    random numbers before it is swapped. state_dict, parameters and hooks stay as they were. Warns,
    with the reasons, if nothing was fused. Fusing again looks again only at modules that were
    changed since.

    Args:
        example_input: an input of the model; needed only where shapes cannot be inferred. The model
            is then run on it once, in eval mode.
        backend: "auto" takes the first back end that can run a call, or the original; the name of
            a back end asks for that one.
        winograd: False keeps the CPU back end to direct convolution (:class:`FusedInception`).

    Raises:
        TypeError: model is not an nn.Module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    for module in all_modules(model):
        if isinstance(module, FusedInception) and changed(module):
            unswap(module)
    verdicts = find(model, example_input)
    for verdict in verdicts:
        if verdict.match is not None and not isinstance(verdict.module, FusedInception):
            swap(verdict.module, verdict.match, Options(backend, winograd))
            if verdict.outline and not isinstance(verdict.outline.owner, FusedInception):
                swap_outlined(verdict.outline)
    if not any(isinstance(m, FusedInception) for m in model.modules()) and not any(
        isinstance(v.module, FusedInception) for v in verdicts
    ):
        reasons = "".join(f"\n  {v.name or type(v.module).__name__}: {v.reason}" for v in verdicts)
        warnings.warn(f"fuse found no Inception module to fuse{reasons}", stacklevel=2)
    return model


def unfuse(model: nn.Module) -> nn.Module:
    """Gives every fused module of the model its original class back, in place."""
    for module in all_modules(model):
        if isinstance(module, FusedInception):
            unswap(module)
    return model


def explain(model: nn.Module) -> Report:
    """Which modules are fused, with which back end their last call ran and why, and why not."""
    lines = []
    for verdict in find(model):
        fusion = fusion_of(verdict.module)
        lines.append(
            Line(
                verdict.name,
                type(verdict.module).__name__,
                fusion is not None,
                fusion.taken if fusion else "",
                fusion.reason
                if fusion
                else verdict.reason or "it can be fused, but fuse was not called",
            )
        )
    return Report(tuple(lines))
