"""The Triton back end on a machine without a GPU: what the kernels are told, tiles, and whether it
all compiles for GPUs. The kernels' numbers are tested in interpreted.py and
interpreted_gradients.py, in a process of their own.
"""

import importlib.util
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from inception_fused.triton_kernels import cache, choose, overlap, packing, problem
from inception_fused.triton_kernels.choose import Math
from inception_fused.triton_kernels.program import Layouts, View
from strategies import specs

import inception_fused
from inception_fused.lower import lower
from inception_fused.plan import IN, OUT
from inception_fused.reference import aten_gradients
from inception_fused.spec import GOOGLENET, GOOGLENET_SIZE, Kind, Spec, Stage, Window


def interpret(marked):
    pytest.importorskip("triton")
    files = ("interpreted.py", "interpreted_gradients.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *files, "-m", marked],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    assert " passed" in done.stdout


def test_the_kernels_in_the_interpreter():
    interpret("not full")


@pytest.mark.full
def test_the_kernels_in_the_interpreter_in_every_combination():
    interpret("full")


def test_a_paper_module_is_two_launches_the_longest_segments_first():
    first, second = problem.launches(lower(GOOGLENET["3a"]), 8, 28, 28)
    assert (first.source, second.source) == (IN, 2)
    assert (first.scratch, second.scratch) == (2, OUT)
    assert first.pool is Kind.MAXPOOL
    assert [s.channels for s in first.segments] == [32, 64, 96, 16]
    assert [s.channels for s in second.segments] == [128, 32]
    assert not first.windowed
    assert second.windowed
    assert first.keeps_pixels
    assert first.size.rows == 8 * 28 * 28
    segments, pooled, columns = first.tiled(64)
    assert [s.first for s in segments] == [0, 1, 2, 4]
    assert (pooled, columns) == (1, 5)


@given(specs())
def test_the_segments_of_all_launches_are_the_destinations_of_the_plan(spec):
    plan = lower(spec)
    launches = problem.launches(plan, 2, 20, 21)
    written = sorted(
        (one.scratch if s.to_scratch else OUT, s.destination, s.channels)
        for one in launches
        for s in one.segments
    )
    assert written == sorted(
        (d.slice.buffer, d.slice.offset, d.slice.channels) for s in plan.steps for d in s.dst
    )
    ready = {IN}
    for one in launches:
        assert one.source in ready
        ready |= {one.scratch}  # a launch of the same wave writes, and none of it reads, a buffer
        if one.pooled:
            assert one.pool is not None


def index(view, item, n, c, y, x):
    """The element as the kernels find it."""
    image, channel, row, pixel = view.in_units
    unit = view.unit
    if view.layout is Layouts.CHANNELS:
        image, channel, row, pixel = image * unit, 1, row * unit, pixel * unit
    elif view.layout is Layouts.PLANES:
        image, channel = image * unit, channel * unit
        assert pixel == 1
    return n * image + c * channel + y * row + x * pixel


@given(
    st.tuples(*(st.integers(1, 5),) * 4),
    st.permutations(range(4)),
    st.tuples(*(st.sampled_from([0, 0, 3, 8]),) * 4),
    st.tuples(*(st.sampled_from([1, 1, 2]),) * 4),
    st.sampled_from([2, 4]),
    st.integers(0, 9),
)
def test_a_view_finds_every_element(size, order, extra, skip, item, first):
    """Of permuted dimensions, slices of larger tensors, and every other element."""
    large = [n * k + e for n, k, e in zip(size, skip, extra, strict=True)]
    tensor = torch.empty([large[d] for d in order]).permute([order.index(d) for d in range(4)])
    t = tensor[tuple(slice(0, n * k, k) for n, k in zip(size, skip, strict=True))]
    view = View.of(t.shape, t.stride(), item, first * item)
    for n, c, y, x in itertools.product(*map(range, t.shape)):
        place = sum(i * s for i, s in zip((n, c, y, x), t.stride(), strict=True))
        assert index(view, item, n, c, y, x) == place
    assert view.unit * item <= 16
    assert first % view.unit == 0
    if view.layout is Layouts.PLANES:
        assert t.shape[2] * t.shape[3] % view.unit == 0


def test_views_of_the_usual_layouts_move_vectors():
    x = torch.empty(2, 64, 28, 28)
    last = x.to(memory_format=torch.channels_last)
    for tensor, item, layout, unit in (
        (x, 2, Layouts.PLANES, 8),
        (last, 2, Layouts.CHANNELS, 8),
        (last, 4, Layouts.CHANNELS, 4),
        (last[:, 8:16], 2, Layouts.CHANNELS, 8),
        (x[:, :, :7, :7], 2, Layouts.STRIDED, 1),
        (torch.empty(2, 64, 7, 7), 2, Layouts.PLANES, 1),
        (torch.empty(2, 64, 14, 14), 2, Layouts.PLANES, 4),
    ):
        view = View.of(tensor.shape, tensor.stride(), item)
        assert (view.layout, view.unit) == (layout, unit)


@given(specs(), st.integers(0, 2**32))
def test_a_pack_holds_every_weight_in_its_place(spec, seed):
    plan = lower(spec)
    convolutions = plan.convolutions()
    if not convolutions:
        return
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(c.weight_shape, generator=generator) for c in convolutions]
    biases = [torch.randn(c.out_channels, generator=generator) for c in convolutions]
    layout = packing.layout(plan)
    packed = packing.pack(plan, weights, biases)
    assert packed.shape == (layout.size,)
    found = 0
    for i, c in enumerate(convolutions):
        pitch = packing.padded(c.in_channels)
        rows = packed[layout.weights[i] :][: c.out_channels * c.kernel[0] * c.kernel[1] * pitch]
        rows = rows.view(c.out_channels, *c.kernel, pitch)
        assert torch.equal(rows[..., : c.in_channels], weights[i].permute(0, 2, 3, 1))
        bias = packed[layout.biases[i] :][: c.out_channels]
        assert torch.equal(bias, biases[i])
        found += int(rows.count_nonzero() + bias.count_nonzero())
    assert found == int(packed.count_nonzero())


