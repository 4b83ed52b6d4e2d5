"""A Chrome trace of calls of a fused model, with a named range around what was fused.

The ranges are torch.profiler's, and NVTX ranges too where there is CUDA, so that Nsight shows the
same names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

from inception_fused.fusion import Fusion

CALLS = 5


@dataclass(frozen=True)
class Range:
    """A named range: ms of one call on the host, and of its kernels on the GPU if there is one."""

    name: str
    host_ms: float
    device_ms: float | None


def write(
    model: nn.Module, x: Tensor, fusions: Sequence[tuple[str, Fusion]], path: Path
) -> list[Range]:
    """Profiles :data:`CALLS` calls of the model and writes the trace; the ranges by name."""
    activities = [ProfilerActivity.CPU]
    if x.is_cuda:
        activities.append(ProfilerActivity.CUDA)
    with named(fusions, x.is_cuda) as names, torch.no_grad():
        model(x)
        with profile(activities=activities, record_shapes=True) as found:
            for _ in range(CALLS):
                model(x)
            if x.is_cuda:
                torch.cuda.synchronize()
    path.parent.mkdir(parents=True, exist_ok=True)
    found.export_chrome_trace(str(path))
    by_name = {event.key: event for event in found.key_averages()}
    return [
        Range(
            name,
            by_name[name].cpu_time_total / 1e3 / CALLS,
            by_name[name].device_time_total / 1e3 / CALLS if x.is_cuda else None,
        )
        for name in names
        if name in by_name
    ]


@contextmanager
def named(fusions: Sequence[tuple[str, Fusion]], nvtx: bool) -> Iterator[list[str]]:
    """Puts a range around every call of these modules; yields the ranges' names.

    A range is named after the module and what its last call took.
    """
    names, handles = [], []
    for name, fusion in fusions:
        label = f"{name or 'model'} [{fusion.taken or 'not called'}]"
        names.append(label)
        enter, leave = _range(label, nvtx)
        handles.append(fusion.module.register_forward_pre_hook(enter))
        handles.append(fusion.module.register_forward_hook(leave, always_call=True))
    try:
        yield names
    finally:
        for handle in handles:
            handle.remove()


def _range(label: str, nvtx: bool) -> tuple[Callable[..., None], Callable[..., None]]:
    open_ranges: list[ExitStack] = []

    def enter(*_: Any) -> None:
        stack = ExitStack()
        stack.enter_context(record_function(label))
        if nvtx:
            stack.enter_context(torch.cuda.nvtx.range(label))
        open_ranges.append(stack)

    def leave(*_: Any) -> None:
        open_ranges.pop().close()

    return enter, leave
