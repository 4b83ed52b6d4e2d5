"""What every test may rely on; ``--hypothesis-profile=full`` runs 2,000 random examples of each."""

from __future__ import annotations

import importlib.util
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


@pytest.fixture(scope="session")
def mirror() -> ModuleType:
    """csrc/plan.h and the choice of CPU kernels, bound by tests/cpp/mirror.cpp."""
    sources = [native.ROOT / "tests" / "cpp" / "mirror.cpp"]
    kernels = [source for source in native.CPU if source.name.startswith("isa")]
    path = native.build_module("mirror", sources + kernels)
    spec = importlib.util.spec_from_file_location("mirror", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
