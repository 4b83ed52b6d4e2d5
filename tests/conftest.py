"""What every test may rely on; ``--hypothesis-profile=full`` runs 2,000 random examples of each."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import native
import pytest
import torch
from hypothesis import settings

settings.register_profile("full", max_examples=2000, deadline=None)


@pytest.fixture(autouse=True)
def _threads():
    """A test that changes torch's number of threads does not change it for the next."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of a test is its own, and empty: no figure of this machine's user is read."""
    folder = tmp_path / "inception_fused_cache"
    monkeypatch.setenv("INCEPTION_FUSED_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def mirror() -> ModuleType:
    """csrc/plan.h and the choice of CPU kernels, bound by tests/cpp/mirror.cpp."""
    sources = [native.ROOT / "tests" / "cpp" / "mirror.cpp"]
    kernels = [source for source in native.CPU if source.name.startswith("isa")]
    return native.load("mirror", sources + kernels, ["-O0"])
