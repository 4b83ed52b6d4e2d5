"""fuse(int8=...): calibration, accuracy, errors, and what becomes of it when the model changes."""

from __future__ import annotations

import copy
import pickle
import re

import pytest
import quantised
import torch
import torchvision
from torch import Tensor, nn

from inception_fused import explain, fuse, models, tune, unfuse
from inception_fused.backends import TABLE
from inception_fused.fusion import Fusion, fusion_of, network_of
from inception_fused.models import Inception
from inception_fused.quantise import Accuracy, Scale


def images(count: int, size: int = 14, channels: int = 12, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, channels, size, size, generator=generator)


def module() -> Inception:
    torch.manual_seed(0)
    return Inception(12, 8, 8, 16, 4, 8, 8, batch_norm=True).eval()


def network() -> nn.Module:
    """A GoogLeNet whose norms have the statistics of random images, as training would give."""
    torch.manual_seed(0)
    model = torchvision.models.googlenet(weights=None, init_weights=False, aux_logits=False)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
    with torch.no_grad():
        model(images(8, 64, 3, seed=2))
    return model.eval()


def run(model: nn.Module, x: Tensor) -> Tensor:
    with torch.inference_mode():
        y: Tensor = model(x)
    return y


def test_a_module_runs_in_int8_and_says_so() -> None:
    original, examples, x = module(), images(16), images(3, seed=5)
    fused = fuse(copy.deepcopy(original), int8=examples)
    y, wanted = run(fused, x), run(original, x)
    assert y.dtype is torch.float32
    assert 0 < float((y - wanted).abs().max()) < 0.03 * float(wanted.abs().max())
    fusion = fusion_of(fused)
    assert fusion is not None
    assert fusion.taken == "cpu int8"
    line = explain(fused).lines[-1]
    assert line.backend == "cpu int8"
    assert line.accuracy is not None
    assert line.accuracy.images == 16
    assert 0 < line.accuracy.rms <= line.accuracy.largest < 0.03
    assert line.accuracy.agreement is None
    assert re.search(r"fused, cpu int8; int8, differs by \S+% rms, \S+% at most on 16", str(line))


def expected_of(fusion: Fusion, x: Tensor) -> Tensor:
    assert fusion.int8 is not None
    numbers = fusion.int8.scales
    scales = [Scale(s, int(z)) for s, z in zip(numbers[::2], numbers[1::2], strict=True)]
    with torch.no_grad():
        return quantised.run(fusion.plan, x, *fusion.folded(x.dtype), scales)


def test_the_result_is_that_of_the_integers() -> None:
    fused, x = fuse(module(), int8=images(16)), images(3, seed=5)
    fusion = fusion_of(fused)
    assert fusion is not None
    assert torch.equal(run(fused, x), expected_of(fusion, x))


def test_a_whole_googlenet() -> None:
    """Equal to the integers. From float32 it is as far as its modules are, and the random weights
    of many layers make that larger."""
    original = network()
    x = images(3, 64, 3, seed=5)
    fused = fuse(copy.deepcopy(original), int8=images(16, 64, 3, seed=3).split(8))
    y = run(fused, x)
    whole_network = next(n for m in fused.modules() if (n := network_of(m)) is not None)
    assert torch.equal(y, expected_of(whole_network, x).flatten(1))
    assert torch.equal(run(fused, x[:1]), y[:1])
    *modules, whole = explain(fused).lines
    assert (whole.network, whole.backend) == (True, "cpu int8")
    assert whole.accuracy is not None
    assert whole.accuracy.images == 16
    assert whole.accuracy.agreement is not None
    assert whole.accuracy.rms < 0.4
    assert len(modules) == 9
    for line in modules:
        assert line.accuracy is not None
        assert 0.005 < line.accuracy.rms < 0.03
    assert str(whole).endswith("of 16 have the same top class")


def test_the_paper_s_network_with_response_normalisation() -> None:
    torch.manual_seed(0)
    original = models.googlenet().eval()
    fused = fuse(copy.deepcopy(original), int8=images(4, 64, 3))
    x = images(2, 64, 3, seed=5)
    wanted = run(original, x)
    assert float((run(fused, x) - wanted).abs().max()) < 0.05 * float(wanted.abs().max())
    assert explain(fused).lines[-1].backend == "cpu int8"


@pytest.mark.parametrize("fused", [module, lambda: fuse(module()), lambda: nn.Sequential(module())])
def test_one_tensor_or_several_give_the_same(fused: object) -> None:
    examples, x = images(16), images(3, seed=5)
    one = fuse(fused(), int8=examples)  # type: ignore[operator]
    several = fuse(fused(), int8=(part for part in examples.split(5)))  # type: ignore[operator]
    assert torch.equal(run(one, x), run(several, x))


def test_other_examples_replace_the_scales() -> None:
    fused, x = fuse(module(), int8=images(16)), images(3, seed=5)
    before = run(fused, x)
    fuse(fused)
    assert torch.equal(run(fused, x), before)
    fuse(fused, int8=4 * images(16))
    assert not torch.equal(run(fused, x), before)
    assert torch.equal(run(fused, x), run(fuse(module(), int8=4 * images(16)), x))


def test_new_weights_are_packed_and_the_scales_stay() -> None:
    fused, x = fuse(module(), int8=images(16)), images(3, seed=5)
    before = run(fused, x)
    with torch.no_grad():
        fused.get_parameter(next(n for n, _ in fused.named_parameters())).mul_(0.5)
    half = run(fused, x)
    assert not torch.equal(half, before)
    fused.load_state_dict(module().state_dict())
    assert torch.equal(run(fused, x), before)


