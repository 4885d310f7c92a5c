"""The engine: what the nodes of a cluster share, and the rules every implementation keeps.

One conformance suite (`tests/engine/conformance.py`) runs on each implementation. The rules, from the
architecture page ("Engine rules") and contract section 6:

**Chains.** Totally ordered, durable, append-only. Seq and hash live in the record (`substrate.wire.records`), never
in an engine's own positions. An append is one atomic entry: all its records or none, within `MAX_ENTRY_BYTES` and
`MAX_ENTRY_RECORDS`; it is durable before it is acknowledged. A chain that does not exist reads as an empty one; only
an append without `create` insists on it. The engine never trims what it was not told to.

**Compare-and-append.** With `expect` the append succeeds only on exactly that head. Of any number of racing
appends with one expectation exactly one wins; the others raise `conflict` whose details hold the true head.

**Idempotence.** `entry_id` (16 bytes) names an append: repeated within `ENTRY_ID_WINDOW_MS`, on any connection and
after any crash, it is answered with the first outcome and `duplicate=True`, whatever `expect` says then.

**Outcomes.** An append returns (it happened), raises `unknown-outcome` (it may have happened: repeat it with the same
entry id, which the error's details carry, or read), or raises another kind (it did not happen). Implementations
repeat by themselves until the deadline before they raise `unknown-outcome`.

**Tails** deliver every record from a seq on, in order, each once, after it is durable. They outlive the connection. A slow
subscriber delays nobody else and loses nothing; what retention removed before it was read is reported as `Lagged` (its
`from_seq` to `to_seq`, both inclusive).

**Key-value** holds only what may vanish: all of it can be gone after a restart of the engine, and watchers are then
told `reset`. Revisions only grow, across restarts too, and stay below 2^53. Time-to-live runs on the engine's
own monotonic clock.

**Requests** go to the one server of a subject, at most once: a request whose answer is lost is not repeated.

Kinds raised by all: `engine-unavailable` (nothing was done), `unknown-outcome`, `io-error`, `disk-full`, `too-large`,
`invalid-argument`, `overloaded`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Literal, Protocol, Self, TypeAlias

import msgspec

from substrate.redex import Appended, ChainInfo, Lagged
from substrate.wire.records import Head, Record

MAX_VALUE_BYTES: Final = 64 * 1024
"""Largest value of one key."""
MAX_KEYS: Final = 65_536
"""Most keys the key-value store holds at once."""
MAX_KEY_BYTES: Final = 512
"""Longest key and longest subject."""
MAX_REQUEST_BYTES: Final = 512 * 1024
"""Largest payload of a request and of its answer."""
MAX_TTL_MS: Final = 24 * 3600 * 1000
"""Longest time-to-live."""
MAX_REVISION: Final = 1 << 53
"""Revisions stay below this, so that every JSON reader keeps them exact."""
ENTRY_ID_BYTES: Final = 16
ENTRY_ID_WINDOW_MS: Final = 3600 * 1000
"""How long, at least, a repeated entry id is recognised."""
DEFAULT_TAIL_BUFFER: Final = 4096
"""Records a tail may hold that its reader has not taken yet."""

Handler: TypeAlias = Callable[[bytes], Awaitable[bytes]]
"""Answers one request; a raised `NetError` travels to the requester as it is."""


class KvEntry(msgspec.Struct, frozen=True, array_like=True):
    """A present key. `expires_in_ms` is None for a key without time-to-live."""

    key: str
    value: bytes
    revision: int
    expires_in_ms: int | None = None


class KvEvent(msgspec.Struct, frozen=True, array_like=True):
    """A change seen by a watcher.

    `put` carries the value; `delete` and `expired` an empty one and the revision of the removal. `reset` (empty
    key) says that the engine forgot everything: the entries present now follow as `put`, and absence proves nothing
    about the time before.
    """

    op: Literal["put", "delete", "expired", "reset"]
    key: str = ""
    value: bytes = b""
    revision: int = 0


class EngineStatus(msgspec.Struct, frozen=True):
    """What the engine says about itself. `epoch` changes with every start of the engine."""

    kind: str
    pid: int
    epoch: int
    uptime_ms: int
    now_ms: int
    db_bytes: int
    connections: int
    tails: int
    watches: int
    subjects: int
    keys: int
    appends: int
    """Entries appended since the start."""


TailItem: TypeAlias = list[Record] | Lagged


class Tail(Protocol):
    """Batches of records, each non-empty, interleaved with `Lagged`. Ends only by `aclose` or the engine's `close`."""

    def __aiter__(self) -> Self:
        """The tail itself; one reader at a time."""
        ...

    async def __anext__(self) -> TailItem:
        """Wait for the next batch."""
        ...

    async def aclose(self) -> None:
        """End it; safe to call twice."""
        ...


