"""The CUDA kernels as nvcc compiles them: no spills, matrix instructions, and choose.h's count.

Where there is no nvcc, what can be known without one: choose.h's choices and the parsers.
"""

from __future__ import annotations

import re

import emulated
import pytest
from emulated import DTYPES
from inception_fused.bench.gpu import choice_table, choices, nvcc, table
from inception_fused.bench.gpu.choices import MATHS, Problem
from native import ROOT

from inception_fused.lower import lower
from inception_fused.spec import GOOGLENET, GOOGLENET_SIZE

MISSING = nvcc.missing()
needs_nvcc = pytest.mark.skipif(MISSING is not None, reason=f"kernels not compiled: {MISSING}")
PAGE = ROOT / "docs" / "cuda_kernels.md"
LARGEST = len(choices.shapes()) - 1


@needs_nvcc
def test_the_largest_tile_has_no_fault():
    found = list(table.rows(["90a"], ["Half"], [LARGEST]))
    assert [row.instance.kernel for row in found] == list(nvcc.KERNELS)
    for row in found:
        assert row.faults() == [], row
        assert row.code.count("HMMA.16816.F32") == row.code.count("HMMA") > 0
        assert row.code.count("LDSM") > 0


@needs_nvcc
def test_local_memory_is_seen(monkeypatch):
    """Code for a debugger keeps its variables on the stack."""
    monkeypatch.setattr(nvcc, "FLAGS", (*nvcc.FLAGS, "-G"))
    (code,) = nvcc.compile_instances([nvcc.Instance("conv", "Half", 0)], "80").values()
    assert re.match(r"keeps \d+ bytes a thread in local memory", code.faults()[0])


@needs_nvcc
@pytest.mark.full
@pytest.mark.parametrize("arch", table.ARCHS)
def test_no_instance_has_a_fault(arch):
    found = list(table.rows([arch]))
    tiles = [shape for shape in choices.shapes() if shape.runs_on(found[0].sm)]
    assert len(found) == len(MATHS) * len(nvcc.KERNELS) * len(tiles)
    assert [f"{row} {fault}" for row in found for fault in row.faults()] == []
    assert {row.shape for row in found} == set(tiles)
    page = PAGE.read_text() if PAGE.exists() else ""
    if f"nvcc {nvcc.release()}:" in page and f"| sm_{arch} |" in page:
        assert [str(row) for row in found if str(row) not in page] == []


def test_faults_in_words():
    code = nvcc.Code(80, 0, nvcc.Counter({"HMMA.16816.F32": 4, "LDGSTS.E.BYPASS.128": 2}))
    assert code.faults() == []
    bad = nvcc.Code(255, 8, nvcc.Counter({"LDL": 3, "STL.64": 1, "LDGSTS.E": 2}))
    assert bad.faults() == [
        "keeps 8 bytes a thread in local memory",
        "has 4 accesses to local memory",
        "has no matrix instructions",
        "has narrow asynchronous copies: LDGSTS.E",
    ]
    empty = nvcc.Code(16, 0, nvcc.Counter())
    assert "has no asynchronous copies" in empty.faults()
    row = table.Row(nvcc.Instance("conv", "Half", 0), "90a", bad, 1024)
    assert row.faults()[-1].startswith("needs more registers than the")


def test_choices_are_those_of_the_launches():
    """What the page says is what the back end would launch."""
    for math, precision in zip(MATHS, DTYPES, strict=True):
        for sm in (80, 90):
            problems = [Problem(name, batch, sm, math) for name in GOOGLENET for batch in (1, 8)]
            for problem, found in zip(problems, choices.launches(problems), strict=True):
                launches = emulated.launches(
                    lower(GOOGLENET[problem.name]),
                    precision,
                    (problem.batch, GOOGLENET_SIZE[problem.name]),
                    sm=sm,
                )
                assert [vars(launch) for launch in found] == [
                    {name: launch[name] for name in vars(found[0])} for launch in launches
                ]


def test_the_page_has_the_choices():
    assert (ROOT / "docs" / "cuda_choices.md").read_text() == choice_table.page()
