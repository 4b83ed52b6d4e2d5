"""Builds the native libraries; everything declarative is in pyproject.toml.

``_C``, for the CPU, is always built. ``_cuda`` is built where torch has CUDA and nvcc works, or
where FORCE_CUDA=1, which makes it an error that it cannot be. MAX_JOBS, CUDA_HOME and
TORCH_CUDA_ARCH_LIST mean what they mean for every PyTorch extension; without an architecture list
the library is for the GPUs of this machine, and where there are none for every one from sm_80 on.
INCEPTION_FUSED_PURE=1 builds no native code: the package then runs its reference back end.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from setuptools import Extension, setup
from torch.utils import cpp_extension
from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension

ROOT = Path(__file__).parent
STABLE_ABI = [
    "-DTORCH_TARGET_VERSION=0x020a000000000000",  # torch 2.10
]
CXX_FLAGS = ["-std=c++20", "-O3", "-g0", "-ffp-contract=fast", "-fvisibility=hidden", *STABLE_ABI]
EXPORTS = ROOT / "csrc" / "exports.map"
LINK_FLAGS = [f"-Wl,--version-script={EXPORTS}"] if sys.platform == "linux" else []
# ptxas advises against multicasts on other devices than choose.h sends them to, hundreds of times.
MULTICASTS = "--suppress-async-bulk-multicast-advisory-warning"
NVCC_FLAGS = ["-std=c++20", "-O3", "-Xcompiler", "-fvisibility=hidden", "-Xptxas", MULTICASTS]
ANY_GPU = "8.0;9.0+PTX"  # 8.6 and 8.9 run the code of 8.0; newer ones compile the PTX on first use
FROM_TORCH_CUDA = ["aoti_torch_get_current_cuda_stream"]  # what _cuda takes from libtorch_cuda
PROBE = (
    "#include <cuda_bf16.h>\n#include <cuda_fp16.h>\nint main() { return cudaGetLastError(); }\n"
)


class NoCuda(Exception):
    """``_cuda`` cannot be built; the message is the reason."""


def sources(*patterns: str) -> list[str]:
    return sorted(str(p.relative_to(ROOT)) for pattern in patterns for p in ROOT.glob(pattern))


def output_of(*command: str) -> str:
    """What a command prints; NoCuda with its first error line if it fails."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        lines = done.stdout.strip().splitlines() or ["no message"]
        first = next((line for line in lines if "error" in line), lines[0])
        raise NoCuda(f"{Path(command[0]).name} fails: {first}")
    return done.stdout


def find_nvcc() -> str:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    places = [home] if home else [None, "/usr/local/cuda"]
    for place in places:
        found = shutil.which("nvcc", path=f"{place}/bin" if place else None)
        if found:
            return found
    raise NoCuda(f"there is no nvcc in {home}/bin" if home else "no nvcc was found")


def find_toolkit() -> Path:
    """The folder of a CUDA toolkit that compiles and links a program.

    nvcc itself is asked where it lives: the one on the PATH may be a script somewhere else.
    """
    nvcc = find_nvcc()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cu")
        source.write_text(PROBE)
        top = re.search(r"^#\$ TOP=(.*)$", output_of(nvcc, "--dryrun", str(source)), re.MULTILINE)
        home = Path(top[1]).resolve() if top else Path(nvcc).resolve().parent.parent
        nvcc = str(home / "bin" / "nvcc")
        output_of(nvcc, "-std=c++20", str(source), "-o", str(source.with_suffix("")))
    release = re.search(r"release (\d+)\.\d+", output_of(nvcc, "--version"))
    wanted = torch.version.cuda
    if release and wanted and release[1] != wanted.split(".")[0]:
        raise NoCuda(f"{nvcc} is of CUDA {release[1]}, torch was built with CUDA {wanted}")
    return home


def cpu_extension() -> Extension:
    return CppExtension(
        "inception_fused._C",
        sources("csrc/bind.cpp", "csrc/run_cpu.cpp", "csrc/run_training.cpp", "csrc/cpu/*.cpp"),
        include_dirs=[str(ROOT / "csrc")],
        depends=sources("csrc/*.h", "csrc/*.def", "csrc/*.map", "csrc/cpu/*.h", "csrc/cpu/*.inl"),
        extra_compile_args={"cxx": CXX_FLAGS},
        extra_link_args=LINK_FLAGS,
        py_limited_api=True,
    )


def cuda_extension(home: Path) -> Extension:
    cpp_extension.CUDA_HOME = str(home)  # None where torch has no CUDA
    extension = CUDAExtension(
        "inception_fused._cuda",
        sources("csrc/run_cuda.cpp", "csrc/cuda/*.cpp", "csrc/cuda/*.cu"),
        include_dirs=[str(ROOT / "csrc")],
        depends=sources("csrc/*.h", "csrc/*.def", "csrc/*.map", "csrc/cuda/*.h", "csrc/cuda/*.inl"),
        extra_compile_args={"cxx": [*CXX_FLAGS, "-DUSE_CUDA"], "nvcc": NVCC_FLAGS},
        extra_link_args=LINK_FLAGS,
        py_limited_api=True,
    )
    # The CUDA runtime inside, so that one library serves torch of any CUDA version with this ABI.
    extension.libraries = ["torch_cpu", "torch_cuda", "cudart_static", "dl", "rt", "pthread"]
    return extension


class Build(BuildExtension):
    """Where torch has no CUDA, ``_cuda`` is linked with a library of its CUDA part's name."""

    def build_extensions(self) -> None:
        for extension in self.extensions:
            if extension.name.endswith("_cuda") and torch.version.cuda is None:
                extension.library_dirs.insert(0, self.stand_in())
        super().build_extensions()

    def stand_in(self) -> str:
        folder = Path(self.build_temp, "stand_in")
        folder.mkdir(parents=True, exist_ok=True)
        library, source = folder / "libtorch_cuda.so", folder / "symbols.c"
        source.write_text("".join(f"void {name}(void) {{}}\n" for name in FROM_TORCH_CUDA))
        output_of(
            "cc", "-shared", "-fPIC", f"-Wl,-soname,{library.name}", "-o", str(library), str(source)
        )
        return str(folder)


def extensions() -> list[Extension]:
    if os.environ.get("INCEPTION_FUSED_PURE") == "1":
        print("inception_fused: builds no native code (INCEPTION_FUSED_PURE=1)")
        return []
    forced = os.environ.get("FORCE_CUDA") == "1"
    try:
        if torch.version.cuda is None and not forced:
            raise NoCuda("torch has no CUDA")
        home = find_toolkit()
    except NoCuda as reason:
        if forced:
            raise SystemExit(f"inception_fused: FORCE_CUDA=1, but {reason}") from None
        print(f"inception_fused: builds _C for the CPU, not _cuda: {reason}")
        return [cpu_extension()]
    if not os.environ.get("TORCH_CUDA_ARCH_LIST") and not torch.cuda.is_available():
        os.environ["TORCH_CUDA_ARCH_LIST"] = ANY_GPU
    wanted = os.environ.get("TORCH_CUDA_ARCH_LIST") or "the GPUs of this machine"
    print(f"inception_fused: builds _C for the CPU and, with {home}, _cuda for {wanted}")
    return [cpu_extension(), cuda_extension(home)]


setup(
    ext_modules=extensions(),
    cmdclass={"build_ext": Build.with_options(use_ninja=True)},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
