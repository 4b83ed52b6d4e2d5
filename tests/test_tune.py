"""tune: what is tried, what is taken, what is kept.

Time is made up: only what says that it takes time makes the clock go on.
"""

from __future__ import annotations

import copy
import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import inception_fused
from inception_fused import figures, reference, trial
from inception_fused.backends import TABLE, Backend
from inception_fused.candidates import candidates, clearly_faster, finalists, inside, winner
from inception_fused.fusion import fusion_of, network_of
from inception_fused.lower import lower
from inception_fused.models import GoogLeNet, Inception
from inception_fused.route import Route
from inception_fused.spec import GOOGLENET
from inception_fused.tuning import cpu_describe, cpu_options, cpu_tuning

backends = sys.modules["inception_fused.backends"]  # the attribute of that name is a function
CPU, REFERENCE = TABLE[-2:]
X = torch.randn(1, 8, 6, 6, generator=torch.Generator().manual_seed(0))


class MadeUp:
    """A clock, in ms, that goes on when something takes time, a few per cent more or less."""

    def __init__(self) -> None:
        self.now = 0.0
        self.noise = random.Random(0)

    def take(self, ms: float) -> None:
        self.now += ms * self.noise.uniform(0.97, 1.03)

    @contextmanager
    def __call__(self) -> Iterator[trial.Clock]:
        yield lambda: self.now, lambda begin, end: end - begin


CLOCK = MadeUp()


class Slowed(Inception):
    """An Inception module whose own forward takes a known time."""

    ms = 2.0

    def forward(self, x: Tensor) -> Tensor:
        CLOCK.take(Slowed.ms)
        return super().forward(x)


def tiny(kind: type = Inception) -> nn.Module:
    torch.manual_seed(3)
    return kind(8, 4, 4, 8, 4, 8, 4, batch_norm=True).eval().requires_grad_(False)


def takes(name: str, ms: Callable[[tuple[int, ...]], float], **fields: object) -> Backend:
    """The reference, which takes this time by the tuning in its pack."""

    def run(plan: object, x: Tensor, packed: list[Tensor]) -> Tensor:
        *rest, tuning = packed
        CLOCK.take(ms(tuple(tuning.tolist())))
        return REFERENCE.run(plan, x, rest)

    def pack(plan: object, weights: object, biases: object, tuning: tuple[int, ...] = ()) -> object:
        return [*weights, *biases, torch.tensor(tuning, dtype=torch.int64)]

    return replace(REFERENCE, name=name, device="cpu", run=run, pack=pack, **fields)


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Replaces the back ends; a module's own forward takes 2 ms."""

    def set_(*rows: Backend) -> None:
        monkeypatch.setattr(backends, "TABLE", rows)
        monkeypatch.setattr(figures, "TABLE", rows)

    monkeypatch.setattr(trial, "_host_clock", CLOCK)
    monkeypatch.setattr(Slowed, "ms", 2.0)
    figures.STORE.forget()
    yield set_
    figures.STORE.forget()


def tuned(**arguments: object) -> tuple[nn.Module, object]:
    model = inception_fused.fuse(tiny(Slowed))
    return model, inception_fused.tune(model, X, 1e-6, **arguments)


def taken(model: nn.Module, x: Tensor = X) -> str:
    with torch.no_grad():
        model(x)
    fusion = fusion_of(model)
    assert fusion is not None
    return fusion.taken


def test_the_fastest_back_end_is_taken(table: Callable[..., None]) -> None:
    slow, fast = takes("slow", lambda _: 4.0), takes("fast", lambda _: 0.5)
    table(slow, fast)
    model, report = tuned()
    assert taken(model) == "fast"
    (line,) = report.lines
    assert not line.remembered
    assert [t.label for t in line.figures.timings] == ["fast", "original", "slow"]
    by_name = {t.backend: t for t in line.figures.timings}
    expected = {"fast": 0.5, "original": 2.0, "slow": 4.0}
    assert {n: t.median for n, t in by_name.items()} == pytest.approx(expected, rel=0.02)
    assert all(t.low <= t.median <= t.high for t in line.figures.timings)


