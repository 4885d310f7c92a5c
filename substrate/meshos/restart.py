"""When a daemon that ended may start again: growing back-off, and a long pause for a crash loop. Pure.

Times are milliseconds of one monotonic clock, passed in. The rules are reference/operator-plane.md 4.6 with
one correction: a run is stable by the time the daemon *ran*, so that a back-off pause cannot count as one.
"""

from __future__ import annotations

from typing import Literal

import msgspec


class RestartSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The constants of the rules; tests and policy lower them."""

    first_backoff_ms: int = 500
    factor: int = 2
    max_backoff_ms: int = 60_000
    crash_limit: int = 5
    """So many crashes within the window are a crash loop."""
    crash_window_ms: int = 60_000
    crash_loop_ms: int = 300_000
    stable_run_ms: int = 60_000
    """A run this long forgives what was before it."""


class Gate(msgspec.Struct, frozen=True):
    """Whether a start is allowed: `open`, or not before `until_ms`."""

    state: Literal["open", "backing-off", "crash-looping"] = "open"
    until_ms: int | None = None


class RestartPolicy:
    """The memory of one daemon instance's crashes."""

    def __init__(self, settings: RestartSettings | None = None) -> None:
        self.settings = settings or RestartSettings()
        self._next_backoff_ms = self.settings.first_backoff_ms
        self._crashes: list[int] = []
        self._started_ms: int | None = None
        self._gate = Gate()

    def started(self, now_ms: int) -> None:
        """The daemon runs from now on."""
        self._started_ms = now_ms
        self._gate = Gate()

    def crashed(self, now_ms: int) -> Gate:
        """It ended by itself with a failure, or could not be executed; returns the pause this costs."""
        self._end_run(now_ms)
        settings = self.settings
        self._crashes = [at for at in self._crashes if at >= now_ms - settings.crash_window_ms]
        self._crashes.append(now_ms)
        if len(self._crashes) >= settings.crash_limit:
            self._next_backoff_ms = settings.first_backoff_ms
            self._gate = Gate("crash-looping", now_ms + settings.crash_loop_ms)
        else:
            self._gate = Gate("backing-off", now_ms + self._next_backoff_ms)
            self._next_backoff_ms = min(self._next_backoff_ms * settings.factor, settings.max_backoff_ms)
        return self._gate

    def ended(self, now_ms: int) -> Gate:
        """It ended without a failure, or was stopped; the gate is open."""
        self._end_run(now_ms)
        self._gate = Gate()
        return self._gate

    def gate(self, now_ms: int) -> Gate:
        """The gate as it stands now; a pause that is over has opened it."""
        if self._gate.until_ms is not None and self._gate.until_ms <= now_ms:
            self._gate = Gate()
        return self._gate

    def release(self) -> None:
        """Open the gate and forget every crash (an operator's order)."""
        self._forgive()
        self._gate = Gate()

    def _end_run(self, now_ms: int) -> None:
        if self._started_ms is not None and now_ms - self._started_ms >= self.settings.stable_run_ms:
            self._forgive()
        self._started_ms = None

    def _forgive(self) -> None:
        self._next_backoff_ms = self.settings.first_backoff_ms
        self._crashes.clear()
