"""Runs of the repository's own tests: those that need a GPU, or the emulated ones instead."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial

from .choices import ROOT
from .job import Job
from .record import FAILED, OK, SKIPPED, Row

STAGE = "tests"
TIMEOUT_S = 120
NOTHING_SELECTED = 5  # pytest's exit code

ON_GPU = {
    "tests of the GPU alone": ("tests/test_gpu.py",),
    "tests of the kernels": ("tests/test_kernels.py", "-k", "cuda"),
}
EMULATED = {
    "every primitive": ("tests/test_conformance.py",),
    "every tile": ("tests/test_kernels.py", "-k", "every_tile_shape"),
    "CUDA row of the back ends": ("tests/test_cuda.py",),
}
"""Under two minutes, of which most is compilation."""


def run(name: str, arguments: Sequence[str], timeout: float = TIMEOUT_S) -> Row:
    """A row with the number of tests by outcome; failed, with the last lines, if one failed."""
    row = Row(STAGE, name)
    if not (ROOT / "tests").is_dir():
        row.status, row.detail = SKIPPED, "the tests are only in a checkout"
        return row
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", *arguments]
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=timeout
        )
    except subprocess.TimeoutExpired:
        row.status, row.detail = FAILED, f"not done after {timeout:.0f} s"
        return row
    lines = done.stdout.strip().splitlines()[-12:]
    row.figures = {w: int(n) for n, w in re.findall(r"(\d+) (passed|failed|skipped)", lines[-1])}
    row.status = OK
    if done.returncode == NOTHING_SELECTED or not row.figures.get("passed", 0):
        row.status, row.detail = SKIPPED, "nothing was run"
    if done.returncode not in (0, NOTHING_SELECTED):
        row.status, row.detail = FAILED, " ".join(lines)[-600:]
    return row


def jobs(suites: dict[str, tuple[str, ...]]) -> Iterator[Job]:
    for name, arguments in suites.items():
        yield Job(STAGE, name, partial(run, name, arguments), seconds=30)