@pytest.mark.parametrize("ms", [1.995, 2.0, 4.0])
def test_the_original_is_taken_where_nothing_beats_it_clearly(
    table: Callable[..., None], ms: float
) -> None:
    table(takes("other", lambda _: ms))
    model, report = tuned()
    assert taken(model) == "original"
    assert "nothing is clearly faster" in str(report)
    text = str(inception_fused.explain(model))
    assert "took the original path: measured: nothing is clearly faster than" in text
    assert "tried: " in text
    with torch.no_grad():
        assert torch.equal(model(X), tiny()(X))


def test_places_of_a_tuning_that_help_alone_are_put_together(table: Callable[..., None]) -> None:
    """Each place saves 0.4 ms, but the first, which costs as much."""

    def ms(tuning: tuple[int, ...]) -> float:
        first, *others = tuning
        return 1.5 + 0.4 * first - 0.4 * sum(others)

    options = ((0, 1), (0, 1), (0, 1))
    table(
        takes(
            "many",
            ms,
            options=lambda plan, x: options,
            tuning=lambda plan, x: (0, 0, 0),
            describe=lambda plan, tuning: "-".join(map(str, tuning)),
        )
    )
    model, report = tuned()
    measured = report.lines[0].figures
    assert measured.taken == "many: 0-1-1"
    labels = {t.label for t in measured.timings}
    assert labels == {"original", *(f"many: {t}" for t in ("0-0-0", "1-0-0", "0-1-0", "0-0-1"))} | {
        "many: 0-1-1"
    }
    assert taken(model) == "many"


def test_a_wrong_or_broken_candidate_is_dropped_with_a_warning(
    table: Callable[..., None],
) -> None:
    def broken(*_: object) -> Tensor:
        raise RuntimeError("no such instruction")

    right = takes("right", lambda _: 0.5)
    wrong = replace(REFERENCE, name="wrong", run=lambda p, x, w: 1.01 * REFERENCE.run(p, x, w))
    nan = replace(REFERENCE, name="nan", run=lambda p, x, w: REFERENCE.run(p, x, w) * torch.nan)
    table(right, replace(REFERENCE, name="broken", run=broken), wrong, nan)
    with pytest.warns(UserWarning, match="tune does not try") as caught:
        model, report = tuned()
    messages = sorted(str(w.message) for w in caught)
    assert len(messages) == 3
    assert "does not try broken for the model, 1x8x6x6" in messages[0]
    assert "raises RuntimeError: no such instruction" in messages[0]
    assert "does not try nan" in messages[1]
    assert "does not try wrong" in messages[2]
    assert "it differs from the original by" in messages[2]
    assert {t.backend for t in report.lines[0].figures.timings} == {"original", "right"}
    assert taken(model) == "right"


def test_the_choice_follows_weights_and_is_copied(table: Callable[..., None]) -> None:
    table(takes("slow", lambda _: 4.0), takes("fast", lambda _: 0.5))
    model, _ = tuned()
    copied = copy.deepcopy(model)
    assert taken(copied) == "fast"
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    assert taken(model) == "fast"
    plain = inception_fused.unfuse(copy.deepcopy(model))
    with torch.no_grad():
        torch.testing.assert_close(model(X), plain(X))
    model.train().eval()
    assert taken(model) == "fast"
    assert taken(model, X.repeat(2, 1, 1, 1)) == "slow"  # another shape was not measured
    assert taken(model.double(), X.double()) == "slow"
    state = model.state_dict()
    assert state.keys() == tiny().state_dict().keys()


def test_dtypes_that_do_not_fit_are_refused_as_without_tuning(table: Callable[..., None]) -> None:
    table(takes("fast", lambda _: 0.5))
    model, _ = tuned()
    model.double()
    with torch.no_grad(), pytest.raises(RuntimeError):
        model(X)
    assert "parameters are torch.float64" in fusion_of(model).reason


