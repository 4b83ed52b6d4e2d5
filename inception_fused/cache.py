"""What was measured, on disk: one JSON file for each kind of entry and device.

``$INCEPTION_FUSED_CACHE``, else ``$XDG_CACHE_HOME/inception_fused``, else
``~/.cache/inception_fused``, is the folder. A file is read once for each process.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

Entry = TypeVar("Entry")


def folder() -> Path:
    """Where the files are; it need not exist."""
    if own := os.environ.get("INCEPTION_FUSED_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base, "inception_fused")


@dataclass(frozen=True)
class Store(Generic[Entry]):
    """The files of one kind of entry.

    Attributes:
        kind: of the entries; the files' names begin with it.
        format: changes when the meaning of an entry does, or when what was measured changes so
            that old figures are out of date.
        read: an entry from its plain JSON value; ValueError, TypeError, KeyError, IndexError or
            AttributeError if it is none.
        plain: the inverse.
    """

    kind: str
    format: int
    read: Callable[[Any], Entry]
    plain: Callable[[Entry], Any]
    _loaded: dict[Path, dict[str, Entry]] = field(default_factory=dict, repr=False)

    def path(self, device: str) -> Path:
        """The file of a device of that name."""
        return folder() / f"{self.kind}-{re.sub(r'[^A-Za-z0-9]+', '-', device)}.json"

    def load(self, device: str) -> dict[str, Entry]:
        """The entries of a device by key; none, with a warning, if the file is not such a file."""
        file = self.path(device)
        if file not in self._loaded:
            self._loaded[file] = self._read(file, device)
        return self._loaded[file]

    def save(self, device: str, entries: Mapping[str, Entry]) -> Path:
        """Adds entries to a device's file, whole or not at all; a damaged file is replaced.

        Raises:
            OSError: the file cannot be written.
        """
        file = self.path(device)
        file.parent.mkdir(parents=True, exist_ok=True)
        merged = self._read(file, device) | dict(entries)
        plain = {key: self.plain(entry) for key, entry in merged.items()}
        text = json.dumps({"format": self.format, "device": device, "entries": plain}, indent=1)
        handle, name = tempfile.mkstemp(dir=file.parent, prefix=file.name)
        try:
            with os.fdopen(handle, "w") as stream:
                stream.write(text)
            os.replace(name, file)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
        self._loaded[file] = merged
        return file

    def forget(self) -> None:
        """Makes the next :meth:`load` read the file again, as another process would."""
        self._loaded.clear()

    def _read(self, file: Path, device: str) -> dict[str, Entry]:
        try:
            text = file.read_text()
        except FileNotFoundError:
            return {}
        except (OSError, UnicodeDecodeError) as error:
            return self._ignored(file, str(error))
        try:
            found = json.loads(text)
            if found["format"] != self.format:
                reason = f"its format is {found['format']}, this version's is {self.format}"
                return self._ignored(file, reason)
            if found["device"] != device:
                return self._ignored(
                    file, f"it is of the device {found['device']!r}, not {device!r}"
                )
            return {key: self.read(value) for key, value in found["entries"].items()}
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            return self._ignored(file, f"it is damaged ({type(error).__name__}: {error})")

    def _ignored(self, file: Path, reason: str) -> dict[str, Entry]:
        warnings.warn(f"the {self.kind} cache {file} is ignored: {reason}", stacklevel=4)
        return {}
