"""The bench in several processes, on a GPU, in lower precision, and KernelBench's shapes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from inception_fused.bench import (
    breakdown,
    cases,
    device,
    job,
    kernelbench,
    memory,
    peers,
    processes,
    results,
    steps,
)
from inception_fused.bench.check import FACTOR, TOLERANCE, Check
from rich.console import Console
from torch import nn

from inception_fused.lower import lower
from inception_fused.models import Branches, Inception
from inception_fused.spec import GOOGLENET, Spec

OWN = (
    "import os, signal, sys, torch\n"
    "from inception_fused.models import Inception\n"
    "def small():\n"
    "    return Inception(8, 4, 4, 8, 4, 8, 4, batch_norm=True), torch.randn(2, 8, 6, 6)\n"
    "def dies():\n"
    "    if not os.path.exists(__file__ + '.died'):\n"
    "        open(__file__ + '.died', 'w').close()\n"
    "        os.kill(os.getpid(), signal.SIGSEGV)\n"
    "    return small()\n"
    "def dies_alone():\n"
    "    if 'inception_fused.bench.memory' in sys.orig_argv:\n"
    "        os.kill(os.getpid(), signal.SIGKILL)\n"
    "    return small()\n"
)


def row(peer: str, median: float | None, status: str = results.OK) -> results.Measurement:
    m = results.Measurement(peer, "nchw", peer, status, "" if status == results.OK else "why")
    if median is not None:
        m.latency = {"median": median}
    return m


def merged(*runs: list[results.Measurement]) -> list[results.Measurement]:
    found = [
        results.Results(
            "now", {}, {}, cases=[results.CaseResult("3a", "3a", 1, 1, 1, True, list(rows))]
        )
        for rows in runs
    ]
    settings = job.Settings(("3a",), (1,), ("eager",), processes=len(runs))
    return processes.merge(found, settings).cases[0].measurements


class TestMerge:
    def test_each_contestant_has_its_best_process_and_the_range_of_all(self) -> None:
        stock, fused = merged(
            [row("eager", 10.0), row("fused", 6.0)],
            [row("eager", 12.0), row("fused", 5.0)],
            [row("eager", 11.0), row("fused", 5.5)],
        )
        assert stock.processes == [10.0, 12.0, 11.0]
        assert fused.processes == [6.0, 5.0, 5.5]
        assert stock.latency == {"median": 10.0}
        assert fused.latency == {"median": 5.0}
        assert fused.ratio == pytest.approx([10 / 5, 10 / 6, 12 / 5])

    def test_one_wrong_output_takes_the_figure_away(self) -> None:
        _, other = merged(
            [row("eager", 10.0), row("other", 1.0)],
            [row("eager", 10.0), row("other", None, results.DISAGREES)],
        )
        assert (other.status, other.latency, other.ratio) == (results.DISAGREES, None, None)

    def test_a_failure_in_one_process_is_said_beside_the_figure_of_the_others(self) -> None:
        _, other = merged(
            [row("eager", 10.0), row("other", 4.0)],
            [row("eager", 10.0), row("other", None, results.FAILED)],
        )
        assert (other.status, other.detail) == (results.FAILED, "in a process of 2: why")
        assert other.latency == {"median": 4.0}


class TestProcesses:
    def test_one_that_dies_is_noted_and_resumed(self, tmp_path: Path) -> None:
        (tmp_path / "own.py").write_text(OWN)
        model, out = f"{tmp_path}/own.py:dies", tmp_path / "out"
        settings = job.Settings(
            (model,), (1,), ("fused", "eager"), "nchw", 1, rounds=2, memory=False, processes=2
        )
        first = processes.run(settings, out, Console(quiet=True))
        assert "process 1 of 2 was ended by SIGSEGV" in first.notes
        assert results.Results.load(out / job.RESULTS) == first
        assert [c.complete for c in first.cases] == [False]
        measured = [m.processes for m in first.cases[0].measurements]
        assert [len(medians) for medians in measured] == [1, 1]

        whole = processes.run(settings, out, Console(quiet=True), resume=True)
        assert not [note for note in whole.notes if note.startswith("process")]
        assert [c.complete for c in whole.cases] == [True]
        assert job.agreed(whole)
        for m, before in zip(whole.cases[0].measurements, measured, strict=True):
            assert len(m.processes) == 2
            assert before[0] in m.processes

    def test_a_peer_that_fails_at_first_is_left_out_of_the_next(self, tmp_path: Path) -> None:
        settings = job.Settings(("3a",), (1,), ("fused", "eager", "good", "bad"))
        rows = [row("fused", 1.0), row("eager", 4.0), row("good", 2.0)]
        rows += [row("bad", None, results.FAILED)]
        case = results.CaseResult("3a", "3a", 1, 1, 1, True, rows)
        path = tmp_path / "first.json"
        assert processes._without_failed(settings, path) == settings.peers
        results.Results("now", {}, {}, cases=[case]).save(path)
        assert processes._without_failed(settings, path) == ("fused", "eager", "good")


@pytest.mark.skipif(not memory.STATUS.exists(), reason="contestants are tried alone on Linux only")
class TestAlone:
    def go(self, function: str, tmp_path: Path) -> list[results.Measurement]:
        (tmp_path / "own.py").write_text(OWN)
        settings = job.Settings((f"{tmp_path}/own.py:{function}",), (1,), ("eager",), "nchw", 1)
        case = cases.find(settings.models[0])
        return job.run([case], settings, tmp_path, Console(quiet=True)).cases[0].measurements

    def test_one_that_crashes_is_reported_and_not_let_in(self, tmp_path: Path) -> None:
        (m,) = self.go("dies_alone", tmp_path)
        assert (m.status, m.detail) == ("failed", "ended by SIGKILL in a process of its own")
        assert m.latency is None

    def test_one_that_takes_too_long_is_reported_and_not_let_in(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(memory, "TIMEOUT_S", 0.2)  # less than Python needs to import torch
        (m,) = self.go("small", tmp_path)
        assert (m.status, m.detail) == ("failed", "not ready after 0.2 s in a process of its own")
        assert m.latency is None


class TestDevice:
    def test_the_clock_holds_host_and_device_apart(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A made-up device: 3 ms of work a call, 1 ms more after the cache was overwritten."""
        now = {"host": 0.0, "device": 0.0}
        cold = {"is": False}

        def work(ms: float) -> None:
            now["device"] = max(now["device"], now["host"]) + ms

        def wait() -> None:
            now["host"] = max(now.values())

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                self.at = max(now["device"], now["host"])

            def elapsed_time(self, end: Event) -> float:
                return end.at - self.at

        def flush() -> None:
            cold["is"] = True

        def call() -> None:
            now["host"] += 0.5  # launches
            work(3.0 + cold["is"])
            cold["is"] = False

        cuda = SimpleNamespace(
            get_device_properties=lambda: SimpleNamespace(L2_cache_size=1024),
            _sleep=lambda cycles: work(cycles / 1e6),
            Event=Event,
            synchronize=wait,
        )
        monkeypatch.setattr(torch, "cuda", cuda)
        empty = lambda size, **_: SimpleNamespace(zero_=flush, nbytes=size)  # noqa: E731
        monkeypatch.setattr(torch, "empty", empty)
        clock = lambda: round(now["host"] * 1e6)  # noqa: E731
        monkeypatch.setattr(device.time, "perf_counter_ns", clock)
        timer = device.Clock()
        assert timer.turn("x", call, 4) == pytest.approx([3.5] * 4)
        assert timer.host["x"] == pytest.approx([0.5] * 4)
        assert timer.warm["x"] == pytest.approx([3.0] * 4)
        assert timer.cold["x"] == pytest.approx([4.0] * 4)

    def test_the_drivers_word_on_clocks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        state = {
            "clocks.sm": "1200 MHz",
            "clocks.max.sm": "1980 MHz",
            "clocks_throttle_reasons.active": "0x0000000000000024",
            "temperature.gpu": "88",
        }
        monkeypatch.setattr(device, "_state", lambda: state)
        assert device.slowed() == (
            "power limit, temperature (software) (1200 MHz of 1980 MHz, 88 degrees)"
        )
        state["clocks_throttle_reasons.active"] = "0x0000000000000001"  # idle
        assert device.slowed() is None


