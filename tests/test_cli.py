"""The command line."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from inception_fused.bench.results import Results
from PIL import Image

from inception_fused import cli

OWN = (
    "import torch\n"
    "from inception_fused.models import Inception\n"
    "def small():\n"
    "    return Inception(8, 4, 4, 8, 4, 8, 4, batch_norm=True), torch.randn(2, 8, 6, 6)\n"
)


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.app(list(arguments))
    return int(stop.value.code or 0)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("bench --batch 0", "--batch must be sizes from 1 to 4096"),
        ("bench --batch 1,x", "--batch must be sizes from 1 to 4096"),
        ("bench --model 9z", "--model must be one of torchvision, paper, chain, l3-6, l3-7, 3a"),
        ("bench --model nowhere.py:f", "there is no file nowhere.py"),
        ("bench --peers tensorflow", "--peers must be of fused_triton, fused_compile"),
        ("bench --memory-format nhwc", "--memory-format must be of nchw, channels_last, both"),
        ("bench --device tpu", "--device must be of cpu, cuda"),
        ("bench --dtype float64", "--dtype must be of float32, bfloat16, float16"),
        ("bench --processes 0", "--processes must be at least 1"),
        ("bench --threads -1", "--threads must be at least 0"),
        ("bench --seconds nan", "--seconds must be above 0"),
        ("bench --rounds 0", "--rounds must be at least 1"),
        ("bench --rounds few", "'--rounds'"),
        ("bench --wrong", "No such option: --wrong"),
        ("report absent.json", "absent.json: No such file"),
        ("nonsense", "nonsense"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(
    arguments: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("inception-fused: ")
    assert error.count("\n") == 1
    assert named in error


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert re.fullmatch(r"inception-fused \d+\.\d+\S*\n", capsys.readouterr().out)


def test_importing_the_package_stays_light() -> None:
    heavy = ["inception_fused.bench", "inception_fused.cli", "typer", "rich", "matplotlib"]
    code = f"import sys, inception_fused; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_bench_from_start_to_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own.py").write_text(OWN)
    out = tmp_path / "out"
    model = f"{tmp_path}/own.py:small"
    bench = ["bench", "--model", model, "--batch", "1,2", "--rounds", "2", "--threads", "1"]
    options = ["--peers", "channels_last", "--no-memory", "--output", str(out)]
    assert run(*bench, *options) == 0
    printed = capsys.readouterr().out
    assert "own:small, batch 2" in printed
    found = Results.load(out / "results.json")
    status = [[(m.peer, m.status) for m in c.measurements] for c in found.cases]
    assert status == [[("fused", "ok"), ("eager", "ok"), ("channels_last", "ok")]] * 2
    with Image.open(out / "latency.png") as picture:
        assert picture.width > 600
    page = tmp_path / "page.html"
    assert run("report", str(out / "results.json"), "--output", str(page)) == 0
    assert "own:small, batch 2" in page.read_text()
    assert {p.name for p in tmp_path.glob("*.png")} == {"latency.png", "batch.png", "accuracy.png"}


def test_explain_and_backends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own.py").write_text(OWN)
    assert run("explain", f"{tmp_path}/own.py:small") == 0
    assert re.search(r"\(Inception\): fused, (cpu|reference)", capsys.readouterr().out)
    assert run("backends") == 0
    assert "reference: available" in capsys.readouterr().out.splitlines()


def test_table_reports_a_claim_that_does_not_hold_as_a_result_not_a_failure(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("table") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "does not hold: 12 times fewer parameters than AlexNet" in printed
    assert "computed 8.711, claimed 12" in printed
