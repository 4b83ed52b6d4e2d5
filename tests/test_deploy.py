"""A fused network in other forms: an AOTInductor package, an ONNX model."""

from __future__ import annotations

import copy
from pathlib import Path

import onnxruntime
import pytest
import torch
import zoo
from test_outline import Flat
from torch import Tensor, nn

from inception_fused import fuse


@pytest.fixture(scope="module")
def pair() -> tuple[nn.Module, nn.Module, Tensor]:
    """A network with two parts fused, the original, and an input."""
    torch.manual_seed(0)
    stock = zoo._random(Flat())
    return stock, fuse(copy.deepcopy(stock)), torch.randn(2, 3, 40, 40)


def _close(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


@torch.no_grad()
def test_onnx_has_the_original_s_operators(pair: tuple, tmp_path: Path) -> None:
    stock, fused, x = pair
    path = tmp_path / "model.onnx"
    program = torch.onnx.export(fused, (x,), dynamo=True, verbose=False)
    assert program is not None
    assert {node.domain for node in program.model.graph} == {""}
    program.save(path)
    session = onnxruntime.InferenceSession(path)
    (name,) = (i.name for i in session.get_inputs())
    _close(torch.from_numpy(session.run(None, {name: x.numpy()})[0]), stock(x))


@torch.no_grad()
def test_aot_inductor_package(tmp_path: Path) -> None:
    stock = zoo.make("conv with bias, norm, ReLU")
    fused = fuse(copy.deepcopy(stock))
    x = torch.randn(2, zoo.C, 9, 8)
    program = torch.export.export(fused, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    package = torch._inductor.aoti_compile_and_package(
        program,
        package_path=str(tmp_path / "model.pt2"),
        inductor_configs={"aot_inductor.compile_wrapper_opt_level": "O0"},
    )
    loaded = torch._inductor.aoti_load_package(package)
    for batch in (x, x[:1]):
        _close(loaded(batch), stock(batch))
