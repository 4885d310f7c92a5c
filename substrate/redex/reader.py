"""Reads beside the writer: a second connection that sees what is committed and never blocks an append.

Every read is a range of the b-tree, so its cost depends on what it returns, not on where in the chain it is or how
long the chain has grown. Long scans go in steps of their own, so no read holds the log back.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, cast

import apsw

from substrate.redex.chainstate import Chain, damaged, load_chain
from substrate.redex.database import corrupt, translate
from substrate.redex.types import ChainInfo, chain_not_found
from substrate.wire.errors import NetError
from substrate.wire.records import Head, Record, record_hash

SCAN_ROWS: Final = 1024
SCAN_BYTES: Final = 4 * 1024 * 1024

_RANGE: Final = (
    "SELECT key & 0xFFFFFFFFFFF, at_ms, hash, payload, seal FROM records WHERE key BETWEEN ? AND ? AND end_bytes <= ?"
)
ScanRow = tuple[int, int, bytes, bytes, bytes]


class Reader:
    """One reading connection, used by one thread at a time."""

    def __init__(self, connection: apsw.Connection, path: Path) -> None:
        self._connection = connection
        self._path = path
        self._mutex = threading.Lock()
        self._cursor = connection.cursor()

    def close(self) -> None:
        """Close the connection after the read in progress."""
        with self._mutex:
            self._connection.close()

    @contextmanager
    def _snapshot(self) -> Iterator[None]:
        with self._mutex:
            try:
                self._cursor.execute("BEGIN")
                yield
            except apsw.Error as error:
                raise translate(error, self._path) from error
            except UnicodeDecodeError as error:  # a damaged page turned bytes into text
                raise corrupt(self._path, f"the store {self._path} is damaged: {error}", {}) from error
            finally:
                self._end()

    def _end(self) -> None:
        try:
            if self._connection.in_transaction:
                self._cursor.execute("COMMIT")
        except apsw.ConnectionClosedError:
            raise NetError("io-error", "the store is closed") from None
        except apsw.Error as error:
            raise translate(error, self._path) from error

    def _chain(self, name: str) -> Chain:
        chain = load_chain(self._cursor.execute, name)
        if chain is None:
            raise chain_not_found(name)
        return chain

    def chain(self, name: str) -> Chain:
        """The chain as committed now, or `chain-not-found`."""
        with self._snapshot():
            return self._chain(name)

    def chains(self) -> list[ChainInfo]:
        """All chains by name; two look-ups per chain."""
        with self._snapshot():
            names = self._cursor.execute("SELECT name FROM chains ORDER BY name").fetchall()
            return [_info(self._chain(str(row[0]))) for row in names]

    def rows(self, name: str, from_seq: int, limit: int, max_bytes: int) -> tuple[bytes, list[ScanRow], Chain]:
        """At most `limit` rows from `from_seq` on, at most `max_bytes` but at least one; and the hash before them.

        `corrupt-store` if a row is missing among them.
        """
        with self._snapshot():
            chain = self._chain(name)
            first = max(from_seq, chain.base_seq + 1)
            if first > chain.head.seq or limit < 1:
                return chain.head.hash, [], chain
            previous, bytes_before = chain.point(self._cursor.execute, first - 1)
            last = min(first + limit - 1, chain.head.seq)
            enough = bytes_before + max_bytes
            if chain.end_bytes > enough and (first_end := chain.point(self._cursor.execute, first)[1]) > enough:
                enough, last = first_end, first  # one record at least
            found = self._cursor.execute(_RANGE, (chain.key0 + first, chain.key0 + last, enough)).fetchall()
            rows = cast("list[ScanRow]", found)
        if not rows or rows[0][0] != first or rows[-1][0] - first + 1 != len(rows):
            expected = enumerate(rows, first)
            missing = next((seq for seq, row in expected if row[0] != seq), first + len(rows))
            raise damaged(name, missing, "is missing")
        return previous, rows, chain

    def records(self, name: str, from_seq: int, limit: int, max_bytes: int) -> tuple[list[Record], Chain]:
        """The same as records, each with the hash of the one before."""
        previous, rows, chain = self.rows(name, from_seq, limit, max_bytes)
        if not rows:
            return [], chain
        seqs, stamps, hashes, payloads, seals = _columns(name, rows)
        return list(map(Record, seqs, stamps, (previous, *hashes[:-1]), hashes, payloads, seals)), chain

    def scan(self, name: str, from_seq: int, to_seq: int | None) -> Iterator[list[ScanRow]]:
        """Steps of rows up to `to_seq` inclusive, or to the head as it is when the scan gets there."""
        seq = from_seq
        while to_seq is None or seq <= to_seq:
            limit = SCAN_ROWS if to_seq is None else min(SCAN_ROWS, to_seq - max(seq, 1) + 1)
            _, rows, _ = self.rows(name, seq, limit, SCAN_BYTES)
            if rows and to_seq is not None and rows[-1][0] > to_seq:  # retention moved the start past `seq`
                rows = [row for row in rows if row[0] <= to_seq]
            if not rows:
                return
            yield rows
            seq = rows[-1][0] + 1

    def verify(self, name: str, from_seq: int) -> Head:
        """Recompute every hash from `from_seq` (or the oldest retained) to the head and return it.

        `corrupt-store` with the first bad seq in `details.seq`.
        """
        seq = from_seq
        head: Head | None = None
        while True:
            try:
                before, rows, chain = self.rows(name, seq, SCAN_ROWS, SCAN_BYTES)
            except NetError as error:
                if error.kind == "corrupt-store":
                    error.details.setdefault("chain", name)
                    error.details.setdefault("seq", self._first_unreadable(name, seq))
                raise
            if rows:
                _columns(name, rows)
            if head is not None and rows and rows[0][0] == head.seq + 1 and before != head.hash:
                raise damaged(name, head.seq + 1, "does not follow the one before")
            for row_seq, at_ms, row_hash, payload, _ in rows:
                if record_hash(name, before, row_seq, at_ms, payload) != row_hash:
                    raise damaged(name, row_seq, "does not match its hash")
                before = row_hash
            if not rows:
                return head if head is not None and head.seq >= chain.head.seq else chain.head
            head = Head(rows[-1][0], rows[-1][2])
            seq = head.seq + 1

    def check_file(self) -> None:
        """Check the structure of the whole file; `corrupt-store` with SQLite's first finding, or a stray record's key."""
        with self._snapshot():
            findings = self._cursor.execute("PRAGMA quick_check(1)").fetchall()
            if findings != [("ok",)]:
                raise corrupt(self._path, f"the store {self._path} is damaged: {findings[0][0]}", {})
            names = self._cursor.execute("SELECT name FROM chains ORDER BY id").fetchall()
            free_from = -1 << 63
            for (name,) in names:
                chain = self._chain(str(name))
                self._check_stray(free_from, chain.key0 + chain.base_seq)
                free_from = chain.key0 + chain.head.seq + 1
            self._check_stray(free_from, (1 << 63) - 1)

    def _check_stray(self, first_key: int, last_key: int) -> None:
        sql = "SELECT key FROM records WHERE key BETWEEN ? AND ? LIMIT 1"
        stray = self._cursor.execute(sql, (first_key, last_key)).fetchone()
        if stray is not None:
            raise corrupt(self._path, f"the store {self._path} holds a record of no chain", {"key": stray[0]})

    def _first_unreadable(self, name: str, from_seq: int) -> int:
        """Which record of an unreadable stretch is the first that cannot be read by itself."""
        for seq in range(max(from_seq, 1), from_seq + SCAN_ROWS):
            try:
                _, rows, _ = self.rows(name, seq, 1, SCAN_BYTES)
            except NetError:
                return seq
            if not rows:
                break
        return from_seq


_SHAPE: Final = (int, int, bytes, bytes, bytes)


def _columns(name: str, rows: list[ScanRow]) -> Sequence[tuple[Any, ...]]:
    """The columns of `rows`; `corrupt-store` if a damaged page gave a row another seq or another type of value."""
    columns = list(zip(*rows, strict=True))
    first = rows[0][0]
    types = [set(map(type, column)) for column in columns]
    dense = columns[0] == tuple(range(first, first + len(rows)))
    if types != [{kind} for kind in _SHAPE] or not dense or min(columns[1]) < 0:
        for seq, row in enumerate(rows, first):
            if row[0] != seq or tuple(map(type, row)) != _SHAPE or row[1] < 0:
                raise damaged(name, seq, "is unreadable")
    return columns


def _info(chain: Chain) -> ChainInfo:
    return ChainInfo(
        name=chain.name,
        first_seq=chain.base_seq + 1,
        head=chain.head,
        records=chain.head.seq - chain.base_seq,
        bytes=chain.end_bytes - chain.base_bytes,
        retention=chain.retention,
        created_at_ms=chain.created_at_ms,
    )
