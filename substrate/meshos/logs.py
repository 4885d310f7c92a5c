"""The node's log: the lines of its daemons and its own, on one RedEX chain of its own store, queried and followed.

Lines are written in batches (50 ms or 256 lines) and flushed to disk at intervals: a power cut loses what
was logged in the last `LOSS_BOUND_MS` at most; a killed node loses only the batch it was collecting.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

import msgspec

from substrate.meshos.capture import LogCapture, RateLimit
from substrate.meshos.loglines import LEVELS, Level, LogLine, LogSource
from substrate.redex import Interval, Lagged, Retention, Store
from substrate.wire.errors import NetError
from substrate.wire.records import Record
from substrate.wire.times import now_ms as wall_ms

CHAIN: Final = "log"
RETENTION: Final = Retention(max_records=200_000, max_bytes=64 * 1024 * 1024)
BATCH_MS: Final = 50
BATCH_LINES: Final = 256
BATCH_BYTES: Final = 256 * 1024
MAX_PENDING_LINES: Final = 16_384
FLUSH_MS: Final = 1000
LOSS_BOUND_MS: Final = BATCH_MS + FLUSH_MS
"""What a power cut may cost, plus the time of one flush."""
SWEEP_S: Final = 30.0
RETRY_S: Final = 1.0
MAX_QUERY_LINES: Final = 10_000
_PAGE: Final = 1000


class StoredLine(msgspec.Struct, frozen=True):
    """A line and its seq on the chain."""

    seq: int
    line: LogLine


class _Filter(msgspec.Struct, frozen=True):
    min_level: Level
    daemon_id: int | None
    contains: str | None

    def passes(self, line: LogLine) -> bool:
        return (
            LEVELS.index(line.level) >= LEVELS.index(self.min_level)
            and (self.daemon_id is None or line.daemon_id == self.daemon_id)
            and (self.contains is None or self.contains in line.message)
        )


class LogStore:
    """The log of one node. Use on one event loop; made by `open`, ended by `close`."""

    def __init__(self, store: Store, now_ms: Callable[[], int] = wall_ms, limit: RateLimit | None = None) -> None:
        self._store = store
        self._now_ms = now_ms
        self._limit = limit or RateLimit()
        self._encode = msgspec.json.Encoder().encode
        self._decode = msgspec.json.Decoder(LogLine).decode
        self._pending: deque[LogLine] = deque()
        self._dropped = 0
        self._work = asyncio.Event()
        self._full = asyncio.Event()
        self._news = asyncio.Event()
        self._closing = False
        self._writer = asyncio.get_running_loop().create_task(self._write())
        self._writer.add_done_callback(_tell_failure)

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        now_ms: Callable[[], int] = wall_ms,
        retention: Retention = RETENTION,
        limit: RateLimit | None = None,
        on_fatal: Callable[[NetError], None] | None = None,
    ) -> LogStore:
        """Open or make the log in the file `path`. Raises what `Store.open` raises."""
        store = Store.open(path, durability=Interval(ms=FLUSH_MS), on_fatal=on_fatal)
        try:
            if not any(info.name == CHAIN for info in store.chains()):
                store.create_chain(CHAIN, retention)
            return cls(store, now_ms, limit)
        except BaseException:
            store.close()
            raise

    # --- writing ---

    def attach(self, source: LogSource, stdout_fd: int, stderr_fd: int) -> LogCapture:
        """Log what comes out of these two pipes from now on; the capture owns them."""
        return LogCapture(source, stdout_fd, stderr_fd, self.append, self._now_ms, self._limit)

    def note(self, source: LogSource | None, level: Level, message: str) -> None:
        """Log something the node itself has to say, about one instance or (None) about itself."""
        if source is None:
            self.append(LogLine(self._now_ms(), level, "node", message))
        else:
            self.append(
                LogLine(self._now_ms(), level, "node", message, source.daemon_id, source.daemon, source.instance)
            )

    def append(self, line: LogLine) -> None:
        """Take one line; it is stored shortly. When the disk does not keep up lines are dropped, and counted in the log."""
        if len(self._pending) >= MAX_PENDING_LINES or self._closing:
            self._dropped += 1
            return
        self._pending.append(line)
        self._work.set()
        if len(self._pending) >= BATCH_LINES:
            self._full.set()

    async def flush(self) -> None:
        """Wait until every line taken so far is stored. Raises what made storing fail."""
        while self._pending and not self._writer.done():
            news = self._news
            self._full.set()
            waiter = asyncio.ensure_future(news.wait())
            await asyncio.wait({waiter, self._writer}, return_when=asyncio.FIRST_COMPLETED)
            waiter.cancel()
        if self._writer.done():
            self._writer.result()

    async def close(self) -> None:
        """Store what is pending, end every follower, close the file. Raises what made storing fail."""
        self._closing = True
        self._work.set()
        self._full.set()
        try:
            await self._writer
        finally:
            self._tell()
            await asyncio.to_thread(self._store.close)

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        swept_at = loop.time()
        while not self._closing or self._pending:
            await self._work.wait()
            if not self._closing:
                try:
                    await asyncio.wait_for(self._full.wait(), BATCH_MS / 1000)
                except TimeoutError:
                    pass  # the batch is as large as it got
            self._full.clear()
            await self._store_batch()
            if not self._pending and not self._closing:
                self._work.clear()
            if loop.time() - swept_at >= SWEEP_S:
                swept_at = loop.time()
                await asyncio.to_thread(self._store.sweep, CHAIN, self._now_ms())

    async def _store_batch(self) -> None:
        payloads: list[bytes] = []
        size = 0
        if self._dropped:
            note = LogLine(self._now_ms(), "error", "node", f"{self._dropped} lines dropped: the log cannot keep up")
            payloads.append(self._encode(note))
        for line in self._pending:
            payload = self._encode(line)
            if len(payloads) >= BATCH_LINES or (payloads and size + len(payload) > BATCH_BYTES):
                break
            payloads.append(payload)
            size += len(payload)
        if not payloads:
            return
        told = self._dropped
        try:
            await asyncio.wrap_future(self._store.submit(CHAIN, payloads, at_ms=self._now_ms()))
        except NetError as error:
            if error.kind != "disk-full" or self._closing:
                raise
            # There may be room again soon; until then lines wait, and are dropped when too many do.
            await asyncio.sleep(RETRY_S)
            return
        self._dropped -= told
        for _ in range(len(payloads) - bool(told)):
            self._pending.popleft()
        if len(self._pending) >= BATCH_LINES:
            self._full.set()
        self._tell()

    def _tell(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    # --- reading ---

    async def query(
        self,
        *,
        since: int = 0,
        limit: int = 100,
        min_level: Level = "trace",
        daemon_id: int | None = None,
        contains: str | None = None,
        newest: bool = True,
    ) -> list[StoredLine]:
        """At most `limit` stored lines with a seq above `since`, always oldest first.

        With `newest` the last ones that match, else the first. `min_level` and above, of one daemon, holding a
        text. Raises `invalid-argument` for a limit out of 1 to 10 000.
        """
        if not 1 <= limit <= MAX_QUERY_LINES:
            raise NetError("invalid-argument", f"a limit of {limit} lines is not within 1 to {MAX_QUERY_LINES}")
        return await asyncio.to_thread(self._query, since, limit, _Filter(min_level, daemon_id, contains), newest)

    def _query(self, since: int, limit: int, wanted: _Filter, newest: bool) -> list[StoredLine]:
        head = self._store.head(CHAIN).seq
        found: list[StoredLine] = []
        if not newest:
            position = since + 1
            while position <= head and len(found) < limit:
                records = self._store.read(CHAIN, position, limit=_PAGE)
                if not records:
                    break
                found += self._matching(records, wanted)
                position = records[-1].seq + 1
            return found[:limit]
        end = head
        while end > since and len(found) < limit:
            position = max(since + 1, end - _PAGE + 1)
            page: list[StoredLine] = []
            start = position
            while position <= end:
                records = self._store.read(CHAIN, position, limit=end - position + 1)
                if not records or records[0].seq > end:
                    break
                page += self._matching([record for record in records if record.seq <= end], wanted)
                position = records[-1].seq + 1
            if position == start:
                break  # older ones were evicted
            found[:0] = page
            end = start - 1
        return found[-limit:]

    def _matching(self, records: list[Record], wanted: _Filter) -> list[StoredLine]:
        lines = ((record.seq, self._decode(record.payload)) for record in records)
        return [StoredLine(seq, line) for seq, line in lines if wanted.passes(line)]

    async def follow(
        self,
        *,
        since: int | None = None,
        min_level: Level = "trace",
        daemon_id: int | None = None,
        contains: str | None = None,
    ) -> AsyncIterator[list[StoredLine] | Lagged]:
        """Batches of matching lines above `since` (None: from now on) as they are stored, until the log is closed.

        Nothing is buffered for a slow reader, it reads behind the head; `Lagged` tells what retention removed before
        it was read.
        """
        wanted = _Filter(min_level, daemon_id, contains)
        position = (await asyncio.to_thread(self._store.head, CHAIN)).seq if since is None else since
        while True:
            news = self._news
            records = (
                [] if self._closing else await asyncio.to_thread(self._store.read, CHAIN, position + 1, limit=_PAGE)
            )
            if not records:
                if self._closing:
                    return
                await news.wait()
                continue
            if records[0].seq > position + 1:
                yield Lagged(position + 1, records[0].seq - 1)
            position = records[-1].seq
            if lines := self._matching(records, wanted):
                yield lines


def _tell_failure(writer: asyncio.Task[None]) -> None:
    """A log that cannot be written any more is told to the loop's exception handler at once, not only at `close`."""
    error = None if writer.cancelled() else writer.exception()
    if error is not None:
        writer.get_loop().call_exception_handler({"message": "the log cannot be written", "exception": error})
