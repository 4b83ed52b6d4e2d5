"""What a GPU check has found so far: a JSON file that is valid after a kill, from which a second
run goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..results import replace_file

FORMAT = 1

PENDING, OK, FAILED, SKIPPED = "pending", "ok", "failed", "skipped"


@dataclass
class Row:
    """One thing that was checked or measured. ``figures`` are plain JSON values, by name.

    ``detail`` says what is wrong with a row that failed, and why one was skipped.
    """

    stage: str
    name: str
    status: str = PENDING
    detail: str = ""
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass
class Record:
    """A check of one device. ``device`` and ``environment`` are what bench says of them."""

    created: str
    device: dict[str, Any]
    environment: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    format: int = FORMAT

    def save(self, path: Path) -> None:
        replace_file(path, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Record:
        """ValueError, naming the file, if it is not such a file."""
        try:
            data = json.loads(path.read_text())
            if data["format"] != FORMAT:
                raise ValueError(f"format {data['format']} is not the format {FORMAT}")
            return cls(**{**data, "rows": [Row(**row) for row in data["rows"]]})
        except OSError as error:
            raise ValueError(f"{path}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not the record of a GPU check: {error}") from None

    def find(self, stage: str, name: str) -> Row | None:
        return next((r for r in self.rows if (r.stage, r.name) == (stage, name)), None)

    def of(self, stage: str) -> Iterator[Row]:
        return (row for row in self.rows if row.stage == stage)

    def put(self, row: Row) -> None:
        """Adds a row, in the place of the one of this name if there is one."""
        old = self.find(row.stage, row.name)
        if old is None:
            self.rows.append(row)
        else:
            self.rows[self.rows.index(old)] = row

    def failures(self) -> list[Row]:
        return [row for row in self.rows if row.status == FAILED]