class TestCheck:
    def make(self, dtype: str) -> Check:
        torch.manual_seed(3)
        model = Inception(8, 4, 4, 8, 4, 8, 4, batch_norm=True).eval().requires_grad_(False)
        placed = model.to(peers.DTYPES[dtype])
        x = torch.randn(2, 8, 6, 6).to(peers.DTYPES[dtype])
        return Check(placed, x, dtype, "cpu", 1)

    def test_the_tolerance_is_stocks_own_error_in_lower_precision(self) -> None:
        check = self.make("bfloat16")
        error = (check.stock[:1].double() - check.exact).abs().max() / check.exact.abs().max()
        assert check.limit("bfloat16") == pytest.approx(FACTOR * float(error))
        assert check.limit("bfloat16") > 10 * TOLERANCE
        full = self.make("float32")
        assert full.limit("float32") == TOLERANCE
        assert full.limit("bfloat16") > 10 * TOLERANCE

    @pytest.mark.parametrize(("off", "status"), [(1.002, "pending"), (1.2, "disagrees")])
    def test_a_peer_that_computes_in_less_is_held_to_that(
        self, monkeypatch: pytest.MonkeyPatch, off: float, status: str
    ) -> None:
        def make(model: nn.Module, x: torch.Tensor, threads: int) -> Callable[[], torch.Tensor]:
            return lambda: model(x) * off

        peer = peers.Peer("low", make, "nchw", computes="bfloat16")  # type: ignore[arg-type]
        monkeypatch.setitem(peers.PEERS, "low", peer)
        m = results.Measurement("low", "nchw", "low")
        with torch.no_grad():
            self.make("float32").prepare(peers.Contestant("low", "nchw"), m)
        assert m.status == status

    def test_the_reason_against_a_peer_says_how_to_get_it(self) -> None:
        peer = peers.Peer(
            "x",
            lambda *_: lambda: torch.ones(1),
            needs=("no_such_package",),
            install="pip install it",
            devices=("cuda",),
            dtypes=("float16",),
        )
        assert peer.why_not("cpu", "float32") == (
            "runs on cuda only; takes float16 models only; "
            "not installed: no_such_package (pip install it)"
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_openvino_computes_in_the_precision_asked_for(dtype: torch.dtype) -> None:
    peer = peers.PEERS["openvino_bf16"]
    if peer.missing():
        pytest.skip(str(peer.missing()))
    torch.manual_seed(3)
    model = Inception(32, 32, 32, 64, 32, 32, 32, batch_norm=True).eval()
    x = torch.randn(1, 32, 14, 14)
    with torch.no_grad():
        expected = model(x)
        try:
            contestant = peers.Contestant("openvino_bf16", "nchw")
            output = contestant.prepare(model.to(dtype), x.to(dtype), 1)()
        except ValueError as error:
            pytest.skip(str(error))
    assert output.dtype is dtype
    assert 1e-4 < float((output - expected).abs().max() / expected.abs().max()) < 5e-2


class TestKernelBench:
    def test_the_module_is_4as_widths_with_biases_and_nothing_else(self) -> None:
        layers = list(kernelbench.module().modules())
        convolutions = [m for m in layers if isinstance(m, nn.Conv2d)]
        assert [c.out_channels for c in convolutions] == [192, 96, 208, 16, 48, 64]
        assert all(c.bias is not None for c in convolutions)
        assert not [m for m in layers if isinstance(m, nn.ReLU | nn.BatchNorm2d)]
        assert kernelbench.activations(1).shape == (1, 480, 224, 224)

    def test_the_network_has_the_nine_modules_in_their_order(self) -> None:
        with torch.device("meta"):
            network = kernelbench.Network()
            assert network(torch.empty(2, 3, 224, 224)).shape == (2, 1000)
        modules = [m for m in network.modules() if isinstance(m, Branches)]
        channels = [spec.out_channels for spec in GOOGLENET.values()]
        assert [m.spec.out_channels for m in modules] == channels
        assert cases.find("l3-7").title == "KernelBench L3/7, GoogLeNet"


class TestSteps:
    def test_every_step_is_timed_by_its_name(self) -> None:
        spec = Spec.v1(8, 4, 4, 8, 4, 8, 4)
        found = breakdown.measure(spec, torch.randn(1, 8, 6, 6))
        assert list(found) == ["1x1 8 to 4+4+4", "pool + 1x1 8 to 4", "3x3 4 to 8", "5x5 4 to 8"]
        assert all(ms > 0 for ms in found.values())

    @pytest.mark.parametrize("name", GOOGLENET)
    def test_a_step_alone_is_a_plan_that_holds(self, name: str) -> None:
        whole = lower(GOOGLENET[name])
        plans = [steps.alone(step) for step in whole.steps]
        for plan in plans:
            plan.check()
        assert sum(p.macs(1, 14, 14) for p in plans) == whole.macs(1, 14, 14)