@given(st.data())
def test_overlap_is_seen_and_slices_beside_each_other_are_not(data):
    """Against the elements themselves: two ranges of one dimension of a tensor in either format."""
    size = data.draw(st.tuples(*[st.integers(1, 4)] * 4))
    base = torch.arange(torch.Size(size).numel()).view(size)
    if data.draw(st.booleans()):
        base = base.to(memory_format=torch.channels_last)
    d = data.draw(st.integers(0, 3))

    def draw_range():
        start = data.draw(st.integers(0, size[d] - 1))
        return base.narrow(d, start, data.draw(st.integers(1, size[d] - start)))

    a, b = draw_range(), draw_range()
    shared = {*a.flatten().tolist()} & {*b.flatten().tolist()}
    assert overlap.may_overlap(a, b) == overlap.may_overlap(b, a) == bool(shared)
    assert overlap.elements_are_distinct(a.shape, a.stride())
    assert not overlap.elements_are_distinct((2, 3), (1, 1))


GPUS = [d for d in choose.DEVICES if d.arch in (80, 90, 100, "gfx942")]


def paper_launches(batch):
    for name, spec in GOOGLENET.items():
        edge = GOOGLENET_SIZE[name]
        yield from problem.launches(lower(spec), batch, edge, edge)


@pytest.mark.parametrize("math", Math)
@pytest.mark.parametrize("device", GPUS, ids=lambda d: str(d.arch))
def test_the_chosen_tile_fits_and_fills_the_device_where_it_can(device, math):
    for batch in (1, 8, 64):
        for one in paper_launches(batch):
            ranked = choose.ranked(one, math, device)
            assert len(ranked) > 1
            costs = [choose.cycles(one, tile, math, device) for tile in ranked]
            assert costs == sorted(costs)
            assert choose.choose(one, math, device) == ranked[0]
            assert choose.shared_bytes(ranked[0], math) <= device.shared_block
    smallest, largest = (
        min(choose.choose(one, math, device)[:2] for one in paper_launches(batch))
        for batch in (1, 64)
    )
    assert smallest[0] * smallest[1] <= largest[0] * largest[1]


