"""Lowering, encoding and lists that are no plans, in Python and in C++. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import specs

from inception_fused.lower import lower
from inception_fused.plan import FORMAT, IN, OUT, Destination, Plan, Pool, Slice, Step
from inception_fused.spec import (
    GOOGLENET,
    GOOGLENET_SIZE,
    Activation,
    Branch,
    Fork,
    Kind,
    Response,
    Spec,
    Stage,
    Window,
    channels_behind,
)

RELU = Activation.RELU
SCRATCH = 2
SAME_3 = Window((3, 3), (1, 1), (1, 1))
SAME_5 = Window((5, 5), (1, 1), (2, 2))


def test_3a_is_lowered_as_designed() -> None:
    whole = Slice(IN, 0, 192)
    assert lower(GOOGLENET["3a"]) == Plan(
        (192, 256, 112),
        (
            Step(
                Kind.POINTWISE,
                Window(),
                whole,
                (
                    Destination(Slice(OUT, 0, 64), 0, RELU),
                    Destination(Slice(SCRATCH, 0, 96), 1, RELU),
                    Destination(Slice(SCRATCH, 96, 16), 3, RELU),
                ),
                wave=0,
            ),
            Step(
                Kind.POINTWISE,
                Window(),
                whole,
                (Destination(Slice(OUT, 224, 32), 5, RELU),),
                wave=0,
                pre=Pool(Kind.MAXPOOL, SAME_3),
            ),
            Step(
                Kind.CONV,
                SAME_3,
                Slice(SCRATCH, 0, 96),
                (Destination(Slice(OUT, 64, 128), 2, RELU),),
                wave=1,
            ),
            Step(
                Kind.CONV,
                SAME_5,
                Slice(SCRATCH, 96, 16),
                (Destination(Slice(OUT, 192, 32), 4, RELU),),
                wave=1,
            ),
        ),
    )


def test_fire_is_one_pointwise_step_and_two_readers() -> None:
    fire = Spec(96, ((Stage.conv(16), Fork(((Stage.conv(64),), (Stage.conv(64, 3),)))),))
    squeezed = Slice(SCRATCH, 0, 16)
    squeeze, one, three = lower(fire).steps
    assert squeeze.dst == (Destination(squeezed, 0, RELU),)
    assert (one.src, one.wave, one.dst) == (squeezed, 1, (Destination(Slice(OUT, 0, 64), 1, RELU),))
    assert (three.src, three.wave) == (squeezed, 1)
    assert three.dst == (Destination(Slice(OUT, 64, 64), 2, RELU),)


def test_the_pointwise_branches_of_a_fork_are_one_step() -> None:
    fork = Fork(((Stage.conv(2),), (Stage.conv(3),), (Stage.pool(), Stage.conv(4))))
    steps = lower(Spec(5, ((Stage.conv(6), fork),))).steps
    assert [s.out_channels for s in steps] == [6, 5, 4]


def test_a_pool_before_a_fork_isfolded_where_it_can_be() -> None:
    branches = ((Stage.conv(2),), (Stage.conv(3, 3),))
    steps = lower(Spec(5, ((Stage.pool(), Fork(branches)),))).steps
    assert [(s.kind, s.pre is not None, s.wave) for s in steps] == [
        (Kind.MAXPOOL, False, 0),
        (Kind.POINTWISE, True, 0),
        (Kind.CONV, False, 1),
    ]
    steps = lower(Spec(5, ((Stage.pool(), Fork(branches[:1])),))).steps
    assert [(s.kind, s.pre is not None) for s in steps] == [(Kind.POINTWISE, True)]


@given(specs())
def test_every_channel_is_written_once_and_read_only_in_a_later_wave(spec: Spec) -> None:
    plan = lower(spec)
    written = {(IN, c): -1 for c in range(spec.in_channels)}
    for step in plan.steps:
        for channel in range(step.src.offset, step.src.end):
            assert written[step.src.buffer, channel] < step.wave
        for d in step.dst:
            for channel in range(d.slice.offset, d.slice.end):
                assert (d.slice.buffer, channel) not in written
                written[d.slice.buffer, channel] = step.wave
    assert set(written) == {(b, c) for b, n in enumerate(plan.buffers) for c in range(n)}


@given(specs())
def test_each_branch_ends_in_its_own_slice_of_the_output(spec: Spec) -> None:
    ends = sorted(
        (d.slice.offset, d.slice.channels)
        for step in lower(spec).steps
        for d in step.dst
        if d.slice.buffer == OUT
    )

    def last(branches: tuple[Branch, ...], channels: int) -> Iterator[int]:
        for branch in branches:
            before = channels_behind(branch[:-1], channels)
            if isinstance(branch[-1], Fork):
                yield from last(branch[-1].branches, before)
            else:
                yield branch[-1].out_channels or before

    assert [channels for _, channels in ends] == [*last(spec.branches, spec.in_channels)]
    assert spec.out_channels == sum(channels for _, channels in ends)


def test_a_network_is_one_branch_with_forks_in_it() -> None:
    module = Spec.v1(6, 1, 2, 3, 2, 4, 2)
    halve = Stage.pool(stride=2, ceil_mode=True)
    branch = (
        Stage.conv(6, 7, stride=2),
        halve,
        Stage.local_response_norm(),
        Fork(module.branches),
        halve,
        Fork((*Spec.naive(10, 1, 2, 3).branches,)),
        Stage.mean(),
        Stage.conv(5, activation=Activation.NONE),
    )
    plan = lower(Spec(3, (branch,)))
    # Of the first fork, its result and its reduces; of the second, its result and its input.
    assert plan.buffers == (3, 5, 6, 6, 6, 10, 4, 16, 10, 16)
    assert [(s.kind.name, s.wave, s.dst[0].slice.buffer) for s in plan.steps] == [
        ("CONV", 0, 2),
        ("MAXPOOL", 1, 3),
        ("LRN", 2, 4),
        ("POINTWISE", 3, 5),
        ("POINTWISE", 3, 5),
        ("CONV", 4, 5),
        ("CONV", 4, 5),
        ("MAXPOOL", 5, 8),
        ("POINTWISE", 6, 7),
        ("CONV", 6, 7),
        ("CONV", 6, 7),
        ("MAXPOOL", 6, 7),
        ("MEAN", 7, 9),
        ("POINTWISE", 8, 1),
    ]
    assert plan.sizes(64, 33)[-3:] == ((9, 5), (9, 5), (1, 1))


def test_a_pool_that_makes_the_image_smaller_is_computed_once() -> None:
    halve = Stage.pool(stride=2)
    both = lower(Spec(5, ((halve, Fork(((Stage.conv(2),), (Stage.conv(3, 3),)))),)))
    assert [(s.kind.name, bool(s.pre)) for s in both.steps] == [
        ("MAXPOOL", False),
        ("POINTWISE", False),
        ("CONV", False),
    ]
    alone = lower(Spec(5, ((halve, Fork(((Stage.conv(2),), (Stage.conv(3),)))),)))
    assert [(s.kind.name, bool(s.pre)) for s in alone.steps] == [("POINTWISE", True)]


@given(specs())
def test_the_pointwise_convolutions_of_one_source_are_one_step(spec: Spec) -> None:
    sources = [(s.src, s.pre) for s in lower(spec).steps if s.kind is Kind.POINTWISE]
    assert len(sources) == len(set(sources))


def forks(branches: tuple[Branch, ...]) -> Iterator[Fork]:
    """All forks, those inside others too."""
    for item in (item for branch in branches for item in branch):
        if isinstance(item, Fork):
            yield item
            yield from forks(item.branches)


@given(specs())
def test_no_pool_directly_before_a_pointwise_convolution_is_left(spec: Spec) -> None:
    assume(not any(len(fork.branches) == 1 for fork in forks(spec.branches)))
    steps = lower(spec).steps
    pooled = {d.slice for s in steps if s.kind.is_pool for d in s.dst}
    assert not any(s.src in pooled for s in steps if s.kind is Kind.POINTWISE and not s.pre)


@given(specs())
def test_every_weight_is_used_once_in_the_spec_s_order_and_shape(spec: Spec) -> None:
    plan = lower(spec)
    indices = [d.weight for s in plan.steps for d in s.dst if s.kind.has_weight]
    assert sorted(indices) == list(range(len(list(spec.convolutions()))))
    assert plan.convolutions() == tuple(spec.convolutions())


@given(specs(), st.integers(0, 3), st.integers(5, 20), st.integers(5, 20))
def test_multiply_adds_are_those_of_the_spec(spec: Spec, batch: int, height: int, width: int):
    def count(branches: tuple[Branch, ...], size: tuple[int, int], channels: int) -> int:
        total = 0
        for branch in branches:
            at, depth = size, channels
            for item in branch:
                if isinstance(item, Fork):
                    total += count(item.branches, at, depth)
                    at = size_behind(item.branches[0], at)
                    depth = channels_behind((item,), depth)
                    continue
                at = item.output_size(at)
                if item.kind.has_weight:
                    taps = item.window.kernel[0] * item.window.kernel[1]
                    total += at[0] * at[1] * taps * depth * item.out_channels
                    depth = item.out_channels
        return total

    def size_behind(branch: Branch, size: tuple[int, int]) -> tuple[int, int]:
        for item in branch:
            if isinstance(item, Fork):
                size = size_behind(item.branches[0], size)
            else:
                size = item.output_size(size)
        return size

    expected = count(spec.branches, (height, width), spec.in_channels)
    assert lower(spec).macs(batch, height, width) == batch * expected


def test_kinds_and_activations_are_the_same_in_both_languages(mirror: ModuleType) -> None:
    assert mirror.kinds() == {k.name: k.value for k in Kind}
    assert mirror.activations() == {a.name: a.value for a in Activation}


def from_mirror(plan: Any) -> Plan:
    """The plan that C++ holds, field by field."""

    def window(w: Any) -> Window:
        return Window(w.kernel, w.stride, w.padding, w.ceil_mode)

    def response(r: Any) -> Response | None:
        return Response(r.size, r.alpha, r.beta, r.k) if r else None

    def slice_(s: Any) -> Slice:
        return Slice(s.buffer, s.offset, s.channels)

    return Plan(
        tuple(plan.buffers),
        tuple(
            Step(
                Kind(s.kind),
                window(s.window),
                slice_(s.src),
                tuple(
                    Destination(slice_(d.slice), d.weight, Activation(d.activation)) for d in s.dst
                ),
                s.wave,
                Pool(Kind(s.pre.kind), window(s.pre.window)) if s.pre else None,
                response(s.response),
            )
            for s in plan.steps
        ),
    )


@given(specs())
def test_decode_inverts_encode(mirror: ModuleType, spec: Spec) -> None:
    plan = lower(spec)
    code = plan.encode()
    assert all(type(value) is int for value in code)
    assert Plan.decode(code) == plan
    mirrored = mirror.decode(code)
    assert from_mirror(mirrored) == plan
    assert mirrored.encode() == code


@given(specs(), st.integers(1, 12), st.integers(1, 12))
def test_both_languages_derive_the_same(
    mirror: ModuleType, spec: Spec, height: int, width: int
) -> None:
    plan = lower(spec)
    mirrored = mirror.decode(plan.code)
    shapes = [c.weight_shape for c in plan.convolutions()]
    assert [tuple(mirrored.weight_shape(i)) for i in range(mirrored.weights())] == shapes
    with pytest.raises(ValueError, match=f"plan: has no weight {len(shapes)}"):
        mirror.decode(plan.code).weight_shape(len(shapes))
    try:
        sizes = plan.sizes(height, width)
    except ValueError:
        with pytest.raises(ValueError, match="plan: "):
            mirrored.sizes(height, width)
    else:
        assert tuple(mirrored.sizes(height, width)) == sizes


def decoded_or_refused(mirror: ModuleType, code: list[int]) -> Plan | None:
    """The plan, or None if both languages refused the list by a ValueError about the plan."""

    def attempt(decode: Callable[[list[int]], Any]) -> Any:
        try:
            return decode(code)
        except ValueError as error:
            if not str(error).startswith("plan: "):
                raise
            return None

    plan, mirrored = attempt(Plan.decode), attempt(mirror.decode)
    if plan is None or mirrored is None:
        assert plan is mirrored
        return None
    assert from_mirror(mirrored) == plan
    assert plan.encode() == mirrored.encode() == code
    return plan


@given(specs(), st.data())
def test_a_truncated_or_extended_list_is_refused(
    mirror: ModuleType, spec: Spec, data: st.DataObject
) -> None:
    code = lower(spec).encode()
    end = data.draw(st.integers(0, len(code) - 1))
    more = [*code, data.draw(st.integers(-1, 100))]
    for decode in (Plan.decode, mirror.decode):
        with pytest.raises(ValueError, match="plan"):
            decode(code[:end])
        with pytest.raises(ValueError, match="left over"):
            decode(more)


HOSTILE = (-(2**63), -2, -1, 0, 1, 2, 3, 5, 64, 255, 2**31 - 1, 2**31, 2**63 - 1)


@pytest.mark.parametrize(
    "spec",
    [GOOGLENET["3a"], Spec.naive(3, 2, 2, 2), Spec(2, ((Stage.pool(), Stage.pool()),))],
    ids=["3a", "naive", "pools"],
)
def test_any_int_changed_gives_a_right_plan_or_a_value_error(
    mirror: ModuleType, spec: Spec
) -> None:
    code = lower(spec).encode()
    refused = 0
    for place, original in enumerate(code):
        for value in {*HOSTILE, original - 1, original + 1} - {original}:
            changed = [*code[:place], value, *code[place + 1 :]]
            refused += decoded_or_refused(mirror, changed) is None
    assert refused > len(code)


@given(specs(), st.data())
def test_several_ints_changed_give_a_right_plan_or_a_value_error(
    mirror: ModuleType, spec: Spec, data: st.DataObject
) -> None:
    code = lower(spec).encode()
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(code) - 1))
        code[place] = data.draw(st.one_of(st.sampled_from(code), st.integers(-3, 2**32)))
    decoded_or_refused(mirror, code)


@given(st.lists(st.integers(-2, 9), max_size=60))
def test_random_ints_give_a_right_plan_or_a_value_error(mirror: ModuleType, code: list[int]):
    decoded_or_refused(mirror, [FORMAT, *code])


@pytest.mark.parametrize("value", [1.0, "1", None, [1]])
def test_what_is_not_an_int_is_a_value_error(value: object) -> None:
    code: list[object] = list(lower(GOOGLENET["3a"]).encode())
    code[5] = value
    with pytest.raises(ValueError, match="int 5 is out of range"):
        Plan.decode(code)  # type: ignore[arg-type]


def _broken(change: str) -> Plan:
    plan = lower(GOOGLENET["3a"])
    merged, projection, three, five = plan.steps
    if change == "overlap":
        d = projection.dst[0]
        moved = replace(projection, dst=(replace(d, slice=Slice(OUT, 223, 32)),))
        return replace(plan, steps=(merged, moved, three, five))
    if change == "gap":
        return replace(plan, steps=(merged, three, five))
    if change == "early":
        return replace(plan, steps=(merged, projection, replace(three, wave=0), five))
    if change == "unsorted":
        return replace(plan, steps=(three, five, merged, projection))
    if change == "weight twice":
        d = replace(five.dst[0], weight=2)
        return replace(plan, steps=(merged, projection, three, replace(five, dst=(d,))))
    if change == "writes the input":
        d = replace(five.dst[0], slice=Slice(IN, 0, 32))
        return replace(plan, steps=(merged, projection, three, replace(five, dst=(d,))))
    if change == "pool before 3x3":
        pool = Pool(Kind.MAXPOOL, SAME_3)
        return replace(plan, steps=(merged, projection, replace(three, pre=pool), five))
    if change == "outside its buffer":
        d = replace(five.dst[0], slice=Slice(OUT, 225, 32))
        return replace(plan, steps=(merged, projection, three, replace(five, dst=(d,))))
    if change == "huge buffers":
        return replace(plan, buffers=(2**31 - 1, 256, 112))
    assert change == "huge weights"
    window = Window((2**14, 2**14), (1, 1), (2**13, 2**13))
    return replace(plan, steps=(merged, projection, replace(three, window=window), five))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("overlap", "step 3: writes a channel a second time"),
        ("gap", "32 output channels are never written"),
        ("early", "step 2: reads a channel that no earlier wave has written"),
        ("unsorted", "step 0: wave 1 follows wave 0"),
        ("weight twice", "weight indices must be 0 to 5"),
        ("writes the input", "step 3: dst buffer 0 cannot be used so"),
        ("pool before 3x3", "step 2: only a pool can be folded in"),
        ("outside its buffer", "step 3: dst channels 225 to 257 are not in buffer 1 of 256"),
        ("huge buffers", r"more than 2\^31 channels"),
        ("huge weights", r"more than 2\^40 elements"),
    ],
)
def test_check_names_what_is_broken(mirror: ModuleType, change: str, text: str) -> None:
    plan = _broken(change)
    with pytest.raises(ValueError, match=text):
        plan.check()
    with pytest.raises(ValueError, match=text):
        mirror.decode(plan.code)


def test_branches_of_different_sizes_are_refused_by_size() -> None:
    spec = Spec(3, ((Stage.conv(2, 3, stride=2),), (Stage.conv(2),)))
    with pytest.raises(ValueError, match="disagree in size for an input of 8x9"):
        lower(spec).sizes(8, 9)
    assert lower(spec).sizes(1, 1) == ((1, 1), (1, 1))


def test_an_image_smaller_than_a_window_is_refused() -> None:
    plan = lower(Spec(3, ((Stage.conv(2, 5, padding=0),),)))
    assert plan.sizes(5, 6)[OUT] == (1, 2)
    with pytest.raises(ValueError, match="does not fit into an image of 4x9"):
        plan.sizes(4, 9)


def test_multiply_adds_of_the_nine_modules() -> None:
    macs = {
        name: lower(spec).macs(1, GOOGLENET_SIZE[name], GOOGLENET_SIZE[name])
        for name, spec in GOOGLENET.items()
    }
    # "ops" of Table 1 in millions, but for 5a, where 54 is printed: see inception_fused/table.py.
    printed = {"3a": 128, "3b": 304, "4a": 73, "4b": 88, "4c": 100, "4d": 119, "4e": 170, "5b": 71}
    assert all(abs(macs[name] / 1e6 - ops) < 1 for name, ops in printed.items())
    assert macs["5a"] == 7 * 7 * (832 * (256 + 160 + 32 + 128) + 9 * 160 * 320 + 25 * 32 * 128)