def test_an_original_that_was_measured_keeps_the_packs_of_other_shapes(
    table: Callable[..., None],
) -> None:
    packs = 0

    def pack(*arguments: object) -> list[Tensor]:
        nonlocal packs
        packs += 1
        return slow.pack(*arguments)

    slow = takes("slow", lambda _: 4.0)
    table(replace(slow, pack=pack))
    model, _ = tuned()
    packs = 0
    for _ in range(3):
        assert taken(model) == "original"
        assert taken(model, X.repeat(2, 1, 1, 1)) == "slow"
    assert packs == 1


def test_figures_are_remembered_and_measured_again_if_fresh(
    table: Callable[..., None], cache_folder: Path
) -> None:
    runs = 0

    def ms(_: tuple[int, ...]) -> float:
        nonlocal runs
        runs += 1
        return 0.5

    table(takes("fast", ms))
    tuned()
    (file,) = cache_folder.iterdir()
    assert file.name.startswith("tune-")
    figures.STORE.forget()
    runs = 0
    model, report = tuned()
    assert runs == 1  # the call that finds the shapes
    assert report.lines[0].remembered
    assert "takes fast (remembered: fast" in str(report)
    assert taken(model) == "fast"
    assert "fast (measured: 0." in str(inception_fused.explain(model))
    model, report = tuned(fresh=True)
    assert runs > 20
    assert not report.lines[0].remembered


@pytest.mark.parametrize(
    "change",
    [
        lambda kept: kept | {"taken": "other"},
        lambda kept: kept | {"timings": []},
        lambda kept: kept["timings"][0].update(backend="hip") or kept,
        lambda kept: kept["timings"][0].update(tuning=["2"]) or kept,
        lambda kept: kept["timings"][0].update(low=-1) or kept,
        lambda kept: kept["timings"][0].update(high="much") or kept,
    ],
)
def test_damaged_figures_are_ignored_with_a_warning(
    table: Callable[..., None], cache_folder: Path, change: Callable[[dict], dict]
) -> None:
    table(takes("fast", lambda _: 0.5))
    tuned()
    (file,) = cache_folder.iterdir()
    content = json.loads(file.read_text())
    content["entries"] = {key: change(value) for key, value in content["entries"].items()}
    file.write_text(json.dumps(content))
    figures.STORE.forget()
    with pytest.warns(UserWarning, match=r"the tune cache .* is ignored: it is damaged"):
        model, report = tuned()
    assert not report.lines[0].remembered
    assert taken(model) == "fast"


def test_a_tuning_that_no_longer_exists_is_measured_again(table: Callable[..., None]) -> None:
    def row(*values: int) -> Backend:
        return takes(
            "one",
            lambda tuning: 1.5 - (tuning[0] == values[-1]),
            options=lambda plan, x: (values,),
            tuning=lambda plan, x: values[:1],
        )

    table(row(0, 7))
    _, report = tuned()
    (kept,) = figures.STORE.load(figures.device_name(X)).values()
    assert report.lines[0].figures == kept
    table(row(0, 5))
    _, report = tuned()
    assert not report.lines[0].remembered
    best = min(report.lines[0].figures.timings, key=lambda t: t.median)
    assert best.tuning == (5,)


def test_a_cache_that_cannot_be_written_costs_a_warning(
    table: Callable[..., None], cache_folder: Path
) -> None:
    cache_folder.write_text("a file, not a folder")
    table(takes("fast", lambda _: 0.5))
    with pytest.warns(UserWarning, match="what tune has measured cannot be kept"):
        model, _ = tuned()
    assert taken(model) == "fast"


