"""The measuring itself: a figure that is computed wrongly would be believed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.__main__ import names, write
from bench.harness import fdatasync_rate, interleaved, median, number, percentile, row, stopwatch, table
from tests.harness import REPO


@pytest.mark.parametrize(
    ("percent", "expected"), [(1, 1), (50, 50), (99, 99), (99.5, 100), (100, 100)], ids=lambda value: str(value)
)
def test_percentiles_are_nearest_rank(percent: float, expected: float) -> None:
    assert percentile([float(value) for value in range(100, 0, -1)], percent) == expected


def test_the_percentile_of_one_value_is_that_value() -> None:
    assert percentile([7.0], 1) == percentile([7.0], 99) == 7.0


def test_a_row_is_judged_by_every_limit_it_has() -> None:
    good = row("x", 2.0, "ms", compare=("floor", 1.0), at_most=2.0, ratio_at_most=2.0)
    assert (good["ratio"], good["ok"], good["budget"]) == (2.0, True, "<= 2 ms, <= 2x")
    assert row("x", 2.1, "ms", compare=("floor", 1.0), at_most=3, ratio_at_most=2.0)["ok"] is False
    assert row("x", 599, "/s", at_least=600)["ok"] is False
    assert row("x", 600, "/s", at_least=600)["ok"] is True
    assert row("x", 1, "/s", compare=("y", 2), ratio_at_least=0.6)["ok"] is False
    assert row("x", 1, "/s")["ok"] is None
    with pytest.raises(AssertionError, match="needs a comparison"):
        row("x", 1, "ms", ratio_at_most=2)


def test_turns_are_taken_and_the_first_round_is_not_counted() -> None:
    log: list[str] = []

    def task(name: str) -> float:
        log.append(name)
        return float(len(log))

    results = interleaved({"a": lambda: task("a"), "b": lambda: task("b")}, 3)
    assert log == ["a", "b"] * 4
    assert results == {"a": [3.0, 5.0, 7.0], "b": [4.0, 6.0, 8.0]}
    assert median(results["a"]) == 5.0


def test_the_table_shows_every_row_and_marks_the_missed_ones() -> None:
    text = table([row("fast", 1.0, "ms", at_most=2), row("slow", 12345.6, "/s", compare=("raw", 10), at_least=1e6)])
    lines = text.splitlines()
    assert len(lines) == 3
    assert lines[1].startswith("ok")
    assert lines[2].startswith("MISS")
    assert "12 346 /s" in lines[2]
    assert number(0.12345) == "0.123"


def test_the_stopwatch_stops() -> None:
    with stopwatch() as seconds:
        during = seconds()
    after = seconds()
    assert 0 <= during <= after == seconds()


def test_the_disk_is_measured_and_left_clean(tmp_path: Path) -> None:
    assert fdatasync_rate(tmp_path, count=5) > 0
    assert list(tmp_path.iterdir()) == []


def test_results_are_kept_under_a_name_of_their_own_or_the_one_given(tmp_path: Path) -> None:
    document = {"began_at": "2026-01-02T03:04:05Z", "results": {}}
    assert write(document, tmp_path / "new").name == "2026-01-02T030405Z.json"
    assert json.loads(write(document, tmp_path / "x.json").read_text()) == document


def test_an_unknown_measurement_is_refused_and_the_known_ones_are_named() -> None:
    assert {"cli", "commits", "control"} <= set(names())
    assert "harness" not in names()
    done = subprocess.run(
        [sys.executable, "-m", "bench", "nothing"], cwd=REPO, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 2
    assert "no measurement called nothing" in done.stderr
