"""The check of a GPU, with the CPU and the emulated kernels in the GPU's place."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import partial

import emulated
import pytest
import torch
from inception_fused.bench.gpu import (
    behaviour,
    command,
    conformance,
    correctness,
    device,
    goals,
    gradients,
    nvcc,
    sanitize,
    suites,
    summary,
    timings,
    winners,
)
from inception_fused.bench.gpu.contestants import Contestant
from inception_fused.bench.gpu.job import Job, do
from inception_fused.bench.gpu.record import FAILED, OK, PENDING, SKIPPED, Record, Row

from inception_fused.backends import TABLE
from inception_fused.models import Inception

CPU = next(b for b in TABLE if b.name == "cpu")


def quiet(text):
    """Says nothing."""


def empty() -> Record:
    return Record("2026-01-02T03:04:05", {"name": "H100", "capability": "9.0"}, {"commit": "abc"})


def wrong_by(amount, backend=CPU):
    return replace(backend, run=lambda *arguments: backend.run(*arguments) + amount)


class TestCorrectness:
    def test_cpu_and_reference(self):
        for backend in TABLE[-2:]:
            row = correctness.check(backend, "cpu", "5b", "float32", "nchw", 1)
            assert row.status == OK, row
            assert row.figures["error"] <= row.figures["allowed"]

    @pytest.mark.parametrize("precision", ["float16", "bfloat16", "float32"])
    def test_emulated(self, precision):
        row = correctness.check(emulated.backend(), "cpu", "5b", precision, "channels_last", 1)
        assert row.status == OK, row

    def test_what_is_wrong_is_said(self):
        check = partial(correctness.check, device="cpu", module="5b", precision_="float32")
        row = check(wrong_by(1e-3), fmt="nchw")
        assert (row.status, row.detail[:6]) == (FAILED, "error ")
        row = check(wrong_by(float("nan")), fmt="nchw")
        assert row.status == FAILED
        number = itertools.count()
        drifting = replace(CPU, run=lambda *a: CPU.run(*a) + 1e-7 * next(number))
        row = check(drifting, fmt="nchw")
        assert (row.status, row.detail) == (FAILED, "not the same bits every time")
        turned = replace(CPU, run=lambda *a: CPU.run(*a).contiguous())
        row = check(turned, fmt="channels_last")
        assert (row.status, row.detail) == (FAILED, "the output is not channels_last")

        def fail(*arguments):
            raise RuntimeError("an illegal memory access")

        row = check(replace(CPU, run=fail), fmt="nchw")
        assert (row.status, row.detail) == (FAILED, "RuntimeError: an illegal memory access")
        row = check(replace(CPU, unavailable=lambda: "not here"), fmt="nchw")
        assert (row.status, row.detail) == (SKIPPED, "not here")

    def test_all_are_asked(self):
        names = [job.name for job in correctness.jobs([CPU, TABLE[0]], "cpu")]
        assert len(set(names)) == len(names) == 9 * (4 + 5) * 2  # CUDA has one precision more


@pytest.fixture
def fake_cuda(monkeypatch):
    """Streams and graphs that do everything at once, on the CPU."""

    class Stream:
        def wait_stream(self, other):
            pass

        def synchronize(self):
            pass

    class Context:
        def __init__(self, *arguments):
            pass

        def __enter__(self):
            pass

        def __exit__(self, *arguments):
            pass

    for name, value in {
        "Stream": Stream,
        "current_stream": Stream,
        "default_stream": Stream,
        "stream": Context,
        "graph": Context,
        "synchronize": lambda: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return monkeypatch


class TestBehaviour:
    def check(self, name, backend=CPU):
        return behaviour.check(backend, "cpu", "float32", name, behaviour.CHECKS[name])

    def test_threads(self):
        assert self.check("threads").status == OK
        number = itertools.count()
        drifting = replace(CPU, run=lambda *a: CPU.run(*a) + next(number))
        row = self.check("threads", drifting)
        assert row.status == FAILED
        assert "differs by" in row.detail

    def test_side_stream(self, fake_cuda):
        fake_cuda.setattr(behaviour, "BUSY", 16)
        assert self.check("side stream").status == OK
        number = itertools.count()
        drifting = replace(CPU, run=lambda *a: CPU.run(*a) + next(number))
        assert self.check("side stream", drifting).status == FAILED

    def test_graph(self, fake_cuda):
        """A replay computes again, from where the input was when it was captured."""
        calls = []

        class Graph:
            def replay(self):
                x, output = calls[-1]
                output.copy_(CPU.run(*x))

        def run(plan, x, packed):
            output = CPU.run(plan, x, packed)
            if len(calls) < 2:  # the warm-up and the capture
                calls.append(((plan, x, packed), output))
            return output

        fake_cuda.setattr(torch.cuda, "CUDAGraph", Graph)
        assert self.check("graph", replace(CPU, run=run)).status == OK
        fake_cuda.setattr(Graph, "replay", lambda self: None)
        calls.clear()
        row = self.check("graph", replace(CPU, run=run))
        assert row.status == FAILED
        assert row.detail.startswith("replay 1: differs by")

    def test_launches(self, fake_cuda):
        fake_cuda.setattr(behaviour, "kernels_of", lambda call: ["a", "b"])
        assert self.check("launches").figures == {"launches": 2}
        fake_cuda.setattr(behaviour, "kernels_of", lambda call: ["a", "copy", "b"])
        row = self.check("launches")
        assert (row.status, row.detail) == (FAILED, "3 launches instead of 2: a, copy, b")

    def test_the_profiler_sees_no_kernels_on_a_cpu(self, fake_cuda):
        assert behaviour.kernels_of(lambda: torch.ones(3) + 1) == []


def tiny(*contestants):
    def build():
        torch.manual_seed(0)
        return Inception(8, 8, 8, 8, 8, 8, 8).eval()

    return timings.Case("tiny", "float32", build, lambda: torch.randn(2, 8, 6, 6), contestants, 10)


class TestTimings:
    OURS = Contestant("ours", "channels_last", "cpu")
    STOCK = Contestant("stock", "nchw")

    def measure(self, *contestants, known=None):
        return timings.measure(tiny(*contestants), known or empty(), "cpu", None, 1e-3)

    def test_checked_and_timed(self):
        row = self.measure(self.OURS, self.STOCK)
        assert row.status == OK, row
        found = row.figures["contestants"]
        for title in ("ours", "stock"):
            assert found[title]["latency_p50"] > 0, found
            assert found[title]["error"] < 1e-6
            assert found[title]["outside_1e-4"] == 0

    @pytest.mark.full
    def test_compiled(self):
        row = self.measure(Contestant("compiled", "nchw", mode="default"), self.STOCK)
        assert row.figures["contestants"]["compiled"]["error"] < 1e-6, row

    def test_a_clock_of_the_device_adds_its_times(self):
        class Clock:
            host, warm, cold = ({"stock": [1.0, ms]} for ms in (2.0, 3.0, 4.0))

            def turn(self, name, call, repeats):
                call()
                return [5.0] * repeats

        row = timings.measure(tiny(self.STOCK), empty(), "cpu", Clock(), 1e-3)
        figures = row.figures["contestants"]["stock"]
        assert [figures[f"{k}_p50"] for k in ("latency", "host", "warm", "cold")] == [
            *(5.0, 1.5, 2.0, 2.5),
        ]

    def test_a_back_end_that_is_wrong_is_not_timed(self):
        known = empty()
        name = correctness.name_of("cpu", "4a", "float32", "nchw")
        known.put(Row(correctness.STAGE, name, FAILED, "error 1"))
        found = self.measure(self.OURS, self.STOCK, known=known).figures["contestants"]
        assert found["ours"]["failure"] == f"not timed: {name} is wrong: error 1"
        assert "latency_p50" not in found["ours"]
        assert "latency_p50" in found["stock"]
        assert timings.blocked(known, "cpu", "float16") is None
        known.put(Row("conformance", "primitives", FAILED, "cvt"))
        assert timings.blocked(known, "cuda", "float16") == "primitives: cvt"

    def test_wrong_numbers_are_not_timed(self, monkeypatch):
        prepare = Contestant.prepare

        def spoilt(self, model, x):
            call = prepare(self, model, x)
            return (lambda: call() * 1.01) if self.backend else call

        monkeypatch.setattr(Contestant, "prepare", spoilt)
        ours = replace(self.OURS, title="cuda", backend="cpu")
        found = self.measure(ours, self.STOCK).figures["contestants"]
        assert found["cuda"]["failure"].startswith("error ")
        assert "latency_p50" not in found["cuda"]

    def test_another_back_end_than_asked_for(self):
        found = self.measure(Contestant("a", "nchw", "cuda"), self.STOCK)
        assert found.status == FAILED
        assert "a: " in found.detail

    def test_cases(self):
        found = timings.all_cases()
        names = [case.name for case in found]
        assert len(set(names)) == len(names) == 4 + 2 * 2 * 4 * 9
        six = next(case for case in found if case.name == "KernelBench L3/6")
        assert six.flops == 10 * 224 * 224 * 2 * (480 * 368 + 9 * 96 * 208 + 25 * 16 * 48)
        seven = next(case for case in found if case.name == "KernelBench L3/7").build()
        with torch.no_grad():
            assert seven(torch.randn(1, 3, 64, 64)).shape == (1, 1000)
        assert sum(p.numel() for p in seven.parameters()) == 6998552
        network = found[1].build()
        with torch.no_grad():
            assert network(found[1].input()[:, :, ::2, ::2]).shape == (1, 1000)

    def test_predictions(self):
        case = timings.module_case("3a", 1, "float16")
        assert 1 < timings.predicted(case, empty()) < 50
        assert timings.predicted(tiny(), empty()) is None


class TestJobs:
    def test_resumed_after_a_kill(self, tmp_path):
        path, known, done = tmp_path / "r.json", empty(), []

        def work(name, kill=False):
            done.append(name)
            if kill:
                raise KeyboardInterrupt
            return Row("s", name, OK, figures={"n": 1})

        jobs = [Job("s", name, partial(work, name, name == "b")) for name in "abc"]
        with pytest.raises(KeyboardInterrupt):
            do(jobs, known, path, float("inf"), quiet)
        again = Record.load(path)
        assert [row.name for row in again.rows] == ["a"]
        jobs = [Job("s", name, partial(work, name)) for name in "abc"]
        do(jobs, again, path, float("inf"), quiet)
        assert done == ["a", "b", "b", "c"]
        assert [row.status for row in Record.load(path).rows] == [OK] * 3

    def test_failures_and_time(self, tmp_path):
        path, known = tmp_path / "r.json", empty()
        jobs = [
            Job("s", "raises", lambda: 1 // 0),
            Job("s", "not needed", lambda: Row("s", "no"), needs=lambda record: "wrong before"),
            Job("s", "long", lambda: Row("s", "no"), seconds=10),
            Job("s", "short", lambda: Row("s", "short", OK), seconds=1),
        ]
        said = []
        do(jobs, known, path, 5.0, said.append, clock=lambda: 0.0)
        assert [(r.name, r.status) for r in known.rows] == [
            *(("raises", FAILED), ("not needed", FAILED), ("long", PENDING), ("short", OK)),
        ]
        assert said[0] == "s: raises: failed, ZeroDivisionError: integer division or modulo by zero"
        assert Record.load(path) == known

    def test_another_file_is_refused(self, tmp_path):
        path = tmp_path / "bad.json"
        for text in ("", "{}", '{"format": 99}'):
            path.write_text(text)
            with pytest.raises(ValueError, match=r"bad\.json is not the record"):
                Record.load(path)


def measured() -> Record:
    found = empty()
    found.put(Row("behaviour", "cuda graph float16", FAILED, "replay 1: differs"))
    found.put(Row("sanitizer", "memcheck", SKIPPED, "there is no compute-sanitizer"))

    def case(name, **medians):
        contestants = {
            title.replace("_", " "): {
                "backend": ours,
                "warm_p50": ms,
                "cold_p50": 2 * ms,
                "latency_p50": 3 * ms,
            }
            for title, (ours, ms) in medians.items()
        }
        figures = {"flops": 10**9, "contestants": contestants, "predicted_us": 5.0}
        found.put(Row(timings.STAGE, name, OK, figures=figures))

    case("3a b1 float16", cuda=("cuda", 0.008), cuda_graph=("cuda", 0.006))
    case(
        "torchvision b1 float16",
        cuda=("cuda", 0.1),
        eager_NCHW=(None, 2.0),
        compile_default=(None, 0.2),
    )
    case("KernelBench L3/6", triton=("triton", 0.5))
    return found


class TestPages:
    def test_goals(self):
        lines = {goal.title: goal.line(measured()) for goal in goals.GOALS}
        title = "module 3a, batch 1, float16"
        assert lines[title] == f"| {title} | <= 7 us | 6 us | yes |"
        assert lines["... times faster than eager"].endswith("| >= 10 x | 20 x | yes |")
        assert lines["... than the best torch.compile"].endswith("| >= 3 x | 2 x | no |")
        assert lines["KernelBench L3/7"].endswith("| <= 0.45 ms | not measured | - |")

    def test_what_cannot_be_is_doubted(self):
        assert goals.doubts(empty()) == []
        (doubt,) = goals.doubts(measured())
        assert "wrong measurement" in doubt

    def test_page(self):
        text = summary.page(measured())
        assert "* **failed** behaviour: cuda graph float16: replay 1: differs" in text
        assert "* skipped 1 of sanitizer: there is no compute-sanitizer" in text
        assert (
            "| 3a b1 float16 | 8.0 / 16.0 / 24.0 | 6.0 / 12.0 / 18.0 |  |  |  | 166.7 | 5.0 |"
            in text
        )
        assert "## Times" not in summary.page(empty())


class TestSanitizer:
    def test_what_it_runs(self):
        """Two modules, the precisions of torch, two formats."""
        assert sanitize.run("cpu", "reference") == 16

    @pytest.mark.parametrize(("code", "status"), [(0, OK), (86, FAILED)])
    def test_outcome(self, tmp_path, monkeypatch, code, status):
        program = tmp_path / "compute-sanitizer"
        program.write_text(f"#!/bin/sh\necho '========= Invalid read error'\nexit {code}\n")
        program.chmod(0o755)
        monkeypatch.setattr(nvcc, "find", lambda name: program)
        row = sanitize.check("memcheck")
        assert row.status == status
        assert ("Invalid read error" in row.detail) == (code == 86)

    def test_where_it_is_not(self, monkeypatch):
        monkeypatch.setenv("PATH", "")
        monkeypatch.setenv("CUDA_HOME", "/nowhere")
        monkeypatch.setattr(nvcc, "find", nvcc.find)
        row = sanitize.check("memcheck")
        if row.status == SKIPPED:
            assert "nvidia-cuda-sanitizer-api" in row.detail


class TestSuites:
    def test_outcomes(self, tmp_path):
        file = tmp_path / "test_it.py"
        file.write_text("def test_a(): pass\ndef test_b(): assert 0, 'boom'\n")
        row = suites.run("good", (str(file), "-k", "test_a"))
        assert (row.status, row.figures) == (OK, {"passed": 1})
        row = suites.run("bad", (str(file),))
        assert row.status == FAILED
        assert "boom" in row.detail
        assert row.figures == {"failed": 1, "passed": 1}
        row = suites.run("none", (str(file), "-k", "nothing_is_called_so"))
        assert (row.status, row.detail) == (SKIPPED, "nothing was run")

    def test_the_files_are_there(self):
        for arguments in (*suites.ON_GPU.values(), *suites.EMULATED.values()):
            assert (suites.ROOT / arguments[0]).is_file()


class TestCommand:
    def test_without_a_gpu(self, tmp_path, monkeypatch):
        monkeypatch.setattr(device, "missing", lambda: "there is no CUDA device")
        rows = iter([Row("tests", "a", OK), Row("tests", "b", FAILED, "boom")] * 2)
        monkeypatch.setattr(suites, "run", lambda name, arguments: next(rows))
        monkeypatch.setattr(suites, "EMULATED", {"a": ("x",)})
        said = []
        assert command.check(tmp_path, say=said.append) == 0
        assert "nothing is timed and nothing is written" in said[0]
        assert list(tmp_path.iterdir()) == []
        assert command.check(tmp_path, say=said.append) == 1
        assert said[-1] == "a: failed, {}, boom"

    @pytest.fixture
    def gpu(self, monkeypatch):
        """A machine that looks as if it had a GPU, every part of the check being one job."""
        found = {"name": "NVIDIA H100 80GB", "capability": "9.0", "driver": "1.2"}
        monkeypatch.setattr(device, "missing", lambda: None)
        monkeypatch.setattr(command, "describe", lambda: dict(found))
        monkeypatch.setattr(command, "slowed", lambda: "power limit")
        monkeypatch.setattr(device, "arch", lambda: "90a")
        done = []

        def one(stage):
            def jobs(*arguments):
                def run():
                    done.append(stage)
                    return Row(stage, "x", OK)

                return iter([Job(stage, "x", run)])

            return jobs

        for module in (correctness, behaviour, suites, sanitize, winners, gradients, timings):
            monkeypatch.setattr(module, "jobs", one(module.STAGE))
        check = conformance.Check("round_tf32", 9, 0, "")
        monkeypatch.setattr(conformance, "run", lambda arch: [check])
        return monkeypatch, done

    def test_writes_and_goes_on(self, gpu, tmp_path):
        _, done = gpu
        assert command.check(tmp_path, say=quiet) == 0
        assert done == [
            *("correctness", "behaviour", "tests", "sanitizer"),
            *("winners", "gradients", "timings"),
        ]
        page, file = sorted(tmp_path.iterdir(), key=lambda p: p.suffix, reverse=True)
        assert file.name.startswith("nvidia-h100-80gb-20")
        assert "| conformance | 1 | 0 | 0 | 0 |" in page.read_text()
        first = Record.load(file)
        assert first.find("conformance", "primitives").figures == {"round_tf32": 9}
        assert first.device["slowed"] == "power limit"
        assert command.check(tmp_path, say=quiet) == 0
        assert len(done) == 7  # all was there
        assert Record.load(file).created == first.created
        assert command.check(tmp_path, fresh=True, say=quiet) == 0
        assert len(done) == 14

    def test_a_wrong_primitive_ends_with_1(self, gpu, tmp_path):
        monkeypatch, _ = gpu
        check = conformance.Check("round_tf32", 9, 2, "[3] is 1 not 2")
        monkeypatch.setattr(conformance, "run", lambda arch: [check])
        assert command.check(tmp_path, say=quiet) == 1
        (file,) = tmp_path.glob("*.json")
        (row,) = Record.load(file).failures()
        assert row.detail == "round_tf32: 2 of 9 wrong, [3] is 1 not 2"
