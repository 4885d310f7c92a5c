"""Reading a store: what `Store` offers beside writing. Everything read is committed; nothing here blocks an append."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from substrate.redex.groupcommit import closed_error
from substrate.redex.reader import Reader, ScanRow
from substrate.redex.tail import Tail
from substrate.redex.types import (
    DEFAULT_READ_BYTES,
    DEFAULT_READ_RECORDS,
    DEFAULT_TAIL_BUFFER,
    ChainInfo,
)
from substrate.redex.watchers import Watchers
from substrate.redex.writer import Writer
from substrate.wire.errors import NetError
from substrate.wire.records import Head, Record


class ReadSide:
    """The reading half of a store: chains, heads, records, scans, verification, tails."""

    _reader: Reader

    def __init__(self, path: Path, *, shared: bool) -> None:
        self.path = path
        self.shared = shared
        """Others may write the file, too."""
        self.failed: NetError | None = None
        """Why the store refuses everything, once it does."""
        self._closed = False
        self._writer: Writer | None = None
        self._watchers = Watchers()

    def _check_alive(self) -> None:
        if self.failed is not None:
            raise NetError(
                self.failed.kind,
                f"the store failed before: {self.failed.message}",
                self.failed.hint,
                {**self.failed.details, "outcome": "refused"},
            )

    def _check_open(self) -> None:
        self._check_alive()
        if self._closed:
            raise closed_error()

    def chains(self) -> list[ChainInfo]:
        """All chains, by name."""
        self._check_open()
        return self._reader.chains()

    def head(self, chain: str) -> Head:
        """The committed head. Raises `chain-not-found`."""
        self._check_open()
        head = self._writer.committed_head(chain) if self._writer is not None else None
        return head if head is not None else self._reader.chain(chain).head

    def read(
        self, chain: str, from_seq: int, *, limit: int = DEFAULT_READ_RECORDS, max_bytes: int = DEFAULT_READ_BYTES
    ) -> list[Record]:
        """Records from `from_seq` on (from the oldest retained, if that is later), in order.

        At most `limit`, and at most `max_bytes` of payloads and seals but at least one. Raises `chain-not-found`, and
        `corrupt-store` if one is missing; their hashes are `verify`'s business.
        """
        self._check_open()
        return self._reader.records(chain, from_seq, limit, max_bytes)[0]

    def read_for_tail(self, chain: str, from_seq: int, limit: int, max_bytes: int) -> tuple[list[Record], int]:
        """As `read`, and the oldest retained seq as of the same moment."""
        self._check_open()
        records, state = self._reader.records(chain, from_seq, limit, max_bytes)
        return records, state.base_seq + 1

    def read_one(self, chain: str, seq: int) -> Record | None:
        """Record `seq`, or None if it is not there (yet, or any more). Raises `chain-not-found`."""
        found = self.read(chain, seq, limit=1)
        return found[0] if found and found[0].seq == seq else None

    def scan(self, chain: str, from_seq: int = 1, to_seq: int | None = None) -> Iterator[ScanRow]:
        """Plain tuples (seq, at_ms, hash, payload, seal) from `from_seq` to `to_seq` or the head: the fast way to read all.

        Not one snapshot: goes on to what is appended meanwhile, skips what retention removes meanwhile.
        """
        for rows in self.scan_steps(chain, from_seq, to_seq):
            yield from rows

    def scan_steps(self, chain: str, from_seq: int = 1, to_seq: int | None = None) -> Iterator[list[ScanRow]]:
        """As `scan`, in lists of up to 1024 rows."""
        self._check_open()
        return self._reader.scan(chain, from_seq, to_seq)

    def verify(self, chain: str, from_seq: int | None = None) -> Head:
        """Recompute the hashes from `from_seq` or the oldest retained record to the head, and return the head.

        Raises `corrupt-store` with the first bad seq in `details.seq`, `chain-not-found`.
        """
        self._check_open()
        return self._reader.verify(chain, 1 if from_seq is None else from_seq)

    def check_file(self) -> None:
        """Check the structure of the whole file, beside what `verify` says of each chain: finds records a damaged page hides.

        Takes as long as reading the file, and the log grows meanwhile. A tail that was cut off cleanly is found by neither,
        only against a head known from elsewhere. Raises `corrupt-store`.
        """
        self._check_open()
        self._reader.check_file()

    def tail(self, chain: str, from_seq: int | None = None, *, buffer: int = DEFAULT_TAIL_BUFFER) -> Tail:
        """Follow a chain from `from_seq`, or with None only what is committed from now on.

        `buffer`: how many records one `next` gives at most, and how far a live-only tail may fall behind. In a shared
        store other processes' commits are seen within SHARED_POLL_MS. Raises `chain-not-found`, `invalid-argument`.
        """
        if buffer < 1 or (from_seq is not None and from_seq < 0):
            raise NetError("invalid-argument", "a tail needs a buffer of at least 1 and a seq of at least 0")
        head = self.head(chain)
        next_seq = head.seq + 1 if from_seq is None else max(from_seq, 1)
        tail = Tail(self, chain, next_seq, live_only=from_seq is None, buffer=buffer)
        self._watchers.add_tail(tail)
        if self._closed or self.failed is not None:
            tail.end("store-closed" if self._closed else "store-failed")
        return tail

    def forget_tail(self, tail: Tail) -> None:
        """Stop waking `tail` (its `close` calls this)."""
        self._watchers.remove_tail(tail)

    def on_commit(self, callback: Callable[[str, Head], None], chain: str | None = None) -> Callable[[], None]:
        """Call `callback(chain, new head)` after each commit of this process, in commit order, in the committing thread.

        For all chains or one. It must be quick and must not call the store's writing methods; what it raises is
        logged. Several appends of one group are told as one new head. Returns the function that unsubscribes it.
        """
        return self._watchers.add(callback, chain)
