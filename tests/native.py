"""Builds the torch-free C++ of csrc for tests. Ninja builds again only what has changed."""

from __future__ import annotations

import importlib.util
import os
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, ModuleType

from ninja.ninja_syntax import Writer

ROOT = Path(__file__).parent.parent
CPU = sorted((ROOT / "csrc" / "cpu").glob("*.cpp"))
"""Sources of the CPU back end, without the file that knows torch."""

SANITIZED = ("-O1", "-g1", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all")


def object_of(result: Path, source: Path) -> Path:
    """The object file of a source, below the repository's root, of what :func:`build` returned."""
    name = str(source.relative_to(ROOT)).replace("/", ".")
    return result.with_name(f"{result.name}.d") / f"{name}.o"


def build(
    target: str,
    sources: Sequence[Path],
    flags: Sequence[str] = (),
    own: Mapping[Path, Sequence[str]] = MappingProxyType({}),
    link: Sequence[str] = (),
) -> Path:
    """Compiles and links the sources; returns the file, ``build/tests/<target>``.

    Args:
        target: file name; the objects are beside it in ``<target>.d``.
        sources: C++ files below the repository's root.
        flags: for the compiler and the linker.
        own: for the compiler, of one source alone.
        link: for the linker alone.

    Raises:
        RuntimeError: the compiler's messages.
    """
    result = ROOT / "build" / "tests" / target
    folder = result.with_name(f"{target}.d")
    folder.mkdir(parents=True, exist_ok=True)
    includes = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'tests' / 'simt'}"]
    with (folder / "build.ninja").open("w") as file:
        ninja = Writer(file)
        ninja.variable("builddir", str(folder))
        ninja.variable("compiler", os.environ.get("CXX", "c++"))
        ninja.variable("flags", [shlex.quote(f) for f in ("-std=c++20", *includes, *flags)])
        ninja.rule(
            "compile",
            "$compiler $flags $own -MD -MF $out.d -c $in -o $out",
            depfile="$out.d",
            deps="gcc",
        )
        ninja.rule("link", f"$compiler $flags {shlex.join(link)} $in -o $out")
        objects = []
        for source in sources:
            variables = {"own": shlex.join(own.get(source, ()))}
            place = str(object_of(result, source))
            objects += ninja.build(place, "compile", str(source), variables=variables)
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


def load(name: str, sources: Sequence[Path], flags: Sequence[str] = ()) -> ModuleType:
    """Builds and imports the pybind11 module that the sources define."""
    import pybind11

    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    folders = (pybind11.get_include(), sysconfig.get_path("include"))
    includes = [f"-isystem{folder}" for folder in folders]
    shared = ["-fPIC", "-shared", "-fvisibility=hidden"]
    path = build(f"{name}{suffix}", sources, [*flags, *shared, *includes])
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
