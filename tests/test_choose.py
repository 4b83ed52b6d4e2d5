"""csrc/cuda/choose.h for every module of GoogLeNet, batch and architecture, on any machine."""

from __future__ import annotations

import itertools

import emulated
import pytest
from emulated import DTYPES

from inception_fused.lower import lower
from inception_fused.plan import Plan
from inception_fused.spec import GOOGLENET, GOOGLENET_SIZE

BATCHES = (1, 8, 64, 256)
SM = (80, 86, 89, 90, 100, 120)
BUSY = 60  # blocks of 8 warps that keep an H100's 132 multiprocessors loading and multiplying
BUSY_PART = BUSY / 132  # kBusy of choose.h
REGISTERS = 65536  # of a multiprocessor
TIE = 1.1  # kTie of choose.h


def chosen(name: str, precision: str, batch: int, sm: int):
    return emulated.launches(
        lower(GOOGLENET[name]), precision, (batch, GOOGLENET_SIZE[name]), sm=sm
    )


def others(name: str, precision: str, batch: int, sm: int, launch: int):
    return emulated.alternatives(
        lower(GOOGLENET[name]), precision, (batch, GOOGLENET_SIZE[name]), launch, sm=sm
    )


def floor_bytes(plan: Plan, precision: str, batch: int, size: int) -> int:
    """x, weights and output once, scratch written once and read once; GoogLeNet pads nothing."""
    element = DTYPES[precision].itemsize
    scratch = sum(plan.buffers) - plan.in_channels - plan.out_channels
    pixels = batch * size**2 * (plan.in_channels + plan.out_channels + 2 * scratch)
    pack: int = emulated.library().pack_bytes(list(plan.code), emulated.MATHS[precision])
    return pixels * element + pack


@pytest.mark.parametrize("sm", SM)
@pytest.mark.parametrize("precision", DTYPES)
def test_limits_and_the_least_time(precision, sm):
    """Shared memory and registers fit the device; of the fastest tiles, the one that moves least.

    As fast as the fastest is one within 10 per cent, if it has blocks for the same part of the
    multiprocessors as 60 are of an H100.
    """
    shapes = emulated.library().shapes()
    registers = "registers" if sm < 100 else "registers_100"
    device = {a["sm"]: a for a in emulated.library().architectures()}[sm]
    for name in GOOGLENET:
        for batch in BATCHES:
            for index, launch in enumerate(chosen(name, precision, batch, sm)):
                shape = shapes[launch["shape"]]
                where = (name, batch, launch)
                assert 0 < launch["shared"] <= device["shared_block"], where
                resident = launch["blocks_per_processor"]
                assert resident >= 1, where
                assert resident * (launch["shared"] + 1024) <= device["shared_processor"], where
                assert resident * shape[registers] * shape["threads"] <= REGISTERS, where
                assert launch["threads"] == shape["threads"] <= 1024, where
                assert shape["cluster"] == 1 or device["multicast"], where
                assert launch["blocks"] % shape["cluster"] == 0, where
                rest = others(name, precision, batch, sm, index)
                fastest = min(rest, key=lambda o: o["nanoseconds"])
                enough = min(fastest["blocks"], int(BUSY_PART * device["processors"]))
                tied = [
                    o["bytes"]
                    for o in rest
                    if o["nanoseconds"] <= TIE * fastest["nanoseconds"] and o["blocks"] >= enough
                ]
                assert launch["bytes"] == min(tied), where


def test_an_h100_is_kept_busy():
    """Blocks of 8 warps, at least 60; 5a's convolutions of one image make 56 at most."""
    fewer = set()
    for name in GOOGLENET:
        for batch in BATCHES:
            for precision in DTYPES:
                for index, launch in enumerate(chosen(name, precision, batch, 90)):
                    assert launch["threads"] == 256
                    if launch["blocks"] < BUSY:
                        most = max(o["blocks"] for o in others(name, precision, batch, 90, index))
                        assert launch["blocks"] == most, (name, batch, launch)
                        fewer.add((name, batch, launch["conv"]))
    assert fewer <= {("5a", 1, True)}


@pytest.mark.parametrize("precision", DTYPES)
def test_four_times_the_floor_at_batch_8(precision):
    """On an H100, with clusters; see test_counters.py, which counts what is predicted here.

    Without clusters, every choice that moves so little is predicted slower.
    """
    shapes = emulated.library().shapes()
    for name, spec in GOOGLENET.items():
        limit = 4 * floor_bytes(lower(spec), precision, 8, GOOGLENET_SIZE[name])
        launches = chosen(name, precision, 8, 90)
        assert sum(launch["bytes"] for launch in launches) <= limit, name
        nanoseconds = sum(launch["nanoseconds"] for launch in launches)
        for pair in pairs(name, precision, 90):
            alone = all(shapes[o["shape"]]["cluster"] == 1 for o in pair)
            if alone and sum(o["bytes"] for o in pair) <= limit:
                assert sum(o["nanoseconds"] for o in pair) > nanoseconds, name


def pairs(name: str, precision: str, sm: int):
    """Every two tiles for the two launches at batch 8."""
    return itertools.product(*(others(name, precision, 8, sm, i) for i in range(2)))


@pytest.mark.parametrize("precision", ["float16", "float32"])
def test_why_others_move_more(precision):
    """Without multicast 3b and 4a to 4e have no two tiles within four times the floor.

    A tile of 128 x 128 reads the source once for 128 columns and the weights once for 128 pixels,
    and none larger fits. 3a, 5a and 5b have such tiles; those that fit an A100 cost half as much
    time again, for 5a and 5b, where they leave most of it idle. docs/cuda_choices.md has the rest.
    """
    for sm in (80, 86, 89, 120):
        for name in ("3b", "4a", "4b", "4c", "4d", "4e"):
            limit = 4 * floor_bytes(lower(GOOGLENET[name]), precision, 8, GOOGLENET_SIZE[name])
            least = min(sum(o["bytes"] for o in pair) for pair in pairs(name, precision, sm))
            assert least > limit, (sm, name)
    for name in ("5a", "5b"):
        limit = 4 * floor_bytes(lower(GOOGLENET[name]), precision, 8, GOOGLENET_SIZE[name])
        taken = sum(launch["nanoseconds"] for launch in chosen(name, precision, 8, 80))
        frugal = [p for p in pairs(name, precision, 80) if sum(o["bytes"] for o in p) <= limit]
        assert frugal
        assert all(sum(o["nanoseconds"] for o in pair) > 1.5 * taken for pair in frugal), name


def test_an_unknown_older_architecture_is_refused():
    with pytest.raises(ValueError, match="as old as sm_75"):
        chosen("3a", "float16", 1, 75)
