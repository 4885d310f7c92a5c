"""What supervision takes and gives: specs, settings, reports, and the log it writes to."""

from __future__ import annotations

from typing import Literal, Protocol

import msgspec

from substrate.meshos.loglines import Level, LogSource
from substrate.meshos.restart import RestartSettings

InstanceKey = tuple[int, int]
"""The daemon's id and the number of the instance."""
Lifecycle = Literal["starting", "running", "stopping", "stopped", "backing-off", "crash-looping"]
RestartMode = Literal["always", "on-failure", "never"]


class SupervisorSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The times of supervision."""

    restart: RestartSettings = RestartSettings()
    clean_restart_ms: int = 500
    """The pause after a clean exit when the daemon is to run always."""
    jitter: float = 0.1
    """Pauses are made longer by up to this part, so that what failed together does not start together."""


class InstanceSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What to run. `epoch` is the control seq of the assignment; `cwd` None is the root directory."""

    key: InstanceKey
    name: str
    epoch: int
    argv: tuple[str, ...]
    env: dict[str, str] = {}
    cwd: str | None = None
    grace_ms: int = 30_000
    restart: RestartMode = "always"


class LastExit(msgspec.Struct, frozen=True):
    """How the last run ended: by `code` or `signal`; neither when it could not be executed or nobody saw it end."""

    code: int | None
    signal: int | None
    at_ms: int
    reason: str


class InstanceReport(msgspec.Struct, frozen=True):
    """An instance as it is now. Times are wall milliseconds; `age_ms` is the time in the present lifecycle.

    `reason` says why it is stopped, stopping or pausing. `restarts` counts starts after the first of this epoch.
    """

    key: InstanceKey
    name: str
    epoch: int
    lifecycle: Lifecycle
    pid: int | None
    started_at_ms: int | None
    restarts: int
    last_exit: LastExit | None
    next_start_ms: int | None
    age_ms: int
    reason: str | None


class Capture(Protocol):
    """Reads the output of one run."""

    async def finish(self, limit_s: float = ...) -> None:
        """Read what is left and close the descriptors."""


class LogSink(Protocol):
    """Where output goes; `substrate.meshos.logs.LogStore` is one."""

    def attach(self, source: LogSource, stdout_fd: int, stderr_fd: int) -> Capture:
        """Own the two descriptors and read them."""

    def note(self, source: LogSource | None, level: Level, message: str) -> None:
        """Record something the node says."""
