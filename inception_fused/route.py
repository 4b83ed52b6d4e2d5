"""How inputs of one kind run, and what it took when it was measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .backends import Backend, Tuning


@dataclass(frozen=True)
class Timing:
    """What one way to run a module took, in ms: the median and the bounds that hold it.

    ``backend`` is the name of a back end or "original"; ``label`` says in words what was run.
    """

    label: str
    backend: str
    tuning: Tuning
    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Route:
    """How to run inputs of one shape: the back end, or None for the original, and why.

    ``timings`` are what all that was tried took, if anything was.
    """

    backend: Backend | None
    reason: str
    tuning: Tuning = ()
    timings: tuple[Timing, ...] = ()


Key = tuple[Any, ...]
"""All of an input that a route depends on."""


def key_of(x: Tensor) -> Key:
    """Its type, device, shape and strides, and the type that autocast would make of it, if any."""
    cast = torch.get_autocast_dtype(x.device.type) if autocasts(x) else None
    return (x.dtype, x.device, x.shape, x.stride(), cast)


def autocasts(x: Tensor) -> bool:
    """Whether autocast converts such a tensor."""
    return torch.is_autocast_enabled(x.device.type) and x.dtype is not torch.float64
