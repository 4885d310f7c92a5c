"""Processes that must not be mistaken for others: a pid alone is reused, a pid with its start time is not."""

from __future__ import annotations

import os
import signal
import time
from typing import Final

import msgspec

_POLL_S: Final = 0.01


class ProcessId(msgspec.Struct, frozen=True):
    """A process for ever: its pid and its start time in clock ticks since boot (field 22 of `/proc/<pid>/stat`)."""

    pid: int
    start_time: int

    @classmethod
    def current(cls) -> ProcessId:
        """This process."""
        pid = os.getpid()
        found = start_time(pid)
        assert found is not None, "/proc holds every living process"
        return cls(pid, found)

    @classmethod
    def of(cls, pid: int) -> ProcessId | None:
        """The process that has `pid` now, or None."""
        found = start_time(pid)
        return None if found is None else cls(pid, found)

    def is_alive(self) -> bool:
        """Whether it still runs; a zombie does not."""
        return is_alive(self.pid, self.start_time)

    def send(self, number: signal.Signals) -> bool:
        """Send a signal to this process and surely to no other; False if it is gone.

        Raises `PermissionError` for a process of another user.
        """
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return False
        try:
            # The handle fixes the process; only now does comparing the start time prove anything.
            if not self.is_alive():
                return False
            signal.pidfd_send_signal(handle, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(handle)
        return True

    def wait_gone(self, limit_s: float) -> bool:
        """Wait until it has ended, at most `limit_s`; False if it has not."""
        deadline = time.monotonic() + limit_s
        while self.is_alive():
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_S)
        return True


def _stat(pid: int) -> list[bytes] | None:
    """The fields of `/proc/<pid>/stat` from the third (state) on."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field is the program's name in parentheses and may hold spaces and parentheses itself.
    return text[text.rindex(b")") + 2 :].split()


def start_time(pid: int) -> int | None:
    """Start of the process that has `pid` now, in clock ticks since boot, or None if there is none."""
    fields = _stat(pid)
    return int(fields[19]) if fields else None


def is_alive(pid: int, start_time: int) -> bool:
    """Whether the process that had `pid` and `start_time` still runs."""
    fields = _stat(pid)
    return fields is not None and int(fields[19]) == start_time and fields[0] not in (b"Z", b"X")
