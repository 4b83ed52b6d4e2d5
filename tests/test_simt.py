"""The emulated kernels under the sanitizers, clean; and every planted bug, caught.

A default run builds two tiles of one dtype; ``-m full`` runs the paper's modules with all of them.
"""

from __future__ import annotations

import itertools
import os
import re
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import pytest
from checked import Site, check
from emulated import DTYPES
from native import ROOT

from inception_fused.lower import lower
from inception_fused.spec import GOOGLENET, GOOGLENET_SIZE, Spec, Stage

LAYOUTS = ("nhwc", "nchw")
SANITIZERS = ("address", "thread")
# Several stages of every operand, tails of rows and columns; rows that stream for 65 taps; stages
# of weights that are used twice.
PLANS = {
    "module": lower(Spec.v1(264, 8, 8, 16, 8, 8, 8, k5=7)),
    "streamed": lower(Spec(8, ((Stage.conv(8, (1, 65)),),))),
    "shared": lower(Spec(264, ((Stage.conv(32), Stage.conv(8, 3)),))),
}
Run = tuple[str, str, str]  # plan, layout, tile
RUNS: tuple[Run, ...] = (
    *itertools.product(("module", "streamed"), LAYOUTS, ("alone",)),
    ("shared", "nhwc", "cluster"),
)
SHAPES = {"alone": (1, 4, 5), "cluster": (1, 8, 9)}  # of a cluster, two blocks have rows


@cache
def clean(sanitizer: str, run: Run) -> frozenset[Site]:
    """The sites that a run without a bug passes."""
    name, layout, tile = run
    outcome = check(sanitizer, PLANS[name], SHAPES[tile], layout, tile=tile)
    assert outcome.caught == "", outcome.text
    return outcome.sites


@pytest.mark.parametrize("sanitizer", SANITIZERS)
@pytest.mark.parametrize("run", RUNS, ids="-".join)
def test_clean(sanitizer, run):
    assert clean(sanitizer, run)


@pytest.mark.full
@pytest.mark.parametrize("sanitizer", SANITIZERS)
@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("name", GOOGLENET)
def test_paper_modules_are_clean(name, precision, sanitizer):
    size = GOOGLENET_SIZE[name]

    def run(seed):
        return check(
            sanitizer,
            lower(GOOGLENET[name]),
            (1, size, size),
            LAYOUTS[seed],
            tile=None,
            precision=precision,
            seed=seed,
            times=1,
        )

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        outcomes = list(pool.map(run, range(len(LAYOUTS))))
    for outcome in outcomes:
        assert outcome.caught == "", outcome.text


# Mutation: the primitive it is planted at, the sanitizer it runs under, who may catch it. Where the
# emulator or a sanitizer is named alone, a wrong value would not do: it may be right by luck.
BUGS: dict[str, tuple[str, str, set[str]]] = {
    "skip barrier": ("sync_block", "thread", {"TSan"}),
    "skip barrier once": ("sync_block", "address", {"emulator"}),
    "skip wait": ("copy_wait", "thread", {"TSan"}),
    "skip dependency wait": ("dependency_wait", "thread", {"TSan", "values"}),
    "ignore valid": ("copy_async", "address", {"values"}),
    "misalign": ("copy_async", "address", {"emulator"}),
    "misalign multicast": ("copy_multicast", "address", {"emulator"}),
    "skip cluster wait": ("cluster_wait", "thread", {"TSan", "emulator"}),
    "skip bytes": ("barrier_wait", "thread", {"TSan"}),
    "misplace": ("carve", "address", {"UBSan", "emulator"}),
    "carve short": ("carve", "address", {"ASan"}),
    "wide store": ("store", "address", {"ASan", "values"}),
}
HARMLESS = {
    ("skip dependency wait", "pack.h"): "a pack is not launched early",
    ("ignore valid", "weights.h"): "weights past the end meet zeros of the other operand",
}


def sites_of(primitive: str) -> dict[Site, Run]:
    """Every site of a primitive, with a run that passes it."""
    found: dict[Site, Run] = {}
    for run in RUNS:
        for site in clean("address", run):
            # The streamed plan has the only copies whose zeros are the image's border.
            wanted = site not in found or (run[0], site[0]) == ("streamed", "copy_async")
            if site[0] == primitive and wanted:
                found[site] = run
    return found


def test_every_call_of_a_primitive_is_passed():
    """So that the bugs below are planted at all of them."""
    passed = {site for primitive, *_ in BUGS.values() for site in sites_of(primitive)}
    written = set()
    for file in (ROOT / "csrc" / "cuda").glob("*.h"):
        for number, line in enumerate(file.read_text().splitlines(), 1):
            called = re.findall(
                r"simt::(sync_block|copy_wait|dependency_wait|copy_async|copy_multicast|cluster_wait"
                r"|barrier_wait|store)\b"
                r"|(?:carve|again)\.(take)<",
                line,
            )
            if called and file.name != "simt.h":
                written |= {(a or "carve", file.name, number) for a, b in called}
    assert {s[:2] for s in written} == {s[:2] for s in passed}
    assert len(written) == len(passed), sorted(written ^ passed)


@pytest.mark.parametrize("mutation", BUGS)
def test_planted_bugs_are_caught(mutation, capsys):
    primitive, sanitizer, expected = BUGS[mutation]
    places = sorted(sites_of(primitive).items())

    def plant(place):
        site, (name, layout, tile) = place
        planted = mutation.removesuffix(" multicast")
        return check(
            sanitizer, PLANS[name], SHAPES[tile], layout, tile=tile, mutation=planted, site=site
        )

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        outcomes = list(pool.map(plant, places))
    rows = []
    for (site, _), outcome in zip(places, outcomes, strict=True):
        reason = HARMLESS.get((mutation, site[1]))
        if reason:
            assert outcome.caught == "", outcome.text
        else:
            assert outcome.caught in expected, (mutation, site, outcome.caught, outcome.text)
        place = f"{primitive} at {site[1]}:{site[2]}"
        rows.append(f"{mutation:22}{place:34}{outcome.caught or f'harmless: {reason}'}")
    assert rows
    with capsys.disabled():
        print("", *rows, sep="\n")
