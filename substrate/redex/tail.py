"""Following a chain. The records are in the file, so a slow tail re-reads them there and never slows a writer.

A tail hears `Lagged` only for records that are really gone for it: removed by retention before it read them, or, for a
live-only tail, pushed out of its buffer. Lag and end are values of their own, and both say where to go on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from substrate.redex.types import DEFAULT_READ_BYTES, SHARED_POLL_MS, Lagged, TailEnd
from substrate.wire.errors import NetError
from substrate.wire.records import Record

if TYPE_CHECKING:
    from substrate.redex.readside import ReadSide


class Tail:
    """One follower of one chain, for use by one thread; `close()` may come from any. Made by `Store.tail`.

    `next_seq` is the record it will give next: what to resume from.
    """

    def __init__(self, store: ReadSide, chain: str, next_seq: int, *, live_only: bool, buffer: int) -> None:
        self.chain = chain
        self.next_seq = next_seq
        self._store = store
        self._live_only = live_only
        self._buffer = buffer
        self._ready = threading.Event()
        self._ended: str | None = None

    def next(self, timeout_s: float | None = None) -> list[Record] | Lagged | TailEnd | None:
        """The next records (at most `buffer`), a gap, or the end; None when nothing came for `timeout_s` seconds.

        With None it waits as long as it takes. After the end it gives the end again. Raises `corrupt-store`.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            self._ready.clear()  # before looking: a commit after the look sets it again
            try:
                found = self._look()
            except NetError:
                if self._ended is None:
                    raise
                found = None  # the store was closed under the read
            if self._ended is not None:
                return TailEnd(self._ended, self.next_seq)
            if found:
                return found
            if not self._wait(deadline):
                return None

    def _look(self) -> list[Record] | Lagged | None:
        head = self._store.head(self.chain)
        if head.seq < self.next_seq:
            return None
        if self._live_only and head.seq - self.next_seq >= self._buffer:
            return self._skip_to(head.seq - self._buffer + 1)
        records, first_seq = self._store.read_for_tail(self.chain, self.next_seq, self._buffer, DEFAULT_READ_BYTES)
        if first_seq > self.next_seq:
            return self._skip_to(first_seq)
        if records:
            self.next_seq = records[-1].seq + 1
        return records

    def _skip_to(self, seq: int) -> Lagged:
        lagged = Lagged(self.next_seq, seq - 1)
        self.next_seq = seq
        return lagged

    def _wait(self, deadline: float | None) -> bool:
        """Wait for a commit (in a shared store: or the next look at other processes' commits); False when time is up."""
        wait_s = None if deadline is None else deadline - time.monotonic()
        if wait_s is not None and wait_s <= 0:
            return False
        if self._store.shared:
            poll_s = SHARED_POLL_MS / 1000
            self._ready.wait(poll_s if wait_s is None else min(poll_s, wait_s))
            return True
        return self._ready.wait(wait_s)

    def wake(self) -> None:
        """Look again: something was committed."""
        self._ready.set()

    def end(self, reason: str) -> None:
        """End it for the first given reason."""
        if self._ended is None:
            self._ended = reason
        self._ready.set()

    def close(self) -> None:
        """Stop following; a waiting `next` returns its end."""
        self._store.forget_tail(self)
        self.end("closed")

    def __iter__(self) -> Iterator[list[Record] | Lagged]:
        """What `next` gives, until the end."""
        while not isinstance(found := self.next(), TailEnd):
            if found is not None:
                yield found

    def __enter__(self) -> Tail:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
