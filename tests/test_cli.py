"""The command line and what bench makes of its results: pages, plots and the README's table."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from inception_fused.bench import figures, readme, report
from inception_fused.bench.results import CaseResult, Measurement, Results
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


def measured(peer: str, title: str, median: float, times: float) -> Measurement:
    names = ("median", "p10", "p90", "p99", "calls", "outliers")
    values = (median, 0.9 * median, 1.1 * median, 2 * median, 40, 1)
    latency = dict(zip(names, values, strict=True))
    return Measurement(
        peer,
        "nchw",
        title,
        status="ok",
        difference=1e-6,
        error=2e-6,
        latency=latency,
        images_per_s=1000 / median,
        ratio=[times, 0.9 * times, 1.1 * times],
        rounds=[[median]],
    )


@pytest.fixture
def sample() -> Results:
    def rows() -> list[Measurement]:
        absent = Measurement("ncnn", "nchw", "ncnn", "absent", "not installed: <ncnn>")
        return [
            measured("eager", "eager NCHW", 8.0, 1.0),
            measured("fused", "fused", 2.0, 4.0),
            absent,
        ]

    def case(model: str, title: str, batch: int) -> CaseResult:
        return CaseResult(model, title, batch, 10**9, 10**6, True, rows())

    environment = {
        "cpu": "A processor",
        "torch_cpu": "AVX2",
        "threads": 2,
        "versions": {"torch": "2.11.0"},
        "commit": "0123456789ab",
    }
    return Results(
        "2026-01-02T03:04:05+00:00",
        environment,
        {"batches": [1, 8]},
        {"name": "best of torch.mm", "gflops": 800.0, "gbytes": 20.0},
        cases=[
            case("torchvision", "GoogLeNet (torchvision)", 1),
            case("torchvision", "GoogLeNet (torchvision)", 8),
            case("3a", "module 3a", 1),
            case("3b", "module 3b", 1),
        ],
    )


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("bench --batch 0", "--batch must be sizes from 1 to 4096"),
        ("bench --batch 1,x", "--batch must be sizes from 1 to 4096"),
        ("bench --model 9z", "--model must be one of torchvision, paper, l3-6, l3-7, 3a"),
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


def test_the_readme_is_written_between_its_markers(tmp_path: Path, sample: Results) -> None:
    path = tmp_path / "README.md"
    path.write_text(f"before\n{readme.BEGIN}\nold\n{readme.END}\nafter\n")
    readme.write(path, [sample])
    text = path.read_text()
    assert text.startswith(f"before\n{readme.BEGIN}\n|")
    assert text.endswith(f"\n{readme.END}\nafter\n")
    assert "old" not in text
    assert "| **fused** | 2.00 (4.00x) | 2.00 (4.00x) | 2.00 (4.00x) | 2.00 (4.00x) |" in text
    assert "ncnn" not in text  # absent everywhere
    assert "A processor, AVX2, 2 threads; torch 2.11.0" in text
    readme.write(path, [sample])
    assert path.read_text() == text
    path.write_text("no markers")
    with pytest.raises(ValueError, match=r"README\.md must have the lines"):
        readme.write(path, [sample])


def test_the_plots_show_the_figures_with_units(sample: Results) -> None:
    latency = figures.latency(sample)
    assert latency is not None
    for axes in latency.axes:
        assert axes.get_xlabel() == "latency (ms), median, p10 to p90"
        assert [bar.get_width() for bar in axes.patches] == [8.0, 2.0]
        assert [t.get_text() for t in axes.get_yticklabels()] == ["eager NCHW", "fused"]
    modules = figures.modules(sample)
    assert modules is not None
    assert [bar.get_height() for bar in modules.axes[0].patches] == [125.0, 125.0, 500.0, 500.0]
    assert "GFLOP/s" in modules.axes[0].get_ylabel()
    throughput = figures.throughput(sample)
    assert throughput is not None
    lines = {line.get_label(): list(line.get_ydata()) for line in throughput.axes[0].lines}
    assert lines == {"eager NCHW": [125.0, 125.0], "fused": [500.0, 500.0]}


def test_the_page_is_self_contained(sample: Results) -> None:
    page = report.page([sample])
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?!#)[^"'#]*//""", page.replace("xlink:", ""))
    assert not re.search(r"@import|url\((?!#)", page)
    assert page.count('<svg style="max-width:') == 4
    assert not re.search(r"<svg[^>]* (?:width|height)=", page)
    assert figures.INK not in page
    assert "not installed: &lt;ncnn&gt;" in page
    assert report.speedups(sample) == [(1, "eager NCHW", 1.0), (1, "fused", pytest.approx(4.0))]


def test_the_page_fits_a_phone(tmp_path: Path, sample: Results) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium to render the page with")
    probe = "<script>document.title = document.documentElement.scrollWidth</script></body>"
    path = tmp_path / "page.html"
    path.write_text(report.page([sample]).replace("</body>", probe))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=400,800"]
    done = subprocess.run(
        [browser, *options, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=60
    )
    width = re.search(r"<title>(\d+)</title>", done.stdout)
    assert width is not None, done.stderr[-500:]
    assert int(width[1]) <= 500  # the narrowest window that every version can open
