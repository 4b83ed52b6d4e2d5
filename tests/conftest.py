"""What every test may rely on."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _threads():
    """A test that changes torch's number of threads does not change it for the next."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
