"""The finder on the zoo: fused with equal numbers, or left alone with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import zoo
from torch import nn

from inception_fused import FusedInception, explain, fuse

PATTERNS = (Path(__file__).parents[1] / "docs" / "patterns.md").read_text()
"""The table of the documentation; ``python -m tests.patterns`` writes it."""


def _output(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(x)


@pytest.mark.parametrize("name", zoo.FUSED)
def test_fused_with_equal_numbers(name: str) -> None:
    model = zoo.make(name)
    inputs = [torch.randn(2, zoo.C, 14, 14), torch.randn(1, zoo.C, 7, 9)]
    inputs.append(inputs[0].contiguous(memory_format=torch.channels_last))
    wanted = [_output(model, x) for x in inputs]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    assert isinstance(fuse(model), FusedInception)
    for x, want in zip(inputs, wanted, strict=True):
        got = _output(model, x)
        batch = name == "norm without running statistics"
        backends = {line.backend for line in explain(model).lines if not line.network}
        assert backends == {"training" if batch else "cpu"}
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5 * float(want.abs().max()))
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert f"| {name} | fused | " in PATTERNS


@pytest.mark.parametrize("name", zoo.REFUSED)
def test_refused_with_the_reason(name: str) -> None:
    model = zoo.make(name)
    kind = type(model)
    with pytest.warns(UserWarning, match="no Inception module"):
        fuse(model)
    assert type(model) is kind
    assert "last" not in model.__dict__
    (line,) = explain(model).lines
    assert not line.fused
    assert zoo.REFUSED[name][1] in line.reason
    assert f"| {name} | refused: {line.reason} |" in PATTERNS


def test_the_table_has_no_other_patterns() -> None:
    rows = [line for line in PATTERNS.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + len(zoo.FUSED) + len(zoo.REFUSED)
