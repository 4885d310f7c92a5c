"""One supervised process tree as the guardian sees it, and how its first process is born.

Standard library only: part of the guardian.
"""

from __future__ import annotations

import json
import os
import signal
from typing import Any

from substrate.meshos import proctree
from substrate.meshos.linux import die_with_parent


class Tree:
    """One spawned process and all that came from it."""

    def __init__(self, key: str, pid: int, mark: str, exec_fd: int) -> None:
        self.key = key
        self.pid = pid
        self.mark = mark
        self.exec_fd: int | None = exec_fd
        """Read end of the pipe that closes at exec, or brings the reason why there was none; None afterwards."""
        proc = proctree.read_proc(pid)
        self.start_ticks = proc.start_ticks if proc is not None else 0
        self.failure: dict[str, Any] | None = None
        self.status: int | None = None
        """Wait status of the first process once it was reaped."""
        self.group_gone = False
        """True once pid may name a stranger's group: the process is reaped and a scan found the group empty."""
        self.kill_at: float | None = None
        """Monotonic second from which the tree is killed; None while nobody asked it to end."""
        self.scan_at = 0.0
        self.scan_delay_s = 0.002
        self.empty_scans = 0
        self.killing_since: float | None = None
        self.stuck_reported = False

    def end_by(self, at: float) -> None:
        """Have it killed from `at` on, unless that is due sooner already."""
        self.kill_at = at if self.kill_at is None else min(self.kill_at, at)
        self.scan_at, self.scan_delay_s = 0.0, 0.002

    def owns_group(self, number: int) -> bool:
        """Whether a session or process group of that number is this tree's."""
        return number == self.pid and not self.group_gone


def how_it_ended(status: int) -> dict[str, Any]:
    """A wait status as `code` or `signal`, the other one None."""
    if os.WIFSIGNALED(status):
        return {"code": None, "signal": os.WTERMSIG(status)}
    return {"code": os.waitstatus_to_exitcode(status), "signal": None}


def exec_child(command: dict[str, Any], fds: list[int], report_w: int, guardian: int, mark: str) -> None:
    """In the child: become the daemon, or write why not and exit. Never returns."""
    stage = "prepare"
    try:
        os.setsid()
        die_with_parent()
        if os.getppid() != guardian:
            os._exit(127)  # the guardian died before the line above could take effect
        signal.set_wakeup_fd(-1)
        for signum in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(signum, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(fds[0], 1)
        os.dup2(fds[1], 2)
        stage = "chdir"
        os.chdir(command["cwd"])
        stage = "exec"
        os.execvpe(command["argv"][0], command["argv"], {**command["env"], proctree.MARK: mark})
    except BaseException as error:  # whatever it is, two copies of the guardian must not go on
        errno = getattr(error, "errno", None)
        text = (getattr(error, "strerror", None) or str(error)) if errno is not None else repr(error)
        report = {"stage": stage, "error": text, "errno": errno}
        os.write(report_w, json.dumps(report).encode()[:4096])
    finally:
        os._exit(127)
