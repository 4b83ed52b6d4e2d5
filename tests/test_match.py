"""The finder on the zoo: fused with equal numbers, or left alone with the reason."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
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
        assert explain(model).lines[-1].backend == "cpu"
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


class _Random(nn.Module):
    def __init__(self, branches: list[nn.Sequential]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([b(x) for b in self.branches], 1)


@st.composite
def _modules(draw: st.DrawFn) -> nn.Module:
    torch.manual_seed(draw(st.integers(0, 2**31)))
    branches = []
    for _ in range(draw(st.integers(1, 4))):
        layers: list[nn.Module] = []
        channels = zoo.C
        for _ in range(draw(st.integers(1, 4))):
            kind = draw(st.sampled_from(("conv", "conv", "conv", "norm", "relu", "odd", "pool")))
            if kind == "conv":
                k = draw(st.sampled_from((1, 1, 3, 5)))
                width = draw(st.integers(1, 20))
                layers.append(
                    nn.Conv2d(channels, width, k, padding=k // 2, bias=draw(st.booleans()))
                )
                channels = width
            elif kind == "norm":
                layers.append(nn.BatchNorm2d(channels))
            elif kind == "relu":
                layers.append(nn.ReLU(inplace=len(layers) > 0 and draw(st.booleans())))
            elif kind == "odd":
                layers.append(draw(st.sampled_from((nn.Tanh, nn.Identity, nn.Dropout)))())
            else:
                pool = draw(st.sampled_from((nn.MaxPool2d, nn.AvgPool2d)))
                layers.append(pool(3, 1, 1))
        branches.append(nn.Sequential(*layers))
    return zoo._random(_Random(branches))


@settings(deadline=None)
@given(model=_modules(), height=st.integers(1, 12), width=st.integers(1, 12))
def test_random_modules_are_fused_right_or_refused(
    model: nn.Module, height: int, width: int
) -> None:
    x = torch.randn(2, zoo.C, height, width)
    wanted = _output(model, x.clone())  # the model may write to its input
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fuse(model)
    got = _output(model, x)
    scale = max(1.0, float(wanted.abs().max()))
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5 * scale)
    if not isinstance(model, FusedInception):
        assert all(line.reason for line in explain(model).lines)
