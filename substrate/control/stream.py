"""Rows of a stream on their way to one reader: bounded, with lag told instead of hidden (contract section 8)."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final, Generic, TypeVar

import msgspec

Row = TypeVar("Row")

DEFAULT_LIMIT: Final = 1024
BATCH_ROWS: Final = 256


class Lagged(msgspec.Struct, frozen=True):
    """Rows `from_seq` to `to_seq` (both inclusive) were not delivered; the stream goes on after them."""

    from_seq: int
    to_seq: int

    def document(self) -> dict[str, dict[str, int]]:
        """The line a client sees: `{"lagged": {"from": .., "to": ..}}`."""
        return {"lagged": {"from": self.from_seq, "to": self.to_seq}}


class End(msgspec.Struct, frozen=True):
    """The end of a stream with its reason, a kebab-case word such as `complete` or `node-stopping`."""

    reason: str


class Subscription(Generic[Row]):
    """A bounded queue between a source of numbered rows and one stream.

    The source calls `push` and `finish` in the event loop's thread and never waits. When `limit` rows are held,
    further ones are counted, not kept; the reader sees the rows held, one `Lagged` for the gap, then new rows.
    Leaving the gap needs the queue half empty, so that a slow reader gets few wide gaps instead of many narrow ones.

    Iterating yields lists of rows (and of `Lagged`), at most 256 long, then one `End`. One reader only.
    `on_close` is called once when the reader leaves or the source finishes: the place to unsubscribe.
    """

    def __init__(self, limit: int = DEFAULT_LIMIT, on_close: Callable[[], None] | None = None) -> None:
        assert limit >= 1
        self._limit = limit
        self._rows: deque[Row | Lagged] = deque()
        self._lag: tuple[int, int] | None = None
        self._end: End | None = None
        self._ended = False
        self._waiter: asyncio.Future[None] | None = None
        self._on_close = on_close

    def __len__(self) -> int:
        return len(self._rows)

    def push(self, seq: int, row: Row) -> None:
        """Offer the row numbered `seq`; ignored once the subscription has finished."""
        if self._end is not None:
            return
        if self._lag is not None and len(self._rows) * 2 <= self._limit:
            self._rows.append(Lagged(*self._lag))
            self._lag = None
        if self._lag is not None:
            self._lag = (self._lag[0], seq)
        elif len(self._rows) >= self._limit:
            self._lag = (seq, seq)
        else:
            self._rows.append(row)
        self._wake()

    def push_lagged(self, from_seq: int, to_seq: int) -> None:
        """Pass on a gap that the source itself met."""
        if self._lag is not None:
            self._lag = (self._lag[0], to_seq)
        else:
            self._lag = (from_seq, to_seq)
        self._wake()

    def finish(self, reason: str) -> None:
        """No more rows: the reader gets what is held, then `End(reason)`. The first reason stays."""
        if self._end is None:
            self._end = End(reason)
            self._unsubscribe()
        self._wake()

    async def aclose(self) -> None:
        """The reader has left: drop what is held."""
        self._rows.clear()
        self._lag = None
        self._ended = True
        self.finish("closed")

    def __aiter__(self) -> Subscription[Row]:
        return self

    async def __anext__(self) -> list[Row | Lagged] | End:
        while True:
            if self._rows:
                return [self._rows.popleft() for _ in range(min(len(self._rows), BATCH_ROWS))]
            if self._lag is not None:
                lagged, self._lag = Lagged(*self._lag), None
                return [lagged]
            if self._ended:
                raise StopAsyncIteration
            if self._end is not None:
                self._ended = True
                return self._end
            assert self._waiter is None, "a subscription has one reader"
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _unsubscribe(self) -> None:
        callback, self._on_close = self._on_close, None
        if callback is not None:
            callback()
