"""The check before the clock: whose output does not agree is not timed."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from . import results, runner
from .peers import DTYPES, PEERS, Contestant
from .results import Measurement
from .stock import Run

TOLERANCE = 1e-4
"""Largest |difference| from stock, relative to the largest |stock output|, of a float32 output."""

INT8 = 0.5
"""The same of int8, whose error grows with the depth of a network: it only tells noise apart."""

FACTOR = 3
"""Below float32, and on a GPU, as many times the stock output's own error may be the tolerance."""


@dataclass
class Check:
    """A case on a device: the stock model's output and the exact one that others are held against.

    Attributes:
        model: in eval mode, on the device, in the dtype that is measured. It is not changed.
        x: a contiguous batch, likewise.
    """

    model: nn.Module
    x: Tensor
    dtype: str
    device: str
    threads: int
    stock: Tensor = field(init=False)
    exact: Tensor = field(init=False)
    limits: dict[str, float] = field(init=False, default_factory=lambda: {"int8": INT8})

    def __post_init__(self) -> None:
        self.stock = self.model(self.x)
        self.exact = copy.deepcopy(self.model).double()(self.x[:1].double())

    def prepare(self, contestant: Contestant, m: Measurement) -> Run | None:
        """A call whose output agrees with stock; otherwise None, and the measurement says why."""
        peer = PEERS[contestant.peer]
        reason = peer.why_not(self.device, self.dtype)
        if reason:
            m.status, m.detail = results.ABSENT, reason
            return None
        try:
            start = time.perf_counter()
            call = contestant.prepare(copy.deepcopy(self.model), self.x, self.threads)
            output = call().clone()
            m.prepare_s = time.perf_counter() - start
            if output.shape != self.stock.shape:
                raise ValueError(f"output {tuple(output.shape)} instead of {self.stock.shape}")
            limit = self.limit(peer.computes or self.dtype)
        except Exception as error:
            m.status, m.detail = results.FAILED, runner.describe(error)
            return None
        m.difference = relative(output, self.stock)
        m.error = relative(output[:1].double(), self.exact)
        if not m.difference <= limit:
            m.status = results.DISAGREES
            m.detail = f"differs from stock by {m.difference:.1e} of the largest output"
            return None
        return call

    def limit(self, dtype: str) -> float:
        """The tolerance for a contestant that computes in this dtype."""
        if dtype not in self.limits:
            if dtype == self.dtype:
                output = self.stock[:1]
            else:
                lower = copy.deepcopy(self.model).to(DTYPES[dtype])
                output = lower(self.x[:1].to(DTYPES[dtype]))
            self.limits[dtype] = max(TOLERANCE, FACTOR * relative(output.double(), self.exact))
        return self.limits[dtype]


def relative(y: Tensor, wanted: Tensor) -> float:
    """max |y - wanted| over max |wanted|; not a number if y has one."""
    difference = (y - wanted).abs().max() / wanted.abs().max().clamp_min(1e-30)
    return float(torch.as_tensor(difference))
