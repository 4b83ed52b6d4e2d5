"""Specs: the paper's nine modules, the order of the weights, and what is refused."""

from __future__ import annotations

from itertools import pairwise

import pytest

from inception_fused.spec import (
    GOOGLENET,
    GOOGLENET_SIZE,
    Activation,
    Fork,
    Kind,
    Spec,
    Stage,
    Window,
    googlenet,
)

# "output size" and "depth" columns of the paper's Table 1.
OUTPUTS = {
    "3a": (28, 256),
    "3b": (28, 480),
    "4a": (14, 512),
    "4b": (14, 512),
    "4c": (14, 512),
    "4d": (14, 528),
    "4e": (14, 832),
    "5a": (7, 832),
    "5b": (7, 1024),
}


def test_the_nine_modules_have_the_paper_s_sizes() -> None:
    assert {n: (GOOGLENET_SIZE[n], s.out_channels) for n, s in GOOGLENET.items()} == OUTPUTS


def test_each_module_takes_what_the_one_before_gives() -> None:
    for before, after in pairwise(GOOGLENET):
        assert GOOGLENET[after].in_channels == GOOGLENET[before].out_channels


def test_weights_of_3a_in_order() -> None:
    assert [c.weight_shape for c in GOOGLENET["3a"].convolutions()] == [
        (64, 192, 1, 1),
        (96, 192, 1, 1),
        (128, 96, 3, 3),
        (16, 192, 1, 1),
        (32, 16, 5, 5),
        (32, 192, 1, 1),
    ]


def test_k5_replaces_only_the_third_branch() -> None:
    three, stacked = googlenet(3)["3a"], googlenet((3, 3))["3a"]
    assert [c.weight_shape for c in three.convolutions()][4] == (32, 16, 3, 3)
    assert [c.weight_shape for c in stacked.convolutions()][4:6] == [(32, 16, 3, 3), (32, 32, 3, 3)]
    for spec in (three, stacked):
        assert spec.branch_channels == GOOGLENET["3a"].branch_channels
        assert spec.branches[:2] == GOOGLENET["3a"].branches[:2]


def test_a_branch_of_pools_keeps_the_input_s_channels() -> None:
    assert Spec.naive(7, 1, 2, 3).branch_channels == (1, 2, 3, 7)
    assert Spec(5, ((Stage.pool(), Stage.pool()),)).out_channels == 5


def test_a_fork_ends_in_all_its_branches() -> None:
    fork = Fork([[Stage.conv(3, (1, 3))], [Stage.conv(4, (3, 1)), Stage.pool()], [Stage.pool()]])  # type: ignore[arg-type]
    spec = Spec(7, ((Stage.conv(2), fork), (Stage.pool(),)))
    assert spec.branch_channels == (3 + 4 + 2, 7)
    assert [c.weight_shape for c in spec.convolutions()] == [
        (2, 7, 1, 1),
        (3, 2, 1, 3),
        (4, 2, 3, 1),
    ]


def test_what_follows_a_fork_reads_all_its_branches() -> None:
    fork = Fork(((Stage.conv(3),), (Stage.pool(),)))
    spec = Spec(7, ((fork, Stage.mean(), fork, Stage.conv(4)),))
    assert spec.out_channels == 4
    assert [c.in_channels for c in spec.convolutions()] == [7, 10, 13]


def test_equal_specs_are_equal_keys_whatever_sequences_they_were_made_of() -> None:
    stage = Stage.conv(3)
    assert {Spec(2, ((stage,),)): 1}[Spec(2, [[stage]])] == 1  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("window", "size", "expected"),
    [
        (Window((7, 7), (2, 2), (3, 3)), (224, 224), (112, 112)),
        (Window((3, 3), (1, 1), (1, 1)), (1, 9), (1, 9)),
        (Window((2, 4), (2, 3), (0, 1)), (5, 8), (2, 3)),
        (Window((3, 3), (2, 2), (0, 0), True), (112, 5), (56, 2)),
        (Window((2, 2), (3, 3), (1, 1), True), (4, 6), (2, 3)),  # the last would start in padding
    ],
)
def test_output_size(window: Window, size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert window.output_size(size) == expected


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: Stage.conv(0), ValueError, "out_channels must be at least 1"),
        (lambda: Stage.conv(2.0), TypeError, "out_channels must be an int"),  # type: ignore[arg-type]
        (lambda: Stage.conv(True), TypeError, "out_channels must be an int"),
        (lambda: Stage.conv(1, 2), ValueError, "padding must be given for the even kernel"),
        (lambda: Stage.conv(1, (3, 3, 3)), ValueError, "kernel must be an int or a pair"),  # type: ignore[arg-type]
        (lambda: Stage.conv(1, 3, stride=0), ValueError, "stride must be at least 1"),
        (lambda: Stage.pool(padding=2), ValueError, "at most half its kernel"),
        (lambda: Stage(Kind.MAXPOOL, 4), ValueError, "kind MAXPOOL has out_channels 0"),
        (lambda: Stage(Kind.CONV, 4), ValueError, "kind CONV does not go with"),
        (lambda: Stage(9, 4), ValueError, "9 is not a valid Kind"),  # type: ignore[arg-type]
        (
            lambda: Stage(Kind.MAXPOOL, 0, Window(3), Activation.RELU),  # type: ignore[arg-type]
            ValueError,
            "no activation",
        ),
        (lambda: Spec(0, ((Stage.conv(1),),)), ValueError, "in_channels must be at least 1"),
        (lambda: Spec(1, ()), ValueError, "at least one branch"),
        (lambda: Spec(1, ((Stage.conv(1),), ())), ValueError, "at least one stage"),
        (lambda: Spec(1, ((3,),)), TypeError, "sequences of Stage"),  # type: ignore[arg-type]
        (lambda: Spec(1, ((Fork(((Stage.conv(1),),)),),)), ValueError, "the only item of a branch"),
        (lambda: Stage(Kind.LRN, 0), ValueError, "kind LRN, which needs one"),
        (lambda: Stage(Kind.MEAN, 0, Window(3)), ValueError, "kind MEAN does not go with"),  # type: ignore[arg-type]
        (lambda: Stage.local_response_norm(0), ValueError, "size must be at least 1"),
        (lambda: Stage.local_response_norm(beta=-1.0), ValueError, "beta must be finite"),
        (lambda: Fork(((),)), ValueError, "at least one stage"),
        (lambda: Window(3).output_size((2, 5)), ValueError, "does not fit"),  # type: ignore[arg-type]
    ],
)
def test_what_is_refused(make, error, text) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=text):
        make()
