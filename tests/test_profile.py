"""inception-fused profile and tune: steps alone, the trace, pictures of plans, the commands."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from inception_fused.bench import drawing, steps, trace
from strategies import specs

import inception_fused
from inception_fused import cli, reference
from inception_fused.backends import choose
from inception_fused.fusion import fusion_of
from inception_fused.lower import lower
from inception_fused.models import Inception
from inception_fused.plan import IN, OUT, Plan
from inception_fused.spec import GOOGLENET

OWN = (
    "import torch\n"
    "from inception_fused.models import Inception\n"
    "def small():\n"
    "    return Inception(8, 4, 4, 8, 4, 8, 4, batch_norm=True), torch.randn(2, 8, 6, 6)\n"
)
PLAN = lower(GOOGLENET["3a"])
SVG = "{http://www.w3.org/2000/svg}"


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.app(list(arguments))
    return int(stop.value.code or 0)


@settings(max_examples=30, deadline=None)
@given(specs())
def test_the_steps_alone_compute_what_they_compute_in_the_plan(spec: inception_fused.Spec) -> None:
    plan = lower(spec)
    torch.manual_seed(0)
    sizes = plan.sizes(9, 11)
    weights = [torch.randn(c.weight_shape, dtype=torch.float64) for c in plan.convolutions()]
    biases = [torch.randn(len(w), dtype=torch.float64) for w in weights]
    x = torch.randn(1, plan.in_channels, 9, 11, dtype=torch.float64)
    buffers = {
        b: torch.full((1, c, *size), torch.nan, dtype=torch.float64)
        for b, (c, size) in enumerate(zip(plan.buffers, sizes, strict=True))
    }
    buffers[IN] = x
    for step in plan.steps:
        one = steps.alone(step)
        assert one == Plan.decode(one.code)
        own = [d.weight for d in step.dst if d.weight >= 0]
        source = buffers[step.src.buffer][:, step.src.offset : step.src.end]
        y = reference.run(one, source, [weights[i] for i in own], [biases[i] for i in own])
        start = 0
        for d in step.dst:
            end = start + d.slice.channels
            buffers[d.slice.buffer][:, d.slice.offset : d.slice.end] = y[:, start:end]
            start = end
    torch.testing.assert_close(buffers[OUT], reference.run(plan, x, weights, biases))


def test_steps_are_counted_and_timed() -> None:
    if "available" not in inception_fused.backends()["cpu"]:
        pytest.skip("the native library is not built")
    model = inception_fused.FusedInception(GOOGLENET["5b"]).eval()
    x = torch.randn(1, 832, 7, 7).to(memory_format=torch.channels_last)
    with torch.no_grad():
        model(x)
        fusion = fusion_of(model)
        cpu = choose(fusion.plan, x, "cpu").backend
        tuning = cpu.tuning(fusion.plan, x)
        (found,) = steps.measure([("5b", fusion, cpu, tuning, x)], 0.01)
    assert [s.number for s in found.steps] == list(range(len(fusion.plan.steps)))
    assert sum(s.flops for s in found.steps) == 2 * fusion.plan.macs(1, 7, 7)
    pointwise = found.steps[0]
    columns = pointwise.step.out_channels
    least = 4 * (832 * 49 + columns * 49 + columns * 832)
    assert least <= pointwise.bytes <= 1.02 * least
    for s in found.steps:
        assert 0 < s.ms.low <= s.ms.median <= s.ms.high
        assert s.gflops == pytest.approx(s.flops / s.ms.median / 1e6)
    assert found.whole.median > 0
    chosen = [s.algorithm != "direct" for s in found.steps]
    assert chosen == [tile != 0 for tile in tuning]


def test_the_picture_shows_every_buffer_slice_step_and_wave() -> None:
    notes = {2: "0.123 ms"}
    root = ElementTree.fromstring(drawing.svg(PLAN, "3a <b>", 1, 28, 28, notes=notes))
    texts = [t.text for t in root.iter(f"{SVG}text")]
    assert texts[0].startswith("3a <b>: 4 steps in 2 waves, buffers of ")
    assert "IN, 192 ch" in texts
    assert "OUT, 256 ch" in texts
    assert sum(t.startswith("SCRATCH") for t in texts) == len(PLAN.buffers) - 2
    assert "28x28, 588 KiB" in texts  # of IN: 28 * 28 * 192 * 4 bytes
    assert {"wave 0", "wave 1"} <= set(texts)
    for number, step in enumerate(PLAN.steps):
        assert f"{number}: {drawing.what(step)}" in texts
    assert "0: 1x1" in texts
    assert any("max" in t and "+ 1x1" in t for t in texts)
    assert "0.123 ms" in texts
    classes = [e.get("class") for e in root.iter()]
    assert classes.count("bar") == len(PLAN.buffers)
    assert classes.count("step") == len(PLAN.steps)
    assert classes.count("edge") == sum(1 + len(s.dst) for s in PLAN.steps)
    cuts = {d.slice for s in PLAN.steps for d in s.dst if d.slice.offset}
    assert classes.count("cut") == len({(c.buffer, c.offset) for c in cuts})
    style = next(root.iter(f"{SVG}style")).text
    assert "prefers-color-scheme: dark" in style


@settings(max_examples=30, deadline=None)
@given(specs())
def test_nothing_in_a_picture_lies_outside_or_on_another(spec: inception_fused.Spec) -> None:
    plan = lower(spec)
    root = ElementTree.fromstring(drawing.svg(plan, "any", 2, 9, 11))
    _, _, wide, tall = map(float, root.get("viewBox").split())
    boxes = [
        tuple(float(e.get(k)) for k in ("x", "y", "width", "height"))
        for e in root.iter(f"{SVG}rect")
    ]
    assert len(boxes) == len(plan.buffers) + len(plan.steps)
    for x, y, w, h in boxes:
        assert 0 <= x < x + w <= wide
        assert 0 <= y < y + h <= tall
    for i, (x, y, w, h) in enumerate(boxes):
        for other_x, other_y, other_w, other_h in boxes[:i]:
            beside = x + w <= other_x or other_x + other_w <= x
            above = y + h <= other_y or other_y + other_h <= y
            assert beside or above


def test_the_trace_has_a_range_for_each_fused_module(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = inception_fused.fuse(Inception(8, 4, 4, 8, 4, 8, 4).eval(), network=False)
    x = torch.randn(1, 8, 6, 6)
    with torch.no_grad():
        model(x)
    fusion = fusion_of(model)
    path = tmp_path / "deep" / "trace.json"
    (one,) = trace.write(model, x, [("block", fusion)], path)
    assert one.name == f"block [{fusion.taken}]"
    assert one.host_ms > 0
    assert one.device_ms is None
    events = json.loads(path.read_text())["traceEvents"]
    ranges = [e for e in events if e.get("name") == one.name and e.get("ph") == "X"]
    assert len(ranges) == trace.CALLS
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def test_the_command_profile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own.py").write_text(OWN)
    out = tmp_path / "out"
    options = ["--seconds", "0.01", "--threads", "1", "--output", str(out)]
    assert run("profile", f"{tmp_path}/own.py:small", *options) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^sum +[\d.]+", printed, re.MULTILINE)
    assert re.search(r"^whole +[\d.]+ +\d+%", printed, re.MULTILINE)
    assert "Each step is measured alone" in " ".join(printed.split())
    assert json.loads((out / "trace.json").read_text())["traceEvents"]
    (picture,) = out.glob("plan-*.svg")
    ElementTree.fromstring(picture.read_text())


def test_the_command_tune(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own.py").write_text(OWN)
    options = ["--seconds", "0.05", "--threads", "1", "--batch", "2"]
    assert run("tune", f"{tmp_path}/own.py:small", *options) == 0
    first = capsys.readouterr().out
    assert re.search(r"original +[\d.]+ +[\d.]+-[\d.]+ +1\.00", first)
    assert "(remembered)" not in first
    assert re.search(r"kept in \S+/tune-\S+\.json", first)
    assert run("tune", f"{tmp_path}/own.py:small", *options) == 0
    assert "(remembered)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("tune 5a --batch 0", "--batch must be from 1 to 4096, got 0"),
        ("tune 5a --memory-format nhwc", "--memory-format must be nchw or channels_last"),
        ("tune 5a --threads -1", "--threads must be at least 0"),
        ("tune 5a --seconds nan", "seconds must be above 0"),
        ("tune 9z", "must be one of torchvision, paper"),
        ("profile 9z", "must be one of torchvision, paper"),
        ("profile 5a --batch 5000", "--batch must be from 1 to 4096, got 5000"),
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