def test_an_unknown_device_gets_the_nearest_known_one():
    assert choose.device_for(75, 40).arch == 80
    assert choose.device_for(87, 16).arch == 86
    assert choose.device_for(103, 160).arch == 100
    assert choose.device_for("gfx950", 256).arch == "gfx942"
    assert choose.device_for(90, 78).processors == 78


@pytest.fixture
def work():
    execute = pytest.importorskip("inception_fused.triton_kernels.execute")
    plan = lower(GOOGLENET["4b"])
    x = torch.empty(8, 512, 14, 14, dtype=torch.float16)
    return execute.Work.of(plan, x, torch.empty(8, 512, 14, 14, dtype=torch.float16))


def test_tuning_takes_the_fastest_and_prunes_what_cannot_be(work):
    from inception_fused.triton_kernels import tune

    device = choose.device_for(90, 132)
    tried = []

    def timer(tiles):
        """Fewer warps are faster; the first launch's time is the larger part."""
        tried.append(tiles)
        return sum(weight * t.warps * t.depth for weight, t in zip((10, 1), tiles, strict=True))

    best = tune.measure(work, device, tuple, timer)
    for i, one in enumerate(work.launches):
        options = tune.candidates(one, work.math, device)
        assert best[i].warps * best[i].depth == min(t.warps * t.depth for t in options)
        assert best[i] in options
        limit = 2.5 * choose.cycles(one, options[0], work.math, device)
        assert all(choose.cycles(one, t, work.math, device) <= limit for t in options)
    assert len(tried) == sum(len(tune.candidates(one, work.math, device)) for one in work.launches)
    assert len(tried) < 2 * len(choose.TILES[work.math])


def test_tuning_passes_over_what_the_device_refuses(work):
    import triton
    from inception_fused.triton_kernels import tune

    device = choose.device_for(90, 132)

    def run(tiles):
        if tiles[0].warps == 8:
            raise triton.OutOfResources(300000, 232448, "shared memory")
        return tiles

    best = tune.measure(work, device, run, lambda tiles: 1 / tiles[0].rows)
    assert best[0].warps == 4

    def refuse(tiles):
        raise triton.OutOfResources(300000, 232448, "shared memory")

    with pytest.raises(triton.OutOfResources):
        tune.measure(work, device, refuse, lambda tiles: 1.0)


class Step:
    """Two 3x3 convolutions of one input, as what measures their gradients gets them."""

    window = Window((3, 3), (1, 1), (1, 1))
    x = torch.randn(1, 8, 5, 5, generator=torch.Generator().manual_seed(0))
    grads = (torch.ones(1, 4, 5, 5), torch.ones(1, 2, 5, 5))
    weights = (torch.ones(4, 8, 3, 3), torch.ones(2, 8, 3, 3))
    arguments = (grads, x, weights, window)
    needs = (True, [True, True], [False, False])
    right = aten_gradients(*arguments, *needs)


@pytest.fixture
def without_kernels(monkeypatch):
    """measured, whose kernels are torch's; the tiles of which programs were made; an error to add.

    A program tells the timer its tile.
    """
    measured = pytest.importorskip("inception_fused.triton_kernels.measured")
    tile, error, prepared = choose.Tile(64, 64, 32, 4, 4), [0.0], []
    monkeypatch.setattr(measured, "device_of", lambda x: choose.device_for(90, 132))
    monkeypatch.setattr(measured.tune, "tune", lambda *args: (tile,))

    def input_gradient(grad, weight, window):
        assert grad.shape[1] == weight.shape[0] == 6
        timed.append(tile)
        return Step.right.x + error[0]

    def prepare(grad, x, window, tile):
        prepared.append(tile)

        def program(grad, x):
            timed.append(tile)
            return torch.cat(Step.right.weights) + error[0]

        return program

    timed = []
    monkeypatch.setattr(measured.gradients, "input_gradient", input_gradient)
    monkeypatch.setattr(measured.weight_gradient, "prepare", prepare)

    def timer(ours, aten):
        """Of a function: what ``ours`` says of the tile that it ran, or aten's time."""

        def time(function):
            timed.clear()
            function()
            return ours(timed[-1]) if timed else aten

        return time

    return measured, prepared, error, timer


