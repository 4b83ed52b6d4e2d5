"""The paper's network and modules: Table 1's shapes, figure 3's order, training outputs."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import relu

from inception_fused import models
from inception_fused.spec import GOOGLENET, Activation, Spec, Stage


def convolutions(module: nn.Module) -> list[nn.Conv2d]:
    return [m for m in module.modules() if isinstance(m, nn.Conv2d)]


@pytest.mark.parametrize("batch_norm", [False, True])
def test_every_stage_has_the_paper_s_output_size(batch_norm: bool) -> None:
    model = models.googlenet(batch_norm=batch_norm).to("meta").eval()
    shapes: dict[str, tuple[int, ...]] = {}
    for name, module in model.named_children():
        module.register_forward_hook(
            lambda _m, _a, out, name=name: shapes.__setitem__(name, tuple(out.shape[1:]))
        )
    model(torch.empty(1, 3, 224, 224, device="meta"))
    expected = {
        "conv1": (64, 112, 112),
        "pool1": (64, 56, 56),
        "norm1": (64, 56, 56),
        "conv2": (192, 56, 56),
        "norm2": (192, 56, 56),
        "pool2": (192, 28, 28),
        "inception_3a": (256, 28, 28),
        "inception_3b": (480, 28, 28),
        "pool3": (480, 14, 14),
        "inception_4a": (512, 14, 14),
        "inception_4b": (512, 14, 14),
        "inception_4c": (512, 14, 14),
        "inception_4d": (528, 14, 14),
        "inception_4e": (832, 14, 14),
        "pool4": (832, 7, 7),
        "inception_5a": (832, 7, 7),
        "inception_5b": (1024, 7, 7),
        "avgpool": (1024, 1, 1),
        "dropout": (1024,),
        "linear": (1000,),
    }
    assert shapes == expected
    assert list(shapes) == list(expected)  # in the order of Table 1


def test_the_longest_way_through_has_22_layers() -> None:
    model = models.googlenet()
    depth = 1  # the last linear layer
    for name, module in model.named_children():
        if isinstance(module, models.Branches):
            depth += max(len(convolutions(branch)) for branch in module.branches)
        elif not name.startswith("aux"):
            depth += len(convolutions(module))
    assert depth == 22


def test_parameters_at_inference() -> None:
    # Convolutions without the auxiliary classifiers, weights and biases, by Table 1.
    expected = 64 * (3 * 49 + 1) + 64 * (64 + 1) + 192 * (64 * 9 + 1) + 1000 * (1024 + 1)
    for spec in GOOGLENET.values():
        for c in spec.convolutions():
            expected += c.out_channels * (c.in_channels * c.kernel[0] * c.kernel[1] + 1)
    model = models.googlenet()
    total = sum(p.numel() for n, p in model.named_parameters() if not n.startswith("aux"))
    assert total == expected == 6_998_552


@pytest.mark.parametrize("batch_norm", [False, True])
def test_training_returns_three_classifiers_and_reaches_every_parameter(batch_norm: bool) -> None:
    torch.manual_seed(0)
    model = models.GoogLeNet(7, in_channels=1, batch_norm=batch_norm).train()
    out = model(torch.randn(2, 1, 224, 224))
    assert isinstance(out, models.GoogLeNetOutput)
    assert [tuple(logits.shape) for logits in out] == [(2, 7)] * 3
    target = torch.tensor([1, 5])
    losses = [nn.functional.cross_entropy(logits, target) for logits in out]
    (losses[0] + 0.3 * losses[1] + 0.3 * losses[2]).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_evaluation_returns_the_logits_of_training_s_first_classifier() -> None:
    torch.manual_seed(0)
    model = models.GoogLeNet(5).train()
    model.dropout.p = 0.0
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        trained = model(x)
        assert torch.equal(model.eval()(x), trained.logits)
    assert trained.logits.std() > 0


def test_the_norms_are_where_figure_3_has_them() -> None:
    plain, normed = models.googlenet(), models.googlenet(batch_norm=True)
    for norm in (plain.norm1, plain.norm2):
        assert isinstance(norm, nn.LocalResponseNorm)
        assert (norm.size, norm.alpha, norm.beta) == (5, 1e-4, 0.75)
    assert not any(isinstance(m, nn.LocalResponseNorm) for m in normed.modules())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in plain.modules())
    assert all(c.bias is not None for c in convolutions(plain))
    assert all(c.bias is None for c in convolutions(normed))
    norms = [m for m in normed.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == len(convolutions(normed))


def test_k5_changes_the_third_branch_of_every_module() -> None:
    assert [c.kernel_size for c in convolutions(models.googlenet().inception_4a.branches[2])] == [
        (1, 1),
        (5, 5),
    ]
    assert [
        c.kernel_size for c in convolutions(models.googlenet(k5=(3, 3)).inception_4a.branches[2])
    ] == [(1, 1), (3, 3), (3, 3)]


def test_another_image_size_works_in_evaluation_and_is_refused_in_training() -> None:
    model = models.GoogLeNet(3)
    x = torch.randn(2, 3, 96, 128)
    with torch.no_grad():
        out = model.eval()(x)
        assert out.isfinite().all()
        assert out.std() > 0
        with pytest.raises(ValueError, match="need 14x14 pixels, as from a 224x224 image, got 6x8"):
            model.train()(x)


def test_inception_is_figure_2b() -> None:
    torch.manual_seed(0)
    module = models.Inception(6, 2, 3, 4, 2, 3, 5).double()
    one, (r3, c3), (r5, c5), (_, pp) = module.branches
    x = torch.randn(2, 6, 7, 7).double()

    def conv(unit: nn.Module, x: torch.Tensor) -> torch.Tensor:
        weight, bias = unit.conv.weight, unit.conv.bias
        return relu(torch.conv2d(x, weight, bias, padding=weight.shape[-1] // 2))

    pooled = torch.max_pool2d(x, 3, 1, 1)
    expected = [conv(one[0], x), conv(c3, conv(r3, x)), conv(c5, conv(r5, x)), conv(pp, pooled)]
    assert [tuple(e.shape[1:]) for e in expected] == [(c, 7, 7) for c in (2, 4, 3, 5)]
    torch.testing.assert_close(module(x), torch.cat(expected, 1))


def test_naive_inception_ends_in_the_pooled_input() -> None:
    torch.manual_seed(0)
    module = models.NaiveInception(3, 4, 5, 6)
    x = torch.randn(1, 3, 9, 8)
    out = module(x)
    assert torch.equal(out[:, -3:], torch.max_pool2d(x, 3, 1, 1))
    assert [c.kernel_size[0] for c in convolutions(module)] == [1, 3, 5]
    assert out.shape == (1, 4 + 5 + 6 + 3, 9, 8)


def test_from_spec_obeys_each_stage_s_activation_and_norm() -> None:
    spec = Spec(2, ((Stage.conv(3, activation=Activation.NONE), Stage.conv(4, 3)),))
    branch = models.Inception.from_spec(spec, batch_norm=True).branches[0]
    kinds = [[type(layer) for layer in unit] for unit in branch]
    assert kinds == [[nn.Conv2d, nn.BatchNorm2d], [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]]
    assert branch[1].norm.eps == 1e-3
