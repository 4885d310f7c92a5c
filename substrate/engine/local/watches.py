"""The broker's side of key-value watches: what each reader has not seen yet, one event per key.

A batch goes out when the one before was acknowledged; meanwhile later events of a key replace earlier ones, so a
slow reader costs at most one event per key and never misses the last state.
"""

from __future__ import annotations

import asyncio
from typing import Final

from substrate.engine.api import MAX_KEY_BYTES, MAX_KEYS, KvEvent
from substrate.engine.local.connection import Connection
from substrate.engine.local.kv import KvStore
from substrate.engine.local.protocol import PAGE_BYTES, WatchBatch
from substrate.wire.errors import NetError

MAX_WATCHES_PER_CONNECTION: Final = 256
MAX_PENDING: Final = 2 * MAX_KEYS
"""Events waiting for one reader; beyond (removals of ever new keys) it is told `reset` and starts afresh."""


class _Watch:
    __slots__ = ("acknowledged", "connection", "id", "pending", "prefix")

    def __init__(self, connection: Connection, id: int, prefix: str) -> None:
        self.connection = connection
        self.id = id
        self.prefix = prefix
        self.pending: dict[str, KvEvent] = {}
        self.acknowledged = True


class Watches:
    """All watches of a broker."""

    def __init__(self) -> None:
        self._kv: KvStore | None = None
        self._loop = asyncio.get_running_loop()
        self._watches: dict[tuple[Connection, int], _Watch] = {}
        self._due: set[_Watch] = set()
        self._scheduled = False

    def bind(self, kv: KvStore) -> None:
        """The store whose events arrive here."""
        self._kv = kv

    def __len__(self) -> int:
        return len(self._watches)

    def open(self, connection: Connection, id: int, prefix: str) -> None:
        """Start a watch with the present entries. Raises `invalid-argument`, `overloaded`."""
        if len(prefix.encode()) > MAX_KEY_BYTES:
            raise NetError("invalid-argument", f"a prefix is at most {MAX_KEY_BYTES} bytes long")
        count = sum(1 for holder, _ in self._watches if holder is connection)
        if (connection, id) in self._watches or count >= MAX_WATCHES_PER_CONNECTION:
            raise NetError(
                "overloaded", f"a connection may have {MAX_WATCHES_PER_CONNECTION} watches, each with its id"
            )
        watch = _Watch(connection, id, prefix)
        self._fill(watch)
        self._watches[connection, id] = watch
        self._wake(watch)

    def ack(self, connection: Connection, id: int) -> None:
        """The reader took the last batch."""
        watch = self._watches.get((connection, id))
        if watch is not None:
            watch.acknowledged = True
            self._wake(watch)

    def close(self, connection: Connection, id: int) -> bool:
        """End a watch; False if `id` is none."""
        watch = self._watches.pop((connection, id), None)
        if watch is None:
            return False
        self._due.discard(watch)
        return True

    def drop(self, connection: Connection) -> None:
        """End the watches of a connection that is gone."""
        for key in [key for key in self._watches if key[0] is connection]:
            self._due.discard(self._watches.pop(key))

    def writable(self, connection: Connection) -> None:
        """The connection takes data again."""
        for watch in self._watches.values():
            if watch.connection is connection:
                self._wake(watch)

    def changed(self, event: KvEvent) -> None:
        """A key changed."""
        for watch in self._watches.values():
            if event.key.startswith(watch.prefix):
                watch.pending.pop(event.key, None)  # so that the order of the latest events is kept
                watch.pending[event.key] = event
                if len(watch.pending) > MAX_PENDING:
                    watch.pending = {"": KvEvent("reset")}
                    self._fill(watch)
                self._wake(watch)

    def _fill(self, watch: _Watch) -> None:
        assert self._kv is not None
        entries, _ = self._kv.list(watch.prefix, limit_bytes=1 << 40)  # references, no copies
        for entry in entries:
            watch.pending[entry.key] = KvEvent("put", entry.key, entry.value, entry.revision)

    def _wake(self, watch: _Watch) -> None:
        if watch.pending and watch.acknowledged and watch.connection.stuck_since is None:
            self._due.add(watch)
            if not self._scheduled:
                self._scheduled = True
                self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._scheduled = False
        due, self._due = self._due, set()
        for watch in due:
            events: list[KvEvent] = []
            size = 0
            for event in watch.pending.values():
                events.append(event)
                size += len(event.key) + len(event.value) + 32
                if size >= PAGE_BYTES:
                    break
            for event in events:
                del watch.pending[event.key]
            watch.acknowledged = False
            watch.connection.send(WatchBatch(watch.id, events))
        for connection in {watch.connection for watch in due}:
            connection.flush()
