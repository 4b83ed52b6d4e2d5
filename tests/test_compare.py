"""The verdicts of make bench-compare, on made-up runs."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from inception_fused.bench import compare
from rich.console import Console

Run = dict[str, tuple[list[float], bool]]


def run(seed: int, drift: float = 1.0, noise: float = 0.02, **times: float) -> Run:
    """Forty calls of each, in ms; stock ones are controls and meet the weather of the process."""
    draw = random.Random(seed)
    return {
        name: (
            [1e-3 * ms * drift * draw.uniform(1, 1 + noise) for _ in range(40)],
            name.startswith("stock"),
        )
        for name, ms in times.items()
    }


STOCK = {f"stock{i}": 1.0 + 0.3 * i for i in range(8)}


def verdicts(before: Run, now: Run) -> dict[str, str]:
    return {r.name: r.verdict for r in compare.compare(before, now).rows if not r.control}


def test_slower_faster_and_same() -> None:
    before = run(1, **STOCK, a=1.0, b=1.0, c=1.0)
    now = run(2, **STOCK, a=1.2, b=0.8, c=1.0)
    assert verdicts(before, now) == {"a": "slower", "b": "faster", "c": "same"}


@pytest.mark.parametrize("drift", [0.7, 1.4])
def test_the_drift_of_the_machine_is_taken_out(drift: float) -> None:
    before = run(1, **STOCK, a=1.0, b=1.0, c=1.0)
    now = run(2, drift, **STOCK, a=1.2, b=1.0, c=0.8)
    assert verdicts(before, now) == {"a": "slower", "b": "same", "c": "faster"}
    assert compare.compare(before, now).drift == pytest.approx(drift, rel=0.02)


def test_what_the_controls_do_is_no_verdict() -> None:
    """Controls apart by up to 20 %: a difference of 15 % then says nothing."""
    unequal = {name: ms * (1 + 0.05 * (i - 4)) for i, (name, ms) in enumerate(STOCK.items())}
    before, now = run(1, **STOCK, a=1.0, b=1.0), run(2, **unequal, a=1.15, b=1.4)
    assert verdicts(before, now) == {"a": "same", "b": "slower"}


def test_noise_inside_a_run_is_no_verdict() -> None:
    before, now = run(1, **STOCK, a=1.0), run(2, **STOCK, a=1.06)
    assert verdicts(before, now) == {"a": "slower"}
    noisy = run(2, noise=0.6, a=1.06)
    before |= run(1, noise=0.6, a=1.0)
    assert verdicts(before, {**now, **noisy}) == {"a": "same"}


def test_too_few_calls_are_no_verdict() -> None:
    before, now = run(1, **STOCK, a=1.0), run(2, **STOCK, a=3.0)
    now["a"] = (now["a"][0][:5], False)
    assert verdicts(before, now) == {"a": "same"}


def write(path: Path, found: Run) -> Path:
    rows = [
        {"name": name, "stats": {"data": values}, "extra_info": {"control": control}}
        for name, (values, control) in found.items()
    ]
    path.write_text(json.dumps({"benchmarks": rows}))
    return path


def test_the_command_says_so_by_its_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = write(tmp_path / "before.json", run(1, **STOCK, **{"m[3a]": 1.0, "gone": 1.0}))
    same = write(tmp_path / "same.json", run(2, **STOCK, **{"m[3a]": 1.0, "new": 1.0}))
    slow = write(tmp_path / "slow.json", run(3, **STOCK, **{"m[3a]": 1.5}))
    console = Console(width=100)
    assert compare.main([str(before), str(same)], console) == 0
    printed = capsys.readouterr().out
    assert "in one run only: gone, new" in printed
    assert "by 8 controls" in printed
    assert compare.main([str(before), str(slow)], console) == 1
    printed = capsys.readouterr().out
    assert "m[3a]" in printed
    assert "1 slower" in printed


@pytest.mark.parametrize(
    "text",
    ["", "{}", '{"benchmarks": []}', '{"benchmarks": [{"name": "a"}]}', '{"benchmarks": 3}'],
)
def test_anything_else_is_refused_by_name(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    good = write(tmp_path / "good.json", run(1, **STOCK, a=1.0))
    bad = tmp_path / "bad.json"
    bad.write_text(text)
    console = Console(width=200)
    assert compare.main([str(bad), str(good)], console) == 2
    assert "bad.json" in capsys.readouterr().out
    assert compare.main([str(tmp_path / "absent.json"), str(good)], console) == 2
    assert "absent.json: No such file" in capsys.readouterr().out
    assert compare.main([str(good)], console) == 2
    only_stock = write(tmp_path / "stock.json", run(1, **STOCK))
    assert compare.main([str(only_stock), str(good)], console) == 2
