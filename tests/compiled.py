"""Compiles the C++ of the tests with g++, once for each state of its sources."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parent.parent
CACHE = ROOT / "build" / "tests"
INCLUDES = ("-Icsrc", "-Itests/simt")

Unit = tuple[str, tuple[str, ...]]
"""A source file, from the repository's root, and its own flags."""


def compiler() -> str:
    """The C++ compiler; FileNotFoundError if there is none."""
    found = shutil.which(os.environ.get("CXX", "g++"))
    if found is None:
        raise FileNotFoundError("no C++ compiler: set CXX")
    return found


def build(
    name: str, units: tuple[Unit, ...], flags: tuple[str, ...], link: tuple[str, ...] = ()
) -> Path:
    """The file ``name``, linked from the units.

    Args:
        flags: for the compiler and the linker; ``link`` for the linker alone.

    Raises:
        RuntimeError: it does not compile; the compiler's output.
    """
    flags = ("-std=c++20", *flags)
    folder = CACHE / _state(units, (*flags, *link))
    target = folder / name
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    objects = [folder / f"{Path(source).stem}.o" for source, _ in units]
    jobs = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
    with ThreadPoolExecutor(jobs) as pool:
        list(
            pool.map(
                lambda unit, to: _run(*flags, *unit[1], *INCLUDES, "-c", unit[0], "-o", str(to)),
                units,
                objects,
            )
        )
    fresh = folder / f"{name}.{os.getpid()}"
    _run(*flags, *link, *map(str, objects), "-o", str(fresh))
    fresh.replace(target)  # at once: two runs may build it
    return target


def _state(units: tuple[Unit, ...], flags: tuple[str, ...]) -> str:
    """A name for what the compiler sees: its version, the flags and every file it may read."""
    digest = hashlib.sha256(_run("--version").encode())
    digest.update(repr((units, flags)).encode())
    files = [*ROOT.glob("csrc/*.[hd]*"), *ROOT.glob("csrc/cuda/*"), *ROOT.glob("tests/simt/*")]
    for file in sorted(files):
        digest.update(f"{file.relative_to(ROOT)} {file.stat().st_size} ".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _run(*arguments: str) -> str:
    done = subprocess.run(
        [compiler(), *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)}\n{done.stderr}")
    return done.stdout
