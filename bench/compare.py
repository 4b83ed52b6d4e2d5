"""Two runs of ``bench/test_modules.py``: what has become slower, as far as their noise allows.

    python -m inception_fused.bench.compare baseline.json now.json

Two processes on one machine differ by more than the calls inside each of them: by the clock, by
neighbours, by where memory lies. What did not change between them, stock PyTorch, shows by how
much: the median of its ratios is taken out of every ratio, and the spread of what is left is the
least difference that counts. A benchmark is slower (or faster) only if the confidence intervals of
the two medians leave no room for less than that.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from inception_fused.medians import Interval, interval

LEAST = 0.03
"""A difference that is not worth a verdict, relative."""

SLOWER, SAME, FASTER = "slower", "same", "faster"


@dataclass(frozen=True)
class Row:
    """One benchmark in both runs. ``ratio`` is now/before without the drift of the machine."""

    name: str
    before: Interval
    now: Interval
    ratio: Interval
    verdict: str
    control: bool


@dataclass(frozen=True)
class Comparison:
    """``drift`` is how many times slower the machine was; ``bound`` the difference that counts.

    ``missing`` are benchmarks of one run only.
    """

    rows: tuple[Row, ...]
    drift: float
    bound: float
    missing: tuple[str, ...]

    @property
    def slower(self) -> list[Row]:
        return [row for row in self.rows if row.verdict == SLOWER]


def load(path: Path) -> dict[str, tuple[list[float], bool]]:
    """Seconds of each benchmark by name, and whether it is a control.

    Raises:
        ValueError: naming the file, if it is not a run with all of its data.
    """
    try:
        rows: list[dict[str, Any]] = json.loads(path.read_text())["benchmarks"]
        found = {
            str(row["name"]): (
                [float(v) for v in row["stats"]["data"]],
                bool(row["extra_info"].get("control", False)),
            )
            for row in rows
        }
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} is not what --benchmark-json writes: {reason}") from None
    if not found or not all(values for values, _ in found.values()):
        raise ValueError(f"{path} has no benchmarks, or some without data")
    return found


def compare(
    before: dict[str, tuple[list[float], bool]], now: dict[str, tuple[list[float], bool]]
) -> Comparison:
    """The verdicts on every benchmark that is in both runs; of controls there is none."""
    both = [name for name in now if name in before]
    medians = {name: (interval(before[name][0]), interval(now[name][0])) for name in both}
    controls = [medians[name][1].median / medians[name][0].median for name in both if now[name][1]]
    drift = median(controls) if controls else 1.0
    spread = sorted(abs(ratio / drift - 1) for ratio in controls)
    bound = max(LEAST, spread[int(0.9 * (len(spread) - 1))] if spread else 0.0)
    rows = []
    for name in both:
        a, b = medians[name]
        ratio = Interval(
            b.median / a.median / drift,
            max(b.low, 0.0) / a.high / drift,
            b.high / max(a.low, 1e-12) / drift,
        )
        control = now[name][1]
        verdict = SAME
        if not control and ratio.low > 1 + bound:
            verdict = SLOWER
        elif not control and ratio.high < 1 - bound:
            verdict = FASTER
        rows.append(Row(name, a, b, ratio, verdict, control))
    return Comparison(tuple(rows), drift, bound, tuple(sorted(before.keys() ^ now.keys())))


def table(found: Comparison) -> Table:
    """A row per benchmark, the slower ones first; controls are not listed."""
    made = Table(
        title="median ms before and now, ratio without the machine's drift",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
    )
    made.add_column("benchmark")
    for name in ("before", "now", "ratio", "interval", ""):
        made.add_column(name, justify="right", no_wrap=True)
    order = (SLOWER, FASTER, SAME)
    styles = {SLOWER: "red", FASTER: "green", SAME: ""}
    judged = [row for row in found.rows if not row.control]
    for row in sorted(judged, key=lambda r: (order.index(r.verdict), -r.ratio.median)):
        made.add_row(
            row.name.replace("[", "\\["),
            f"{1e3 * row.before.median:.3f}",
            f"{1e3 * row.now.median:.3f}",
            f"{row.ratio.median:.2f}",
            f"{row.ratio.low:.2f}-{row.ratio.high:.2f}",
            row.verdict,
            style=styles[row.verdict],
        )
    count = sum(row.control for row in found.rows)
    notes = [
        f"machine: {found.drift:.2f} times the time of before, by {count} controls; differences "
        f"below {found.bound:.0%} do not count"
        if count
        else f"no controls: the machine's drift is not known; {found.bound:.0%} is the least that "
        "counts"
    ]
    if found.missing:
        notes.append(f"in one run only: {', '.join(found.missing)}".replace("[", "\\["))
    made.caption = "\n".join(notes)
    made.caption_justify = "left"
    return made


def main(arguments: list[str], console: Console) -> int:
    """0 if nothing is slower, 1 if something is, 2 for wrong arguments."""
    if len(arguments) != 2:
        console.print("usage: compare BASELINE.json NOW.json")
        return 2
    try:
        before, now = (load(Path(path)) for path in arguments)
    except ValueError as error:
        console.print(str(error), soft_wrap=True)
        return 2
    found = compare(before, now)
    if not any(not row.control for row in found.rows):
        console.print("the two runs have no benchmark in common that could be judged")
        return 2
    console.print(table(found))
    if found.slower:
        console.print(f"[bold red]{len(found.slower)} slower[/]")
    return 1 if found.slower else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], Console()))