def test_an_interrupt_leaves_the_model_as_it_was(table: Callable[..., None]) -> None:
    table(takes("slow", lambda _: 4.0), takes("fast", lambda _: 0.5))

    def stop(text: str, share: float) -> None:
        assert 0 <= share <= 1
        if share > 0.3:
            raise KeyboardInterrupt

    model = inception_fused.fuse(tiny(Slowed)).train()
    with pytest.raises(KeyboardInterrupt):
        inception_fused.tune(model, X, 1e-6, progress=stop)
    assert model.training
    assert taken(model.eval()) == "slow"
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


class Net(nn.Module):
    """A convolution and two modules in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(8, 8, 3, padding=1)
        self.first = Slowed(8, 4, 4, 8, 4, 8, 4)
        self.second = Slowed(24, 4, 4, 8, 4, 8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(self.stem(x)))


def tuned_network() -> tuple[nn.Module, dict[str, figures.Figures]]:
    """The model, and by name what was found; "" is the whole."""
    torch.manual_seed(5)
    model = inception_fused.fuse(Net().eval().requires_grad_(False))
    report = inception_fused.tune(model, X, 1e-6)
    with torch.no_grad():
        model(X)
    return model, {line.name: line.figures for line in report.lines}


def by_steps(module: Callable[..., float], network: Callable[..., float], values: int) -> Backend:
    """A back end whose time is by the places of the tuning, of a module or of the network."""
    return takes(
        "stepped",
        lambda tuning: (module if len(tuning) == 4 else network)(*tuning),
        options=lambda plan, x: (tuple(range(values)),) * len(plan.steps),
        tuning=lambda plan, x: (0,) * len(plan.steps),
        describe=lambda plan, tuning: "".join(map(str, tuning)),
    )


@pytest.mark.parametrize(("ms", "whole"), [(1.0, True), (2.0, True), (3.0, False)])
def test_a_network_runs_as_a_whole_unless_its_modules_are_clearly_faster(
    table: Callable[..., None], ms: float, whole: bool
) -> None:
    table(by_steps(lambda *_: 1.0, lambda *_: ms, 1))
    model, found = tuned_network()
    assert network_of(model).taken == ("stepped" if whole else "original")
    times = {t.label: t.median for t in found[""].timings}
    expected = {"stepped: 000000000": ms, "its modules in turn": 2.0}
    assert times == pytest.approx(expected, rel=0.02)
    network, first, second = sorted(inception_fused.explain(model).lines, key=lambda x: x.name)
    assert {t.label for t in network.timings} == times.keys()
    for line in (first, second):
        assert line.backend == "stepped"
        assert {t.label for t in line.timings} == {"stepped: 0000", "original"}


def test_a_network_is_tried_with_what_its_modules_take(table: Callable[..., None]) -> None:
    """Every place saves 0.1 ms; those of the modules are not tried again one by one."""
    table(by_steps(lambda *places: 1.5 - 0.1 * sum(places), lambda *p: 3 - 0.1 * sum(p), 2))
    model, found = tuned_network()
    assert found["first"].taken == found["second"].taken == "stepped: 1111"
    assert found[""].taken == "stepped: 111111111"
    assert {t.label for t in found[""].timings} == {
        "its modules in turn",
        *(f"stepped: {places}" for places in ("000000000", "011111111", "111111111")),
    }
    assert network_of(model).taken == "stepped"


def test_what_the_modules_take_may_be_wrong_for_the_whole(table: Callable[..., None]) -> None:
    table(by_steps(lambda *places: 1.5 - 0.1 * sum(places), lambda *p: 1 + 0.1 * sum(p[1:]), 2))
    _, found = tuned_network()
    assert found["first"].taken == "stepped: 1111"
    assert found[""].taken == "stepped: 000000000"


@pytest.mark.skipif(
    not inception_fused.backends()["cpu"].startswith("available"),
    reason="the native library is not built",
)
def test_a_network_knows_the_steps_of_its_modules() -> None:
    model = inception_fused.fuse(GoogLeNet().eval())
    network = network_of(model)
    assert network is not None
    x = torch.randn(1, 3, 224, 224)
    modules = [f for m in model.modules() if (f := fusion_of(m)) is not None]
    tuned = [(f, Route(CPU, "", tuple(range(10 * i, 10 * i + 4)))) for i, f in enumerate(modules)]
    settled = inside(network, tuned)
    values = [10 * i + s for i in range(9) for s in range(4)]
    assert sorted(settled["cpu"].values()) == values
    for number, value in settled["cpu"].items():
        step, own = network.plan.steps[number], modules[value // 10].plan.steps[value % 10]
        assert (step.src.channels, step.window) == (own.src.channels, own.window)
    free = [i for i, o in enumerate(cpu_options(network.plan)) if len(o) > 1]
    free = [i for i in free if i not in settled["cpu"]]
    found = candidates(network, x, settled)
    assert [network.plan.steps[i].window.kernel for i in free] == [(7, 7), (3, 3)]
    changes = sum(len(cpu_options(network.plan)[i]) - 1 for i in free)
    assert len(found) == 4 + changes  # in turn, own, what the modules take, direct
    assert "reference" not in [c.name for c in found]


def test_mistakes_are_named() -> None:
    fused = inception_fused.fuse(tiny())
    with pytest.raises(TypeError, match=r"model must be an nn\.Module, got str"):
        inception_fused.tune("googlenet", X)
    with pytest.raises(TypeError, match="example_input must be a Tensor, got list"):
        inception_fused.tune(fused, [X])
    for seconds in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="seconds must be above 0"):
            inception_fused.tune(fused, X, seconds)
    with pytest.raises(ValueError, match="model has no fused module"):
        inception_fused.tune(nn.Conv2d(8, 8, 1), X)

    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = tiny()

        def forward(self, x: Tensor) -> Tensor:
            return x if len(x) == 1 else self.inner(x)

    with pytest.raises(ValueError, match="example_input does not reach a fused module"):
        inception_fused.tune(inception_fused.fuse(Unused()), X)


class TestCandidates:
    def test_the_cpu_is_tried_in_each_change_of_its_own_choice(self) -> None:
        if inception_fused.backends()["cpu"].startswith("available"):
            model = inception_fused.FusedInception(GOOGLENET["3a"]).eval()
            fusion = fusion_of(model)
            x = torch.randn(1, 192, 28, 28)
            own = cpu_tuning(fusion.plan, 1, 28, 28)
            found = candidates(fusion, x)
            assert [c.name for c in found[:2]] == ["original", "cpu"]
            assert found[1].tuning == own
            assert found[-1].name == "reference"
            cpu = [c.tuning for c in found if c.name == "cpu"]
            steps = [i for i, o in enumerate(cpu_options(fusion.plan)) if len(o) > 1]
            assert len(cpu) == len(set(cpu)) == 1 + 1 + 2 + 1  # own, direct, 3x3, 5x5
            assert (0,) * len(own) in cpu
            for tuning in cpu:
                changed = [i for i, (a, b) in enumerate(zip(own, tuning, strict=True)) if a != b]
                assert set(changed) <= set(steps)
                assert len(changed) <= 1 or not any(tuning)
        else:
            pytest.skip("the native library is not built")

    def test_options_of_the_module_are_kept_to(self) -> None:
        x = torch.randn(1, 192, 28, 28)
        for options, expected in (
            ({"winograd": False}, ["original", "cpu", "reference"]),
            ({"backend": "reference"}, ["original", "reference"]),
        ):
            model = inception_fused.FusedInception(GOOGLENET["3a"], **options).eval()
            found = candidates(fusion_of(model), x)
            assert [c.name for c in found] == expected
            assert all(c.tuning == () for c in found)

    def test_tunings_in_words(self) -> None:
        plan = lower(GOOGLENET["3a"])
        assert cpu_describe(plan, (0,) * 4) == "direct"
        steps = [i for i, s in enumerate(plan.steps) if s.window.kernel == (3, 3) and not s.pre]
        tuning = tuple(4 if i == steps[-1] else 0 for i in range(4))
        assert cpu_describe(plan, tuning) == f"F(4x4,3x3) in step {steps[-1]}"
        every = tuple(o[1] if len(o) > 1 else 0 for o in cpu_options(plan))
        assert cpu_describe(plan, every) == "F(2x2,3x3) in step 2, F(2x2,5x5) in step 3"

    def test_a_difference_within_the_noise_decides_nothing(self) -> None:
        quick, slow = [1.0, 1.2, 0.9, 1.1] * 5, [1.05, 1.15, 0.95, 1.0] * 5
        assert not clearly_faster(quick, slow)
        assert clearly_faster([0.8 * t for t in slow], slow)
        fusion = fusion_of(inception_fused.fuse(tiny()))
        original, *others = candidates(fusion, X)
        first, second = others[0], others[-1]
        assert winner({original: slow, first: quick, second: quick}) is original
        half = [t / 2 for t in slow]
        assert winner({original: slow, first: half, second: [0.99 * t for t in half]}) is second
        noisy = [t * f for t, f in zip(half, [0.9, 1.1] * 10, strict=True)]
        assert winner({original: slow, first: half, second: noisy}) is first
        assert finalists(fusion, {original: slow, first: half}) == [original, first]


def test_the_next_process_does_not_measure(cache_folder: Path) -> None:
    code = (
        "import sys, torch, inception_fused\n"
        "from inception_fused.models import Inception\n"
        "torch.manual_seed(int(sys.argv[1])); torch.set_num_threads(1)\n"
        "model = inception_fused.fuse(Inception(8, 4, 4, 8, 4, 8, 4).eval())\n"
        "report = inception_fused.tune(model, torch.randn(1, 8, 6, 6), 0.2)\n"
        "print(report.lines[0].remembered, report.lines[0].figures)\n"
    )
    first, second = (
        subprocess.run(
            [sys.executable, "-c", code, seed], capture_output=True, text=True, check=True
        ).stdout
        for seed in "12"  # other weights and another input
    )
    assert first.startswith("False Figures(taken=")
    assert second == first.replace("False", "True", 1)


@pytest.mark.full
@pytest.mark.parametrize("batch", [1, 8])
def test_what_tune_takes_is_not_slower_than_stock_when_measured_again(batch: int) -> None:
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    model = torchvision.models.googlenet(weights=None, init_weights=False).eval()
    fused = inception_fused.fuse(model)
    x = torch.randn(batch, 3, 224, 224).to(memory_format=torch.channels_last)
    inception_fused.tune(fused, x)
    named = [(n, f) for n, m in fused.named_modules() if (f := fusion_of(m)) is not None]
    with torch.no_grad():
        sites = trial.visit(fused, named, x)
        assert len(sites) == 9
        contest = {}
        for site in sites:
            route = site.fusion.measured(site.key)
            who = candidates(site.fusion, site.x)
            name = route.backend.name if route.backend else "original"
            mine = [c for c in who if (c.name, c.tuning) == (name, route.tuning)]
            made = replace(who[0], backend=route.backend, tuning=route.tuning, label="taken")
            contest[site] = [who[0], *(mine or [made])]
        contest = {site: who for site, who in contest.items() if who[0] is not who[1]}
        times = trial.measure(fused, x, contest, 10.0, lambda share: None)
    for site, taken_ in times.items():
        original, other = taken_.values()
        assert not clearly_faster(original, other), f"{site}: stock is faster"


def test_the_reference_is_what_the_fake_back_ends_compute() -> None:
    """So that a test above that compares outputs can fail."""
    fusion = fusion_of(inception_fused.fuse(tiny()))
    weights, biases = fusion.folded(torch.float32)
    y = reference.run(fusion.plan, X, weights, biases)
    with torch.no_grad():
        torch.testing.assert_close(y, tiny()(X), rtol=1e-4, atol=1e-5)
