"""The JSON file of a run: written whole and atomically, so it is valid after a kill."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FORMAT = 1

OK, ABSENT, FAILED, DISAGREES, PENDING = "ok", "absent", "failed", "disagrees", "pending"


@dataclass
class Measurement:
    """One contestant on one case. Latencies in ms per batch, memory in MiB.

    Attributes:
        status: one of the constants above; ``detail`` says why it is not ok.
        difference: max |output - stock output| over max |stock output|.
        error: max |output - float64 output| over max |float64 output|, of the first image.
        latency: median, p10, p90, p99, calls and outliers.
        ratio: times faster than stock eager NCHW: median, p10, p90 over the rounds; of several
            processes: best over best, and the least and the most of one process.
        rounds: every latency, a list per round.
        processes: the median of every process, if there were several; the rest is the best one's.
        device: on a GPU, like ``latency``: "host" until a call returns, "warm" and "cold" the
            device's own time with the L2 cache as the call left it, and overwritten.
    """

    peer: str
    memory_format: str
    title: str
    status: str = PENDING
    detail: str = ""
    difference: float | None = None
    error: float | None = None
    prepare_s: float | None = None
    latency: dict[str, float] | None = None
    images_per_s: float | None = None
    ratio: list[float] | None = None
    memory_mib: float | None = None
    rounds: list[list[float]] = field(default_factory=list)
    processes: list[float] = field(default_factory=list)
    device: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass
class CaseResult:
    """A model at a batch size.

    ``flops`` are those of direct convolution, two per multiply-add; ``bytes`` are what must move at
    least once: input, output and weights. ``clock`` is the CPU's speed relative to the ceiling,
    measured before and after the timing (of each process). ``steps``
    are those of a module's plan with the median ms of each when it is run alone.
    """

    model: str
    title: str
    batch: int
    flops: int
    bytes: int
    complete: bool = False
    measurements: list[Measurement] = field(default_factory=list)
    clock: list[float] = field(default_factory=list)
    steps: dict[str, float] = field(default_factory=dict)

    def gflops(self, m: Measurement) -> float | None:
        """10**9 direct-convolution operations a second at the median."""
        return self.flops / m.latency["median"] / 1e6 if m.latency else None


@dataclass
class Results:
    """A run. ``settings`` must be equal for it to be resumed."""

    created: str
    environment: dict[str, Any]
    settings: dict[str, Any]
    ceiling: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)
    interrupted: bool = False
    cases: list[CaseResult] = field(default_factory=list)
    format: int = FORMAT

    def save(self, path: Path) -> None:
        replace_file(path, json.dumps(asdict(self), indent=1))

    @classmethod
    def load(cls, path: Path) -> Results:
        """ValueError, naming the file, if it is not such a file."""
        try:
            data = json.loads(path.read_text())
            if data["format"] != FORMAT:
                raise ValueError(f"format {data['format']} is not the format {FORMAT}")
            data["cases"] = [
                CaseResult(**{**c, "measurements": [Measurement(**m) for m in c["measurements"]]})
                for c in data["cases"]
            ]
            return cls(**data)
        except OSError as error:
            raise ValueError(f"{path}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a results file: {error}") from None


def replace_file(path: Path, text: str) -> None:
    """Writes a file so that it has the old text or the new one, whatever happens meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
