"""compute-sanitizer over small runs of every precision: memcheck, then racecheck.

``python -m inception_fused.bench.gpu.sanitize`` is what runs under it.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from functools import partial

import torch

from inception_fused.backends import TABLE
from inception_fused.spec import Spec

from . import nvcc
from .arguments import FORMATS, Arguments, precision, precisions
from .job import Job
from .record import FAILED, OK, SKIPPED, Row

STAGE = "sanitizer"
TOOLS = ("memcheck", "racecheck")
TIMEOUT_S = 90
FOUND = 86  # exit code for errors that compute-sanitizer found

SPECS = (Spec.v1(72, 8, 16, 24, 8, 16, 8), Spec.v1(67, 11, 13, 17, 5, 19, 23))
"""Whole vectors, and widths that take the way through plain loads."""


def run(device: str = "cuda", backend: str = "cuda") -> int:
    """Small modules once at every precision and format; how many were run."""
    chosen = next(b for b in TABLE if b.name == backend)
    done = 0
    for spec in SPECS:
        for name in precisions(backend):
            for fmt in FORMATS.values():
                with precision(name) as dtype, torch.no_grad():
                    a = Arguments.random(spec, (2, 7, 9)).to(device, dtype, fmt)
                    if chosen.why_not(a.plan, a.x):
                        continue
                    tuning = chosen.tuning(a.plan, a.x)
                    packed = chosen.pack(a.plan, a.weights, a.biases, tuning=tuning)
                    output = chosen.run(a.plan, a.x, packed)
                    if not output.isfinite().all():
                        raise RuntimeError(f"{name}: the output is not finite")
                    done += 1
    return done


def check(tool: str) -> Row:
    row = Row(STAGE, tool)
    try:
        program = nvcc.find("compute-sanitizer")
    except nvcc.NoToolkit as error:
        row.status, row.detail = SKIPPED, str(error)
        return row
    try:
        done = subprocess.run(
            [
                *(program, "--tool", tool, "--error-exitcode", str(FOUND)),
                *("--kernel-name-exclude", "regex:.*at::native.*"),
                *(sys.executable, "-m", __name__),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        row.status, row.detail = SKIPPED, f"not done after {TIMEOUT_S} s"
        return row
    row.status = OK if done.returncode == 0 else FAILED
    if done.returncode:
        lines = [line for line in done.stdout.splitlines() if line.strip("= ")]
        errors = [line for line in lines if "rror" in line or "hazard" in line]
        row.detail = f"exit code {done.returncode}: {'; '.join((errors or lines)[:4])}"
    return row


def jobs() -> Iterator[Job]:
    """One for each tool."""
    for tool in TOOLS:
        yield Job(STAGE, tool, partial(check, tool), seconds=TIMEOUT_S)


if __name__ == "__main__":
    print(run(), "runs")
