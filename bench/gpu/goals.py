"""The goals for one H100, and what a record says of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from .record import Record
from .timings import STAGE

NETWORK_BATCH = 256


def least(record: Record, case: str, *titles: str, kind: str = "warm") -> float | None:
    """The least median in ms among contestants whose title begins so.

    ``kind``: "warm", the device's own time, or "latency", from the call to its end.
    """
    row = record.find(STAGE, case)
    found = [
        figures[f"{kind}_p50"]
        for title, figures in (row.figures.get("contestants", {}) if row else {}).items()
        if title.startswith(titles) and f"{kind}_p50" in figures
    ]
    return min(found, default=None)


def _network(record: Record, batch: int) -> str:
    names = (f"torchvision b{batch} float16", f"paper b{batch} float16")
    return next((name for name in names if record.find(STAGE, name)), names[0])


def _times(record: Record, stock: str) -> float | None:
    case = _network(record, 1)
    ours = least(record, case, *_OURS, kind="latency")
    other = least(record, case, stock, kind="latency")
    return other / ours if ours and other else None


_OURS = ("cuda", "triton")


@dataclass(frozen=True)
class Goal:
    """``measured`` gives the figure, in ``unit``; None if it was not measured."""

    title: str
    unit: str
    wanted: float
    more_is_better: bool
    measured: Callable[[Record], float | None]

    def reached(self, value: float) -> bool:
        return value >= self.wanted if self.more_is_better else value <= self.wanted

    def line(self, record: Record) -> str:
        """A row of a markdown table."""
        value = self.measured(record)
        sign = ">=" if self.more_is_better else "<="
        said = "not measured" if value is None else f"{value:.4g} {self.unit}"
        verdict = "-" if value is None else ("yes" if self.reached(value) else "no")
        return f"| {self.title} | {sign} {self.wanted:g} {self.unit} | {said} | {verdict} |"


def _scaled(case: str, factor: float) -> Callable[[Record], float | None]:
    def measured(record: Record) -> float | None:
        value = least(record, case, *_OURS)
        return None if value is None else value * factor

    return measured


def _network_us(record: Record) -> float | None:
    return _scaled(_network(record, 1), 1000)(record)


def _images(record: Record) -> float | None:
    value = least(record, _network(record, NETWORK_BATCH), *_OURS)
    return None if value is None else NETWORK_BATCH / value * 1000


GOALS = (
    Goal("module 3a, batch 1, float16", "us", 7, False, _scaled("3a b1 float16", 1000)),
    Goal("network, batch 1, float16", "us", 100, False, _network_us),
    Goal("... times faster than eager", "x", 10, True, lambda r: _times(r, "eager NCHW")),
    Goal("... than the best torch.compile", "x", 3, True, lambda r: _times(r, "compile")),
    Goal("KernelBench L3/6", "ms", 2.0, False, _scaled("KernelBench L3/6", 1)),
    Goal("KernelBench L3/7", "ms", 0.45, False, _scaled("KernelBench L3/7", 1)),
    Goal("network, batch 256, float16", "images/s", 80_000, True, _images),
)

FLOOR_MS = 0.6
"""KernelBench L3/6 cannot be quicker on an H100: its bytes alone take so long."""


def doubts(record: Record) -> list[str]:
    """Figures that cannot be right."""
    value = least(record, "KernelBench L3/6", *_OURS)
    found = []
    if value is not None and value < FLOOR_MS and "H100" in record.device.get("name", ""):
        found.append(f"KernelBench L3/6 in {value:.3f} ms is a wrong measurement: under its floor")
    for row in record.of(STAGE):
        for title, figures in row.figures.get("contestants", {}).items():
            if not math.isfinite(figures.get("warm_p50", 1.0)) or figures.get("warm_p50", 1.0) <= 0:
                found.append(f"{row.name}: {title} took no time")
    return found
