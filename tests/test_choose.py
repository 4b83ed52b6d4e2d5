"""csrc/cuda/choose.h for every module of GoogLeNet, batch and architecture, on any machine."""

from __future__ import annotations

import emulated
import pytest
from emulated import DTYPES

from inception_fused.lower import lower
from inception_fused.spec import GOOGLENET, GOOGLENET_SIZE

BATCHES = (1, 8, 64, 256)
SM = (80, 86, 89, 90, 100, 120)
BUSY = 60  # blocks of 8 warps that keep an H100's 132 multiprocessors loading and multiplying
REGISTERS = 65536  # of a multiprocessor


def chosen(name: str, precision: str, batch: int, sm: int):
    return emulated.launches(
        lower(GOOGLENET[name]), precision, (batch, GOOGLENET_SIZE[name]), sm=sm
    )


def others(name: str, precision: str, batch: int, sm: int, launch: int):
    return emulated.alternatives(
        lower(GOOGLENET[name]), precision, (batch, GOOGLENET_SIZE[name]), launch, sm=sm
    )


@pytest.mark.parametrize("sm", SM)
@pytest.mark.parametrize("precision", DTYPES)
def test_limits_and_the_least_time(precision, sm):
    """Shared memory and registers fit the device, and no tile that fits is predicted faster."""
    shapes = emulated.library().shapes()
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
                assert resident * shape["registers"] * shape["threads"] <= REGISTERS, where
                assert launch["threads"] == shape["threads"] <= 1024, where
                rest = others(name, precision, batch, sm, index)
                assert launch["nanoseconds"] == min(o["nanoseconds"] for o in rest), where


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


def test_an_unknown_older_architecture_is_refused():
    with pytest.raises(ValueError, match="as old as sm_75"):
        chosen("3a", "float16", 1, 75)