class Watch(Protocol):
    """Events of the keys under a prefix: the present entries first, then changes.

    A reader that falls behind sees only the latest event of each key, never a stale last one.
    """

    def __aiter__(self) -> Self:
        """The watch itself; one reader at a time."""
        ...

    async def __anext__(self) -> KvEvent:
        """Wait for the next event."""
        ...

    async def aclose(self) -> None:
        """End it; safe to call twice."""
        ...


class Serving(Protocol):
    """A subject being served."""

    async def ready(self) -> None:
        """Return once the engine routes to this server; raises `conflict` if another one serves the subject."""
        ...

    async def aclose(self) -> None:
        """Stop serving; requests in progress are still answered."""
        ...


class Engine(Protocol):
    """What the nodes of a cluster share. Rules: the module's docstring."""

    async def append(
        self,
        chain: str,
        payloads: Sequence[bytes],
        *,
        expect: Head | None = None,
        entry_id: bytes | None = None,
        create: bool = False,
    ) -> Appended:
        """Append one record for each payload; the engine stamps `at_ms` (never before the head's) and the hashes.

        Raises `conflict` (details.head), `chain-not-found` without `create`, `too-large`, `unknown-outcome`.
        """
        ...

    async def append_records(
        self,
        chain: str,
        records: Sequence[Record],
        *,
        expect: Head,
        entry_id: bytes | None = None,
        create: bool = False,
    ) -> Appended:
        """Append records numbered, hashed and sealed by the caller, continuing `expect`.

        Raises as `append`, and `corrupt-store` (details.seq) if they do not continue `expect`.
        """
        ...

    async def read(self, chain: str, from_seq: int, *, limit: int = 1000) -> list[Record]:
        """Records from `from_seq` on, in order: `limit` of them, or fewer only where the chain ends.

        What retention removed is missing at the front: the first record then has a larger seq.
        """
        ...

    async def head(self, chain: str) -> Head:
        """The chain's head; `EMPTY` for a chain that is empty or does not exist."""
        ...

    async def chains(self) -> list[ChainInfo]:
        """Every chain, by name."""
        ...

    def tail(self, chain: str, from_seq: int, *, buffer: int = DEFAULT_TAIL_BUFFER) -> Tail:
        """Every record from `from_seq` (1 = the first) on, those to come included; the chain need not exist yet."""
        ...

    async def kv_put(self, key: str, value: bytes, *, ttl_ms: int | None = None, expect: int | None = None) -> int:
        """Set a key; returns its new revision. Without `ttl_ms` it stays until deleted.

        `expect` is the key's present revision, 0 for absent; else `conflict` with `details.revision` (0 = absent).
        Without `expect` a put may be repeated after a lost connection; with it, it raises `unknown-outcome`.
        """
        ...

    async def kv_get(self, key: str) -> KvEntry | None:
        """The key's entry, or None."""
        ...

    async def kv_list(self, prefix: str) -> list[KvEntry]:
        """Entries whose key begins with `prefix`, by key. A long list is read in pages and is no snapshot."""
        ...

    async def kv_delete(self, key: str, *, expect: int | None = None) -> bool:
        """Delete a key; False if there was none. `expect` as for `kv_put`."""
        ...

    def kv_watch(self, prefix: str) -> Watch:
        """Watch the keys that begin with `prefix`."""
        ...

    def serve(self, subject: str, handler: Handler) -> Serving:
        """Answer requests to `subject`, across reconnections; one server per subject in the whole cluster."""
        ...

    async def request(self, subject: str, payload: bytes, *, timeout_ms: int) -> bytes:
        """Ask the server of `subject`.

        Raises `node-unreachable` (nobody serves it, or the server went away meanwhile), `timeout`, `overloaded`, or
        what the handler raised.
        """
        ...

    async def now_ms(self) -> int:
        """The engine's wall clock, milliseconds since 1970."""
        ...

    async def status(self) -> EngineStatus:
        """What the engine says about itself."""
        ...

    async def close(self) -> None:
        """End the connection, tails and watches; calls in progress raise `engine-unavailable` or `unknown-outcome`."""
        ...


__all__ = [
    "DEFAULT_TAIL_BUFFER",
    "ENTRY_ID_BYTES",
    "ENTRY_ID_WINDOW_MS",
    "MAX_KEYS",
    "MAX_KEY_BYTES",
    "MAX_REQUEST_BYTES",
    "MAX_REVISION",
    "MAX_TTL_MS",
    "MAX_VALUE_BYTES",
    "Appended",
    "ChainInfo",
    "Engine",
    "EngineStatus",
    "Handler",
    "KvEntry",
    "KvEvent",
    "Lagged",
    "Serving",
    "Tail",
    "TailItem",
    "Watch",
]
