"""Folding of batch norms against the convolution and the norm themselves, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, conv2d

from inception_fused.weights import Norm, fold


def norm_of(channels: int, eps: float, affine: str, dtype: torch.dtype = torch.float64) -> Norm:
    gamma = torch.randn(channels, dtype=dtype)
    gamma[0] = -1.5
    return Norm(
        torch.randn(channels, dtype=dtype),
        torch.rand(channels, dtype=dtype) * 3,
        gamma if "gamma" in affine else None,
        torch.randn(channels, dtype=dtype) if "beta" in affine else None,
        eps,
    )


def stock(x: Tensor, weight: Tensor, bias: Tensor | None, norm: Norm) -> Tensor:
    y = conv2d(x, weight, bias, padding="same")
    return batch_norm(y, norm.mean, norm.var, norm.gamma, norm.beta, eps=norm.eps)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(1)


@pytest.mark.parametrize("eps", [0.0, 1e-5, 1e-3, 32.0])
@pytest.mark.parametrize("affine", ["gamma beta", "gamma", "beta", ""])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("kernel", [1, 3])
def test_fold_is_the_convolution_and_its_norm(
    eps: float, affine: str, with_bias: bool, kernel: int
) -> None:
    x, weight = torch.randn(2, 5, 6, 7).double(), torch.randn(8, 5, kernel, kernel).double()
    bias = torch.randn(8).double() if with_bias else None
    norm = norm_of(8, eps, affine)
    folded, shift = fold(weight, bias, norm)
    expected = stock(x, weight, bias, norm)
    torch.testing.assert_close(
        conv2d(x, folded, shift, padding="same"), expected, rtol=1e-11, atol=1e-11
    )


def test_fold_agrees_with_an_eval_mode_module() -> None:
    conv, norm = nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6, eps=1e-3)
    with torch.no_grad():
        norm.train()
        norm(torch.randn(4, 6, 5, 5) * 3 + 1)  # moves the running statistics
        norm.eval()
        assert norm.running_mean is not None
        assert norm.running_var is not None
        x = torch.randn(2, 3, 8, 8)
        values = Norm(norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps)
        torch.testing.assert_close(
            conv2d(x, *fold(conv.weight, None, values)), norm(conv(x)), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_fold_rounds_once_to_the_weight_s_dtype(dtype: torch.dtype) -> None:
    weight, bias = torch.randn(8, 5, 3, 3).to(dtype), torch.randn(8).to(dtype)
    norm = norm_of(8, 1e-3, "gamma beta", torch.float32)
    exact = fold(weight.double(), bias.double(), norm)
    for got, wanted in zip(fold(weight, bias, norm), exact, strict=True):
        assert got.dtype == dtype
        assert torch.equal(got, wanted.to(dtype))


def test_without_a_norm_nothing_changes_and_no_bias_is_zeros() -> None:
    weight, bias = torch.randn(4, 3, 1, 1), torch.randn(4)
    assert torch.equal(fold(weight, bias, None)[0], weight)
    assert torch.equal(fold(weight, bias, None)[1], bias)
    assert torch.equal(fold(weight, None, None)[1], torch.zeros(4))


def test_fold_is_differentiable_in_every_tensor() -> None:
    tensors = [
        torch.randn(3, 2, 3, 3).double(),
        *(torch.randn(3).double() for _ in range(2)),
        torch.rand(3).double() + 0.5,
        *(torch.randn(3).double() for _ in range(2)),
    ]
    for tensor in tensors:
        tensor.requires_grad_()

    def folded(
        weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, gamma: Tensor, beta: Tensor
    ) -> tuple[Tensor, Tensor]:
        return fold(weight, bias, Norm(mean, var, gamma, beta, 1e-3))

    assert torch.autograd.gradcheck(folded, tensors)


@pytest.mark.parametrize("eps", [float("nan"), float("inf"), -1e-5])
def test_a_bad_eps_is_refused(eps: float) -> None:
    with pytest.raises(ValueError, match="eps must be finite and at least 0, got"):
        norm_of(4, eps, "")


@pytest.mark.parametrize("name", ["bias", "mean", "var", "gamma", "beta"])
@pytest.mark.parametrize("bad", [torch.zeros(5), torch.zeros(4, 1), torch.zeros(4).int()])
def test_a_tensor_that_does_not_fit_is_refused_by_name(name: str, bad: Tensor) -> None:
    good = {n: torch.ones(4) for n in ("bias", "mean", "var", "gamma", "beta")} | {name: bad}
    bias = good.pop("bias")
    with pytest.raises(ValueError, match=rf"{name} must be floating-point with the shape \(4,\)"):
        fold(torch.ones(4, 2, 1, 1), bias, Norm(**good, eps=1e-3))


@pytest.mark.parametrize("bad", [torch.ones(4, 2, 1), torch.ones(4, 2, 1, 1).int()])
def test_a_bad_weight_is_refused(bad: Tensor) -> None:
    with pytest.raises(ValueError, match="weight must be floating-point with 4 dimensions"):
        fold(bad, None, None)
