"""Kernels compiled without a GPU, and what the compiler made of them.

nvcc compiles instances of the kernels of ``csrc/cuda`` to machine code for one architecture; ptxas
says their registers and spills, cuobjdump their instructions.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .choices import ROOT, shapes

FLAGS = ("-std=c++20", "-O3", f"-I{ROOT / 'csrc'}")
KERNELS = ("pointwise", "conv")
_FUNCTION = re.compile(r"(pointwise|conv)_kernelINS0_\d+(\w+?)ENS0_4TileI((?:Li\d+E)+)E")


class NoToolkit(Exception):
    """A program of the CUDA toolkit is missing; the message says which and how to get it."""


@dataclass(frozen=True)
class Instance:
    """A kernel for one type and one tile of ``kShapes``."""

    kernel: str
    math: str
    shape: int


@dataclass(frozen=True)
class Code:
    """What an instance became. ``spilled`` are bytes a thread, stack frame included.

    ``instructions`` counts those of SASS by their name with all modifiers.
    """

    registers: int
    spilled: int
    instructions: Counter[str]

    def count(self, prefix: str) -> int:
        """Instructions whose name begins so."""
        return sum(n for name, n in self.instructions.items() if name.startswith(prefix))

    def faults(self) -> list[str]:
        """What must not be, in words."""
        narrow = [
            name for name in self.instructions if name.startswith("LDGSTS") and ".128" not in name
        ]
        local = sum(self.count(name) for name in ("LDL", "STL"))
        found = []
        if self.spilled:
            found.append(f"keeps {self.spilled} bytes a thread in local memory")
        if local:
            found.append(f"has {local} accesses to local memory")
        if not self.count("HMMA"):
            found.append("has no matrix instructions")
        if not self.count("LDGSTS"):
            found.append("has no asynchronous copies")
        if narrow:
            found.append(f"has narrow asynchronous copies: {', '.join(narrow)}")
        return found


def find(program: str) -> Path:
    """nvcc, cuobjdump or nvdisasm: of CUDA_HOME, the PATH, /usr/local, or a Python package.

    Raises:
        NoToolkit: it is nowhere.
    """
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    places = [Path(home, "bin")] if home else []
    places += [Path(p) for p in os.environ.get("PATH", "").split(os.pathsep) if p]
    places += sorted(Path("/usr/local").glob("cuda*/bin"), reverse=True)
    for packages in map(Path, sys.path):
        places += sorted(packages.glob("nvidia/*/bin"), reverse=True)
        places.append(packages / "triton" / "backends" / "nvidia" / "bin")
    for place in places:
        found = shutil.which(program, path=str(place))
        if found:
            return Path(found)
    package = {"compute-sanitizer": "nvidia-cuda-sanitizer-api"}.get(
        program, f"nvidia-cuda-{program}"
    )
    raise NoToolkit(f"there is no {program} (set CUDA_HOME, or pip install {package})")


def missing() -> str | None:
    """Why kernels cannot be compiled and looked at here; None if they can."""
    if not (ROOT / "csrc" / "cuda").is_dir():
        return "the sources of the kernels are only in a checkout"
    try:
        for program in ("nvcc", "cuobjdump", "nvdisasm"):
            find(program)
    except NoToolkit as error:
        return str(error)
    return None


def release() -> str:
    """Version of nvcc, as it says itself."""
    text = _run([str(find("nvcc")), "--version"])
    found = re.search(r"release \S+ (V\S+)", text)
    return found[1] if found else text.strip().splitlines()[-1]


def compile_instances(instances: Iterable[Instance], arch: str) -> dict[Instance, Code]:
    """Compiles instances of one type together.

    Args:
        arch: as in "90a".

    Raises:
        NoToolkit: a program is missing.
        RuntimeError: it does not compile; the compiler's messages.
    """
    wanted = list(instances)
    lines = [
        f"template __global__ void {i.kernel}_kernel<{i.math}, TileOf<{i.shape}>>"
        "(const __grid_constant__ Wave);"
        for i in wanted
    ]
    text = '#include "cuda/launch.inl"\nnamespace inception_fused::cuda {\n%s\n}\n'
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder, "instances.cu"), Path(folder, "instances.cubin")
        source.write_text(text % "\n".join(lines))
        said = _run(
            [
                *(str(find("nvcc")), *FLAGS, f"-arch=sm_{arch}", "-cubin", "-Xptxas", "-v"),
                *(str(source), "-o", str(cubin)),
            ]
        )
        listing = _run([str(find("cuobjdump")), "-sass", str(cubin)], near="nvdisasm")
    usage, instructions = _usage(said), _instructions(listing)
    return {i: Code(*usage[_key(i)], instructions[_key(i)]) for i in wanted}


_Key = tuple[str, str, tuple[int, ...]]


def _key(instance: Instance) -> _Key:
    s = shapes()[instance.shape]
    warps = (s.warp_rows, s.warp_columns, s.warp_depth)
    tile = (s.rows, s.columns, s.depth, *warps, s.stages, s.cluster)
    return instance.kernel, instance.math, tile


def _parse(mangled: str) -> _Key | None:
    found = _FUNCTION.search(mangled)
    if found is None:
        return None
    return found[1], found[2], tuple(map(int, re.findall(r"\d+", found[3])))


def _usage(text: str) -> dict[_Key, tuple[int, int]]:
    """(registers, bytes of stack and spills) by kernel, from what ptxas -v says."""
    found = {}
    for part in text.split("Compiling entry function ")[1:]:
        key = _parse(part.splitlines()[0])
        stack = re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill", part
        )
        registers = re.search(r"Used (\d+) registers", part)
        if key is None:
            continue
        if stack is None or registers is None:
            raise RuntimeError(f"ptxas does not say what a kernel uses: {part}")
        found[key] = (int(registers[1]), sum(map(int, stack.groups())))
    return found


def _instructions(text: str) -> dict[_Key, Counter[str]]:
    """Instructions by kernel, from cuobjdump -sass."""
    found = {}
    for part in re.split(r"Function : ", text)[1:]:
        key = _parse(part.splitlines()[0])
        if key is not None:
            names = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ +)?([A-Z][\w.]*)", part)
            found[key] = Counter(names)
    return found


def _run(command: Sequence[str], near: str | None = None) -> str:
    """What a program prints, both streams; ``near``: another program it must find."""
    environment = dict(os.environ)
    if near:
        environment["PATH"] = f"{find(near).parent}{os.pathsep}{environment.get('PATH', '')}"
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env=environment,
    )
    if done.returncode:
        raise RuntimeError(f"{Path(command[0]).name} fails:\n{done.stdout}")
    return done.stdout