def test_copies_stay_in_int8_and_pickles_are_the_original() -> None:
    fused, x = fuse(module(), int8=images(16)), images(3, seed=5)
    twin = copy.deepcopy(fused)
    assert torch.equal(run(twin, x), run(fused, x))
    with torch.no_grad():
        next(twin.parameters()).zero_()
    assert not torch.equal(run(twin, x), run(fused, x))
    plain = pickle.loads(pickle.dumps(fused))
    torch.testing.assert_close(run(plain, x), run(module(), x))
    assert fusion_of(plain) is None
    unfuse(fused)
    torch.testing.assert_close(run(fused, x), run(module(), x))


def test_float32_runs_where_gradients_are_wanted() -> None:
    fused, x = fuse(module(), int8=images(16)), images(3, seed=5)
    y = fused(x)
    assert y.requires_grad
    torch.testing.assert_close(y.detach(), run(module(), x), rtol=1e-4, atol=1e-4)
    line = explain(fused).lines[-1]
    assert line.backend == "cpu"
    assert "not in int8: gradients are wanted" in line.reason
    run(fused, x)
    assert explain(fused).lines[-1].backend == "cpu int8"
    fused.train()
    assert fused(x).requires_grad
    fused.eval()
    with torch.no_grad():
        assert fused(x).grad_fn is None


def test_autocast_and_other_inputs_take_other_paths() -> None:
    fused = fuse(module(), int8=images(16))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert fused(images(2)).dtype is torch.bfloat16
    assert "not in int8: x is torch.bfloat16" in explain(fused).lines[-1].reason
    with torch.inference_mode():
        assert fused(images(0)).shape == (0, 40, 14, 14)
        assert fused.double()(images(2).double()).dtype is torch.float64


def test_compiled_it_gives_the_same() -> None:
    fused, x = fuse(module(), int8=images(16)), images(3, seed=5)
    compiled = torch.compile(fused, fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(x), fused(x))


def test_exported_it_gives_the_same() -> None:
    fused, x = fuse(module(), int8=images(16)), images(3, seed=5)
    with torch.no_grad():
        exported = torch.export.export(fused, (x,))
        assert torch.equal(exported.module()(x), fused(x))


def test_it_is_not_tuned() -> None:
    fused, x = fuse(module(), int8=images(16)), images(3, seed=5)
    (tuned,) = tune(fused, x, seconds=0.1).lines
    assert tuned.reason == "it computes in int8, which is not tuned"
    run(fused, x)
    assert explain(fused).lines[-1].backend == "cpu int8"


@pytest.mark.parametrize(
    ("int8", "error", "message"),
    [
        (5, TypeError, "int8 must be a tensor of example inputs or an iterable of such"),
        ("data", TypeError, "int8 must be a tensor of example inputs or an iterable of such"),
        (True, TypeError, "int8 must be a tensor of example inputs or an iterable of such"),
        ([images(2), 5], TypeError, r"int8\[1\] must be a tensor of inputs, got int"),
        ([(images(2), 1)], TypeError, r"int8\[0\] must be a tensor of inputs, got tuple"),
        (
            images(2).double(),
            ValueError,
            r"int8\[0\] must be float32 on the CPU, got torch.float64",
        ),
        (images(2).to("meta"), ValueError, r"int8\[0\] must be float32 on the CPU, .* on meta"),
        ([], ValueError, "int8 must hold at least one example input"),
        (images(0), ValueError, "int8 must hold at least one example input"),
        (images(2) * float("nan"), ValueError, "int8 of Inception: the input of its plan has"),
    ],
)
def test_examples_that_cannot_be_are_refused(
    int8: object, error: type[Exception], message: str
) -> None:
    model = module()
    with pytest.raises(error, match=message):
        fuse(model, int8=int8)  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", [b.name for b in TABLE if b.name != "cpu"])
def test_other_back_ends_are_refused(backend: str) -> None:
    with pytest.raises(ValueError, match=f"by the cpu back end alone, got backend='{backend}'"):
        fuse(module(), backend=backend, int8=images(2))


class Unreached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = module(), module()

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) if len(x) > 1 else self.second(x)


def test_a_module_that_no_example_reaches_stays_in_float32() -> None:
    fused = fuse(Unreached().eval(), int8=images(4))
    run(fused, images(4))
    run(fused, images(1))
    first, second = (line for line in explain(fused).lines if line.fused)
    assert (first.backend, second.backend) == ("cpu int8", "cpu")
    assert second.reason == "not in int8: no example reached it"
    assert second.accuracy is None


def test_training_flags_stay_as_they_were() -> None:
    model = module().train()
    fuse(model, int8=images(4))
    assert all(m.training for m in model.modules())


@pytest.mark.parametrize(
    ("low", "high", "scale", "zero"),
    [
        (0.0, 0.0, 1.0, 0),
        (0.0, 255.0, 1.0, 0),
        (-255.0, 0.0, 1.0, 255),
        (-128.0, 127.0, 1.0, 128),
        (3.0, 510.0, 2.0, 0),
        (-510.0, -3.0, 2.0, 255),
    ],
)
def test_scales_reach_from_end_to_end(low: float, high: float, scale: float, zero: int) -> None:
    assert Scale.of_range(low, high) == Scale(scale, zero)


def test_accuracy_counts_all_batches() -> None:
    accuracy = Accuracy()
    accuracy.see(torch.tensor([[0.0, 4.0]]), torch.tensor([[1.0, 4.0]]))
    accuracy.see(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 0.0]]) + torch.tensor([0.0, 1.0]))
    assert accuracy.images == 2
    assert accuracy.agreement == 0.5
    assert accuracy.largest == pytest.approx(3 / 4)
    assert accuracy.rms == pytest.approx((11 / 25) ** 0.5)
