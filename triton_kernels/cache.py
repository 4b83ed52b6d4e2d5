"""Measured tiles on disk: one file for each device, read once for each process.

``$INCEPTION_FUSED_CACHE``, else ``$XDG_CACHE_HOME/inception_fused``, else
``~/.cache/inception_fused``, is the folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .choose import Tile

if TYPE_CHECKING:
    from .execute import Work

FORMAT = 1
"""Changes when the meaning of a file does, or when the kernels change so that it is out of date."""

Tiles = dict[str, tuple[Tile, ...]]
"""A tile for each launch, by :func:`key`."""

_LOADED: dict[Path, Tiles] = {}


def key(work: Work) -> str:
    """What tiles depend on beside the device: plan, shape, type and layouts."""
    views = [(int(v.layout), v.unit) for v in work.views[:2]]
    text = json.dumps([work.plan.code, work.shape, int(work.math), views])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def path(device: str) -> Path:
    """The file of a device of that name."""
    folder = os.environ.get("INCEPTION_FUSED_CACHE")
    if not folder:
        folder = os.path.join(
            os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "inception_fused"
        )
    return Path(folder, f"triton-{re.sub(r'[^A-Za-z0-9]+', '-', device)}.json")


def load(device: str) -> Tiles:
    """The tiles measured on a device; none, with a warning, if the file is not such a file."""
    file = path(device)
    if file not in _LOADED:
        _LOADED[file] = _read(file, device)
    return _LOADED[file]


def _read(file: Path, device: str) -> Tiles:
    try:
        text = file.read_text()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        return _ignored(file, str(error))
    try:
        found = json.loads(text)
        if found["format"] != FORMAT:
            return _ignored(file, f"its format is {found['format']}, this version's is {FORMAT}")
        if found["device"] != device:
            return _ignored(file, f"it is of the device {found['device']!r}, not {device!r}")
        return {k: tuple(map(_tile, tiles)) for k, tiles in found["tiles"].items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        return _ignored(file, f"it is damaged ({type(error).__name__}: {error})")


def _tile(numbers: Any) -> Tile:
    tile = Tile(*numbers)
    powers = all(type(n) is int and 0 < n <= 1024 and n & (n - 1) == 0 for n in tile[:4])
    if not powers or type(tile.stages) is not int or not 0 < tile.stages <= 8:
        raise ValueError(f"no tile: {numbers}")
    return tile


def _ignored(file: Path, reason: str) -> Tiles:
    warnings.warn(f"the tile cache {file} is ignored: {reason}", stacklevel=4)
    return {}


def save(device: str, measured: Mapping[str, Sequence[Tile]]) -> Path:
    """Adds tiles to a device's file, whole or not at all; a damaged file is replaced."""
    file = path(device)
    file.parent.mkdir(parents=True, exist_ok=True)
    tiles = _read(file, device) | {k: tuple(v) for k, v in measured.items()}
    text = json.dumps({"format": FORMAT, "device": device, "tiles": tiles}, indent=1)
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=file.name)
    try:
        with os.fdopen(handle, "w") as stream:
            stream.write(text)
        os.replace(name, file)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
    _LOADED[file] = tiles
    return file
