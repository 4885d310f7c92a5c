"""Restart rules: the vectors, the correction, and what must hold for any history."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from substrate.meshos.restart import Gate, RestartPolicy, RestartSettings

VECTORS = json.loads((Path(__file__).resolve().parents[1] / "vectors" / "backoff.json").read_text())
STATES = {"BackingOff": "backing-off", "CrashLooping": "crash-looping"}


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: f"{len(vector['crashes_at_s'])} crashes")
def test_vectors(vector: dict[str, Any]) -> None:
    policy = RestartPolicy()
    for expected in vector["states"]:
        gate = policy.crashed(int(expected["at_s"] * 1000))
        assert gate == Gate(STATES[expected["state"]], int(expected["until_s"] * 1000))  # type: ignore[arg-type]


def test_a_pause_is_no_stable_run() -> None:
    """Crashing at once after each start: the pause grows to its cap and stays there, also when it exceeds a stable run."""
    policy = RestartPolicy(RestartSettings(crash_limit=100))
    now, pauses = 0, []
    for _ in range(10):
        policy.started(now)
        gate = policy.crashed(now + 10)
        assert gate.until_ms is not None
        pauses.append(gate.until_ms - now - 10)
        now = gate.until_ms
    assert pauses == [500, 1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000, 60_000]


@pytest.mark.parametrize(("ran_ms", "pause_ms"), [(59_999, 2000), (60_000, 500)])
def test_a_stable_run_forgives(ran_ms: int, pause_ms: int) -> None:
    policy = RestartPolicy()
    policy.crashed(0)
    policy.crashed(1000)
    policy.started(10_000)
    gate = policy.crashed(10_000 + ran_ms)
    assert gate == Gate("backing-off", 10_000 + ran_ms + pause_ms)


def test_a_stable_run_that_ends_well_forgives_too() -> None:
    policy = RestartPolicy()
    policy.crashed(0)
    policy.started(500)
    assert policy.ended(60_500) == Gate()
    assert policy.crashed(60_600) == Gate("backing-off", 61_100)


def test_a_short_good_run_opens_the_gate_but_forgives_nothing() -> None:
    policy = RestartPolicy()
    policy.crashed(0)
    policy.started(500)
    assert policy.ended(600) == Gate()
    policy.started(600)
    assert policy.crashed(700) == Gate("backing-off", 1700)


def test_failed_executions_are_a_crash_loop_too() -> None:
    policy = RestartPolicy()
    states = [policy.crashed(at).state for at in range(5)]
    assert states == ["backing-off"] * 4 + ["crash-looping"]
    # After the loop's pause the next crash starts from the smallest pause.
    assert policy.crashed(300_004) == Gate("backing-off", 300_504)


def test_the_gate_opens_by_time_and_by_release() -> None:
    policy = RestartPolicy()
    assert policy.gate(0) == Gate()
    policy.crashed(0)
    assert policy.gate(499) == Gate("backing-off", 500)
    assert policy.gate(500) == Gate()
    policy.crashed(600)
    policy.release()
    assert policy.gate(601) == Gate()
    assert policy.crashed(700) == Gate("backing-off", 1200)


@given(st.lists(st.tuples(st.integers(0, 200_000), st.integers(0, 200_000), st.booleans()), max_size=40))
def test_any_history(runs: list[tuple[int, int, bool]]) -> None:
    """Pauses lie within their bounds, and a crash after fewer than five in a minute is never a loop."""
    policy = RestartPolicy()
    settings = policy.settings
    now = 0
    crashes: list[int] = []
    for ran_ms, waited_ms, failed in runs:
        now += waited_ms
        policy.started(now)
        assert policy.gate(now) == Gate()
        now += ran_ms
        if ran_ms >= settings.stable_run_ms:
            crashes.clear()
        if not failed:
            assert policy.ended(now) == Gate()
            continue
        crashes = [at for at in crashes if at >= now - settings.crash_window_ms] + [now]
        gate = policy.crashed(now)
        assert gate.until_ms is not None
        if len(crashes) >= settings.crash_limit:
            assert gate == Gate("crash-looping", now + settings.crash_loop_ms)
        else:
            assert gate.state == "backing-off"
            assert settings.first_backoff_ms <= gate.until_ms - now <= settings.max_backoff_ms
        now = max(now, gate.until_ms)
