"""The digits example, in its quick mode: it learns, and fusing changes no prediction."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import inception_fused

pytest.importorskip("sklearn", reason="examples/digits.py needs scikit-learn")


@pytest.fixture(scope="module")
def digits() -> dict[str, Any]:
    return runpy.run_path(str(Path(__file__).parent.parent / "examples" / "digits.py"))


def test_shifted_moves_every_image_by_at_most_a_pixel(digits: dict[str, Any]) -> None:
    images = torch.zeros(300, 1, 8, 8)
    images[:, 0, 3, 4] = 1
    torch.manual_seed(0)
    moved = digits["shifted"](images)
    assert moved.shape == images.shape
    assert torch.equal(moved.sum((1, 2, 3)), torch.ones(300))
    places = {(row, column) for _, _, row, column in moved.nonzero().tolist()}
    assert places == {(row, column) for row in (2, 3, 4) for column in (3, 4, 5)}


def test_two_epochs_are_enough_to_learn_for_stock_and_fused(digits: dict[str, Any]) -> None:
    images, labels, test_images, test_labels = digits["load"]()
    assert (len(images), len(test_images)) == (1437, 360)
    accuracies = []
    for fused in (False, True):
        torch.manual_seed(0)
        model = digits["small_googlenet"]()
        if fused:
            inception_fused.fuse(model)
        digits["train"](model, images, labels, 2, Console(quiet=True))
        taken = {line.backend for line in inception_fused.explain(model).lines if line.fused}
        assert taken <= {"training", "original"}  # the modules, and the network around them
        assert ("training" in taken) == fused
        with torch.inference_mode():
            correct = model.eval()(test_images).argmax(1) == test_labels
        accuracies.append(float(correct.float().mean()))
    assert min(accuracies) > 0.85
    assert abs(accuracies[1] - accuracies[0]) < 0.05  # rounding grows over the steps


@pytest.mark.skipif(not hasattr(inception_fused, "fuse"), reason="inception_fused has no fuse")
def test_fusing_changes_no_prediction(digits: dict[str, Any]) -> None:
    result = digits["run"](2, 3, Console(quiet=True))
    assert result.accuracy > 0.85
    assert result.changed == 0
    assert result.stock_ms > 0
    assert result.fused_ms > 0
