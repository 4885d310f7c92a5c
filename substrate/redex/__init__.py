"""RedEX: append-only hash chains on SQLite. See `Store`."""

from substrate.redex.store import Store
from substrate.redex.tail import Tail
from substrate.redex.types import (
    DEFAULT_READ_BYTES,
    DEFAULT_READ_RECORDS,
    DEFAULT_TAIL_BUFFER,
    SHARED_POLL_MS,
    Appended,
    ChainInfo,
    Durability,
    Interval,
    Lagged,
    Retention,
    Row,
    TailEnd,
)

__all__ = [
    "DEFAULT_READ_BYTES",
    "DEFAULT_READ_RECORDS",
    "DEFAULT_TAIL_BUFFER",
    "SHARED_POLL_MS",
    "Appended",
    "ChainInfo",
    "Durability",
    "Interval",
    "Lagged",
    "Retention",
    "Row",
    "Store",
    "Tail",
    "TailEnd",
]
