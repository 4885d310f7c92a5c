"""The values RedEX takes and gives: durability policies, retention, chain information, append results."""

from __future__ import annotations

from typing import ClassVar, Final, NamedTuple

import msgspec

from substrate.wire.errors import NetError
from substrate.wire.records import Head

DEFAULT_READ_RECORDS: Final = 1000
DEFAULT_READ_BYTES: Final = 4 * 1024 * 1024
"""A read stops after the record that reaches this many bytes of payloads and seals (one record at least)."""
DEFAULT_TAIL_BUFFER: Final = 1024
SHARED_POLL_MS: Final = 50
"""How often a tail of a shared store looks for the commits of other processes."""


class Durability(msgspec.Struct, frozen=True):
    """When an append is on disk. `Durability.EVERY`: before it is acknowledged; nothing acknowledged is lost."""

    EVERY: ClassVar[Durability]


Durability.EVERY = Durability()


class Interval(Durability, frozen=True):
    """Acknowledge first, flush every `ms` milliseconds or `max_bytes` bytes, whichever comes first.

    Loss bound at a power cut: the records acknowledged in the last `ms` plus the time of one flush,
    and never more than `max_bytes` plus one group of concurrent appends (8 MiB at most): an append that finds
    more than that unflushed waits for the flush. A killed process loses nothing; what survives a
    power cut is always a prefix of what was acknowledged. `close()` flushes.
    """

    ms: int = 200
    max_bytes: int = 1024 * 1024

    def __post_init__(self) -> None:
        if self.ms < 1 or self.max_bytes < 1:
            raise NetError("invalid-argument", "an interval needs ms and max_bytes of at least 1")


class Retention(msgspec.Struct, frozen=True):
    """What a sweep keeps of a chain; None is no limit, the strictest limit wins.

    `max_records`; `max_bytes` of payloads and seals; `max_age_ms`: a record exactly that old stays.
    """

    max_records: int | None = None
    max_bytes: int | None = None
    max_age_ms: int | None = None

    def __post_init__(self) -> None:
        for limit in (self.max_records, self.max_bytes, self.max_age_ms):
            if limit is not None and not 0 <= limit < 1 << 62:
                raise NetError("invalid-argument", f"a retention limit of {limit} is out of range")


class ChainInfo(msgspec.Struct, frozen=True):
    """One chain of a store: `first_seq` is the oldest retained (head.seq + 1 when nothing is)."""

    name: str
    first_seq: int
    head: Head
    records: int
    bytes: int
    retention: Retention
    created_at_ms: int


class Appended(msgspec.Struct, frozen=True):
    """An accepted entry: its first seq and its last record as head; `duplicate` when it was there already."""

    first_seq: int
    head: Head
    duplicate: bool = False


class Row(NamedTuple):
    """The columns of a scanned row, in order. `scan` yields plain tuples of this shape, for speed."""

    seq: int
    at_ms: int
    hash: bytes
    payload: bytes
    seal: bytes


class Lagged(msgspec.Struct, frozen=True):
    """A tail missed the records `from_seq` to `to_seq` (both inclusive) and goes on after them."""

    from_seq: int
    to_seq: int


class TailEnd(msgspec.Struct, frozen=True):
    """A tail is over: `closed`, `store-closed` or `store-failed`. Resume at `next_seq` on a new tail."""

    reason: str
    next_seq: int


def chain_not_found(name: str) -> NetError:
    """The error for a chain this store does not hold."""
    return NetError("chain-not-found", f"there is no chain {name!r}", "net chain ls", {"chain": name})


def conflict(name: str, expected: Head, head: Head) -> NetError:
    """The error of a lost compare-and-append, with the true head in its details (contract section 3)."""
    return NetError(
        "conflict",
        f"chain {name!r} is at {head.seq}, not at the expected {expected.seq}"
        if head.seq != expected.seq
        else f"chain {name!r} has another record at {head.seq} than the expected one",
        "read the head and try again",
        {"chain": name, "expected": head_document(expected), "head": head_document(head)},
    )


def head_document(head: Head) -> dict[str, object]:
    """A head as JSON: `{"seq": 3, "hash": "<hex>"}`."""
    return {"seq": head.seq, "hash": head.hash.hex()}