@pytest.mark.parametrize(("aten", "wins"), [(100.0, True), (0.25, False)])
def test_a_gradient_is_triton_s_where_it_was_faster(without_kernels, aten, wins):
    from inception_fused.triton_kernels.execute import math_of

    measured, prepared, _, timer = without_kernels
    by_rows = timer(lambda tile: 64 / tile.rows, aten)  # fewer rows are slower here
    tiles = measured.input_winner(*Step.arguments, by_rows)
    assert tiles == ((choose.Tile(64, 64, 32, 4, 4),) if wins else ())
    tiles = measured.weight_winner(*Step.arguments, by_rows)
    all_tiles = measured.weight_gradient.TILES[math_of(torch.float32)]
    assert {*prepared} == {*all_tiles}
    most = max(all_tiles, key=lambda t: t.rows)
    assert tiles == ((most,) if wins else ())


def test_a_wrong_gradient_is_not_taken(without_kernels):
    measured, _, error, timer = without_kernels
    fast = timer(lambda tile: 1.0, 100.0)
    for apart in (1.0, float("nan")):
        error[0] = apart
        for winner in (measured.input_winner, measured.weight_winner):
            with pytest.warns(UserWarning, match="differs from torch's by"):
                assert winner(*Step.arguments, fast) == ()


def test_a_strided_input_gradient_is_not_measured(without_kernels):
    measured, *_ = without_kernels

    def timer(function):
        raise AssertionError("was called")

    strided = (*Step.arguments[:3], Window((3, 3), (2, 2), (1, 1)))
    assert measured.input_winner(*strided, timer) == ()


@pytest.mark.parametrize("math", Math)
@pytest.mark.parametrize("device", GPUS, ids=lambda d: str(d.arch))
def test_the_splits_of_a_weight_gradient_fill_the_device(device, math):
    """A small weight is many splits, a large one few; every pixel is in one split."""
    wg = pytest.importorskip("inception_fused.triton_kernels.weight_gradient")
    counts = []
    size = problem.Size(64, 14, 14, 14, 14)
    for channels in ((192, 16), (832, 384)):
        strides = {
            "last": lambda c: (c * 196, 1, 14 * c, c),
            "first": lambda c: (c * 196, 196, 14, 1),
        }
        for of in strides.values():
            views = [View.of((64, c, 14, 14), of(c), math.item) for c in channels]
            one = wg.Problem.between(channels, Window(), size, math, *views)
            ranked = wg.ranked(one, device)
            fitting = {
                t for t in wg.TILES[math] if choose.shared_bytes(t, math) <= device.shared_block
            }
            spills = device.is_hip and of is strides["first"]
            assert {*ranked} == fitting - (wg._SPILLING_ON_HIP if spills else set())
            cycles, count = wg.splits(one, tile := ranked[0], device)
            assert cycles == min(wg.splits(one, t, device)[0] for t in ranked)
            call = wg.call(one, tile, count)
            share = call.arguments[-1]
            rounds = one.rounds(tile.depth)
            assert (count - 1) * share < rounds <= count * share
            assert call.tiles == count * one.tiles(tile)
            counts.append(count)
            crossing, alone = 64 * 196 // tile.depth, 64 * -(-196 // tile.depth)
            assert rounds == (crossing if of is strides["last"] else alone)
    assert min(counts[:2]) > max(counts[2:])


def test_a_window_that_changes_the_size_reads_planes_by_their_strides():
    wg = pytest.importorskip("inception_fused.triton_kernels.weight_gradient")
    grad, x = torch.empty(2, 4, 6, 6), torch.empty(2, 8, 12, 12)
    one = wg.Problem.of(grad, x, Window((3, 3), (2, 2), (1, 1)))
    assert (one.source.layout, one.grad.layout) == (Layouts.STRIDED, Layouts.PLANES)
    assert one.pixel_unit == 4
    assert wg.Problem.of(x[:, :4], x, Window()).source.layout is Layouts.PLANES
    last = [t.to(memory_format=torch.channels_last) for t in (grad, x)]
    assert wg.Problem.of(*last, Window((3, 3), (2, 2), (1, 1))).pixel_unit == 0


TILES = (choose.Tile(64, 64, 32, 4, 4), choose.Tile(128, 64, 64, 8, 3))


