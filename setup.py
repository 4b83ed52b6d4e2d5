"""Builds the native library; everything declarative is in pyproject.toml.

MAX_JOBS means what it means for every PyTorch extension. INCEPTION_FUSED_PURE=1 builds no native
code: the package then runs its reference back end.
"""

import os
import sys
from pathlib import Path

from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

ROOT = Path(__file__).parent
STABLE_ABI = [
    "-DTORCH_TARGET_VERSION=0x020a000000000000",  # torch 2.10
]
CXX_FLAGS = ["-std=c++20", "-O3", "-g0", "-ffp-contract=fast", "-fvisibility=hidden", *STABLE_ABI]
EXPORTS = ROOT / "csrc" / "exports.map"
LINK_FLAGS = [f"-Wl,--version-script={EXPORTS}"] if sys.platform == "linux" else []


def sources(*patterns: str) -> list[str]:
    return sorted(str(p.relative_to(ROOT)) for pattern in patterns for p in ROOT.glob(pattern))


def cpu_extension() -> CppExtension:
    return CppExtension(
        "inception_fused._C",
        sources("csrc/bind.cpp", "csrc/run_cpu.cpp", "csrc/cpu/*.cpp"),
        include_dirs=[str(ROOT / "csrc")],
        depends=sources("csrc/*.h", "csrc/*.def", "csrc/*.map", "csrc/cpu/*.h", "csrc/cpu/*.inl"),
        extra_compile_args={"cxx": CXX_FLAGS},
        extra_link_args=LINK_FLAGS,
        py_limited_api=True,
    )


def extensions() -> list[CppExtension]:
    if os.environ.get("INCEPTION_FUSED_PURE") == "1":
        print("inception_fused: builds no native code (INCEPTION_FUSED_PURE=1)")
        return []
    print("inception_fused: builds _C for the CPU")
    return [cpu_extension()]


setup(
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildExtension.with_options(use_ninja=True)},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
