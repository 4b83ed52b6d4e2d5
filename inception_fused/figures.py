"""What ``tune`` has measured for one module, on disk and in memory."""

from __future__ import annotations

import hashlib
import json
import math
import platform
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from . import ops
from .backends import TABLE
from .cache import Store
from .candidates import ORIGINAL, Candidate
from .route import Timing
from .trace import all_modules
from .trial import Site

FORMAT = 1
"""Of the file; changes when its meaning does, or when kernels change so that it is out of date."""


@dataclass(frozen=True)
class Figures:
    """What was measured for one module and one kind of input: timings, and which was taken."""

    taken: str
    timings: tuple[Timing, ...]

    @classmethod
    def of_plain(cls, value: Any) -> Figures:
        """The inverse of asdict, from JSON."""
        read = tuple(_timing(**timing) for timing in value["timings"])
        if value["taken"] not in [t.label for t in read]:
            raise ValueError(f"{value['taken']!r} was taken but not measured")
        return cls(value["taken"], read)


def _timing(
    label: str, backend: str, tuning: list[int], median: float, low: float, high: float
) -> Timing:
    if not all(type(place) is int for place in tuning):
        raise ValueError(f"no tuning: {tuning}")
    known = {b.name for b in TABLE} | {ORIGINAL}
    if backend not in known or not 0 < low <= median <= high < math.inf:
        raise ValueError(f"no figures of a back end: {backend!r}, {low}, {median}, {high} ms")
    return Timing(str(label), backend, tuple(tuning), median, low, high)


STORE: Store[Figures] = Store("tune", FORMAT, Figures.of_plain, asdict)


def device_name(x: Tensor) -> str:
    """What figures of x's device are kept under."""
    if x.is_cuda:
        return str(torch.cuda.get_device_name(x.device))
    if x.device.type != "cpu":
        return x.device.type
    capabilities: Any = getattr(torch.cpu, "get_capabilities", dict)()  # not in older torch
    name = capabilities.get("cpu_name") or platform.processor() or platform.machine()
    lanes = "" if ops.NOT_LOADED else f", {int(torch.ops.inception_fused.cpu_lanes())} lanes"
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}{lanes}"


def key_of_figures(site: Site, who: list[Candidate]) -> str:
    """Everything that the figures depend on beside the device, in a few letters.

    Weights and inputs count by shape, type and layout, the original by the kinds of its modules.
    """
    fusion = site.fusion
    modules = all_modules(fusion.module)
    parameters = [p for m in modules for p in (*m._parameters.values(), *m._buffers.values())]
    parts = [
        fusion.plan.code,
        [str(part) for part in site.key],
        [c.label for c in who],
        [type(m).__qualname__ for m in modules],
        [[*p.shape, *p.stride(), str(p.dtype)] for p in parameters if p is not None],
        torch.get_num_threads() if site.x.device.type == "cpu" else 0,
        torch.__version__,
        torch.backends.mkldnn.enabled,
        [ops.float32_products(), torch.backends.cudnn.benchmark] if site.x.is_cuda else [],
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
