"""The bench ended from outside: what was measured is kept, valid, and gone on with; runs agree."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from inception_fused.bench import cases, job
from inception_fused.bench.results import OK, Results
from rich.console import Console

from inception_fused import cli

OWN = (
    "import torch\n"
    "from inception_fused.models import Inception\n"
    "def small():\n"
    "    return Inception(8, 4, 4, 8, 4, 8, 4, batch_norm=True), torch.randn(2, 8, 6, 6)\n"
)


def bench(folder: Path) -> list[str]:
    """Arguments of a bench with two cases."""
    (folder / "own.py").write_text(OWN)
    model = ["--model", f"{folder}/own.py:small", "--batch", "1,2", "--peers", "eager"]
    return ["bench", *model, "--rounds", "8", "--threads", "1", "--no-memory", "--output", "out"]


def start(folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "inception_fused.cli", *bench(folder)]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)


def wait_for_a_case(running: subprocess.Popen[bytes], path: Path) -> None:
    """Until the first case is complete and the second one begun; the file is read all the while."""
    while running.poll() is None:
        if path.exists():
            found = json.loads(path.read_text())["cases"]
            if len(found) == 2 and found[0]["complete"]:
                return
        time.sleep(0.01)
    pytest.fail(f"the bench has ended with {running.returncode}")


def test_a_killed_run_leaves_valid_results_that_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = start(tmp_path)
    path = tmp_path / "out" / "results.json"
    try:
        wait_for_a_case(running, path)
    finally:
        running.kill()
    assert running.wait() == -signal.SIGKILL
    killed = Results.load(path)
    assert [c.complete for c in killed.cases] == [True, False]
    assert all(m.status == OK for m in killed.cases[0].measurements)

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli.app([*bench(tmp_path), "--resume"])
    assert not stop.value.code
    resumed = Results.load(path)
    assert [(c.batch, c.complete) for c in resumed.cases] == [(1, True), (2, True)]
    assert resumed.cases[0] == killed.cases[0]


@pytest.mark.full
def test_an_interrupted_run_says_so_and_keeps_what_it_has(tmp_path: Path) -> None:
    running = start(tmp_path)
    path = tmp_path / "out" / "results.json"
    try:
        wait_for_a_case(running, path)
        running.send_signal(signal.SIGINT)
        assert running.wait(60) == 130
    finally:
        running.kill()
    found = Results.load(path)
    assert found.interrupted
    assert found.cases[0].complete
    assert not found.cases[1].complete


@pytest.mark.full
def test_two_runs_agree_within_the_spread_that_they_print(tmp_path: Path) -> None:
    """Each run's times faster than stock is within the other's p10 to p90."""
    names = ("5b", "4a")
    contestants = ("fused", "eager", "channels_last")
    threads = torch.get_num_threads()
    settings = job.Settings(names, (1,), contestants, threads=threads, seconds=8.0, memory=False)
    runs = []
    for folder in ("first", "second"):
        found = [cases.find(name) for name in names]
        runs.append(job.run(found, settings, tmp_path / folder, Console(quiet=True)))
    for first, second in zip(*(run.cases for run in runs), strict=True):
        for a, b in zip(first.measurements, second.measurements, strict=True):
            assert a.ratio is not None
            assert b.ratio is not None
            (one, low, high), (other, other_low, other_high) = a.ratio, b.ratio
            assert other_low <= one <= other_high or low <= other <= high, (first.model, a.title)
