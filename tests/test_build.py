"""What setup.py decides to build, and that it says so; nothing is compiled here but a probe."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent


def ask(**environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "setup.py", "--name"],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def make_nvcc(folder: Path, script: str) -> Path:
    nvcc = folder / "bin" / "nvcc"
    nvcc.parent.mkdir(exist_ok=True)
    nvcc.write_text(f"#!/bin/sh\n{script}\n")
    nvcc.chmod(0o755)
    return nvcc


@pytest.mark.skipif(torch.version.cuda is None, reason="torch has no CUDA here")
def test_a_toolkit_that_cannot_compile_is_left_out_with_the_reason(tmp_path):
    make_nvcc(tmp_path, "echo 'x.cu: fatal error: cuda_fp16.h: no such file' >&2; exit 1")
    asked = ask(CUDA_HOME=str(tmp_path), FORCE_CUDA="0")
    assert asked.returncode == 0, asked.stderr
    assert "builds _C for the CPU, not _cuda: nvcc fails: " in asked.stdout
    assert "cuda_fp16.h: no such file" in asked.stdout


def test_forced_cuda_names_what_is_missing(tmp_path):
    asked = ask(CUDA_HOME=str(tmp_path), FORCE_CUDA="1")
    assert asked.returncode == 1
    assert f"FORCE_CUDA=1, but there is no nvcc in {tmp_path}/bin" in asked.stderr


def test_nothing_native_on_request():
    asked = ask(INCEPTION_FUSED_PURE="1")
    assert asked.returncode == 0, asked.stderr
    assert "builds no native code" in asked.stdout


def test_nvcc_behind_a_script_and_the_architectures(tmp_path):
    """CUDA_HOME of a script on the PATH is not where the toolkit is."""
    real = shutil.which("nvcc")
    if real is None or torch.version.cuda is None:
        pytest.skip("no nvcc on the PATH" if real is None else "torch has no CUDA here")
    make_nvcc(tmp_path, f'exec {real} "$@"')
    asked = ask(CUDA_HOME=str(tmp_path), TORCH_CUDA_ARCH_LIST="8.6", FORCE_CUDA="0")
    assert asked.returncode == 0, asked.stderr
    if "not _cuda" in asked.stdout:
        pytest.skip(asked.stdout.strip())
    assert "_cuda for 8.6" in asked.stdout
    assert str(tmp_path) not in asked.stdout
