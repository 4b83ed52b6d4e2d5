"""The documentation: every example in it runs, and the site builds without a warning."""

from __future__ import annotations

import doctest
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from inception_fused.lower import lower
from inception_fused.spec import GOOGLENET

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
EXAMPLE = re.compile(r"^```pycon\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def examples(page: Path) -> list[str]:
    return EXAMPLE.findall(page.read_text())


WITH_EXAMPLES = [page for page in PAGES if examples(page)]


def test_most_pages_have_examples() -> None:
    names = {page.stem for page in WITH_EXAMPLES}
    assert {"index", "how-it-works", "swapping", "training", "adding-a-back-end"} <= names


@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=lambda page: page.stem)
def test_examples(page: Path) -> None:
    blocks = "\n".join(examples(page))
    test = doctest.DocTestParser().get_doctest(blocks, {}, page.name, str(page), 0)
    messages: list[str] = []
    with torch.random.fork_rng(devices=[]):
        outcome = doctest.DocTestRunner().run(test, out=messages.append)
    assert outcome.attempted >= 3
    assert outcome.failed == 0, "".join(messages)


def test_a_wrong_example_is_seen() -> None:
    found = EXAMPLE.findall("text\n```pycon\n>>> 1 + 1\n3\n\n```\nmore\n")
    assert found == [">>> 1 + 1\n3\n\n"]
    test = doctest.DocTestParser().get_doctest(found[0], {}, "x", "x", 0)
    assert doctest.DocTestRunner().run(test, out=lambda _: None).failed == 1


def test_the_picture_of_the_plan_is_the_plan() -> None:
    text = (ROOT / "docs" / "plan.svg").read_text()
    plan = lower(GOOGLENET["3a"])
    for step in plan.steps:
        kernel = f"{step.window.kernel[0]}x{step.window.kernel[1]}"
        widths = "+".join(str(d.slice.channels) for d in step.dst)
        pool = "pool + " if step.pre else ""
        assert f">{pool}{kernel} {step.src.channels} to {widths}<" in text
        for d in step.dst:
            if d.slice.buffer == 1:
                assert f">{d.slice.offset} to {d.slice.end}<" in text


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    missing = [n for n in ("mkdocs", "material", "mkdocstrings") if not importlib.util.find_spec(n)]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (pip install -e '.[docs]')")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


def test_the_site_has_every_page_and_needs_no_network(site: Path) -> None:
    for page in PAGES:
        text = (site / f"{page.stem}.html").read_text()
        loaded = re.findall(r"<(?:script|img|iframe)[^>]*\bsrc=\"(\S*?)\"", text)
        loaded += re.findall(
            r"<link[^>]*\brel=\"(?:stylesheet|preload)\"[^>]*href=\"(\S*?)\"", text
        )
        assert loaded
        assert not [url for url in loaded if url.startswith(("http", "//"))]
    assert not re.search(r":(?:class|func|meth):", (site / "api.html").read_text())
    api = (site / "api.html").read_text()
    for name in ("fuse.fuse", "fuse.unfuse", "fuse.explain", "module.FusedInception", "spec.Spec"):
        assert f'id="inception_fused.{name}"' in api
    assert "Args:" not in api  # parsed into tables
