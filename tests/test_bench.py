"""The bench: statistics, the clock, cases, results, and the job with made-up contestants."""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from inception_fused.bench import cases, engines, environment, job, memory, peers, results, runner
from rich.console import Console
from torch import Tensor, nn

import inception_fused
from inception_fused.models import Inception


def tiny() -> nn.Module:
    torch.manual_seed(3)
    model = Inception(8, 4, 4, 8, 4, 8, 4, batch_norm=True)
    return model.eval().requires_grad_(False)


def tiny_case(name: str = "tiny") -> cases.Case:
    def inputs(batch: int) -> Tensor:
        return torch.randn(batch, 8, 6, 6, generator=torch.Generator().manual_seed(0))

    return cases.Case(name, name, tiny, inputs)


def quick(*names: str, batches: tuple[int, ...] = (1,)) -> job.Settings:
    return job.Settings(("tiny",), batches, names, threads=1, rounds=2, memory=False)


def go(settings: job.Settings, folder: Path, resume: bool = False) -> results.Results:
    threads = torch.get_num_threads()
    try:
        return job.run([tiny_case()], settings, folder, Console(quiet=True), resume)
    finally:
        torch.set_num_threads(threads)


@pytest.fixture
def add_peer(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Callable[..., object]], None]:
    def add(name: str, make: Callable[..., object]) -> None:
        monkeypatch.setitem(peers.PEERS, name, peers.Peer(name, make, "nchw"))  # type: ignore[arg-type]

    return add


class TestStatistics:
    @pytest.mark.parametrize("count", [1, 2, 7, 100])
    def test_percentile_is_numpys(self, count: int) -> None:
        values = [random.Random(count).random() for _ in range(count)]
        for percent in (0, 10, 50, 90, 99, 100):
            wanted = np.percentile(values, percent)
            assert runner.percentile(values, percent) == pytest.approx(wanted, rel=1e-12)

    def test_percentile_of_nothing(self) -> None:
        with pytest.raises(ValueError, match="values must not be empty"):
            runner.percentile([], 50)

    def test_outliers_are_counted_and_kept(self) -> None:
        values = [1.0, 1.1, 1.2, 1.3, 1.4] * 10 + [9.0, 50.0]
        summary = runner.summarise(values)
        assert (summary.outliers, summary.calls) == (2, 52)
        assert summary.p99 > 9

    def test_ratio_is_paired_by_round(self) -> None:
        stock = runner.Samples([[10.0], [20.0], [30.0]])
        other = runner.Samples([[5.0], [10.0], [15.0]])
        assert runner.ratio(stock, other) == (2.0, 2.0, 2.0)


class TestMeasure:
    def test_every_contestant_has_every_round(self) -> None:
        order: list[str] = []
        calls = {n: (lambda n=n: order.append(n) or time.sleep(0.04)) for n in "abc"}
        samples: dict[str, runner.Samples] = {}
        shares = list(runner.measure(calls, samples, 0.0, 6))
        assert shares == [(i + 1) / 6 for i in range(6)]
        assert all(len(samples[n].rounds) == 6 for n in "abc")
        turns = [n for n, _ in itertools.groupby(order[9:])]  # after the warm-up
        assert set(turns) == set("abc")
        assert turns != sorted(turns)

    def test_one_that_raises_is_dropped(self) -> None:
        count = itertools.count()

        def breaks() -> None:
            if next(count) > 5:
                raise OSError("no more\nsecond line")
            time.sleep(0.05)

        def never() -> None:
            raise KeyError("at once")

        samples: dict[str, runner.Samples] = {}
        calls = {"good": lambda: time.sleep(0.05), "breaks": breaks, "never": never}
        list(runner.measure(calls, samples, 0.0, 4))
        assert len(samples["good"].rounds) == 4
        assert samples["good"].failure is None
        assert samples["breaks"].failure == "OSError: no more"
        assert 1 <= len(samples["breaks"].rounds) < 4
        assert samples["never"].failure == "KeyError: 'at once'"
        assert samples["never"].rounds == []


