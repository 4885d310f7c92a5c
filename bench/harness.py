"""What every measurement shares: rows, statistics, the table, the JSON document."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict


class Comparison(TypedDict):
    """The other thing measured in the same run, in the unit of its row."""

    name: str
    value: float


class Row(TypedDict):
    """One line of the result.

    `ratio` is value / comparison; `budget` says in words what must hold; `ok` whether it does, None where nothing
    was promised.
    """

    name: str
    value: float
    unit: str
    comparison: Comparison | None
    ratio: float | None
    budget: str | None
    ok: bool | None


def row(
    name: str,
    value: float,
    unit: str,
    *,
    compare: tuple[str, float] | None = None,
    at_most: float | None = None,
    at_least: float | None = None,
    ratio_at_most: float | None = None,
    ratio_at_least: float | None = None,
) -> Row:
    """Build a row and judge it; the limits are in the row's unit, or for the ratio plain factors."""
    ratio = value / compare[1] if compare else None
    verdicts: list[bool] = []
    words: list[str] = []
    for limit, measured, sign, mark in (
        (at_most, value, 1, unit),
        (at_least, value, -1, unit),
        (ratio_at_most, ratio, 1, "x"),
        (ratio_at_least, ratio, -1, "x"),
    ):
        if limit is not None:
            assert measured is not None, f"{name}: a limit on a ratio needs a comparison"
            verdicts.append(measured * sign <= limit * sign)
            words.append(f"{'<=' if sign > 0 else '>='} {limit:g}{'' if mark == 'x' else ' '}{mark}")
    return Row(
        name=name,
        value=value,
        unit=unit,
        comparison=Comparison(name=compare[0], value=compare[1]) if compare else None,
        ratio=ratio,
        budget=", ".join(words) or None,
        ok=all(verdicts) if verdicts else None,
    )


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile: the smallest value that `percent` % of all values do not exceed."""
    ordered = sorted(values)
    rank = max(1, -(-len(ordered) * percent // 100))
    return ordered[int(rank) - 1]


def interleaved(tasks: dict[str, Callable[[], float]], runs: int) -> dict[str, list[float]]:
    """Take turns between tasks that each return what they measured, so that a noisy moment hits all alike.

    One round before is not counted: it fills caches.
    """
    results: dict[str, list[float]] = {name: [] for name in tasks}
    for number in range(runs + 1):
        for name, task in tasks.items():
            value = task()
            if number:
                results[name].append(value)
    return results


def median(values: Sequence[float]) -> float:
    """The median."""
    return float(statistics.median(values))


@contextmanager
def stopwatch() -> Iterator[Callable[[], float]]:
    """`with stopwatch() as seconds: ...; seconds()` gives the seconds since the start, frozen at the end."""
    begin = time.perf_counter()
    end: float | None = None
    try:
        yield lambda: (end if end is not None else time.perf_counter()) - begin
    finally:
        end = time.perf_counter()


def machine() -> dict[str, Any]:
    """What the numbers were measured on; nothing that names the machine or its user."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "arch": platform.machine(),
        "cpus": os.cpu_count(),
        "load_before": os.getloadavg()[0],
    }


def fdatasync_rate(directory: Path, size_bytes: int = 512, count: int = 300) -> float:
    """Durable appends a second of the bare disk under `directory`: write, fdatasync, one after another."""
    path = directory / "fdatasync.probe"
    block = os.urandom(size_bytes)
    handle = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    try:
        with stopwatch() as seconds:
            for _ in range(count):
                os.write(handle, block)
                os.fdatasync(handle)
        return count / seconds()
    finally:
        os.close(handle)
        path.unlink()


def number(value: float) -> str:
    """A figure with three or four digits that mean something."""
    if abs(value) >= 1000:
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.3g}"


def table(rows: Sequence[Row]) -> str:
    """The rows as text for people."""
    head = ("", "what", "measured", "compared with", "ratio", "budget")
    cells = [head]
    for entry in rows:
        comparison = entry["comparison"]
        cells.append(
            (
                {True: "ok", False: "MISS", None: ""}[entry["ok"]],
                entry["name"],
                f"{number(entry['value'])} {entry['unit']}",
                f"{comparison['name']}: {number(comparison['value'])}" if comparison else "",
                f"{entry['ratio']:.2f}" if entry["ratio"] is not None else "",
                str(entry["budget"] or ""),
            )
        )
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in cells
    )
