"""The lock file beside a store: held for life by an owner, per commit by the processes that share it.

flock belongs to the open file, so the kernel drops it when the process dies, however it dies.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from substrate.wire.errors import NetError


class FileLock:
    """An exclusive flock on `path` (created 0600). Not re-entrant; one holder per object at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def try_acquire(self) -> bool:
        """Take the lock if it is free."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def acquire(self, timeout_s: float) -> None:
        """Take the lock, waiting in the kernel's queue; `timeout` after `timeout_s` seconds.

        Only a thread can give up on a blocking flock, so the wait (never the free case) costs one. A waiter that gave
        up releases what it still gets: the lock belongs to its own open file, not to ours.
        """
        if self.try_acquire():
            return
        waiting = _Waiter(self.path)
        fd = waiting.wait(timeout_s)
        if fd is None:
            raise NetError(
                "timeout",
                f"another process has held {self.path} for {timeout_s:g} s",
                f"find it with: fuser -v {self.path}",
            )
        os.close(self._fd)
        self._fd = fd

    def release(self) -> None:
        """Let the next one in."""
        fcntl.flock(self._fd, fcntl.LOCK_UN)

    @contextmanager
    def held(self, timeout_s: float) -> Iterator[None]:
        """Hold the lock for a block."""
        self.acquire(timeout_s)
        try:
            yield
        finally:
            self.release()

    def close(self) -> None:
        """Release and forget the file. The file itself stays: removing it would split the lock in two."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class _Waiter:
    """Waits for the lock in a thread; the lock comes as an open file that holds it, or is dropped if nobody waits."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        self._mutex = threading.Lock()
        self._got = threading.Event()
        self._abandoned = False
        threading.Thread(target=self._run, name="redex-lock", daemon=True).start()

    def _run(self) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        with self._mutex:
            if self._abandoned:
                os.close(self._fd)
            else:
                self._got.set()

    def wait(self, timeout_s: float) -> int | None:
        try:
            self._got.wait(timeout_s)
        except BaseException:  # an interrupt in the waiting thread must not leave the lock held by nobody
            self._settle(keep=False)
            raise
        return self._settle(keep=True)

    def _settle(self, *, keep: bool) -> int | None:
        with self._mutex:
            if not self._got.is_set():
                self._abandoned = True
                return None
        if keep:
            return self._fd
        os.close(self._fd)
        return None
