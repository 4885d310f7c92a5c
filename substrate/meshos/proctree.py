"""Process trees on Linux: who descends from whom, who carries a mark, and killing without hitting a stranger.

Standard library only: the guardian, which must start fast and stay small, imports nothing else of ours.

A process of a daemon can leave its parent (by a double fork), its process group and its session (setsid),
but it is born with the daemon's environment, which holds the mark `NET_TREE=<token>`. `/proc/PID/environ`
shows the environment of the last exec, so the mark stays unless the process erases it on purpose.
Source: architecture, "Real effects".
"""

from __future__ import annotations

import os
import signal
import time
from collections import defaultdict
from typing import NamedTuple

MARK = "NET_TREE"
"""The environment variable every process of a supervised tree carries."""


class Proc(NamedTuple):
    """One live process as `/proc/PID/stat` shows it; `start_ticks` tells apart two users of one pid."""

    pid: int
    ppid: int
    pgrp: int
    session: int
    start_ticks: int


def read_proc(pid: int) -> Proc | None:
    """The process `pid`, or None when it is gone or only a zombie waiting to be reaped."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        return None
    try:
        data = os.read(fd, 4096)
    except ProcessLookupError:
        return None
    finally:
        os.close(fd)
    # The command name is in parentheses and may itself hold spaces and parentheses.
    fields = data[data.rindex(b")") + 2 :].split()
    # A zombie leader with other threads left is still a running program.
    if fields[0] in (b"Z", b"X") and int(fields[17]) <= 1:
        return None
    return Proc(pid, int(fields[1]), int(fields[2]), int(fields[3]), int(fields[19]))


def read_all() -> list[Proc]:
    """Every live process of the machine that this user may see, in no particular order."""
    return [proc for name in os.listdir("/proc") if name.isdigit() and (proc := read_proc(int(name))) is not None]


def children_of(procs: list[Proc]) -> dict[int, list[Proc]]:
    """The processes grouped by their parent's pid."""
    children: dict[int, list[Proc]] = defaultdict(list)
    for proc in procs:
        children[proc.ppid].append(proc)
    return children


def mark_of(pid: int) -> str | None:
    """The mark in the environment of `pid`; None without one, or when it may not be read."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            data = file.read(4 * 1024 * 1024)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    at = (b"\0" + data).find(b"\0" + MARK.encode() + b"=")
    if at < 0:
        return None
    start = at + len(MARK) + 1
    end = data.find(b"\0", start)
    return data[start : end if end >= 0 else len(data)].decode("ascii", "replace")


def send_signal(proc: Proc, signum: int) -> bool:
    """Signal exactly this process, never a later one that got its pid. False when it is gone or not ours."""
    try:
        fd = os.pidfd_open(proc.pid)
    except ProcessLookupError:
        return False
    try:
        # The pidfd is fixed now: if the process behind it is the one meant, the signal cannot go astray.
        now = read_proc(proc.pid)
        if now is None or now.start_ticks != proc.start_ticks:
            return False
        signal.pidfd_send_signal(fd, signum)
    except (ProcessLookupError, PermissionError):
        return False
    finally:
        os.close(fd)
    return True


def marked(prefix: str) -> list[Proc]:
    """The live processes of this user whose mark starts with `prefix`, except the caller."""
    me, uid = os.getpid(), os.getuid()
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == me:
            continue
        try:
            if uid not in (0, os.stat(f"/proc/{name}").st_uid):
                continue
        except FileNotFoundError:
            continue
        mark = mark_of(int(name))
        if mark is not None and mark.startswith(prefix) and (proc := read_proc(int(name))) is not None:
            found.append(proc)
    return found


def kill_marked(prefix: str, *, limit_s: float) -> list[int]:
    """SIGKILL every process whose mark starts with `prefix`, scanning again until none is left.

    Blocks for up to `limit_s` seconds; returns the pids still there then (empty: all are dead). For use
    when no guardian is left to do it: a process that erased its mark is not found this way.
    """
    assert len(prefix) >= 16, "a short prefix would match strangers"
    end = time.monotonic() + limit_s
    empty_scans, delay_s = 0, 0.002
    while True:
        procs = marked(prefix)
        # Two empty scans: a fork behind the first scan's back is seen by the second.
        empty_scans = 0 if procs else empty_scans + 1
        if empty_scans == 2:
            return []
        if procs and time.monotonic() >= end:
            return sorted(proc.pid for proc in procs)
        for proc in procs:
            send_signal(proc, signal.SIGKILL)
        time.sleep(delay_s)
        delay_s = min(delay_s * 2, 0.05)
