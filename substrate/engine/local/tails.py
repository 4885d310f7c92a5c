"""The broker's side of tails: cursors into the store, moved after commits.

A tail is a cursor and what is on the way to its reader; no records wait in memory for it. A reader that stops
acknowledging is simply not sent more, and later goes on where it was. Batches are encoded once for all tails that
stand at the same record, and each turn of the loop sends one batch per tail, so that a reader far behind delays nobody.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

import msgspec

from substrate.engine.local.connection import Connection
from substrate.engine.local.protocol import (
    PAGE_BYTES,
    PAGE_RECORDS,
    TAIL_WINDOW_BYTES,
    RawTailBatch,
    TailLagged,
    encode_records,
    record_cost,
)
from substrate.redex import Store
from substrate.wire.errors import NetError
from substrate.wire.records import check_chain_name

MAX_TAILS_PER_CONNECTION: Final = 1024
MAX_BUFFER: Final = 1 << 20


class _Batch:
    """Records as sent: encoded, and what they cost."""

    __slots__ = ("cost", "count", "first_seq", "last_seq", "raw")

    def __init__(self, first_seq: int, last_seq: int, count: int, cost: int, raw: msgspec.Raw) -> None:
        self.first_seq = first_seq
        self.last_seq = last_seq
        self.count = count
        self.cost = cost
        self.raw = raw


class _Tail:
    __slots__ = ("buffer", "chain", "connection", "id", "next_seq", "sent", "sent_cost", "sent_count")

    def __init__(self, connection: Connection, id: int, chain: str, from_seq: int, buffer: int) -> None:
        self.connection = connection
        self.id = id
        self.chain = chain
        self.next_seq = from_seq
        self.buffer = buffer
        self.sent: deque[_Batch] = deque()
        self.sent_count = 0
        self.sent_cost = 0

    def room(self) -> int:
        """How many records may go out now."""
        if self.sent_cost >= TAIL_WINDOW_BYTES or self.connection.stuck_since is not None:
            return 0
        return self.buffer - self.sent_count


class Tails:
    """All tails of a broker."""

    def __init__(self, store: Store, on_error: Callable[[NetError], None]) -> None:
        self._store = store
        self._on_error = on_error
        self._loop = asyncio.get_running_loop()
        self._heads: dict[str, int] = {}
        self._by_chain: dict[str, set[_Tail]] = {}
        self._by_connection: dict[Connection, dict[int, _Tail]] = {}
        self._due: set[_Tail] = set()
        self._scheduled = False

    def __len__(self) -> int:
        return sum(map(len, self._by_connection.values()))

    def open(self, connection: Connection, id: int, chain: str, from_seq: int, buffer: int) -> None:
        """Start a tail. Raises `invalid-argument`, `overloaded`."""
        check_chain_name(chain)
        if from_seq < 1 or not 1 <= buffer <= MAX_BUFFER:
            raise NetError("invalid-argument", f"a tail begins at seq 1 or later and buffers 1 to {MAX_BUFFER} records")
        tails = self._by_connection.setdefault(connection, {})
        if id in tails or len(tails) >= MAX_TAILS_PER_CONNECTION:
            raise NetError(
                "overloaded", f"a connection may have {MAX_TAILS_PER_CONNECTION} tails, each with its own id"
            )
        if chain not in self._heads:
            self._heads[chain] = self._store_head(chain)
        tail = _Tail(connection, id, chain, from_seq, buffer)
        tails[id] = tail
        self._by_chain.setdefault(chain, set()).add(tail)
        self._wake(tail)

    def ack(self, connection: Connection, id: int, seq: int) -> None:
        """The reader took everything up to `seq`; acknowledgements of tails just closed are nothing new."""
        tail = self._by_connection.get(connection, {}).get(id)
        if tail is None:
            return
        while tail.sent and tail.sent[0].last_seq <= seq:
            batch = tail.sent.popleft()
            tail.sent_count -= batch.count
            tail.sent_cost -= batch.cost
        self._wake(tail)

    def close(self, connection: Connection, id: int) -> bool:
        """End a tail; False if `id` is none."""
        tail = self._by_connection.get(connection, {}).pop(id, None)
        if tail is None:
            return False
        self._forget(tail)
        return True

    def drop(self, connection: Connection) -> None:
        """End the tails of a connection that is gone."""
        for tail in self._by_connection.pop(connection, {}).values():
            self._forget(tail)

    def committed(self, chain: str, head_seq: int) -> None:
        """The chain's records up to `head_seq` are durable."""
        tails = self._by_chain.get(chain)
        if tails is None:
            return
        if head_seq > self._heads[chain]:
            self._heads[chain] = head_seq
            for tail in tails:
                self._wake(tail)

    def writable(self, connection: Connection) -> None:
        """The connection takes data again."""
        for tail in self._by_connection.get(connection, {}).values():
            self._wake(tail)

    def _store_head(self, chain: str) -> int:
        try:
            return self._store.head(chain).seq
        except NetError as error:
            if error.kind != "chain-not-found":
                raise
            return 0  # its first commit will wake the tail

    def _forget(self, tail: _Tail) -> None:
        self._due.discard(tail)
        tails = self._by_chain[tail.chain]
        tails.discard(tail)
        if not tails:
            del self._by_chain[tail.chain]
            del self._heads[tail.chain]  # nobody keeps it up to date now

    def _wake(self, tail: _Tail) -> None:
        if tail.next_seq <= self._heads[tail.chain] and tail.room() > 0:
            self._due.add(tail)
            if not self._scheduled:
                self._scheduled = True
                self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Send one batch to each tail that is due."""
        self._scheduled = False
        due, self._due = self._due, set()
        batches: dict[tuple[str, int, int], _Batch | None] = {}
        try:
            for tail in due:
                self._advance(tail, batches)
        except NetError as error:
            self._on_error(error)
            return
        for connection in {tail.connection for tail in due}:
            connection.flush()

    def _advance(self, tail: _Tail, batches: dict[tuple[str, int, int], _Batch | None]) -> None:
        limit = min(tail.room(), PAGE_RECORDS)
        if limit <= 0:
            return
        key = (tail.chain, tail.next_seq, limit)
        if key not in batches:
            batches[key] = self._load(*key)
        batch = batches[key]
        head_seq = self._heads[tail.chain]
        if batch is None or batch.first_seq > tail.next_seq:
            gone_to = head_seq if batch is None else batch.first_seq - 1
            tail.connection.send(TailLagged(tail.id, tail.next_seq, gone_to))
            tail.next_seq = gone_to + 1
        if batch is not None:
            tail.connection.send(RawTailBatch(tail.id, batch.raw))
            tail.sent.append(batch)
            tail.sent_count += batch.count
            tail.sent_cost += batch.cost
            tail.next_seq = batch.last_seq + 1
        self._wake(tail)

    def _load(self, chain: str, from_seq: int, limit: int) -> _Batch | None:
        records = self._store.read(chain, from_seq, limit=limit, max_bytes=PAGE_BYTES)
        if not records:
            return None
        cost = sum(map(record_cost, records))
        return _Batch(records[0].seq, records[-1].seq, len(records), cost, encode_records(records))
