"""Table 1 computed from the model against what the paper printed."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from inception_fused import models, table
from inception_fused.spec import GOOGLENET, GOOGLENET_SIZE


@pytest.fixture(scope="module")
def model() -> models.GoogLeNet:
    return models.googlenet()


def test_operations_are_the_printed_ones_but_in_two_rows(model: models.GoogLeNet) -> None:
    printed = {
        "conv2": 360,
        "inception_3a": 128,
        "inception_3b": 304,
        "inception_4a": 73,
        "inception_4b": 88,
        "inception_4c": 100,
        "inception_4d": 119,
        "inception_4e": 170,
        "inception_5b": 71,
        "linear": 1,
    }
    computed = {row.name: row.ops / table.M for row in table.rows(model) if row.ops}
    assert all(abs(computed.pop(name) - ops) < 1 for name, ops in printed.items())
    # The paper has 34 and 54.
    assert {name: round(ops) for name, ops in computed.items()} == {
        "conv1": 118,
        "inception_5a": 51,
    }


def test_parameters_in_the_paper_s_unit(model: models.GoogLeNet) -> None:
    params = {row.name: row.params for row in table.rows(model) if row.params}
    assert params["conv2"] == 112 * table.K
    assert params["linear"] == 1000 * table.K
    assert params["conv1"] == 64 * 3 * 7 * 7  # the paper has 2.7 K, as of 7x1 and 1x7 filters
    assert round(64 * 3 * (7 + 7) / 1000, 1) == 2.7


def test_rows_are_those_of_the_specs(model: models.GoogLeNet) -> None:
    rows = {row.name: row for row in table.rows(model)}
    assert sum(row.depth for row in rows.values()) == 22
    for name, spec in GOOGLENET.items():
        row, side = rows[f"inception_{name}"], GOOGLENET_SIZE[name]
        assert row.output == (side, side, spec.out_channels)
        # Both columns of a branch, then the sum of the last ones is the output.
        c1, _, c3, _, c5, pp = row.columns
        assert (c1, c3, c5, pp) == spec.branch_channels
        assert row.depth == 2
    assert rows["inception_3a"].columns == (64, 96, 128, 16, 32, 32)
    assert rows["conv2"].columns == (0, 64, 192, 0, 0, 0)
    assert [(r.patch, r.type) for r in rows.values()][:4] == [
        ("7x7/2", "convolution"),
        ("3x3/2", "max pool"),
        ("3x3/1", "convolution"),
        ("3x3/2", "max pool"),
    ]


def test_the_model_is_left_as_it_was(model: models.GoogLeNet) -> None:
    model.train()
    table.rows(model)
    assert model.training
    assert model.linear.weight.device.type == "cpu"
    assert not any(m._forward_hooks for m in model.modules())


def test_alexnet_has_60_million_parameters() -> None:
    assert table.alexnet_parameters() == 60_965_224


def test_the_first_claim_holds_and_the_second_does_not(model: models.GoogLeNet) -> None:
    operations, parameters = table.claims(model)
    assert operations.holds
    assert operations.computed == pytest.approx(1.583e9, rel=1e-3)
    # The paper's own column gives 8.8 times, not 12.
    assert not parameters.holds
    assert parameters.computed == pytest.approx(60_965_224 / 6_998_552)
    assert "60,965,224" in parameters.arithmetic
    assert "8.8 times" in parameters.arithmetic


def test_a_claim_holds_within_ten_percent() -> None:
    assert [table.Claim("", 10, value, "").holds for value in (8.9, 9.1, 10.9, 11.1)] == [
        False,
        True,
        True,
        False,
    ]


def test_a_model_with_smaller_kernels_needs_fewer_operations(model: models.GoogLeNet) -> None:
    smaller = models.googlenet(k5=3)
    assert table.claims(smaller)[0].computed < table.claims(model)[0].computed
    assert table.rows(models.googlenet(k5=(3, 3)))[4].depth == 3


def test_render_prints_ours_beside_the_printed_and_says_what_holds(
    model: models.GoogLeNet,
) -> None:
    out = io.StringIO()
    table.render(Console(file=out, width=160), model)
    lines = out.getvalue().splitlines()
    row_4c = next(line for line in lines if "(4c)" in line).replace("│", " ")
    wanted = "inception (4c) 14x14x512 2 128 128 256 24 64 64 498 463 * 100 100"
    assert " ".join(row_4c.split()) == wanted
    claims = [line for line in lines if "hold" in line.partition(":")[0]]
    assert claims == [
        "holds: 1.5 billion multiply-adds at inference (section 1): computed 1.583e+09, "
        "claimed 1.5e+09",
        "does not hold: 12 times fewer parameters than AlexNet (section 1): computed 8.711, "
        "claimed 12",
    ]
