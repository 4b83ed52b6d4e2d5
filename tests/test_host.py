"""csrc/cpu without torch: the choice of kernels, and every path under the sanitizers."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import native
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import specs

from inception_fused.lower import lower
from inception_fused.spec import GOOGLENET, Activation, Fork, Kind, Spec, Stage, googlenet

Case = tuple[str, Spec, tuple[int, int, int]]
"""A name, a module, and (batch, height, width) of its input."""

AVERAGE = Stage.pool(Kind.AVGPOOL)
LINEAR = Activation.NONE
MODULES: dict[str, tuple[Spec, list[tuple[int, int, int]]]] = {
    "odd": (Spec.v1(37, 11, 13, 17, 5, 19, 23), [(1, 1, 1), (2, 5, 3), (5, 4, 6), (3, 1, 9)]),
    "stacked": (Spec.v1(9, 3, 7, 33, 2, 5, 1, (3, 3)), [(1, 1, 1), (3, 6, 5), (2, 7, 2)]),
    "k7": (Spec.v1(5, 1, 2, 3, 4, 5, 6, 7, LINEAR), [(1, 1, 1), (2, 2, 9)]),
    "naive": (Spec.naive(10, 3, 5, 7), [(1, 1, 1), (4, 5, 5)]),
    "pools": (
        Spec(
            18,
            (
                (AVERAGE, Stage.conv(9)),
                (Stage.pool(Kind.AVGPOOL, 5, 1, 2),),
                (Stage.pool(), Stage.pool(Kind.MAXPOOL, (1, 3), 1, (0, 1)), Stage.conv(4)),
                (AVERAGE, AVERAGE),
            ),
        ),
        [(1, 1, 1), (2, 4, 7)],
    ),
    "strided": (
        Spec(
            6,
            (
                (Stage.conv(7, 3, 2),),
                (Stage.pool(stride=2),),
                (Stage.conv(3), Stage.conv(4, (1, 7)), Stage.conv(5, (7, 1), (2, 2))),
                (AVERAGE, Stage.conv(9, 3, 2)),
            ),
        ),
        [(1, 1, 1), (3, 8, 9)],
    ),
    "forked": (
        Spec(
            9,
            (
                (Stage.conv(5), Fork(((Stage.conv(7),), (Stage.conv(6, 3),)))),
                (Stage.conv(4, 3), Fork(((Stage.pool(),), (Stage.pool(), Stage.conv(8, 5))))),
            ),
        ),
        [(1, 1, 1), (2, 6, 5)],
    ),
    # A small network: every kind, buffers that share memory, a first layer of three channels; of
    # nine images four at a time, then eight, then the last.
    "network": (
        Spec(
            3,
            (
                (
                    Stage.conv(20, 7, 2),
                    Stage.pool(stride=2, padding=0, ceil_mode=True),
                    Stage.local_response_norm(),
                    Stage.conv(8, 5),
                    Stage.local_response_norm(4, 2.0, 0.5, 2.0),
                    Fork(Spec.v1(8, 7, 5, 9, 3, 6, 4).branches),
                    Stage.pool(Kind.AVGPOOL, 3, 2, 1, True),
                    Fork(Spec.v1(26, 3, 5, 9, 3, 6, 4, (3, 3)).branches),
                    Stage.pool(Kind.AVGPOOL_INSIDE, 2, 2, 1, True),
                    Stage.mean(),
                    Stage.conv(18, activation=LINEAR),
                ),
            ),
        ),
        [(1, 5, 6), (3, 33, 18), (1, 16, 40), (9, 30, 30)],
    ),
    # First layers of stride 2: where x is read in its phases, and two readers, where it is not.
    "stem of 7x7": (Spec(3, ((Stage.conv(35, 7, 2), Stage.conv(5)),)), [(1, 1, 1), (3, 22, 17)]),
    "stem without padding": (Spec(4, ((Stage.conv(6, 7, 2, 0),),)), [(1, 7, 7), (2, 9, 30)]),
    "stem of 5x5": (Spec(1, ((Stage.conv(17, 5, 2, 4),),)), [(1, 2, 1), (2, 16, 11)]),
    "two stems": (Spec(3, ((Stage.conv(4, 7, 2),), (Stage.conv(3, 5, 2),))), [(2, 6, 9)]),
    "wide border": (Spec(3, ((Stage.conv(5, 1, padding=2), Stage.pool()),)), [(2, 3, 3)]),
    # One to five groups of columns, and every number of rows that a tile can have.
    "tiles": (
        Spec.v1(3, 17, 1, 33, 3, 49, 65),
        [(1, 1, pixels) for pixels in range(1, 30)],
    ),
}


def cases() -> list[Case]:
    """All nine modules at small sizes, and what they leave out."""
    found: list[Case] = []
    for name, spec in GOOGLENET.items():
        found += [(name, spec, (1, 3, 4)), (name, spec, (1, 1, 1))]
    found.append(("3a with 3x3", googlenet(3)["3a"], (3, 5, 5)))
    for name, (spec, shapes) in MODULES.items():
        found += [(name, spec, shape) for shape in shapes]
    for channels in range(1, 34):  # every number of columns and lanes that is left over
        norm = Stage.local_response_norm(1 + channels % 6, 1.0)
        spec = Spec(channels, ((Stage.pool(),), (AVERAGE,), (norm,), (Stage.conv(channels),)))
        found.append((f"{channels} channels", spec, (1, 1, 2)))
    return found


def run(program: Path, arguments: list[str], cases: Iterable[Case]) -> dict[str, int]:
    """The figures that the program prints; what it found is the failure's text."""
    lines = [
        " ".join(map(str, [name.replace(" ", "_"), *shape, *lower(spec).code]))
        for name, spec, shape in cases
    ]
    done = subprocess.run(
        [program, *arguments], input="\n".join(lines), capture_output=True, text=True, check=False
    )
    if "ThreadSanitizer: unexpected memory mapping" in done.stderr:
        pytest.skip("this kernel's address layout is too random for gcc's ThreadSanitizer")
    if done.returncode:
        pytest.fail(f"{program.name} exits with {done.returncode}\n{done.stdout}{done.stderr}")
    return {name: int(count) for name, count in map(str.split, done.stdout.splitlines())}


