"""The broker's key-value store: revisions, compare-and-set, time-to-live. Pure; the clock is given."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Final

from substrate.engine.api import MAX_KEY_BYTES, MAX_KEYS, MAX_TTL_MS, MAX_VALUE_BYTES, KvEntry, KvEvent
from substrate.wire.errors import NetError

EPOCH_SHIFT: Final = 32
"""Revisions of one broker start at `epoch << EPOCH_SHIFT`: later brokers number higher."""
MAX_TOTAL_BYTES: Final = 256 * 1024 * 1024
"""Keys and values together."""
_HEAP_SLACK: Final = 1024


def check_key(key: str) -> str:
    """Return `key` (or a subject) if it is 1 to `MAX_KEY_BYTES` bytes, else raise `invalid-argument`."""
    try:
        size = len(key.encode())
    except UnicodeEncodeError:  # a lone surrogate
        size = 0
    if not 1 <= size <= MAX_KEY_BYTES:
        raise NetError("invalid-argument", f"a key must be 1 to {MAX_KEY_BYTES} bytes of UTF-8")
    return key


class _Item:
    __slots__ = ("due_ms", "revision", "value")

    def __init__(self, value: bytes, revision: int, due_ms: int | None) -> None:
        self.value = value
        self.revision = revision
        self.due_ms = due_ms


class KvStore:
    """Keys with values, revisions and deadlines.

    `clock` gives monotonic milliseconds; `on_event` is told each change, in revision order, from within the call that
    made it. A key is gone at its deadline even if nobody called `expire` yet: every call expires first.
    """

    def __init__(self, epoch: int, clock: Callable[[], int], on_event: Callable[[KvEvent], None]) -> None:
        self._revision = epoch << EPOCH_SHIFT
        self._last_revision = self._revision + (1 << EPOCH_SHIFT) - 1
        self._clock = clock
        self._on_event = on_event
        self._items: dict[str, _Item] = {}
        self._keys: list[str] = []
        self._deadlines: list[tuple[int, int, str]] = []
        self._mortal = 0
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._items)

    @property
    def revisions_left(self) -> int:
        """How many more changes this epoch can number."""
        return self._last_revision - self._revision

    def next_due_ms(self) -> int | None:
        """When, on the clock, `expire` has to be called next; None if nothing expires."""
        heap = self._deadlines
        while heap:
            due_ms, revision, key = heap[0]
            item = self._items.get(key)
            if item is not None and item.revision == revision:
                return due_ms
            heappop(heap)  # replaced or deleted since
        return None

    def expire(self) -> int:
        """Remove every key whose deadline has come; returns how many."""
        heap, now, removed = self._deadlines, self._clock(), 0
        while heap and heap[0][0] <= now:
            _, revision, key = heappop(heap)
            item = self._items.get(key)
            if item is not None and item.revision == revision:
                self._remove(key, item)
                removed += 1
                self._on_event(KvEvent("expired", key, b"", self._next()))
        return removed

    def put(self, key: str, value: bytes, *, ttl_ms: int | None = None, expect: int | None = None) -> int:
        """Set a key; see `Engine.kv_put`. Raises `conflict`, `too-large`, `invalid-argument`, `overloaded`."""
        check_key(key)
        if len(value) > MAX_VALUE_BYTES:
            raise NetError(
                "too-large",
                f"a value of {len(value)} bytes is over the limit of {MAX_VALUE_BYTES}",
                details={"size_bytes": len(value), "limit_bytes": MAX_VALUE_BYTES},
            )
        if ttl_ms is not None and not 1 <= ttl_ms <= MAX_TTL_MS:
            raise NetError("invalid-argument", f"a time-to-live must be 1 to {MAX_TTL_MS} ms")
        self.expire()
        old = self._items.get(key)
        self._check(key, old, expect)
        growth = len(value) - len(old.value) if old is not None else len(key) + len(value)
        if (old is None and len(self._items) >= MAX_KEYS) or self._bytes + growth > MAX_TOTAL_BYTES:
            raise NetError(
                "overloaded",
                f"the key-value store is full ({len(self._items)} keys, {self._bytes} bytes)",
                details={"keys": len(self._items), "size_bytes": self._bytes},
            )
        if old is None:
            insort(self._keys, key)
        elif old.due_ms is not None:
            self._mortal -= 1
        self._bytes += growth
        revision = self._next()
        due_ms = None if ttl_ms is None else self._clock() + ttl_ms
        self._items[key] = _Item(value, revision, due_ms)
        if due_ms is not None:
            self._mortal += 1
            heappush(self._deadlines, (due_ms, revision, key))
            if len(self._deadlines) > 2 * self._mortal + _HEAP_SLACK:
                self._compact()
        self._on_event(KvEvent("put", key, value, revision))
        return revision

    def get(self, key: str) -> KvEntry | None:
        """The entry of a key, or None."""
        self.expire()
        item = self._items.get(key)
        return None if item is None else self._entry(key, item, self._clock())

    def delete(self, key: str, *, expect: int | None = None) -> bool:
        """Remove a key; False if there was none. Raises `conflict`."""
        self.expire()
        item = self._items.get(key)
        self._check(key, item, expect)
        if item is None:
            return False
        self._remove(key, item)
        self._on_event(KvEvent("delete", key, b"", self._next()))
        return True

    def list(self, prefix: str, *, after: str = "", limit_bytes: int) -> tuple[list[KvEntry], bool]:
        """Entries under a prefix with keys greater than `after`, by key, cut after `limit_bytes`; and whether more follow."""
        self.expire()
        now, keys, total = self._clock(), self._keys, 0
        entries: list[KvEntry] = []
        at = max(bisect_left(keys, prefix), bisect_right(keys, after))
        while at < len(keys) and keys[at].startswith(prefix):
            if total >= limit_bytes:
                return entries, True
            key = keys[at]
            item = self._items[key]
            entries.append(self._entry(key, item, now))
            total += len(key) + len(item.value) + 32
            at += 1
        return entries, False

    def _entry(self, key: str, item: _Item, now: int) -> KvEntry:
        return KvEntry(key, item.value, item.revision, None if item.due_ms is None else item.due_ms - now)

    def _next(self) -> int:
        assert self._revision < self._last_revision, "the broker retires before its epoch's revisions run out"
        self._revision += 1
        return self._revision

    def _check(self, key: str, item: _Item | None, expect: int | None) -> None:
        revision = 0 if item is None else item.revision
        if expect is not None and expect != revision:
            raise NetError(
                "conflict",
                f"the key {key!r} is at revision {revision}, not {expect}",
                details={"key": key, "expected": expect, "revision": revision},
            )

    def _remove(self, key: str, item: _Item) -> None:
        del self._items[key]
        del self._keys[bisect_left(self._keys, key)]
        self._bytes -= len(key) + len(item.value)
        if item.due_ms is not None:
            self._mortal -= 1

    def _compact(self) -> None:
        """Drop the deadlines of values replaced since: renewals would pile them up."""
        self._deadlines = [
            (item.due_ms, item.revision, key) for key, item in self._items.items() if item.due_ms is not None
        ]
        heapify(self._deadlines)
