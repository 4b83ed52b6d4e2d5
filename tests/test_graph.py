"""The operator of compiled graphs: right, packed once, and never stale."""

import gc
import weakref

import pytest
import torch

import inception_fused
from inception_fused import graph, reference, weights
from inception_fused.lower import lower
from inception_fused.models import Branches
from inception_fused.spec import Spec

SPEC = Spec.v1(6, 4, 3, 5, 2, 4, 3)


def parameters(batch_norm):
    """Per convolution the arguments of weights.fold, small and random."""
    torch.manual_seed(0)
    found = []
    for c in SPEC.convolutions():
        vectors = torch.rand(5, c.out_channels) + 0.5
        norm = weights.Norm(*vectors[1:], eps=1e-3) if batch_norm else None
        found.append((torch.randn(c.weight_shape), vectors[0], norm))
    return found


@pytest.fixture
def x():
    return torch.randn(2, 6, 9, 10, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("winograd", [False, True])
def test_equals_the_reference(x, batch_norm, winograd):
    found = parameters(batch_norm)
    folded = [weights.fold(*p) for p in found]
    expected = reference.run(lower(SPEC), x, *zip(*folded, strict=True))
    torch.testing.assert_close(graph.call(x, found, lower(SPEC), "auto", winograd), expected)


def test_packs_once_and_again_after_a_change(x):
    found, plan = parameters(True), lower(SPEC)
    first = graph.call(x, found, plan, "auto", True)
    (pack,) = graph._PACKS[found[0][0]].values()
    assert torch.equal(graph.call(x, found, plan, "auto", True), first)
    assert [*graph._PACKS[found[0][0]].values()] == [pack]
    for tensor in (found[2][0], found[3][1], found[1][2].var):
        tensor.mul_(1.5)
        changed = graph.call(x, found, plan, "auto", True)
        assert not torch.equal(changed, first)
        first = changed


def test_other_tensors_of_the_same_first_weight(x):
    found, plan = parameters(False), lower(SPEC)
    before = graph.call(x, found, plan, "auto", True)
    other = [found[0], *[(w.clone().mul_(2), b, n) for w, b, n in found[1:]]]
    assert not torch.equal(graph.call(x, other, plan, "auto", True), before)
    assert torch.equal(graph.call(x, found, plan, "auto", True), before)


def test_packs_die_with_the_first_weight(x):
    found = parameters(True)
    graph.call(x, found, lower(SPEC), "auto", True)
    second = weakref.ref(found[1][0])
    del found
    gc.collect()
    assert second() is None


def test_inference_tensors_are_never_stale(x):
    with torch.inference_mode():
        found = parameters(False)
        before = graph.call(x, found, lower(SPEC), "auto", True)
        found[0][0].mul_(2)
        assert not torch.equal(graph.call(x, found, lower(SPEC), "auto", True), before)


def test_opcheck(x):
    found = parameters(True)
    tensors, present, eps = graph.take_apart(found)
    code = list(lower(SPEC).code)
    arguments = (x, tensors, present, eps, code, "auto", True, [])
    torch.library.opcheck(torch.ops.inception_fused.module, arguments)


def test_compiled_module_sees_new_weights_and_keeps_its_pack(x):
    module = inception_fused.FusedInception.from_module(Branches(SPEC, batch_norm=True).eval())
    compiled = torch.compile(module, fullgraph=True)
    first_weight = next(module.parameters())
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), module(x))
        packs = [*graph._PACKS[first_weight].values()]
        compiled(x)
        assert [*graph._PACKS[first_weight].values()] == packs
        for parameter in module.parameters():
            parameter.mul_(1.25)
        torch.testing.assert_close(compiled(x), module(x))


def test_compiled_module_sees_statistics_of_a_training_forward(x):
    """Batch norm updates its running statistics without a trace on the tensors."""
    module = inception_fused.FusedInception.from_module(Branches(SPEC, batch_norm=True).eval())
    compiled = torch.compile(module, fullgraph=True)
    with torch.no_grad():
        before = compiled(x)
        module.train()
        module(x * 3 + 1)
        module.eval()
        assert not torch.equal(compiled(x), before)
        torch.testing.assert_close(compiled(x), module(x))


def test_refresh_reaches_compiled_graphs(x):
    module = inception_fused.FusedInception.from_module(Branches(SPEC).eval())
    compiled = torch.compile(module, fullgraph=True)
    with torch.no_grad():
        compiled(x)
        for parameter in module.parameters():
            parameter.data.mul_(2)  # cannot be seen
        module.refresh()
        torch.testing.assert_close(compiled(x), module(x))


def test_a_parametrized_weight_takes_the_original(x):
    module = inception_fused.FusedInception.from_module(Branches(SPEC).eval())
    with torch.no_grad():
        expected = module(x)
        first = next(m for m in module.modules() if isinstance(m, torch.nn.Conv2d))
        torch.nn.utils.parametrizations.weight_norm(first)
        torch.testing.assert_close(module(x), expected)
    assert inception_fused.fusion.fusion_of(module).taken == "original"