def test_measured_tiles_are_kept(cache_folder):
    file = cache.TILES.save("NVIDIA H100 80GB HBM3", {"a": TILES})
    assert file == cache_folder / "triton-NVIDIA-H100-80GB-HBM3.json"
    cache.TILES.forget()
    assert cache.TILES.load("NVIDIA H100 80GB HBM3") == {"a": TILES}


@pytest.mark.parametrize(
    "tile", [[64, 64, 32, 4], [65, 64, 32, 4, 3], [64, 64, 32, 4, 99], [64, 64, True, 4, 3]]
)
def test_what_is_no_tile_is_not_read(tile):
    with pytest.raises((ValueError, TypeError)):
        cache.TILES.read([tile])


def test_the_key_is_of_plan_shape_type_and_layout(work):
    from inception_fused.triton_kernels.execute import Work

    def key(name="4b", batch=8, dtype=torch.float16, last=False):
        plan = lower(GOOGLENET[name])
        x = torch.empty(batch, plan.in_channels, 14, 14, dtype=dtype)
        out = torch.empty(batch, plan.out_channels, 14, 14, dtype=dtype)
        if last:
            x = x.to(memory_format=torch.channels_last)
        return cache.key(Work.of(plan, x, out))

    keys = [key(), key("4c"), key(batch=1), key(dtype=torch.float32), key(last=True)]
    assert len(set(keys)) == 5
    assert keys[0] == cache.key(work)


@pytest.fixture(scope="module")
def compile_table():
    return pytest.importorskip("inception_fused.triton_kernels.compile_table")


@pytest.mark.parametrize(("arch", "type_"), [(90, "bfloat16"), (80, "tf32"), ("gfx942", "float16")])
def test_kernels_compile_without_a_gpu(compile_table, arch, type_):
    """Three of the launches of docs/triton_kernels.md."""
    kernels = compile_table.kernels([arch], [type_], ["channels_last"], ["4b"], [64])
    # An input gradient's kernel is that of a forward pass.
    kernels = [k for k in kernels if "input" not in k.launch][:3]
    assert [k.launch for k in kernels] == ["1x1 and pool", "3x3 and 5x5", "1x1 weight gradient"]
    for kernel in kernels:
        made = compile_table.report(kernel)
        assert made.faults(kernel) == []
        assert made.registers > 16
        wanted = {"gfx942": {"v_mfma"}}.get(arch, {"wgmma.mma_async", "mma.sync"})
        assert wanted & {*made.matrix}


def test_nothing_is_spilled_to_fit_another_block_beside(compile_table):
    """Where ptxas would, if it had no limit of registers to keep to."""
    kernels = compile_table.kernels([100], ["float16"], ["channels_last"], ["3b"], [8])
    (kernel,) = (k for k in kernels if k.launch == "3x3 weight gradient")
    assert compile_table.report(kernel).faults(kernel) == []


def test_the_table_has_both_versions_and_names_faults(compile_table, monkeypatch, capsys):
    kernels = compile_table.kernels([80], ["float16"], ["channels_last"], ["4b"], [1])[:2]
    good = compile_table.Report(100, 0, 4096, ("mma.sync",))
    bad = compile_table.Report(128, 16, 200000, ())
    monkeypatch.setattr(compile_table, "kernels", lambda: kernels)
    monkeypatch.setattr(compile_table, "report", lambda kernel: good)
    monkeypatch.setattr(compile_table.triton, "__version__", "9.8")
    monkeypatch.setattr(compile_table, "made_by", lambda python: (python, [good, bad]))
    assert compile_table.main([]) == 0
    assert "Compiled by Triton 9.8.\n" in capsys.readouterr().out
    assert compile_table.main(["3.6"]) == 1
    shown = capsys.readouterr()
    assert "Compiled by Triton 3.6 and 9.8. Where" in shown.out
    first, second = shown.out.splitlines()[-2:]
    assert first.endswith("| 100 | 0 | 4096 | 166912 | mma.sync |")
    assert second.endswith("| 128 / 100 | 16 / 0 | 200000 / 4096 | 166912 | none / mma.sync |")
    assert [line.rpartition("Triton ")[2] for line in shown.err.splitlines()] == [
        "3.6: spills 16 bytes",
        "3.6: has no matrix instructions",
        "3.6: wants 200000 bytes of 166912",
    ]


