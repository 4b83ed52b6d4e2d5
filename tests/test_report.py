"""What bench makes of its results: the page, its charts, and the README's table."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest
from inception_fused.bench import (
    accuracy_chart,
    charts,
    module_charts,
    network_charts,
    readme,
    report,
)
from inception_fused.bench.peers import PEERS
from inception_fused.bench.results import CaseResult, Measurement, Results
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image


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


def drawn(chart: charts.Chart | None) -> list[Axes]:
    assert chart is not None
    found = []
    for panel in chart.panels:
        axes = Figure().subplots()
        panel.draw(axes)
        found.append(axes)
    return found


def test_the_readme_is_written_between_its_markers(tmp_path: Path, sample: Results) -> None:
    path = tmp_path / "README.md"
    path.write_text(f"before\n{readme.BEGIN}\nold\n{readme.END}\nafter\n")
    written = readme.write(path, [sample])
    text = path.read_text()
    assert text.startswith(f"before\n{readme.BEGIN}\n|")
    assert text.endswith(f"\n{readme.END}\nafter\n")
    assert "old" not in text
    assert "| **fused** | 2.00 (4.00x) | 2.00 (4.00x) | 2.00 (4.00x) | 2.00 (4.00x) |" in text
    assert "ncnn" not in text  # absent everywhere
    assert "A processor, AVX2, 2 threads; torch 2.11.0" in text
    assert written == [path, *(tmp_path / "docs" / f"results-{s}.svg" for s in ("light", "dark"))]
    light, dark = (picture.read_text() for picture in written[1:])
    assert dark == light.replace(charts.INK, readme.INKS["dark"]) != light
    ElementTree.fromstring(light)
    assert text.count("<picture>") == text.count("</picture>") == 1
    assert f'srcset="{written[2].relative_to(tmp_path).as_posix()}"' in text
    assert f'src="{written[1].relative_to(tmp_path).as_posix()}"' in text
    readme.write(path, [sample])
    assert path.read_text() == text
    assert written[1].read_text() == light
    assert len(readme.write(path, [sample, sample])) == 5
    assert 'src="docs/results-2-light.svg"' in path.read_text()
    path.write_text("no markers")
    with pytest.raises(ValueError, match=r"README\.md must have the lines"):
        readme.write(path, [sample])


class TestCharts:
    def test_latency_has_a_bar_per_contestant(self, sample: Results) -> None:
        panels = drawn(network_charts.latency(sample))
        assert len(panels) == 2
        for axes in panels:
            assert axes.get_xlabel() == "latency (ms), median, p10 to p90"
            assert [bar.get_width() for bar in axes.patches] == [8.0, 2.0]
            assert [t.get_text() for t in axes.get_yticklabels()] == ["eager NCHW", "fused"]

    def test_latency_and_throughput_against_the_batch(self, sample: Results) -> None:
        time, rate = drawn(network_charts.against_batch(sample))
        assert (time.get_ylabel(), rate.get_ylabel()) == ("latency (ms)", "images/s")
        for axes, eager, fused in ((time, 8.0, 2.0), (rate, 125.0, 500.0)):
            lines = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
            assert lines == {"eager NCHW": [eager, eager], "fused": [fused, fused]}
            assert [t.get_text() for t in axes.get_xticklabels()] == ["1", "8"]

    def test_the_modules_speed_up_and_rate(self, sample: Results) -> None:
        (times,) = drawn(module_charts.speedup(sample))
        assert [bar.get_height() for bar in times.patches] == [4.0, 4.0, 1.0, 1.0]
        (rates,) = drawn(module_charts.rate(sample))
        assert [bar.get_height() for bar in rates.patches] == [500.0, 500.0, 125.0, 125.0]
        assert rates.get_ylabel() == "GFLOP/s"
        assert [line.get_ydata()[0] for line in rates.lines] == [800.0]  # the ceiling

    def test_the_roofline_has_every_module_under_its_ceilings(self, sample: Results) -> None:
        (axes,) = drawn(module_charts.roofline(sample))
        points = {
            line.get_label(): [*zip(*line.get_data(), strict=True)] for line in axes.lines[:-1]
        }
        assert points == {"fused": [(1000.0, 500.0)] * 2, "eager NCHW": [(1000.0, 125.0)] * 2}
        names = {text.get_text(): text.xy for text in axes.texts}
        assert {name: x for name, (x, _) in names.items()} == {"3a": 1000.0, "3b": 1000.0}
        assert names["3a"][1] != names["3b"][1]  # they do not lie on each other
        (roof,) = [line for line in axes.lines if len(line.get_xdata()) == 3]
        assert list(roof.get_xdata())[1] == 800.0 / 20.0
        assert list(roof.get_ydata()) == [pytest.approx(20.0 * 20), 800.0, 800.0]

    def test_the_steps_are_stacked_beside_the_whole(self, sample: Results) -> None:
        assert module_charts.steps(sample) is None
        sample.cases[2].steps = {"1x1 192 to 64+96+16": 0.5, "pool + 1x1 192 to 32": 0.25}
        (axes,) = drawn(module_charts.steps(sample))
        assert [(b.get_y(), b.get_height()) for b in axes.patches] == [(0.0, 0.5), (0.5, 0.25)]
        shades = [charts.mpl.colors.to_hex(b.get_facecolor()) for b in axes.patches]
        assert shades == [module_charts.STEPS["1x1"], module_charts.STEPS["pool + 1x1"]]
        assert list(axes.lines[0].get_ydata()) == [2.0, 2.0]
        assert axes.get_ylabel() == "ms"

    def test_errors_are_those_measured(self, sample: Results) -> None:
        sample.cases[0].measurements[1].error = 3e-6
        network, modules = drawn(accuracy_chart.accuracy(sample))
        assert [line.get_xdata()[0] for line in network.lines] == [3e-6, 2e-6]
        assert [t.get_text() for t in network.get_yticklabels()] == ["fused", "eager NCHW"]
        assert [list(line.get_ydata()) for line in modules.lines] == [[2e-6, 2e-6]] * 2

    def test_every_chart_is_labelled(self, sample: Results) -> None:
        sample.cases[2].steps = {"1x1 192 to 64+96+16": 0.5}
        found = list(report.all_charts(sample))
        assert len(found) == 7
        for chart in found:
            assert len(chart.note) > 20
            for axes in drawn(chart):
                assert axes.get_title()
                assert axes.get_xlabel()
                assert axes.get_ylabel() or axes.get_yticklabels()[0].get_text()

    def test_a_picture_file_has_every_panel(self, tmp_path: Path, sample: Results) -> None:
        paths = report.pngs([sample, sample], tmp_path / "new")
        assert [p.name for p in paths][:3] == ["latency.png", "batch.png", "speedup.png"]
        assert [p.name for p in paths][6:8] == ["latency-2.png", "batch-2.png"]
        with Image.open(paths[0]) as picture:
            assert picture.width == round(2 * charts.WIDTH * 144)
            assert len(set(picture.convert("RGB").get_flattened_data())) > 50


def test_the_page_is_self_contained(sample: Results) -> None:
    page = report.page([sample])
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?!#)[^"'#]*//""", page.replace("xlink:", ""))
    assert not re.search(r"@import|url\((?!#)", page)
    assert page.count('<svg role="img"') == sum(len(c.panels) for c in report.all_charts(sample))
    assert not re.search(r"<svg[^>]* (?:width|height)=", page)
    assert charts.INK not in page
    assert "not installed: &lt;ncnn&gt;" in page
    assert report.speedups(sample) == [(1, "eager NCHW", 1.0), (1, "fused", pytest.approx(4.0))]


