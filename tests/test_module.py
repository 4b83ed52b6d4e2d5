"""A fused module does all that the original does."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import zoo
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from inception_fused import GOOGLENET, FusedInception, Spec, explain, fuse, models


@pytest.fixture
def pair() -> tuple[nn.Module, nn.Module, Tensor]:
    """The original, its fused copy, and an input."""
    stock = zoo.make("conv with bias, norm, ReLU")
    return stock, fuse(copy.deepcopy(stock)), torch.randn(2, zoo.C, 10, 12)


def _close(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


def _taken(model: nn.Module) -> str:
    return explain(model).lines[0].backend


@torch.no_grad()
def _same(stock: nn.Module, fused: nn.Module, x: Tensor) -> None:
    wanted = stock(x)
    _close(fused(x), wanted)
    assert _taken(fused) == "cpu"


def _norm(m: nn.Module) -> nn.BatchNorm2d:
    return m.two[1].layers[1]


EDITS: dict[str, Callable[[nn.Module], object]] = {
    "in place": lambda m: m.one.layers[0].weight.mul_(-2),
    "new parameter": lambda m: setattr(
        m.one.layers[0], "weight", nn.Parameter(m.one.layers[0].weight * 3)
    ),
    "data replaced": lambda m: setattr(m.one.layers[0].weight, "data", m.one.layers[0].weight * 4),
    "running mean": lambda m: _norm(m).running_mean.add_(1),
    "eps": lambda m: setattr(_norm(m), "eps", 3.0),
    "load_state_dict": lambda m: m.load_state_dict({k: v * 2 for k, v in m.state_dict().items()}),
    "load_state_dict, assign": lambda m: m.load_state_dict(
        {k: v * 2 for k, v in m.state_dict().items()}, assign=True
    ),
    "training step of a norm": lambda m: (m.train(), m(torch.ones(2, zoo.C, 4, 4)), m.eval()),
    "to another dtype and back": lambda m: m.to(torch.float16).float(),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
@torch.no_grad()
def test_the_next_call_sees_new_weights(pair: tuple, edit: Callable) -> None:
    stock, fused, x = pair
    before = fused(x)
    for m in (stock, fused):
        edit(m)
    assert float((fused(x) - before).abs().max()) > 0
    _same(stock, fused, x)


@torch.no_grad()
def test_refresh_after_a_write_that_cannot_be_seen(pair: tuple) -> None:
    stock, fused, x = pair
    fused(x)
    for m in (stock, fused):
        m.one.layers[0].weight.data.mul_(2)
    fused.refresh()
    _same(stock, fused, x)


def test_changes_inside_take_the_original_path(pair: tuple) -> None:
    _, fused, x = pair
    calls = []
    handle = fused.two[0].register_forward_hook(lambda *_: calls.append(1))
    fused(x)
    assert calls == [1]
    assert "hooks" in explain(fused).lines[0].reason
    handle.remove()
    fused(x)
    assert _taken(fused) == "cpu"
    fused.one = nn.Conv2d(zoo.C, 3, 1)
    assert fused(x).shape[1] == 3 + 16 + 8 + 8
    assert "replaced" in explain(fused).lines[0].reason


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "strides": lambda m: [setattr(c, "stride", (2, 2)) for c in _last_layers(m)],
    "padding of a pool, of its projection": lambda m: (
        setattr(m.four[0], "padding", 0),
        setattr(m.four[1].layers[0], "padding", (1, 1)),
    ),
    "dilation": lambda m: (
        setattr(m.two[1].layers[0], "dilation", (2, 2)),
        setattr(m.two[1].layers[0], "padding", (2, 2)),
    ),
    "ceil_mode": lambda m: setattr(m.four[0], "ceil_mode", True),
    "padding_mode": lambda m: m.two.__setitem__(
        1, zoo.Conv(8, 16, 3, bias=True, padding_mode="reflect").eval()
    ),
    "branch replaced": lambda m: setattr(m, "one", nn.Conv2d(zoo.C, 3, 1).eval()),
    "layer removed": lambda m: m.two[1].layers.__delitem__(2),
    "activation replaced": lambda m: m.two[1].layers.__setitem__(2, nn.Tanh()),
    "statistics not tracked": lambda m: setattr(_norm(m), "track_running_stats", False),
}


def _last_layers(m: nn.Module) -> list[nn.Module]:
    return [b.layers[0] for b in (m.one, m.two[1], m.three[1], m.four[1])]


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compile"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@torch.no_grad()
def test_a_changed_structure_is_noticed_and_can_be_fused_again(
    pair: tuple, change: Callable, compiled: bool
) -> None:
    stock, fused, x = pair
    torch._dynamo.reset()
    run = torch.compile(fused, backend="eager", fullgraph=True) if compiled else fused
    run(x)
    for model in (stock, fused):
        torch.manual_seed(0)
        change(model)
    wanted = stock(x)
    for _ in range(2):
        _close(run(x), wanted)
    _close(copy.deepcopy(fused)(x), wanted)
    if not compiled:
        assert _taken(fused) == "original"
        assert "fuse it again" in explain(fused).lines[0].reason
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some of the changes cannot be fused
        fuse(fused)
    _close(fused(x), wanted)
    assert not isinstance(fused, FusedInception) or _taken(fused) == "cpu"


@torch.no_grad()
def test_a_copy_notices_what_was_changed_in_it(pair: tuple) -> None:
    stock, fused, x = pair
    twin = copy.deepcopy(fused)
    for model in (stock, twin):
        CHANGES["dilation"](model)
    _close(twin(x), stock(x))
    assert "setting" in explain(twin).lines[0].reason


@torch.no_grad()
def test_momentum_may_change(pair: tuple) -> None:
    stock, fused, x = pair
    _norm(fused).momentum = 0.5
    _same(stock, fused, x)


def test_hooks_on_the_module_itself_run(pair: tuple) -> None:
    _, fused, x = pair
    fused.register_forward_hook(lambda m, args, y: y * 0)
    assert float(fused(x).abs().max()) == 0
    assert _taken(fused) == "cpu"


def test_after_training_mode_the_statistics_are_those_of_stock(pair: tuple) -> None:
    stock, fused, x = pair
    _close(fused.train()(x), stock.train()(x))
    assert _taken(fused) == "training"
    for (k, a), b in zip(stock.state_dict().items(), fused.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=k)
    _same(stock.eval(), fused.eval(), x)


def test_deepcopy_stays_fused_with_its_own_weights(pair: tuple) -> None:
    stock, fused, x = pair
    twin = copy.deepcopy(fused)
    with torch.no_grad():
        twin.one.layers[0].weight.zero_()
    _same(stock, fused, x)
    with torch.no_grad():
        stock.one.layers[0].weight.zero_()
    _same(stock, twin, x)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickled_it_is_the_original(pair: tuple, protocol: int) -> None:
    stock, fused, x = pair
    loaded = pickle.loads(pickle.dumps(fused, protocol))
    assert type(loaded) is type(stock)
    assert loaded.__dict__.keys() == stock.__dict__.keys()
    assert torch.equal(loaded(x), stock(x))


def test_saved_it_loads_without_this_package(pair: tuple, tmp_path: Path) -> None:
    stock, fused, x = pair
    torch.save({"model": fused, "x": x, "y": stock(x).detach()}, tmp_path / "model.pt")
    code = (
        "import sys, torch; sys.modules['inception_fused'] = None\n"
        f"d = torch.load({str(tmp_path / 'model.pt')!r}, weights_only=False)\n"
        f"torch.set_num_threads({torch.get_num_threads()})\n"
        "torch.testing.assert_close(d['model'](d['x']), d['y'])\n"
    )
    tests = str(Path(__file__).parent)
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tests)


def test_from_module_leaves_the_original_plain(pair: tuple) -> None:
    stock, _, x = pair
    kind = type(stock)
    fused = FusedInception.from_module(stock)
    assert type(stock) is kind
    assert isinstance(fused, kind)
    with torch.no_grad():
        stock.one.layers[0].weight.mul_(2)
    _same(stock, fused, x)
    with pytest.raises(ValueError, match="LeakyReLU"):
        FusedInception.from_module(zoo.make("LeakyReLU"))
    with pytest.raises(TypeError, match="got str"):
        FusedInception.from_module("x")


@pytest.mark.parametrize("batch_norm", [False, True])
def test_built_from_a_spec(batch_norm: bool) -> None:
    fused = FusedInception(Spec.v1(16, 8, 8, 16, 4, 8, 8), batch_norm=batch_norm).eval()
    stock = models.Inception.from_spec(fused.spec, batch_norm).eval()
    stock.load_state_dict(fused.state_dict(), strict=True)
    _same(stock, fused, torch.randn(2, 16, 9, 9))
    with pytest.raises(TypeError, match="spec must be a Spec"):
        FusedInception("3a")


@pytest.mark.parametrize("shape", [(0, 16, 5, 5), (1, 16, 1, 1), (3, 16, 2, 31)])
def test_odd_sizes(pair: tuple, shape: tuple[int, ...]) -> None:
    stock, fused, _ = pair
    x = torch.randn(shape)
    got, wanted = fused(x), stock(x)
    assert got.shape == wanted.shape
    if x.numel():
        _close(got, wanted)


@pytest.mark.parametrize("bad", [torch.randn(1, 5, 8, 8), torch.randn(1, 16, 8, 8).double()])
def test_bad_input_gives_the_errors_of_the_original(pair: tuple, bad: Tensor) -> None:
    stock, fused, _ = pair
    with pytest.raises(RuntimeError) as wanted:
        stock(bad)
    with pytest.raises(RuntimeError) as got:
        fused(bad)
    assert str(got.value) == str(wanted.value)


@pytest.mark.parametrize("context", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_grad_modes_in_any_order(pair: tuple, context: Callable) -> None:
    stock, fused, x = pair
    with torch.inference_mode():
        fused(x)
    with context():
        _close(fused(x), stock(x))
    assert _taken(fused) == "cpu"
    fused(x).sum().backward()


class _Counter(TorchDispatchMode):
    names: list[str]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def test_nothing_is_convolved_or_concatenated(pair: tuple) -> None:
    _, fused, x = pair
    with _Counter() as counter:
        counter.names = []
        fused(x)
    assert "inception_fused.run.default" in counter.names
    assert not any("convolution" in n or "cat" in n for n in counter.names)


@torch.no_grad()
def test_compile_fullgraph_dynamic_batch(pair: tuple) -> None:
    stock, fused, _ = pair
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(fused, fullgraph=True, dynamic=True, backend=keep)
    for batch in (2, 3, 7):
        x = torch.randn(batch, zoo.C, 8, 8)
        _close(compiled(x), stock(x))
    assert len(graphs) == 1
    assert "inception_fused.module" in graphs[0].code
    stock.one.layers[0].weight.mul_(2)
    fused.one.layers[0].weight.mul_(2)
    _close(compiled(x), stock(x))


def test_compile_backward(pair: tuple) -> None:
    stock, fused, x = pair
    torch.compile(fused, fullgraph=True, backend="aot_eager")(x).square().mean().backward()
    stock(x).square().mean().backward()
    for a, b in zip(fused.parameters(), stock.parameters(), strict=True):
        _close(a.grad, b.grad)


@torch.no_grad()
def test_export(pair: tuple) -> None:
    stock, fused, x = pair
    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(fused, (x,), dynamic_shapes=(batch,))
    assert any("inception_fused.run" in str(n.target) for n in program.graph.nodes)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    _close(torch.export.load(buffer).module()(x[:1]), stock(x[:1]))


def test_jit_trace_and_fx_record_stock_operators(pair: tuple) -> None:
    stock, fused, x = pair
    traced = torch.jit.trace(fused, x)
    assert "inception_fused" not in str(traced.inlined_graph)
    _close(traced(x), stock(x))
    _close(torch.fx.symbolic_trace(fused)(x), stock(x))


def test_autocast(pair: tuple) -> None:
    stock, fused, x = pair
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        ours, expected = fused(x), stock(x)
    assert _taken(fused) == "cpu"
    assert ours.dtype is expected.dtype is torch.bfloat16
    torch.testing.assert_close(ours, expected, rtol=0.02, atol=0.02)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.float16):
        assert torch.equal(fused(x), stock(x))
    assert "float16" in explain(fused).lines[0].reason
    _same(stock, fused, x)


def test_functional_call_and_vmap(pair: tuple) -> None:
    stock, fused, x = pair
    state = {k: v.detach() * 2 for k, v in stock.state_dict().items()}
    got = torch.func.functional_call(fused, state, (x,))
    _close(got, torch.func.functional_call(stock, state, (x,)))
    _same(stock, fused, x)
    many = torch.func.vmap(fused)(x.unsqueeze(1))
    _close(many, torch.func.vmap(stock)(x.unsqueeze(1)))
    assert "torch.func" in explain(fused).lines[0].reason


def test_strict_load_into_and_out_of_the_original(pair: tuple) -> None:
    stock, fused, x = pair
    state = {k: v * 2 for k, v in fused.state_dict().items()}
    assert str(fused.load_state_dict(state, strict=True)) == "<All keys matched successfully>"
    stock.load_state_dict(fused.state_dict(), strict=True)
    _same(stock, fused, x)
    del state["one.layers.0.weight"]
    with pytest.raises(RuntimeError, match=r"Missing key.*one\.layers\.0\.weight"):
        fused.load_state_dict(state, strict=True)


OPTIMISERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, 0.1, foreach=False),
    "SGD, foreach": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, foreach=True),
    "SGD, fused": lambda p: torch.optim.SGD(p, 0.1, fused=True),
    "Adam": lambda p: torch.optim.Adam(p, 0.01, foreach=False),
    "Adam, fused": lambda p: torch.optim.Adam(p, 0.01, fused=True),
    "AdamW, foreach": lambda p: torch.optim.AdamW(p, 0.01, foreach=True),
}


@pytest.mark.parametrize("make", OPTIMISERS.values(), ids=OPTIMISERS)
def test_the_next_call_sees_an_optimiser_step(pair: tuple, make: Callable) -> None:
    stock, fused, x = pair
    for m in (stock, fused):
        optimiser = make(list(m.parameters()))
        for _ in range(2):
            optimiser.zero_grad()
            m(x).square().mean().backward()
            optimiser.step()
    assert _taken(fused) == "cpu"
    wanted = stock(x).detach()
    torch.testing.assert_close(fused(x), wanted, rtol=0, atol=1e-3 * float(wanted.abs().max()))


def test_deterministic_mode(pair: tuple) -> None:
    stock, fused, x = pair
    torch.use_deterministic_algorithms(True)
    try:
        _same(stock, fused, x)
        grads = []
        for _ in range(2):
            fused.zero_grad()
            fused(x).square().mean().backward()
            grads.append([p.grad.clone() for p in fused.parameters()])
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_meta_device() -> None:
    with torch.device("meta"):
        model = models.Inception.from_spec(GOOGLENET["3a"]).eval()
    fuse(model)
    assert isinstance(model, FusedInception)
    model.to_empty(device="cpu")
    for p in model.parameters():
        nn.init.normal_(p, std=0.1)
    x = torch.randn(1, 192, 7, 7)
    _close(model(x), type(model).__bases__[1].forward(model, x))
    assert _taken(model) == "cpu"


def test_data_parallel_on_the_cpu(pair: tuple) -> None:
    stock, fused, x = pair
    _close(nn.DataParallel(fused)(x), stock(x))


_DISTRIBUTED = """
import copy, sys, torch, torch.distributed as dist, zoo
from inception_fused import fuse, explain
rank = int(sys.argv[1])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.device_mesh import init_device_mesh
stock = zoo.make("conv with bias, norm, ReLU")
x = torch.randn(2, zoo.C, 8, 8)
def close(a, b): torch.testing.assert_close(a, b, rtol=0, atol=1e-4 * float(b.abs().max()))
for wrap in ("ddp", "ddp in training", "fsdp1", "fsdp2"):
    plain, fused = copy.deepcopy(stock), fuse(copy.deepcopy(stock))
    if wrap.startswith("ddp"):
        for m in (plain, fused):
            m.train(wrap == "ddp in training")
        models = [torch.nn.parallel.DistributedDataParallel(m) for m in (plain, fused)]
    elif wrap == "fsdp1":
        options = {"device_id": torch.device("cpu"), "use_orig_params": True}
        models = [FullyShardedDataParallel(m, **options) for m in (plain, fused)]
    else:
        models = [fully_shard(m, mesh=init_device_mesh("cpu", (2,))) for m in (plain, fused)]
    for m in models:
        optimiser = torch.optim.SGD(m.parameters(), 0.01)
        for _ in range(3):
            optimiser.zero_grad()
            m(x).square().mean().backward()
            optimiser.step()
    close(models[1](x), models[0](x))
    wanted = "training" if fused.training else "cpu"
    assert explain(fused).lines[0].backend == wanted, explain(fused)
    for a, b in zip(fused.buffers(), plain.buffers()):
        close(a.float(), b.float())
dist.destroy_process_group()
"""


def test_ddp_and_fsdp_on_two_processes(tmp_path: Path) -> None:
    tests = str(Path(__file__).parent)
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", _DISTRIBUTED, str(rank), str(tmp_path / "store")],
            cwd=tests,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for worker in workers:
        _, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors[-3000:]
