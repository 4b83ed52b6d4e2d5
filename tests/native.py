"""Builds the torch-free C++ of csrc for tests. Ninja builds again only what has changed."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from ninja.ninja_syntax import Writer

ROOT = Path(__file__).parent.parent
CPU = sorted((ROOT / "csrc" / "cpu").glob("*.cpp"))
"""Sources of the CPU back end, without the file that knows torch."""

SANITIZED = ("-O1", "-g1", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all")


def object_of(result: Path, source: Path) -> Path:
    """The object file of a source, below the repository's root, of what :func:`build` returned."""
    name = str(source.relative_to(ROOT)).replace("/", ".")
    return result.with_name(f"{result.name}.d") / f"{name}.o"


def build(target: str, sources: Sequence[Path], flags: Sequence[str] = ()) -> Path:
    """Compiles and links the sources; returns the file, ``build/tests/<target>``.

    Args:
        target: file name; the objects are beside it in ``<target>.d``.
        sources: C++ files below the repository's root.
        flags: for the compiler and the linker.

    Raises:
        RuntimeError: the compiler's messages.
    """
    result = ROOT / "build" / "tests" / target
    folder = result.with_name(f"{target}.d")
    folder.mkdir(parents=True, exist_ok=True)
    includes = [f"-I{ROOT / 'csrc'}"]
    with (folder / "build.ninja").open("w") as file:
        ninja = Writer(file)
        ninja.variable("builddir", str(folder))
        ninja.variable("compiler", os.environ.get("CXX", "c++"))
        ninja.variable("flags", [shlex.quote(f) for f in ("-std=c++20", *includes, *flags)])
        ninja.rule(
            "compile",
            "$compiler $flags -MD -MF $out.d -c $in -o $out",
            depfile="$out.d",
            deps="gcc",
        )
        ninja.rule("link", "$compiler $flags $in -o $out")
        objects = []
        for source in sources:
            objects += ninja.build(str(object_of(result, source)), "compile", str(source))
        ninja.build(str(result), "link", objects)
    jobs = os.environ.get("MAX_JOBS")
    done = subprocess.run(
        [sys.executable, "-m", "ninja", "-C", str(folder), *(["-j", jobs] if jobs else [])],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{target} does not build:\n{done.stdout}{done.stderr}")
    return result


def build_module(name: str, sources: Sequence[Path]) -> Path:
    """Builds a pybind11 module; returns the file to import it from."""
    import pybind11

    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    folders = (pybind11.get_include(), sysconfig.get_path("include"))
    flags = ["-O0", "-fPIC", "-shared", *(f"-isystem{folder}" for folder in folders)]
    return build(f"{name}{suffix}", sources, flags)
