"""What the writer knows of a chain: its row, its committed head, and the head inside an open transaction."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any, Final

import apsw

from substrate.redex.database import MAX_CHAINS, SEQ_BITS
from substrate.redex.types import Retention
from substrate.wire.errors import NetError
from substrate.wire.records import DOMAIN, Head, Record, record_hash

RecordRow = tuple[int, int, int, bytes, bytes, bytes]
"""key, at_ms, end_bytes, hash, seal, payload."""
Execute = Callable[..., apsw.Cursor]

_CHAIN_SQL: Final = (
    "SELECT id, created_at_ms, max_records, max_bytes, max_age_ms, base_seq, base_hash, base_bytes"
    " FROM chains WHERE name=?"
)
_LAST_SQL: Final = (
    "SELECT key, end_bytes, hash, at_ms, payload FROM records WHERE key BETWEEN ? AND ? ORDER BY key DESC LIMIT 1"
)
_POINT_SQL: Final = "SELECT hash, end_bytes FROM records WHERE key=?"
_PACK: Final = struct.Struct("<QQI").pack


class Chain:
    """One chain's row and head as of one transaction. `key0` is the row id of its (never stored) record 0."""

    __slots__ = ("base_bytes", "base_hash", "base_seq", "created_at_ms", "end_bytes", "head", "key0", "name", "prefix",
                 "retention")  # fmt: skip

    def __init__(self, name: str, chain_id: int, created_at_ms: int, retention: Retention) -> None:
        self.name = name
        self.key0 = chain_id << SEQ_BITS
        self.created_at_ms = created_at_ms
        self.retention = retention
        self.base_seq = 0
        self.base_hash = bytes(32)
        self.base_bytes = 0
        self.head = Head()
        self.end_bytes = 0
        encoded = name.encode()
        self.prefix = DOMAIN + struct.pack("<H", len(encoded)) + encoded

    def point(self, execute: Execute, seq: int) -> tuple[bytes, int]:
        """Hash and running byte total of record `seq`, which is retained or the last one removed.

        `corrupt-store` if the row is missing.
        """
        if seq == self.base_seq:
            return self.base_hash, self.base_bytes
        row = _one(execute, self.name, _POINT_SQL, (self.key0 + seq,))
        if row is None:
            raise damaged(self.name, seq, "is missing")
        if tuple(map(type, row)) != (bytes, int):
            raise damaged(self.name, seq, "is unreadable")
        return row[0], row[1]

    def rows(
        self, head: Head, end_bytes: int, at_ms: int, payloads: Sequence[bytes]
    ) -> tuple[list[RecordRow], Head, int]:
        """Seal `payloads` after `head`: the rows to insert, the new head and the new byte total.

        The same hash as `records.record_hash`, with the constant part prepared: this is the hot loop of every append.
        """
        seq, previous, prefix = head.seq, head.hash, self.prefix
        key = self.key0 + seq
        rows: list[RecordRow] = []
        for payload in payloads:
            seq += 1
            key += 1
            size = len(payload)
            end_bytes += size
            previous = sha256(prefix + previous + _PACK(seq, at_ms, size) + payload).digest()
            rows.append((key, at_ms, end_bytes, previous, b"", payload))
        return rows, Head(seq, previous), end_bytes

    def sealed_rows(self, end_bytes: int, records: Sequence[Record]) -> tuple[list[RecordRow], Head, int]:
        """The same for records sealed (and checked) before."""
        rows: list[RecordRow] = []
        key0 = self.key0
        for r in records:
            end_bytes += len(r.payload) + len(r.seal)
            rows.append((key0 + r.seq, r.at_ms, end_bytes, r.hash, r.seal, r.payload))
        return rows, records[-1].head, end_bytes


def load_chain(execute: Execute, name: str, *, check_head: bool = False) -> Chain | None:
    """Read a chain's row and head; two look-ups, whatever its length.

    With `check_head` the last record's hash is recomputed: nothing must be chained to a damaged record.
    """
    row = _one(execute, name, _CHAIN_SQL, (name,))
    if row is None:
        return None
    if not _sound(row):
        raise damaged(name, 0, "(the row of the chain) is unreadable")
    chain_id, created, max_records, max_bytes, max_age, base_seq, base_hash, base_bytes = row
    chain = Chain(name, chain_id, created, Retention(max_records, max_bytes, max_age))
    chain.base_seq, chain.base_hash, chain.base_bytes = base_seq, base_hash, base_bytes
    last = _one(execute, name, _LAST_SQL, (chain.key0 + base_seq + 1, chain.key0 + (1 << SEQ_BITS) - 1))
    if last is None:
        chain.head, chain.end_bytes = Head(base_seq, base_hash), base_bytes
        return chain
    key, chain.end_bytes, last_hash, at_ms, payload = last
    if tuple(map(type, last)) != (int, int, bytes, int, bytes) or at_ms < 0:
        raise damaged(name, key - chain.key0, "is unreadable")
    chain.head = Head(key - chain.key0, last_hash)
    if check_head:
        previous, _ = chain.point(execute, chain.head.seq - 1)
        if record_hash(name, previous, chain.head.seq, at_ms, payload) != last_hash:
            raise damaged(name, chain.head.seq, "does not match its hash")
    return chain


def _one(execute: Execute, name: str, sql: str, bindings: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """The one row of a look-up; `corrupt-store` if damage made text of its bytes."""
    try:
        return execute(sql, bindings).fetchone()
    except UnicodeDecodeError:
        raise damaged(name, 0, "(a row of the chain) is unreadable") from None


def _sound(row: tuple[Any, ...]) -> bool:
    """Whether a chain's row can be what was written: a damaged page may hold anything."""
    chain_id, created, *limits, base_seq, base_hash, base_bytes = row
    return (
        tuple(map(type, (chain_id, created, base_seq, base_hash, base_bytes))) == (int, int, int, bytes, int)
        and all(limit is None or (type(limit) is int and 0 <= limit < 1 << 62) for limit in limits)
        and 1 <= chain_id <= MAX_CHAINS
        and 0 <= base_seq < 1 << SEQ_BITS
        and len(base_hash) == 32
    )


def damaged(name: str, seq: int, what: str) -> NetError:
    """The error for a bad record, naming it in `details.seq`."""
    return NetError(
        "corrupt-store",
        f"chain {name!r}: record {seq} {what}",
        "restore the store from another node's copy or a backup",
        {"chain": name, "seq": seq},
    )
