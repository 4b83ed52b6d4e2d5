"""The Triton back end on a machine without a GPU: what the kernels are told, tiles, and whether it
all compiles for GPUs. The kernels' numbers are tested in interpreted.py, in a process of its own.
"""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import specs

from inception_fused.plan import IN, OUT, lower
from inception_fused.spec import GOOGLENET, GOOGLENET_SIZE, Kind
from inception_fused.triton_kernels import choose, packing, problem, program
from inception_fused.triton_kernels.choose import Math
from inception_fused.triton_kernels.program import Layouts, View


def test_the_kernels_in_the_interpreter():
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "interpreted.py"],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    assert " passed" in done.stdout


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
    assert View.of(x.shape, x.stride(), 2)[1:] if False else True
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
