"""tests/simt/check.cpp under the sanitizers: one emulated run, and what its checkers say.

Data races are ThreadSanitizer's, accesses outside memory AddressSanitizer's, misaligned ones
UndefinedBehaviorSanitizer's; the emulator itself names deadlocks and divergence; what is left shows
as a wrong value, because all memory is NaN before it is written.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import emulated
import native

from inception_fused.plan import Plan

MUTATIONS = (
    *("none", "skip barrier", "skip barrier once", "skip wait", "skip dependency wait"),
    *("ignore valid", "misalign", "misplace", "carve short", "skip cluster wait", "skip bytes"),
    "wide store",
)
"""``Mutation`` of tests/simt/emulator.h."""

FEW = {"alone": 1, "cluster": 6}
"""Tiles of choose.h that a program with ``few`` has: 32x32, and 64x32 in clusters."""

Site = tuple[str, str, int]
"""A primitive of simt.h, the file and the line that call it."""


@dataclass(frozen=True)
class Outcome:
    """``caught`` by "TSan", "ASan", "UBSan", "emulator" (a named error) or "values"; "" if not."""

    caught: str
    text: str
    sites: frozenset[Site]


@functools.cache
def program(sanitizer: str, few: bool) -> Path:
    """check.cpp built with "thread" or "address"; ``few``: only the tiles of FEW, in float16."""
    target = f"check_{sanitizer}{'_few' if few else ''}"
    defines = ("-DSIMT_FEW",) if few else ()
    folder = native.ROOT / "tests" / "simt"
    kernels = (*emulated.KERNELS, folder / "check.cpp")
    sources = (*emulated.MACHINE, *kernels, folder / "expected.cpp")
    own = {folder / "expected.cpp": ("-O3", "-fno-sanitize=all")}
    if sanitizer == "thread":  # the emulator is not instrumented: it says what threads access
        watch = ("-fsanitize=thread",)
        own |= dict.fromkeys(kernels, watch) | dict.fromkeys(emulated.MACHINE, ("-O2",))
        return native.build(target, sources, ("-O1", "-g", "-DSIMT_TSAN", *defines), own, watch)
    own |= dict.fromkeys(emulated.MACHINE, ("-O2",))
    flags = ("-O0", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
    return native.build(target, sources, (*flags, *defines), own)


def check(
    sanitizer: str,
    plan: Plan,
    shape: tuple[int, int, int],
    layout: str,
    *,
    tile: str | None = "alone",
    precision: str = "float16",
    seed: int = 1,
    times: int = 2,
    mutation: str = "none",
    site: Site = ("", "none", 0),
    sm: int = 90,
) -> Outcome:
    """Runs the plan on small integers; ``shape`` is (N, H, W), ``layout`` "nchw" or "nhwc".

    ``tile`` is one of FEW, or None: what choose.h takes. The plan runs ``times`` times; if once,
    races between the threads of its packs are not looked for.
    """
    numbers = (sm, -1 if tile is None else FEW[tile], seed, times, MUTATIONS.index(mutation))
    done = subprocess.run(
        [
            *(program(sanitizer, tile is not None), str(emulated.MATHS[precision]), layout),
            *(*map(str, (*shape, *numbers)), site[1], str(site[2]), *map(str, plan.code)),
        ],
        env=os.environ
        | {
            "TSAN_OPTIONS": "halt_on_error=1 exitcode=66",
            "ASAN_OPTIONS": "detect_leaks=0 exitcode=67",
            "UBSAN_OPTIONS": "print_stacktrace=0",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    text = done.stdout + done.stderr
    sites = frozenset(
        (name, file, int(line))
        for name, file, line in re.findall(r"^site (\S+) (\S+) (\d+)$", text, re.MULTILINE)
    )
    return Outcome(_caught(done.returncode, text), text, sites)


def _caught(code: int, text: str) -> str:
    for mark, checker in (
        ("WARNING: ThreadSanitizer", "TSan"),
        ("ERROR: AddressSanitizer", "ASan"),
        ("runtime error: ", "UBSan"),
    ):
        if mark in text:
            return checker
    checkers = {0: "", 2: "values", 3: "emulator"}
    if code not in checkers:
        raise RuntimeError(f"check ended with {code}:\n{text}")
    return checkers[code]
