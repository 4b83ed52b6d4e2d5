"""The package without native code, installed by pip: it has the back ends triton and reference."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = """
import json, sys
# An editable installation of this repository would be asked for what the package lacks.
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in getattr(f, "__module__", "")]
import torch, inception_fused
from inception_fused import FusedInception, Spec

found = {"file": inception_fused.__file__, "backends": inception_fused.backends()}
for name in sys.argv[1:]:
    module = FusedInception(Spec.v1(8, 4, 4, 4, 4, 4, 4), backend=name).eval()
    x = torch.randn(1, 8, 5, 5)
    with torch.no_grad():
        y = module(x)
        found[name] = str(inception_fused.explain(module))
        difference = (y - inception_fused.unfuse(module)(x)).abs().max()
    assert difference < 1e-5, difference
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder into which pip has installed a copy of the sources."""
    folder = tmp_path_factory.mktemp("pure")
    source, site = folder / "source", folder / "site"
    skipped = shutil.ignore_patterns(".*", "build", "*.egg-info", "*.so", "__pycache__", "out")
    shutil.copytree(ROOT, source, ignore=skipped)
    command = "-m pip install --quiet --no-build-isolation --no-deps --no-index --target"
    done = subprocess.run(
        [sys.executable, *command.split(), site, source],
        env=os.environ | {"INCEPTION_FUSED_PURE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return site


def ask(site, *names, **environment):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *names],
        cwd=site.parent,
        env=os.environ | {"PYTHONPATH": str(site)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert Path(found["file"]).is_relative_to(site)
    return found


def test_it_says_what_is_missing_and_runs_without_it(site):
    assert [*site.rglob("*.so")] == []
    found = ask(site, "auto", "reference", "triton", TRITON_INTERPRET="0", CUDA_VISIBLE_DEVICES="")
    missing = "the native library is not built or does not load"
    assert found["backends"]["cpu"].startswith(missing)
    assert found["backends"]["cuda"].startswith(missing)
    assert found["backends"]["triton"].startswith("there is no GPU")
    assert found["backends"]["reference"] == "available"
    assert missing in found["auto"]
    assert "original path" in found["auto"]
    assert "fused, reference" in found["reference"]
    assert "there is no GPU" in found["triton"]


def test_the_triton_kernels_run_without_native_code(site):
    pytest.importorskip("triton")
    found = ask(site, "triton", TRITON_INTERPRET="1")
    assert found["backends"]["triton"] == "available"
    assert "fused, triton" in found["triton"]
