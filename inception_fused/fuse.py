"""The drop-in: ``fuse`` a model in place, ``unfuse`` it, ``explain`` what was done and why."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from .examine import Found
from .find import find
from .fusion import Fusion, Options, fusion_of, network_of
from .module import (
    Fused,
    FusedInception,
    changed,
    swap,
    swap_network,
    swap_outlined,
    unswap,
)
from .route import Timing
from .trace import all_modules

if TYPE_CHECKING:
    from .quantise import Accuracy


@dataclass(frozen=True, slots=True)
class Line:
    """One module of a report. ``backend`` is "" if the module is not fused or was not called.

    ``network``: the line is about all that the module computes, with the modules inside.
    ``timings`` are what :func:`inception_fused.tune` has measured for inputs like the last one.
    ``accuracy`` is that of int8 on its examples, of this module alone with the input of float32.
    """

    name: str
    module: str
    fused: bool
    backend: str
    reason: str
    network: bool = False
    timings: tuple[Timing, ...] = ()
    accuracy: Accuracy | None = None

    def __str__(self) -> str:
        where = f"{_where(self.name)} ({self.module})"
        if self.network:
            where += " as a whole"
        if not self.fused:
            return f"{where}: not fused: {self.reason}"
        accuracy = f"; {self.accuracy}" if self.accuracy else ""
        if not self.backend:
            return f"{where}: fused, not called yet{accuracy}"
        times = "; ".join(
            f"{t.label} {t.median:.3g} ms ({t.low:.3g}-{t.high:.3g})" for t in self.timings
        )
        tried = f"; tried: {times}" if times else ""
        if self.backend == "original":
            return f"{where}: fused, but the last call took the original path: {self.reason}{tried}"
        reason = f" ({self.reason})" if self.reason else ""
        return f"{where}: fused, {self.backend}{reason}{tried}{accuracy}"


def _fusion(verdict: Found) -> Fusion | None:
    whole = verdict.network and not verdict.outline
    return network_of(verdict.module) if whole else fusion_of(verdict.module)


def _not_asked(network: bool) -> str:
    if network:
        return "it can run as one, but fuse was not asked to make it"
    return "it can be fused, but fuse was not called"


def _where(name: str) -> str:
    return name or "(the model itself)"


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
    network: bool = True,
    int8: Tensor | Iterable[Tensor] | None = None,
) -> nn.Module:
    """Fuses every Inception module of the model, in place, and returns the model.

    Where a back end can run all that is around them too (convolutions, pools, local response
    normalisations, a classifier), the whole runs as one plan; hooks inside it, and what it cannot
    do, are left to the modules.

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
        network: False fuses the modules alone.
        int8: example inputs of the model, float32 on the CPU, one batch or several, some dozens of
            images in all: what is fused then computes in int8, with scales as large as the values
            that they give; :func:`explain` tells how far that is from float32. Weights are
            quantised again when they change, scales stay; ``fuse`` with other examples replaces
            them. Where gradients are wanted, float32 runs. Back to float32 by :func:`unfuse`.

    Raises:
        TypeError: model is not an nn.Module, or int8 is no tensors.
        ValueError: int8 cannot be; the message says why.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    examples = None
    if int8 is not None:
        from . import calibrate  # takes a millisecond, and few need it

        examples = calibrate.check(int8, backend)
    for module in all_modules(model):
        if isinstance(module, Fused) and changed(module):
            unswap(module)
    verdicts = find(model, example_input, network)
    for verdict in verdicts:
        if verdict.match is None:
            continue
        options = Options(backend, winograd)
        if verdict.network and not verdict.outline:
            swap_network(verdict.module, verdict.match, options)
        elif not isinstance(verdict.module, Fused):
            swap(verdict.module, verdict.match, options)
            if verdict.outline and not isinstance(verdict.outline.owner, Fused):
                swap_outlined(verdict.outline)
    if not any(isinstance(m, FusedInception) for m in model.modules()) and not any(
        isinstance(v.module, FusedInception) for v in verdicts
    ):
        reasons = "".join(f"\n  {v.name or type(v.module).__name__}: {v.reason}" for v in verdicts)
        warnings.warn(f"fuse found no Inception module to fuse{reasons}", stacklevel=2)
    elif examples is not None:
        fusions = [f for v in verdicts if (f := _fusion(v)) is not None]
        calibrate.calibrate(model, fusions, examples)
    return model


def unfuse(model: nn.Module) -> nn.Module:
    """Gives every fused module of the model its original class back, in place."""
    for module in all_modules(model):
        if isinstance(module, Fused):
            unswap(module)
    return model


def explain(model: nn.Module) -> Report:
    """Which modules are fused, with which back end their last call ran and why, and why not."""
    verdicts = find(model)
    taken_by: dict[int, tuple[str, str]] = {}  # back end and reason, by what a network has run
    tuned: set[int] = set()  # in networks that were measured for inputs like the last one
    for verdict in verdicts:
        network = _fusion(verdict) if verdict.network else None
        if network is not None and network.taken not in ("", "original"):
            inside = (network.taken, f"in {_where(verdict.name)} as a whole")
            taken_by |= {id(m): inside for m in all_modules(verdict.module)}
            if network.timings:
                tuned |= {id(m) for m in all_modules(verdict.module)}
    lines = []
    for verdict in verdicts:
        fusion = _fusion(verdict)
        taken, reason = (fusion.taken, fusion.reason) if fusion else ("", verdict.reason)
        timings = fusion.timings if fusion else ()
        if fusion and not verdict.network:
            taken, reason = taken_by.get(id(verdict.owner), (taken, reason))
            if id(verdict.owner) in tuned:
                timings = fusion.last_measured()
        lines.append(
            Line(
                verdict.name,
                type(verdict.module).__name__,
                fusion is not None,
                taken,
                reason if fusion or reason else _not_asked(verdict.network),
                verdict.network,
                timings,
                fusion.int8.accuracy if fusion and fusion.int8 else None,
            )
        )
    return Report(tuple(lines))
