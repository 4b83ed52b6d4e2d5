"""Asks the GPU whether it does what ``tests/simt/conformance.cpp`` says of every primitive."""

from __future__ import annotations

import hashlib
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from . import nvcc
from .choices import ROOT

SIMT = ROOT / "tests" / "simt"
FOLDER = ROOT / "build" / "gpu"
TIMEOUT_S = 60

_LINE = re.compile(r"(.+): (\d+) values, (\d+) wrong(?:, (.*))?")


@dataclass(frozen=True)
class Check:
    """Of one function: how many values were compared, how many differ, and the first that does."""

    name: str
    values: int
    wrong: int
    detail: str


def parse(text: str) -> list[Check]:
    """What the program printed; RuntimeError if it printed no check."""
    found = [
        Check(m[1], int(m[2]), int(m[3]), m[4] or "")
        for line in text.splitlines()
        if (m := _LINE.fullmatch(line))
    ]
    if not found:
        raise RuntimeError("the conformance program says nothing")
    return found


def build(arch: str, folder: Path = FOLDER) -> Path:
    """The program for an architecture such as "90a"; kept in ``folder`` for as long as it holds.

    A machine without nvcc can so run what another has built from the same sources.

    Raises:
        NoToolkit: there is no nvcc and no such program.
    """
    files = [*SIMT.glob("conform*"), SIMT / "rounding.h", ROOT / "csrc" / "cuda" / "simt.h"]
    content = b"".join(file.read_bytes() for file in sorted(files))
    program = folder / f"conformance_{arch}_{hashlib.sha256(content).hexdigest()[:12]}"
    if not program.exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = [str(nvcc.find("nvcc")), "-x", "cu", *nvcc.FLAGS, f"-I{SIMT}", f"-arch=sm_{arch}"]
        done = subprocess.run(
            [*command, str(SIMT / "conformance.cpp"), "-o", str(program)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"conformance.cpp does not build:\n{done.stderr}")
    return program


def run(arch: str) -> list[Check]:
    """Builds and runs the program on the current device.

    Raises:
        RuntimeError: it does not build, or ends without checks; what it said.
    """
    done = subprocess.run(
        [build(arch)], capture_output=True, text=True, check=False, timeout=TIMEOUT_S
    )
    if done.returncode not in (0, 1):
        raise RuntimeError(f"the conformance program ends with {done.returncode}: {done.stderr}")
    return parse(done.stdout)
