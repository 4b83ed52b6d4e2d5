"""The CPU kernels of training against torch's own operators."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from inception_fused.ops import NOT_LOADED
from inception_fused.plan import Pool
from inception_fused.spec import Kind, Window
from inception_fused.training.cpu import CpuOperators
from inception_fused.training.operators import Operators

pytestmark = pytest.mark.skipif(NOT_LOADED is not None, reason=str(NOT_LOADED))

OURS, THEIRS = CpuOperators(), Operators()


def _random(*shape: int) -> Tensor:
    return torch.randn(shape).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("shape", "window"),
    [
        ((3, 37, 9, 7), Window((3, 3), (1, 1), (1, 1))),
        ((2, 16, 8, 8), Window((3, 3), (2, 2), (0, 0), ceil_mode=True)),
        ((4, 5, 6, 5), Window((2, 3), (1, 2), (1, 0))),
    ],
    ids=str,
)
def test_max_pool(shape: tuple[int, ...], window: Window) -> None:
    """Zeros that are equal, and NaN, go to the pixel that torch chooses."""
    torch.manual_seed(0)
    x, pool = _random(*shape).relu(), Pool(Kind.MAXPOOL, window)
    x[0, 1, 2, 2] = x[0, 1, 3, 3] = x[1, 0, 0, 0] = float("nan")
    got, where = OURS.pool(x, pool)
    wanted, indices = THEIRS.pool(x, pool)
    assert where is not None
    assert where.dtype is torch.uint8
    torch.testing.assert_close(got, wanted, rtol=0, atol=0, equal_nan=True)
    grad = torch.randn_like(wanted)
    ours, theirs = OURS.grad_pool(grad, x, pool, where), THEIRS.grad_pool(grad, x, pool, indices)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("batch", [True, False], ids=["batch", "running"])
def test_norm(batch: bool) -> None:
    """Forward into a range of a larger tensor, whose rest stays, and backward from two ranges."""
    torch.manual_seed(0)
    z = _random(5, 45, 6, 7) + 3
    z[1, 2, 3, 4] = 0
    mean, inverse = z.mean((0, 2, 3)), (z.var((0, 2, 3), unbiased=False) + 1e-3).rsqrt()
    gamma = torch.randn(45)
    constants = torch.stack([mean, inverse, gamma, torch.randn(45) - mean * inverse * gamma])
    results = []
    for operators in (OURS, THEIRS):
        whole = _random(5, 50, 6, 7).fill_(float("nan"))
        operators.normalise(z, constants, True, whole[:, 2:47])
        results.append(whole)
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5, equal_nan=True)

    grad = _random(5, 60, 6, 7)
    arguments = ([grad[:, 3:23], grad[:, 30:55]], z, constants, [True, False], batch, [True] * 3)
    for ours, theirs in zip(OURS.grad_norm(*arguments), THEIRS.grad_norm(*arguments), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-5)


def test_other_layouts_are_torchs() -> None:
    """A contiguous input is pooled with torch's indices."""
    pool = Pool(Kind.MAXPOOL, Window((3, 3), (1, 1), (1, 1)))
    indices = OURS.pool(torch.randn(2, 3, 8, 8), pool)[1]
    assert indices is not None
    assert indices.dtype is torch.int64