def test_each_contestant_has_its_colour() -> None:
    assert set(charts.COLOURS) == set(PEERS)
    assert len(set(charts.COLOURS.values())) == len(PEERS)
    assert not set(charts.COLOURS.values()) & set(module_charts.STEPS.values())


def test_what_a_gpu_adds_is_in_the_page(sample: Results) -> None:
    timed = {"median": 0.125}
    sample.cases[0].measurements[1].device = {"host": timed, "warm": timed, "cold": timed}
    assert "host 0.125 ms" in report.page([sample])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_the_page_on_a_phone(tmp_path: Path, sample: Results, scheme: str) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium to render the page with")
    path, picture = tmp_path / "page.html", tmp_path / "page.png"
    probe = "<script>document.title = document.documentElement.scrollWidth</script></body>"
    path.write_text(report.page([sample]).replace("</body>", probe))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    options += ["--window-size=500,900", f"--user-data-dir={tmp_path}/profile"]
    if scheme == "dark":
        options.append("--blink-settings=preferredColorScheme=0")
    for output in ("--dump-dom", f"--screenshot={picture}"):
        done = subprocess.run(
            [browser, *options, output, path.as_uri()], capture_output=True, text=True, timeout=120
        )
        if output == "--dump-dom":
            width = re.search(r"<title>(\d+)</title>", done.stdout)
            assert width is not None, done.stderr[-500:]
            assert int(width[1]) <= 500  # the narrowest window that every version can open
    with Image.open(picture) as image:
        colours = image.convert("RGB")
        assert colours.getpixel((2, 2)) == ((255, 255, 255) if scheme == "light" else (20, 25, 31))
        assert len(set(colours.get_flattened_data())) > 50
