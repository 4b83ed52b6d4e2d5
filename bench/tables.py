"""Results as rich tables for the terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from .results import OK, CaseResult, Measurement


def case(result: CaseResult, ceiling: dict[str, Any] | None) -> Table:
    """One row per contestant, fastest first; those without a figure say why."""
    table = Table(title=f"{result.title}, batch {result.batch}", title_justify="left")
    table.add_column("")
    for name in ("median ms", "p10", "p90", "p99", "images/s", "x stock", "GFLOP/s"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("% ceiling", justify="right")
    table.add_column("MiB", justify="right")
    table.add_column("difference", justify="right")
    notes = []
    for m in sorted(result.measurements, key=_order):
        table.add_row(*_row(result, m, ceiling), style="bold" if m.peer == "fused" else "")
        outliers = int(m.latency["outliers"]) if m.latency else 0
        if m.detail:
            notes.append(f"{m.title}: {m.status}, {m.detail}")
        elif outliers:
            notes.append(f"{m.title}: {outliers} of {int(m.latency['calls'])} calls are outliers")
    if notes:
        table.caption = "\n".join(notes)
        table.caption_justify = "left"
    return table


def figure(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits; a dash for none."""
    if value is None:
        return "-"
    whole = len(str(int(abs(value)))) if abs(value) >= 1 else 0
    return f"{value:.{max(0, digits - whole)}f}"


def _order(m: Measurement) -> float:
    return m.latency["median"] if m.latency else float("inf")


def _row(result: CaseResult, m: Measurement, ceiling: dict[str, Any] | None) -> list[str]:
    if m.status != OK or not m.latency:
        return [m.title, m.status, *[""] * 8, "" if m.difference is None else f"{m.difference:.0e}"]
    gflops = result.gflops(m)
    share = 100 * gflops / ceiling["gflops"] if ceiling and gflops else None
    return [
        m.title,
        *(figure(m.latency[k]) for k in ("median", "p10", "p90", "p99")),
        figure(m.images_per_s),
        f"{m.ratio[0]:.2f} ({m.ratio[1]:.2f}-{m.ratio[2]:.2f})" if m.ratio else "-",
        figure(gflops),
        figure(share, 2),
        figure(m.memory_mib),
        f"{m.difference:.0e}" if m.difference is not None else "-",
    ]
