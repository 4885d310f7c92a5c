"""Finding the processes a test started, and waiting for conditions, from /proc alone."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Process:
    """One live process: id, start time in clock ticks (a reused pid is told apart by it), command line."""

    pid: int
    start_time: int
    argv: tuple[str, ...]

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal, unless the pid now belongs to somebody else."""
        if start_time(self.pid) == self.start_time:
            with contextlib.suppress(ProcessLookupError):  # it may end between the look and the signal
                os.kill(self.pid, number)

    @property
    def alive(self) -> bool:
        """Whether this very process still runs (zombies do not)."""
        return start_time(self.pid) == self.start_time


def start_time(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat, or None when the process is gone or a zombie (proc(5))."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def find(marker: str) -> list[Process]:
    """Every live process of ours that carries `marker` (such as `NAME=value`) in its initial environment, by pid."""
    found: list[Process] = []
    needle = os.fsencode(marker)
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            with open(f"/proc/{entry}/environ", "rb") as file:
                if needle not in file.read().split(b"\0"):
                    continue
            with open(f"/proc/{entry}/cmdline", "rb") as file:
                argv = tuple(os.fsdecode(part) for part in file.read().split(b"\0")[:-1])
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # ended while we looked, or another user's
        started = start_time(int(entry))
        if started is not None:
            found.append(Process(int(entry), started, argv))
    return sorted(found, key=lambda process: process.pid)


def kill_all(marker: str, limit_s: float = 10.0) -> list[Process]:
    """SIGKILL whatever carries the marker until nothing is left; return what was found at first."""
    first = find(marker)
    deadline = time.monotonic() + limit_s
    left = first
    while left:
        for process in left:
            process.kill()
        if time.monotonic() > deadline:
            raise AssertionError(f"could not kill {left}")
        time.sleep(0.02)
        left = find(marker)
    return first


def wait_until(
    predicate: Callable[[], T | Literal[False] | None], limit_s: float, what: str, every_s: float = 0.02
) -> T:
    """Poll until `predicate` returns something true and return it; fail naming `what` after `limit_s` seconds.

    `what` may be a plain sentence; the last value seen is added to the failure.
    """
    deadline = time.monotonic() + limit_s
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise AssertionError(f"waited {limit_s:g} s for {what}; last seen: {value!r}")
        time.sleep(every_s)
