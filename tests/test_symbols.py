"""Machine code: wide instructions only where the CPU was asked first, one exported symbol."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import native
import pytest

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64",
    reason="reads ELF files of x86-64",
)

WIDE = {  # by namespace of csrc/cpu: what only a CPU with that instruction set can run
    "avx2": re.compile(r"^v(?!err|erw|mcall)|%ymm"),
    "avx512": re.compile(r"%zmm|%[xy]mm(?:1[6-9]|2\d|3[01])|%k[0-7]|\{%k"),
    "avx512_vnni": re.compile(r"^vpdpbusd"),
    "avx512_bf16": re.compile(r"^v\w*bf16"),
}
FUNCTION = re.compile(r"^[0-9a-f]+ <(.+)>:$")
INSTRUCTION = re.compile(r"^ *[0-9a-f]+:\t(.+)$")


def tool(name: str, *arguments: str | Path) -> str:
    """What a tool of binutils prints."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed (binutils)")
    done = subprocess.run([path, *arguments], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.fixture(scope="module")
def library() -> Path:
    """The native library that the package imports."""
    found = find_spec("inception_fused._C")
    if found is None or found.origin is None:
        pytest.skip("the package was built without its native library")
    return Path(found.origin)


@pytest.fixture(scope="module")
def functions(library: Path) -> dict[str, list[str]]:
    """The instructions of every function, by its demangled name."""
    found: dict[str, list[str]] = {}
    body: list[str] = []
    for line in tool("objdump", "-d", "-C", "--no-show-raw-insn", library).splitlines():
        if start := FUNCTION.match(line):
            body = found.setdefault(start[1], [])
        elif instruction := INSTRUCTION.match(line):
            body.append(instruction[1])
    if not any("inception_fused::cpu::" in name for name in found):
        pytest.skip(f"{library.name} was stripped of its symbols")
    return found


def wide(functions: dict[str, list[str]], isa: str) -> set[str]:
    """The functions that need the instruction set."""
    return {n for n, body in functions.items() if any(WIDE[isa].search(i) for i in body)}


def test_wide_instructions_are_only_in_the_namespaces_of_their_kernels(
    functions: dict[str, list[str]],
) -> None:
    def of(*namespaces: str) -> set[str]:
        return {
            n for n in functions if any(f"inception_fused::cpu::{s}::" in n for s in namespaces)
        }

    for isa in WIDE:
        assert any("gemm" in name for name in wide(functions, isa) & of(isa))
    assert wide(functions, "avx2") - of(*WIDE) == set()
    assert wide(functions, "avx512") - of(*[i for i in WIDE if i != "avx2"]) == set()
    assert wide(functions, "avx512_vnni") - of("avx512_vnni") == set()
    assert wide(functions, "avx512_bf16") - of("avx512_bf16") == set()
    assert of("base")


def test_only_the_module_s_entry_is_exported(library: Path) -> None:
    exported = tool("nm", "--dynamic", "--defined-only", "--format=posix", library)
    assert [line.split()[0] for line in exported.splitlines()] == ["PyInit__C"]


@pytest.mark.parametrize("isa", WIDE)
def test_kernel_files_hold_nothing_that_another_file_could_be_given(
    mirror: ModuleType, isa: str
) -> None:
    """The linker keeps one copy of an inline function: it must not be one with wide instructions.

    The objects were built without optimisation, so that nothing was inlined away.
    """
    path = native.object_of(
        Path(str(mirror.__file__)), native.ROOT / "csrc" / "cpu" / f"isa_{isa}.cpp"
    )
    symbols = tool("nm", "--defined-only", "--format=posix", path)
    kinds = {name: kind for name, kind, *_ in map(str.split, symbols.splitlines())}
    assert {name: kind for name, kind in kinds.items() if kind in "WwVvu"} == {}
    assert [name for name, kind in kinds.items() if kind in "TDBR"] == [
        name for name in kinds if re.fullmatch(r"_ZN15inception_fused3cpu\d+kAvx\w+E", name)
    ]
