"""The parts of a GPU's check whose results are kept for later calls: winners and gradients."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch
from inception_fused.bench.gpu import gradients, summary, timings, winners
from inception_fused.bench.gpu.record import FAILED, OK, SKIPPED, Record, Row
from test_tune import CLOCK, Slowed, X, takes, tiny

import inception_fused
from inception_fused import figures, trial
from inception_fused.reference import aten_gradients

LAST = X.contiguous(memory_format=torch.channels_last)


@pytest.fixture
def table(monkeypatch):
    """Replaces the back ends, whose time is made up; a module's own forward takes 2 ms."""

    def set_(*rows):
        for name in ("inception_fused.backends", "inception_fused.figures"):
            monkeypatch.setattr(sys.modules[name], "TABLE", rows)

    monkeypatch.setattr(trial, "_host_clock", CLOCK)
    figures.STORE.forget()
    yield set_
    figures.STORE.forget()


def measure():
    case = timings.Case("tiny", "float32", lambda: tiny(Slowed), lambda: X, ())
    return winners.measure(case, "cpu", 1e-6)


def record(*rows):
    return Record("2026-01-02T03:04:05", {"name": "H100"}, {"commit": "abc"}, list(rows))


@pytest.mark.parametrize(
    ("cuda", "triton", "taken"), [(1.0, 0.5, "triton"), (0.5, 1.0, "cuda"), (3.0, 4.0, "original")]
)
def test_the_winner_goes_where_tune_finds_it(table, cuda, triton, taken):
    table(takes("cuda", lambda _: cuda), takes("triton", lambda _: triton))
    row = measure()
    assert row.status == OK, row
    (found,) = row.figures["modules"].values()
    assert found["taken"] == taken
    assert found["ms"] == {
        "cuda": pytest.approx(cuda, rel=0.1),
        "triton": pytest.approx(triton, rel=0.1),
        "original": pytest.approx(2.0, rel=0.1),
    }
    figures.STORE.forget()  # as another process
    model = inception_fused.fuse(tiny(Slowed).to(memory_format=torch.channels_last))
    (line,) = inception_fused.tune(model, LAST, 1e-6).lines
    assert line.remembered
    assert line.figures.taken == taken
    page = summary.page(record(row))
    (shown,) = (text for text in page.splitlines() if text.startswith("| tiny |"))
    assert shown.endswith(f"| {taken} |")


def test_it_measures_again_what_is_kept(table):
    table(takes("cuda", lambda _: 1.0), takes("triton", lambda _: 0.5))
    measure()
    table(takes("cuda", lambda _: 0.2), takes("triton", lambda _: 0.5))
    (found,) = measure().figures["modules"].values()
    assert found["taken"] == "cuda"


def test_what_is_wrong_does_not_win(table):
    right = takes("cuda", lambda _: 0.2)
    wrong = replace(right, run=lambda *arguments: right.run(*arguments) + 1)
    table(wrong, takes("triton", lambda _: 0.5))
    row = measure()
    assert row.status == FAILED
    assert row.detail.startswith("tune does not try cuda")
    (found,) = row.figures["modules"].values()
    assert found["taken"] == "triton"
    assert "cuda" not in found["ms"]


def test_networks_in_every_size_unless_a_kernel_is_wrong():
    jobs = [*winners.jobs("cpu")]
    assert len({job.name for job in jobs}) == len(jobs) == 2 * len(timings.BATCHES)
    wrong = record(Row("correctness", "triton 4a float16 nchw", FAILED, "error 1"))
    reasons = {job.name: job.needs(wrong) for job in jobs}
    assert all((reason is not None) == name.endswith("float16") for name, reason in reasons.items())
    assert all(job.needs(record()) is None for job in jobs)


@pytest.fixture
def timed(monkeypatch):
    """The plans whose gradients were timed; the first of each is faster by Triton."""
    plans = []

    def time(plan, like):
        plans.append(plan)
        return {"step 0: input": True, "step 0: weight": False}

    monkeypatch.setattr(gradients.triton, "unavailable", lambda: None)
    monkeypatch.setattr(gradients.triton, "why_not", lambda plan, x: None)
    monkeypatch.setattr(gradients, "measure", time)
    return plans


def check(by):
    return gradients.check("5a", "float32", "nchw", "cpu", by)


def test_right_gradients_are_timed(timed):
    row = check(aten_gradients)
    assert (row.status, len(timed)) == (OK, 1)
    page = summary.page(record(row))
    assert "| 5a b32 float32 nchw | step 0: input | step 0: weight |" in page


def spoilt(*arguments):
    found = aten_gradients(*arguments)
    return found._replace(weights=[*found.weights[:-1], 1.001 * found.weights[-1]])


def none(*arguments):
    return aten_gradients(*arguments)._replace(x=None)


@pytest.mark.parametrize("by", [spoilt, none])
def test_wrong_gradients_are_not_timed(timed, by):
    row = check(by)
    assert (row.status, timed) == (FAILED, [])
    assert row.detail.startswith("step 0: error")


def test_gradients_of_every_module():
    jobs = [*gradients.jobs("cpu")]
    assert len({job.name for job in jobs}) == len(jobs) == 2 * 2 * 9
    if not torch.cuda.is_available():
        row = jobs[0].run()
        assert (row.status, row.detail[:15]) == (SKIPPED, "there is no GPU")
