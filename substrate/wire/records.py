"""Chain records and heads: what RedEX stores, the engine orders and nodes verify.

    hash = SHA-256("net-chain:" | u16 len(chain) | chain | prev_hash 32 | u64 seq | u64 at_ms | u32 len(payload) | payload)

All integers little-endian. `seal` is a signature over the hash (or empty) and therefore not under it.
Records are numbered densely from 1; the record before the first has seq 0 and the zero hash.
Source: contract section 6; architecture, "Engine rules".
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from typing import Final

import msgspec

from substrate.wire.errors import NetError

DOMAIN: Final = b"net-chain:"
ZERO_HASH: Final = bytes(32)

MAX_PAYLOAD_BYTES: Final = 256 * 1024
"""Largest payload of one record."""
MAX_ENTRY_BYTES: Final = 512 * 1024
"""Largest atomic entry: the payloads, seals and headers of all records appended together."""
MAX_ENTRY_RECORDS: Final = 4096
RECORD_OVERHEAD_BYTES: Final = 128
"""What a record costs towards MAX_ENTRY_BYTES beside its payload and seal."""

_CHAIN_CHARS: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_./")


class Head(msgspec.Struct, frozen=True, array_like=True):
    """The last record of a chain: its seq (0 when empty) and its hash (32 bytes)."""

    seq: int = 0
    hash: bytes = ZERO_HASH


EMPTY: Final = Head()


class Record(msgspec.Struct, frozen=True, array_like=True):
    """One record of a chain, as stored and as sent."""

    seq: int
    at_ms: int
    prev_hash: bytes
    hash: bytes
    payload: bytes
    seal: bytes = b""

    @property
    def head(self) -> Head:
        """The head the chain has when this record is its last."""
        return Head(self.seq, self.hash)


def record_hash(chain: str, prev_hash: bytes, seq: int, at_ms: int, payload: bytes) -> bytes:
    """The 32-byte hash of a record, over everything but its seal."""
    name = chain.encode()
    return hashlib.sha256(
        b"".join(
            (
                DOMAIN,
                struct.pack("<H", len(name)),
                name,
                prev_hash,
                struct.pack("<QQI", seq, at_ms, len(payload)),
                payload,
            )
        )
    ).digest()


def next_record(chain: str, head: Head, at_ms: int, payload: bytes, seal: bytes = b"") -> Record:
    """The record that follows `head`."""
    seq = head.seq + 1
    return Record(seq, at_ms, head.hash, record_hash(chain, head.hash, seq, at_ms, payload), payload, seal)


def check_follows(chain: str, head: Head, records: Iterable[Record]) -> Head:
    """Verify that `records` continue `head` without a gap and with true hashes; return the new head.

    Raises `corrupt-store` naming the first bad seq in `details.seq`.
    """
    for record in records:
        if record.seq != head.seq + 1:
            raise NetError(
                "corrupt-store",
                f"chain {chain!r}: record {record.seq} follows {head.seq}",
                details={"chain": chain, "seq": head.seq + 1},
            )
        true_hash = record_hash(chain, record.prev_hash, record.seq, record.at_ms, record.payload)
        if record.prev_hash != head.hash or record.hash != true_hash:
            raise NetError(
                "corrupt-store",
                f"chain {chain!r}: the hash of record {record.seq} does not match",
                details={"chain": chain, "seq": record.seq},
            )
        head = Head(record.seq, record.hash)
    return head


def check_chain_name(name: str) -> str:
    """Return `name` if it is a legal chain name, else raise `invalid-argument`.

    1 to 255 bytes of `A-Z a-z 0-9 - _ . /`; no leading, trailing or doubled slash; no segment `.` or `..`.
    Source: reference/data-plane.md 1.1.
    """
    problem = None
    if not 1 <= len(name.encode("utf-8", "surrogatepass")) <= 255:
        problem = "must be 1 to 255 bytes long"
    elif not _CHAIN_CHARS.issuperset(name):
        problem = "may hold only A-Z a-z 0-9 - _ . /"
    elif any(segment in ("", ".", "..") for segment in name.split("/")):
        problem = "must not hold an empty, '.' or '..' segment"
    if problem is not None:
        raise NetError("invalid-argument", f"the chain name {name!r} {problem}", "use a name like sensors/temp")
    return name


def check_entry_size(payloads: Iterable[bytes]) -> None:
    """Refuse an entry over the limits with `too-large` (an empty one with `invalid-argument`)."""
    count = total = 0
    for payload in payloads:
        count += 1
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise NetError(
                "too-large",
                f"a payload of {len(payload)} bytes is over the limit of {MAX_PAYLOAD_BYTES}",
                "store large content as a blob and append its reference",
                {"size_bytes": len(payload), "limit_bytes": MAX_PAYLOAD_BYTES},
            )
        total += len(payload) + RECORD_OVERHEAD_BYTES
    if count == 0:
        raise NetError("invalid-argument", "an entry needs at least one record")
    if count > MAX_ENTRY_RECORDS or total > MAX_ENTRY_BYTES:
        raise NetError(
            "too-large",
            f"an entry of {count} records and {total} bytes is over the limit of"
            f" {MAX_ENTRY_RECORDS} records and {MAX_ENTRY_BYTES} bytes",
            "append in smaller batches",
            {"records": count, "size_bytes": total, "limit_bytes": MAX_ENTRY_BYTES},
        )
