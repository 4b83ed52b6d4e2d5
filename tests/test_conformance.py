"""Every function of csrc/cuda/simt.h against what is written down in tests/simt/conformance.cpp.

Here the emulator is asked; ``inception-fused gpu-check`` asks a GPU with the same source.
"""

from __future__ import annotations

import re
import subprocess

import emulated
import native
import pytest
from inception_fused.bench.gpu import conformance, nvcc
from native import ROOT

SIMT = ROOT / "tests" / "simt"


def build():
    return native.build("conformance", [*emulated.MACHINE, SIMT / "conformance.cpp"], ["-O0"])


def test_the_emulator_conforms():
    done = subprocess.run([build()], capture_output=True, text=True, check=False)
    checks = conformance.parse(done.stdout)
    assert len(checks) >= 17, done.stderr
    assert [check for check in checks if check.wrong] == []
    assert all(check.values > 0 for check in checks)
    assert done.returncode == 0


def test_every_function_of_simt_is_checked():
    """A primitive that is added must be added there too."""
    device, _, _ = (ROOT / "csrc" / "cuda" / "simt.h").read_text().partition("#else")
    named = set(re.findall(r"SIMT_DEVICE [\w<>*]+ (\w+)\(", device))
    named -= {"shared_address"}  # of simt.h itself
    used = (
        "".join(file.read_text() for file in SIMT.glob("conform*"))
        + (SIMT / "rounding.h").read_text()
    )
    called = set(re.findall(r"(?:simt::|\bcarve\.)(\w+)", used)) | {"take"}
    assert "multiply_add" in named
    assert named - called == set()


def test_a_wrong_value_is_said():
    text = "load_matrices: 128 values, 3 wrong, [4] is 00000001 not 00000002\n"
    (check,) = conformance.parse(text)
    assert (check.name, check.values, check.wrong) == ("load_matrices", 128, 3)
    assert check.detail == "[4] is 00000001 not 00000002"
    with pytest.raises(RuntimeError, match="says nothing"):
        conformance.parse("")


@pytest.mark.skipif(nvcc.missing() is not None, reason=f"not compiled: {nvcc.missing()}")
@pytest.mark.full
def test_nvcc_compiles_it_and_it_asks_for_a_gpu(tmp_path):
    program = conformance.build("90a", tmp_path)
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    if done.returncode == 2:
        assert "memory: " in done.stderr  # no driver or no device
    else:
        assert done.returncode == 0, done.stdout
