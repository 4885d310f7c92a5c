"""Reads what one daemon instance writes, within limits: lines to the log, and a visible record for what was dropped.

An instance over its rate loses lines, never silently: a record tells how many. Its pipe is then also read more slowly,
so that a daemon that writes without end is slowed down itself instead of eating the node's time.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Final

import msgspec

from substrate.meshos.loglines import LineSplitter, LogLine, LogSource, Stream, detect_level

READ_BYTES: Final = 64 * 1024
"""As much as a pipe holds."""


class RateLimit(msgspec.Struct, frozen=True, kw_only=True):
    """What one instance may log: sustained per second, and at once after a quiet time."""

    lines_per_s: int = 1000
    burst_lines: int = 5000
    bytes_per_s: int = 1024 * 1024
    burst_bytes: int = 4 * 1024 * 1024
    pause_ms: int = 50
    """How long a pipe is left alone after a read over the limit."""
    report_ms: int = 1000
    """How often the count of dropped lines is recorded while it grows."""


class LogCapture:
    """The two pipes of one instance. Owns the descriptors: closes each at its end, all at `finish`.

    `emit` takes every line, on the loop; `now_ms` is the wall clock.
    """

    def __init__(
        self,
        source: LogSource,
        stdout_fd: int,
        stderr_fd: int,
        emit: Callable[[LogLine], None],
        now_ms: Callable[[], int],
        limit: RateLimit,
    ) -> None:
        self._source = source
        self._emit = emit
        self._now_ms = now_ms
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._lines_left = float(limit.burst_lines)
        self._bytes_left = float(limit.burst_bytes)
        self._refilled_at = self._reported_at = self._loop.time()
        self.dropped_lines = 0
        """Lines dropped and not yet told."""
        self._dropped_bytes = 0
        self._pauses: dict[int, asyncio.TimerHandle] = {}
        self._streams: dict[int, tuple[Stream, LineSplitter]] = {
            stdout_fd: ("stdout", LineSplitter()),
            stderr_fd: ("stderr", LineSplitter()),
        }
        self._ended = asyncio.Event()
        for fd in self._streams:
            os.set_blocking(fd, False)
            self._loop.add_reader(fd, self._readable, fd)

    async def finish(self, limit_s: float = 1.0) -> None:
        """Read to the end, which is there once no process holds the pipes, and close them; give up after `limit_s`."""
        for fd in list(self._pauses):
            self._resume(fd)
        try:
            async with asyncio.timeout(limit_s):
                await self._ended.wait()
        except TimeoutError:
            for fd in list(self._streams):  # held by a process outside the tree, to which it was handed
                self._end(fd)
        self._report_dropped()

    def _readable(self, fd: int) -> None:
        try:
            data = os.read(fd, READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            self._end(fd)
            return
        stream, splitter = self._streams[fd]
        if not self._take(stream, splitter.feed(data)):
            self._loop.remove_reader(fd)
            self._pauses[fd] = self._loop.call_later(self._limit.pause_ms / 1000, self._resume, fd)

    def _resume(self, fd: int) -> None:
        self._pauses.pop(fd).cancel()
        self._loop.add_reader(fd, self._readable, fd)

    def _end(self, fd: int) -> None:
        self._loop.remove_reader(fd)
        os.close(fd)
        stream, splitter = self._streams.pop(fd)
        self._take(stream, splitter.flush())
        if not self._streams:
            self._ended.set()

    def _take(self, stream: Stream, texts: list[tuple[str, bool]]) -> bool:
        """Emit what the limit allows and count the rest; whether all was allowed."""
        now = self._loop.time()
        elapsed_s, self._refilled_at = now - self._refilled_at, now
        limit = self._limit
        self._lines_left = min(limit.burst_lines, self._lines_left + elapsed_s * limit.lines_per_s)
        self._bytes_left = min(limit.burst_bytes, self._bytes_left + elapsed_s * limit.bytes_per_s)
        at_ms, source, dropping = self._now_ms(), self._source, False
        for text, continued in texts:
            if self._lines_left < 1 or self._bytes_left < len(text):
                self.dropped_lines += 1
                self._dropped_bytes += len(text)
                dropping = True
                continue
            if self.dropped_lines:
                self._report_dropped()
            self._lines_left -= 1
            self._bytes_left -= len(text)
            level = detect_level(text, stream)
            self._emit(LogLine(at_ms, level, stream, text, source.daemon_id, source.daemon, source.instance, continued))
        if dropping and now - self._reported_at >= limit.report_ms / 1000:
            self._report_dropped()
        return not dropping

    def _report_dropped(self) -> None:
        if not self.dropped_lines:
            return
        self._reported_at = self._loop.time()
        message = f"{self.dropped_lines} lines dropped ({self._dropped_bytes} characters): over the rate limit"
        self.dropped_lines = self._dropped_bytes = 0
        source = self._source
        self._emit(LogLine(self._now_ms(), "warn", "node", message, source.daemon_id, source.daemon, source.instance))
