"""Measured figures on disk: kept by device, whole or not at all, and never trusted blindly."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from inception_fused import cache


def read(value: object) -> int:
    if type(value) is not int:
        raise ValueError(f"no figure: {value}")
    return value


@pytest.fixture
def store() -> cache.Store[int]:
    return cache.Store("kind", 1, read, lambda value: value)


def again(store: cache.Store[int], device: str) -> dict[str, int]:
    """What another process would load."""
    store.forget()
    return store.load(device)


def test_entries_are_kept_by_device_and_key(store: cache.Store[int], cache_folder: Path) -> None:
    assert store.load("A processor") == {}
    assert not cache_folder.exists()
    file = store.save("A processor", {"a": 1, "b": 2})
    assert file == cache_folder / "kind-A-processor.json"
    store.forget()
    store.save("A processor", {"b": 3, "c": 4})
    assert again(store, "A processor") == {"a": 1, "b": 3, "c": 4}
    assert again(store, "Another") == {}
    assert [p.name for p in cache_folder.iterdir()] == [file.name]


def test_a_file_is_read_once(store: cache.Store[int]) -> None:
    file = store.save("gpu", {"a": 1})
    file.unlink()
    assert store.load("gpu") == {"a": 1}
    assert again(store, "gpu") == {}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "damaged"),
        ("[1, 2]", "damaged"),
        ('{"format": 1, "device": "gpu", "entries": {"a": "fast"}}', "no figure: fast"),
        ('{"format": 1, "device": "gpu", "entries": [1]}', "damaged"),
        ('{"format": 1, "device": "gpu"}', "damaged"),
        ('{"format": 999, "device": "gpu", "entries": {}}', "its format is 999"),
        ('{"format": 1, "device": "g.p.u", "entries": {"a": 1}}', r"of the device 'g\.p\.u'"),
        (b"\xff\xfe\x00", "decode"),
    ],
)
def test_a_file_that_is_no_cache_is_ignored_with_a_warning_and_replaced(
    store: cache.Store[int], text: str | bytes, reason: str
) -> None:
    file = store.path("gpu")
    file.parent.mkdir()
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.warns(UserWarning, match=reason):
        assert store.load("gpu") == {}
    with pytest.warns(UserWarning, match=reason):
        store.save("gpu", {"a": 1})
    assert again(store, "gpu") == {"a": 1}


def test_a_failed_write_leaves_the_old_file(
    store: cache.Store[int], cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = store.save("gpu", {"a": 1})
    before = file.read_text()

    def fail(source: object, target: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        store.save("gpu", {"b": 2})
    assert file.read_text() == before
    assert [*cache_folder.iterdir()] == [file]
    assert again(store, "gpu") == {"a": 1}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"INCEPTION_FUSED_CACHE": "/own"}, "/own"),
        ({"INCEPTION_FUSED_CACHE": "", "XDG_CACHE_HOME": "/xdg"}, "/xdg/inception_fused"),
        ({"HOME": "/home/me"}, "/home/me/.cache/inception_fused"),
    ],
)
def test_variables_move_the_folder(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str
) -> None:
    for name in ("INCEPTION_FUSED_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache.folder() == Path(expected)


def test_processes_that_write_at_once_leave_a_whole_file(store: cache.Store[int]) -> None:
    code = (
        "import importlib.util, sys\n"
        "spec = importlib.util.spec_from_file_location('cache', sys.argv[1])\n"
        "cache = sys.modules['cache'] = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(cache)\n"
        "store = cache.Store('kind', 1, int, int)\n"
        "for i in range(100): store.save('gpu', {sys.argv[2] + str(i): i})\n"
    )
    command = [sys.executable, "-c", code, str(cache.__file__)]
    running = [subprocess.Popen([*command, name]) for name in "xyz"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        while any(process.poll() is None for process in running):
            again(store, "gpu")
        assert [process.returncode for process in running] == [0, 0, 0]
        assert len(again(store, "gpu")) >= 100  # at least all of the one that was last