@pytest.fixture(scope="module", params=["address,undefined", "thread"])
def program(request: pytest.FixtureRequest) -> Path:
    """tests/cpp/check_cpu.cpp built with a sanitizer."""
    sources = [
        native.ROOT / "tests" / "cpp" / name for name in ("check_cpu.cpp", "equal.cpp", "naive.cpp")
    ]
    return native.build(
        f"check_cpu_{request.param.replace(',', '_')}",
        [*sources, *native.CPU],
        [*native.SANITIZED, f"-fsanitize={request.param}", "-pthread"],
    )


def kinds(spec: Spec) -> set[Kind]:
    """Of the steps, and of the pools that are folded into them."""
    steps = lower(spec).steps
    return {s.kind for s in steps} | {s.pre.kind for s in steps if s.pre}


def names(mirror: ModuleType) -> set[str]:
    """The kernels that this machine can run."""
    limits = ("base", "avx2", "avx512", "avx512_vnni", "avx512_bf16")
    return {mirror.pick(*mirror.capabilities(), limit) for limit in limits}


def test_every_module_equals_loops_in_double(program: Path, mirror: ModuleType) -> None:
    chosen = cases()
    if program.name.endswith("thread"):  # what threads share does not depend on the sizes
        chosen = [case for case in chosen if case[0] in ("3a", "odd", "stacked", "strided")]
    runs = run(program, ["run"], chosen)
    exact = [case for case in chosen if not kinds(case[1]) & {Kind.AVGPOOL, Kind.MEAN, Kind.LRN}]
    assert runs.pop("exact") == 2 * len(exact) + len(chosen)  # in int8 all of them
    assert set(runs) == names(mirror)
    assert len(set(runs.values())) == 1
    winograd = [case for case in chosen if case[0] in GOOGLENET]  # direct, and tiles of two sizes
    assert min(runs.values()) >= 4 * 2 * (len(chosen) + len(winograd))


def test_changed_plans_are_refused_or_run(program: Path) -> None:
    small: list[Case] = [
        ("v1", Spec.v1(3, 2, 3, 2, 2, 3, 2), (2, 4, 5)),
        ("stacked", Spec.v1(2, 1, 1, 2, 1, 2, 1, (3, 3)), (1, 3, 3)),
        ("pools", Spec(5, ((AVERAGE, Stage.conv(3)), (Stage.pool(), Stage.pool()))), (2, 2, 3)),
        ("strided", Spec(4, ((Stage.conv(3, 3, 2),), (Stage.pool(stride=2),))), (1, 5, 4)),
        (
            "network",
            Spec(
                3,
                (
                    (
                        Stage.pool(Kind.AVGPOOL_INSIDE, 2, 2, 1, True),
                        Stage.local_response_norm(2),
                        Fork(((Stage.conv(2),), (Stage.conv(3, 3),))),
                        Stage.mean(),
                        Stage.conv(2),
                    ),
                ),
            ),
            (1, 5, 4),
        ),
    ]
    counts = run(program, ["fuzz", "3000"], small)
    assert sum(counts.values()) == 3000 * len(small)
    assert counts["refused"] > 3000
    assert counts["ran"] > 300


@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    st.lists(
        st.tuples(
            st.just("random"),
            specs(),
            st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9)),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_random_modules_equal_loops_in_double(program: Path, chosen: list[Case]) -> None:
    run(program, ["run"], chosen)


LIMITS = ("", "avx512_bf16", "avx512_vnni", "avx512", "avx2", "base")


@pytest.mark.parametrize(
    ("machine", "names"),
    [
        ((False, False, False, False), ("base",) * 6),
        ((True, False, False, False), ("avx2",) * 5 + ("base",)),
        ((True, True, False, False), ("avx512",) * 4 + ("avx2", "base")),
        ((True, True, True, False), ("avx512_vnni",) * 3 + ("avx512", "avx2", "base")),
        (
            (True, True, True, True),
            ("avx512_bf16", "avx512_bf16", "avx512_vnni", "avx512", "avx2", "base"),
        ),
    ],
)
def test_the_widest_kernels_that_machine_and_limit_allow(
    mirror: ModuleType, machine: tuple[bool, bool, bool, bool], names: tuple[str, ...]
) -> None:
    """``machine``: whether it has AVX2, AVX-512, AVX512_VNNI and AVX512_BF16."""
    assert tuple(mirror.pick(*machine, limit) for limit in LIMITS) == names


@pytest.mark.parametrize("limit", ["sse9", "AVX2", " ", "avx"])
def test_a_limit_that_is_no_instruction_set_is_refused(mirror: ModuleType, limit: str) -> None:
    wanted = f"must be base, avx2, avx512, avx512_vnni or avx512_bf16, got '{limit}'"
    with pytest.raises(ValueError, match=wanted):
        mirror.pick(True, True, True, True, limit)
