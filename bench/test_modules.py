"""Every module of GoogLeNet on every way to run it, under pytest-benchmark.

    pytest bench/test_modules.py --benchmark-group-by=group
    pytest bench/test_modules.py --benchmark-autosave, later --benchmark-compare

Not part of the test suite. Contestants of a group run one after the other here, so a ratio between
them is weaker than one from ``inception-fused bench``; a column against its own past is what this
is for. ``extra_info`` has GFLOP (direct convolution), GFLOP/s and the percentage of the ceiling.
"""

from __future__ import annotations

import pytest
import torch
from inception_fused.bench import ceiling
from inception_fused.bench.cases import find
from inception_fused.bench.check import TOLERANCE
from inception_fused.bench.peers import PEERS, Contestant
from pytest_benchmark.fixture import BenchmarkFixture

from inception_fused.lower import lower
from inception_fused.spec import GOOGLENET, GOOGLENET_SIZE

CONTESTANTS = [
    Contestant(name, peer.memory_format or "channels_last")
    for name, peer in PEERS.items()
    if name != "compile"  # half a minute of compilation each
]


@pytest.fixture(scope="module")
def peak() -> float:
    """10**9 operations a second."""
    gflops: float = ceiling.measure().gflops
    return gflops


@pytest.mark.parametrize("contestant", CONTESTANTS, ids=lambda c: c.peer)
@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("name", GOOGLENET)
def test_module(
    benchmark: BenchmarkFixture, peak: float, name: str, batch: int, contestant: Contestant
) -> None:
    missing = PEERS[contestant.peer].missing()
    if missing:
        pytest.skip(missing)
    case = find(name)
    x = case.inputs(batch)
    size = GOOGLENET_SIZE[name]
    gflop = 2e-9 * lower(GOOGLENET[name]).macs(batch, size, size)
    benchmark.group = f"{name} batch {batch}"
    with torch.no_grad():
        expected = case.build()(x)
        run = contestant.prepare(case.build(), x, torch.get_num_threads())
        torch.testing.assert_close(run(), expected, rtol=0, atol=TOLERANCE * float(expected.max()))
        benchmark(run)
    assert benchmark.stats is not None
    rate = gflop / benchmark.stats.stats.median
    benchmark.extra_info |= {"GFLOP": gflop, "GFLOP/s": rate, "% of ceiling": 100 * rate / peak}