def test_another_interpreter_compiles_for_the_table(compile_table, tmp_path):
    python = tmp_path / "python"
    fields = '{"registers": 96, "spilled": 0, "shared": 4096, "matrix": ["mma.sync"]}'
    answer = f'{{"triton": "3.6.0", "made": [{fields}]}}'
    python.write_text(f"#!/bin/sh\n[ \"$3\" = --json ] && echo '{answer}'\n")
    python.chmod(0o755)
    version, (made,) = compile_table.made_by(str(python))
    assert version == "3.6.0"
    assert made == compile_table.Report(96, 0, 4096, ("mma.sync",))


def flat(value):
    return [n for v in value for n in flat(v)] if isinstance(value, tuple) else [value]


def test_arguments_and_their_types_go_together(work):
    """What the launcher of a compiled kernel unpacks: the same tuples, in 32 or 64 bits."""
    from inception_fused.triton_kernels import launch

    for i, one in enumerate(work.launches):
        call = work.call(i, choose.choose(one, work.math, GPUS[1]))
        types = launch.argument_types(call)
        assert [isinstance(t, tuple) for t in types] == [
            isinstance(a, tuple) for a in call.arguments
        ]
        ints, names = flat(call.arguments), flat(tuple(types))
        assert len(ints) == len(names)
        assert all(type(n) is int for n in ints)
        assert {*names} == {"i32", "i64"}
        for strides, type_ in zip(call.arguments[:3], types[:3], strict=True):
            assert type_ == type(strides)("i64", "i32", "i32", "i32")


def test_a_program_launches_with_addresses_on_the_current_stream(monkeypatch):
    """The path of a GPU, on CPU tensors: what would be launched is written down instead."""
    execute = pytest.importorskip("inception_fused.triton_kernels.execute")
    launched = []

    def launcher(call, dtype, aligned):
        def launch(*pointers, stream):
            launched.append((call.kernel, aligned, pointers, stream))

        return launch

    monkeypatch.setattr(execute.launch, "INTERPRETS", False)
    monkeypatch.setattr(execute.launch, "launcher", launcher)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: 77, raising=False)
    spec = Spec(8, ((Stage.conv(8), Stage.conv(8, 3), Stage.conv(8, 3)), (Stage.pool(),)))
    plan = lower(spec)
    x, out = torch.empty(2, 8, 5, 5)[:, :, :, 1:], torch.empty(2, 16, 5, 4)
    pack = torch.empty(packing.layout(plan).size)
    work = execute.Work.of(plan, x, out)
    tiles = [choose.choose(one, work.math, GPUS[1]) for one in work.launches]
    new_empty = {}

    class Scratch(torch.Tensor):
        def new_empty(self, size):
            new_empty[size] = torch.empty(size)
            return new_empty[size]

    execute.Program(work, tiles, x, pack, out)(x.as_subclass(Scratch), pack, out)
    ((elements, scratch),) = new_empty.items()
    assert elements == 2 * (2 * 5 * 4 * 16)
    first, second = scratch.data_ptr(), scratch.data_ptr() + 4 * 2 * 5 * 4 * 16
    source, target, packed = x.data_ptr(), out.data_ptr(), pack.data_ptr()
    assert {stream for *_, stream in launched} == {77}
    assert [(kernel, pointers) for kernel, _, pointers, _ in launched] == [
        ("run_launch", (source, target, first, packed)),
        ("run_pool", (source, target)),
        ("run_launch", (first, target, second, packed)),
        ("run_launch", (second, target, target, packed)),
    ]
    assert [aligned for _, aligned, *_ in launched] == [
        (False, True, True, True),
        (False, True),
        (True, True, True, True),
        (True, True, True, True),
    ]


def test_backends_says_what_is_in_the_way():
    state = inception_fused.backends()["triton"]
    if not torch.cuda.is_available():
        assert state.startswith("there is no GPU")
    elif importlib.util.find_spec("triton"):
        assert state == "available"
    else:
        assert state == "Triton is not installed"
