"""Flushing an interval store: at most so many milliseconds, and so many bytes, after an append was acknowledged."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from substrate.redex.types import Interval
from substrate.wire.errors import NetError


class Flusher:
    """A thread that syncs the write-ahead log. `on_error` hears of the one failure; it never tries again after it."""

    def __init__(self, wal: Path, interval: Interval, on_error: Callable[[NetError], None]) -> None:
        self._wal = wal
        self._interval = interval
        self._on_error = on_error
        self._fd = -1
        self._unflushed = 0
        self._due_at: float | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="redex-flusher", daemon=True)
        self._thread.start()

    def note(self, size_bytes: int) -> None:
        """Bytes were committed without a flush. Flushes here, in the committing thread, when the bound is reached.

        Raises `io-error` if that fails.
        """
        with self._changed:
            self._unflushed += size_bytes
            if self._due_at is None:
                self._due_at = time.monotonic() + self._interval.ms / 1000
                self._changed.notify()
            over = self._unflushed >= self._interval.max_bytes
        if over:
            self.flush()

    @property
    def unflushed_bytes(self) -> int:
        """How much a power cut could take now."""
        with self._changed:
            return self._unflushed

    def flush(self) -> None:
        """Sync what was committed before this call; `io-error` if that fails."""
        with self._changed:
            self._unflushed = 0
            self._due_at = None
            if self._fd < 0:
                if not self._wal.exists():
                    return  # nothing was ever committed through this connection
                self._fd = os.open(self._wal, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fdatasync(self._fd)
            except OSError as error:
                raise NetError("io-error", f"cannot flush {self._wal}: {error.strerror}") from error

    def close(self) -> None:
        """End the thread; the caller flushes before."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not threading.current_thread():
            self._thread.join()
        if self._fd >= 0:
            os.close(self._fd)

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._closed:
                    return
                wait_s = None if self._due_at is None else self._due_at - time.monotonic()
                if wait_s is None or wait_s > 0:
                    self._changed.wait(wait_s)
                    continue
            try:
                self.flush()
            except NetError as error:
                self._on_error(error)
                return
