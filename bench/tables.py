"""Results as rich tables for the terminal."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.table import Table

from inception_fused.spec import GOOGLENET

from .results import ABSENT, OK, CaseResult, Measurement


def case(result: CaseResult, ceiling: dict[str, Any] | None) -> Table:
    """One row per contestant, fastest first; those without a figure say why. 80 columns wide.

    "times" has in brackets p10 and p90 of the rounds, or the least and the most of the processes.
    """
    module = result.model in GOOGLENET
    table = Table(
        title=f"{result.title}, batch {result.batch}: latency in ms, times faster than stock NCHW",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 0),
    )
    table.add_column("", no_wrap=True)
    rates = ("GFLOP/s", "% peak") if module else ("images/s", "MiB")
    several = max((len(m.processes) for m in result.measurements), default=0)
    times = "times (processes)" if several else "times (p10-p90)"
    for name in ("median", "p10", "p90", "p99", times, *rates):
        table.add_column(name, justify="right", no_wrap=True)
    notes = []
    absent: dict[str, list[str]] = {}
    for m in sorted(result.measurements, key=_order):
        if m.status == ABSENT:
            absent.setdefault(m.detail, []).append(m.title)
            continue
        rates = _module_rates(result, m, ceiling) if module else _network_rates(m)
        table.add_row(*_row(m), *rates, style="bold" if m.peer == "fused" else "")
        if m.detail:
            notes.append(f"{m.title}: {m.status}, {m.detail}")
    notes += [f"{', '.join(titles)}: {reason}" for reason, titles in absent.items()]
    apart = [m for m in result.measurements if m.status == OK and m.difference]
    if apart:
        most = max(apart, key=lambda m: m.difference or 0)
        notes.append(
            f"largest difference from stock: {most.difference:.0e} of the largest output, "
            f"{most.title}"
        )
    outliers = sum(int(m.latency["outliers"]) for m in result.measurements if m.latency)
    calls = sum(int(m.latency["calls"]) for m in result.measurements if m.latency)
    for m in result.measurements:
        if m.device:
            host, warm, cold = (figure(m.device[k]["median"]) for k in ("host", "warm", "cold"))
            notes.append(f"{m.title}: host {host} ms, device {warm} ms warm, {cold} ms cold L2")
    if several:
        notes.append(f"each contestant's best of {several} processes")
    if outliers:
        notes.append(f"{outliers} of {calls} calls are outliers, all are in the percentiles")
    if module and ceiling:
        notes.append(f"peak: {ceiling['gflops']:.0f} GFLOP/s, {ceiling['name']}, same run")
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


def _row(m: Measurement) -> list[str]:
    if not m.latency:
        return [m.title, m.status, *[""] * 4]
    times = "{:.2f} ({:.2f}-{:.2f})".format(*m.ratio) if m.ratio else "-"
    return [m.title, *(figure(m.latency[k]) for k in ("median", "p10", "p90", "p99")), times]


def _network_rates(m: Measurement) -> tuple[str, str]:
    if not m.latency:
        return "", ""
    return figure(m.images_per_s), figure(m.memory_mib)


def _module_rates(
    result: CaseResult, m: Measurement, ceiling: dict[str, Any] | None
) -> tuple[str, str]:
    gflops = result.gflops(m)
    if gflops is None:
        return "", ""
    return figure(gflops), figure(100 * gflops / ceiling["gflops"], 2) if ceiling else "-"
