"""Every module of GoogLeNet by back end and dtype, under pytest-benchmark.

    make bench-baseline    # on the state to compare with
    make bench-compare     # on the state to judge; exit code 1 if a back end has become slower

Not part of the test suite. Contestants of a group run one after the other here, so a ratio between
them is weaker than one from ``inception-fused bench``; a back end against its own past, with stock
as the control, is what this is for. ``extra_info`` has GFLOP (direct convolution), bytes (input,
output and weights, each once), GFLOP/s and the percentage of the ceiling; ``control`` marks what
does not run this package's kernels.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from inception_fused.bench import ceiling
from inception_fused.bench.cases import find
from pytest_benchmark.fixture import BenchmarkFixture
from torch import nn

import inception_fused
from inception_fused.backends import names
from inception_fused.examine import TOLERANCE
from inception_fused.fusion import fusion_of
from inception_fused.lower import lower
from inception_fused.spec import GOOGLENET, GOOGLENET_SIZE

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
STOCK = {"stock-nchw": torch.contiguous_format, "stock-channels_last": torch.channels_last}
WAYS = (*STOCK, *names(), "cpu-direct")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@cache
def peak(dtype: str) -> float:
    """10**9 operations a second."""
    found: float = ceiling.measure(DEVICE, dtype).gflops
    return found


def prepare(way: str, model: nn.Module) -> nn.Module:
    """The model as it runs in this way; fused ones are given channels-last inputs."""
    if way in STOCK:
        return model.to(memory_format=STOCK[way])
    backend, _, direct = way.partition("-")
    return inception_fused.fuse(model, backend=backend, winograd=not direct, network=False)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("name", GOOGLENET)
def test_module(benchmark: BenchmarkFixture, name: str, batch: int, dtype: str, way: str) -> None:
    case = find(name)
    stock = case.build().to(DEVICE, DTYPES[dtype])
    x = case.inputs(batch).to(DEVICE, DTYPES[dtype])
    x = x.contiguous(memory_format=STOCK.get(way, torch.channels_last))
    with torch.no_grad():
        expected = stock(x).float()
        model = prepare(way, case.build().to(DEVICE, DTYPES[dtype]))
        output = model(x).float()
        fusion = fusion_of(model)
        if fusion is not None and fusion.taken == "original":
            pytest.skip(fusion.reason)
        limit = TOLERANCE[DTYPES[dtype]] * float(expected.abs().max())
        torch.testing.assert_close(output, expected, rtol=0, atol=limit)

        def call() -> None:
            model(x)
            if x.is_cuda:
                torch.cuda.synchronize()

        benchmark.group = f"{name} {dtype} batch {batch}"
        benchmark(call)
    assert benchmark.stats is not None
    size = GOOGLENET_SIZE[name]
    gflop = 2e-9 * lower(GOOGLENET[name]).macs(batch, size, size)
    moved = (x.numel() + expected.numel()) * x.element_size()
    rate = gflop / benchmark.stats.stats.median
    benchmark.extra_info |= {
        "control": way in STOCK,
        "GFLOP": gflop,
        "bytes": moved + sum(p.nbytes for p in stock.parameters()),
        "GFLOP/s": rate,
        "% of ceiling": 100 * rate / peak(dtype),
    }