class TestJob:
    def test_measures_and_writes(self, tmp_path: Path) -> None:
        found = go(quick("eager", "channels_last", batches=(1, 2)), tmp_path)
        assert results.Results.load(tmp_path / job.RESULTS) == found
        assert job.agreed(found)
        for case in found.cases:
            assert case.complete
            for m in case.measurements:
                assert (m.status, len(m.rounds)) == (results.OK, 2)
                assert m.difference is not None
                assert m.difference < 1e-5
                assert m.error is not None
                assert 0 < m.error < 1e-5
                assert m.images_per_s == pytest.approx(1000 * case.batch / m.latency["median"])
        assert found.ceiling is not None
        assert found.ceiling["gflops"] > 1
        assert found.environment["versions"]["torch"] == torch.__version__.split("+")[0]

    @pytest.mark.parametrize(
        ("wrong", "status"), [(1e-3, "disagrees"), (float("nan"), "disagrees")]
    )
    def test_a_wrong_fused_model_is_not_timed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: float, status: str
    ) -> None:
        real = inception_fused.fuse

        def off(model: nn.Module, **options: str) -> nn.Module:
            real(model, **options).register_forward_hook(lambda _, __, y: y + wrong * y.abs().max())
            return model

        monkeypatch.setattr(inception_fused, "fuse", off)
        found = go(quick("fused", "eager"), tmp_path)
        fused, stock = found.cases[0].measurements
        assert (fused.status, fused.rounds, fused.latency) == (status, [], None)
        assert stock.status == results.OK
        assert not job.agreed(found)

    def test_a_model_that_is_not_fused_fails(self, tmp_path: Path) -> None:
        plain = cases.Case("conv", "conv", lambda: nn.Conv2d(8, 8, 3).eval(), tiny_case().inputs)
        with pytest.warns(UserWarning, match="found no Inception module"):
            found = job.run([plain], quick("fused", "eager"), tmp_path, Console(quiet=True))
        fused = found.cases[0].measurements[0]
        assert (fused.status, fused.detail) == (
            "failed",
            "ValueError: no Inception module was found in the model",
        )
        assert not job.agreed(found)

    def test_a_broken_or_absent_peer_stops_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, add_peer: Callable[..., None]
    ) -> None:
        def broken(*_: object) -> None:
            raise RuntimeError("cannot convert")

        def off(model: nn.Module, x: Tensor, threads: int) -> Callable[[], Tensor]:
            return lambda: model(x) * 1.01

        add_peer("broken", broken)
        add_peer("off", off)
        absent = peers.Peer("absent", broken, "nchw", ("no_such_package",), "pip install it")
        monkeypatch.setitem(peers.PEERS, "absent", absent)
        found = go(quick("broken", "absent", "off", "eager"), tmp_path)
        status = {m.peer: (m.status, m.detail) for m in found.cases[0].measurements}
        assert status["broken"] == ("failed", "RuntimeError: cannot convert")
        assert status["absent"] == ("absent", "not installed: no_such_package (pip install it)")
        assert status["off"][0] == "disagrees"
        assert status["eager"][0] == "ok"
        assert job.agreed(found)

    def test_interrupt_keeps_what_was_measured_and_resumes(
        self, tmp_path: Path, add_peer: Callable[..., None]
    ) -> None:
        interrupting = True

        def make(model: nn.Module, x: Tensor, threads: int) -> Callable[[], Tensor]:
            if len(x) == 2 and interrupting:
                raise KeyboardInterrupt
            return lambda: model(x)

        add_peer("stops", make)
        settings = quick("eager", "stops", batches=(1, 2))
        found = go(settings, tmp_path)
        assert found.interrupted
        assert [c.complete for c in found.cases] == [True, False]
        assert json.loads((tmp_path / job.RESULTS).read_text())["interrupted"] is True
        first = found.cases[0].measurements[0].rounds

        interrupting = False
        with pytest.raises(ValueError, match=r"--resume: .* other settings: batches"):
            go(quick("eager", "stops", batches=(1, 4)), tmp_path, resume=True)
        found = go(settings, tmp_path, resume=True)
        assert not found.interrupted
        assert [(c.batch, c.complete) for c in found.cases] == [(1, True), (2, True)]
        assert found.cases[0].measurements[0].rounds == first


def test_a_busy_machine_is_noted() -> None:
    busy = {"load_average": [3.1, 1.0, 0.0], "usable_cpus": 2}
    assert environment.doubts(busy) == ["other work was running: load average 3.1 on 2 processors"]
    assert environment.doubts({**busy, "usable_cpus": 8}) == []
    assert environment.stolen((5, 100), (30, 200)) == 0.25
    assert environment.stolen(None, (30, 200)) is None


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "ncnn"])
def test_an_engine_computes_the_same(name: str) -> None:
    missing = peers.PEERS[name].missing()
    if missing:
        pytest.skip(missing)
    x = tiny_case().inputs(3)
    with torch.no_grad():
        output = getattr(engines, name)(tiny(), x, 1)()
        torch.testing.assert_close(output, tiny()(x), rtol=0, atol=2e-5)


def test_folding_computes_the_same() -> None:
    model, x = cases.find("5a").build(), cases.find("5a").inputs(1)
    with torch.no_grad():
        expected = model(x)
        output = peers.Contestant("folded", "channels_last").prepare(model, x, 1)()
    assert output.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-5 * float(expected.max()))


@pytest.mark.skipif(not memory.STATUS.exists(), reason="peak memory is read from Linux's /proc")
def test_memory_sees_the_weights(tmp_path: Path) -> None:
    file = tmp_path / "big.py"
    file.write_text(
        "import torch\n"
        "def big(): return torch.nn.Linear(4096, 8192), torch.ones(1, 4096)\n"  # 128 MiB
    )
    mib = memory.peak_mib(f"{file}:big", "eager", "nchw", 1, 1)
    assert mib is not None
    assert 128 <= mib < 400
    with pytest.raises(RuntimeError, match="no function 'none'"):
        memory.peak_mib(f"{file}:none", "eager", "nchw", 1, 1)
