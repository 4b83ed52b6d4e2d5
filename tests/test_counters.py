"""What the emulator counts: launches, bytes that enter multiprocessors, writes, bank conflicts."""

from __future__ import annotations

import emulated
import pytest
import targets
import torch
from emulated import DTYPES

from inception_fused.lower import lower
from inception_fused.spec import GOOGLENET, GOOGLENET_SIZE

CASES = [
    pytest.param(name, precision, marks=() if usual else pytest.mark.full)
    for name in GOOGLENET
    for precision in DTYPES
    for usual in [(name, precision) in (("4a", "float16"), ("5b", "float16"))]
]


def count(name: str, precision: str, batch: int):
    size = GOOGLENET_SIZE[name]
    plan = lower(GOOGLENET[name])
    a = targets.random_arguments(GOOGLENET[name], (batch, size, size)).to(DTYPES[precision])
    x = a.x.to(memory_format=torch.channels_last)
    out = emulated.output(plan, x)
    counted = emulated.run_into(plan, precision, x, a.weights, a.biases, out)
    targets.check_error(out, plan, precision, a)  # also of the tiles that only larger batches get
    return counted


@pytest.mark.parametrize(("name", "precision"), CASES)
def test_traffic_at_batch_8(name, precision):
    """Against the floor: x, weights and output once, scratch written once and read once.

    What is above the floor are tiles that read the same rows or the same weights. A copy to all
    blocks of a cluster is one read.
    """
    counted = count(name, precision, 8)
    buffers = counted["buffers"]
    assert counted["started"] == len(counted["launches"]) == 2
    assert counted["matrix_waves"] == counted["matrix_phases"]  # no bank conflict in ldmatrix
    for buffer in ("out", "scratch"):
        assert buffers[buffer]["written"] == buffers[buffer]["bytes"], buffer
        assert not buffers[buffer]["written_twice"], buffer
    assert buffers["x"]["written"] == buffers["pack"]["written"] == buffers["out"]["read"] == 0
    floor = sum(b["bytes"] for b in buffers.values()) + buffers["scratch"]["bytes"]
    moved = sum(b["read"] + b["written"] for b in buffers.values())
    assert moved <= 4 * floor, moved / floor
    assert sum(launch["bytes"] for launch in counted["launches"]) == pytest.approx(moved, rel=0.01)


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("fmt", [torch.contiguous_format, torch.channels_last])
def test_two_launches_at_any_batch(precision, fmt):
    for name, spec in GOOGLENET.items():
        for batch in (1, 8, 64, 256):
            launches = emulated.launches(
                lower(spec),
                precision,
                (batch, GOOGLENET_SIZE[name]),
                channels_last=fmt is torch.channels_last,
            )
            assert [launch["conv"] for launch in launches] == [False, True]


def test_stacked_3x3_take_a_third_launch():
    plan = lower(GOOGLENET["3a"].v1(192, 64, 96, 128, 16, 32, 32, (3, 3)))
    launches = emulated.launches(plan, "float16", (1, 28))
    assert [launch["conv"] for launch in launches] == [False, True, True]
