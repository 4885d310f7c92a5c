"""The one place that writes: judges a group of requests in order, inserts what was accepted, commits, checkpoints.

A request that loses (conflict, no such chain) takes no part in the transaction; its neighbours do. Judging sees
what the group itself will append, so N racing expectations of one head let exactly one through.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import apsw

from substrate.redex.chainstate import Chain, RecordRow, load_chain
from substrate.redex.database import MAX_CHAINS, translate
from substrate.redex.groupcommit import Request
from substrate.redex.lock import FileLock
from substrate.redex.types import Appended, Retention, chain_not_found, conflict
from substrate.wire.errors import NetError
from substrate.wire.records import Head

CHECKPOINT_PAGES: Final = 1000
ENTRY_TTL_MS: Final = 3_600_000
"""How long an entry id is remembered: longer than any client retries."""
PRUNE_EVERY: Final = 512
PRUNE_AT_MOST: Final = 1024

_INSERT: Final = "INSERT INTO records(key, at_ms, end_bytes, hash, seal, payload) VALUES(?,?,?,?,?,?)"
_INSERT_ENTRY: Final = "INSERT INTO entries VALUES(?,?,?,?,?,?)"
_INSERT_CHAIN: Final = (
    "INSERT INTO chains(id, name, created_at_ms, max_records, max_bytes, max_age_ms, base_seq, base_hash, base_bytes)"
    " VALUES(?,?,?,?,?,?,0,zeroblob(32),0)"
)
_PRUNE: Final = (
    "DELETE FROM entries WHERE entry_id IN"
    " (SELECT entry_id FROM (SELECT entry_id, at_ms FROM entries ORDER BY entry_id LIMIT ?) WHERE at_ms < ?)"
)


def wall_ms() -> int:
    """Milliseconds since 1970, UTC."""
    return time.time_ns() // 1_000_000


class _Group:
    """The state inside one transaction: heads that are not committed yet, and the rows to insert."""

    def __init__(self, now_ms: int) -> None:
        self.now_ms = now_ms
        self.created: dict[str, Chain] = {}
        self.heads: dict[str, tuple[Head, int]] = {}
        self.rows: list[RecordRow] = []
        self.entries: dict[bytes, tuple[int, int, int, bytes, int]] = {}


class Writer:
    """Owns the writing connection; used only by whoever leads the group commit."""

    def __init__(
        self, connection: apsw.Connection, path: Path, lock: FileLock, *, shared: bool, lock_timeout_s: float
    ) -> None:
        self.connection = connection
        self.committed: list[tuple[str, Head]] = []
        self.appended_bytes = 0
        self._path = path
        self._cursor = connection.cursor()
        self.execute = self._cursor.execute
        self._chains: dict[str, Chain] = {}
        self._shared = shared
        self._data_version = -1
        self._lock = lock
        self._lock_timeout_s = lock_timeout_s
        self._entries_since_prune = PRUNE_EVERY
        self._wal_pages = 0
        self._checkpoint_at = CHECKPOINT_PAGES
        connection.set_wal_hook(self._on_wal)

    def knows(self, name: str) -> bool:
        """Whether the chain is at hand, hence its name legal; any thread may ask."""
        return name in self._chains

    def committed_head(self, name: str) -> Head | None:
        """The committed head if this (sole) writer has it at hand; any thread may ask."""
        chain = self._chains.get(name)
        return None if chain is None or self._shared else chain.head

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Run a block in one write transaction; in a shared store under the lock. NetErrors and SQLite's roll back.

        After any failure the cached heads are forgotten: the file says what is true.
        """
        if self._shared:
            self._lock.acquire(self._lock_timeout_s)
        try:
            self.execute("BEGIN IMMEDIATE")
            if self._shared:
                self._notice_others()
            yield
            self.execute("COMMIT")
        except BaseException:
            self._chains = {}
            self._roll_back()
            raise
        finally:
            if self._shared:
                self._lock.release()

    def _notice_others(self) -> None:
        version = self.connection.data_version()
        if version != self._data_version:
            self._chains = {}
            self._data_version = version

    def _roll_back(self) -> None:
        if self.connection.in_transaction:
            try:
                self.execute("ROLLBACK")
            except apsw.Error as error:
                # The first failure is on its way to the caller; a connection that cannot even roll back is done for.
                self.connection.close()
                raise NetError("io-error", f"cannot roll back in {self._path}: {error}") from error

    def commit(self, group: list[Request]) -> None:
        """Settle every request of `group`. Raises what kept the transaction from committing."""
        accepted = _Group(wall_ms())
        outcomes: list[tuple[Request, Appended]] = []
        refusals: list[tuple[Request, NetError]] = []
        with self.transaction():
            for request in group:
                try:
                    outcomes.append((request, self._judge(request, accepted)))
                except NetError as error:  # a damaged chain, too, is the trouble of its own requests only
                    refusals.append((request, error))
            if len(accepted.rows) == 1:
                self.execute(_INSERT, accepted.rows[0])
            elif accepted.rows:
                self._cursor.executemany(_INSERT, accepted.rows)
            if accepted.entries:
                self._insert_entries(accepted)
        self._chains.update(accepted.created)
        for name, (head, end_bytes) in accepted.heads.items():
            chain = self._chains[name]
            self.appended_bytes += end_bytes - chain.end_bytes
            chain.head, chain.end_bytes = head, end_bytes
            self.committed.append((name, head))
        for request, result in outcomes:
            request.result = result
        # Only now: a refusal may name a head that this very transaction made.
        for request, refusal in refusals:
            request.error = refusal

    def _judge(self, request: Request, group: _Group) -> Appended:
        entry_id = request.entry_id
        if entry_id is not None:
            before = group.entries.get(entry_id) or self._find_entry(entry_id)
            if before is not None:
                return self._duplicate(request, before, group)
        name = request.chain
        chain = group.created.get(name) or self.chain(name)
        if chain is None:
            if request.expect is not None and request.expect != Head():
                raise conflict(name, request.expect, Head()) if request.create else chain_not_found(name)
            if not request.create:
                raise chain_not_found(name)
            chain = group.created[name] = self.insert_chain(name, Retention(), group.now_ms)
        head, end_bytes = group.heads.get(name) or (chain.head, chain.end_bytes)
        if request.expect is not None and request.expect != head:
            raise conflict(name, request.expect, head)
        if request.records is not None:
            rows, new_head, end_bytes = chain.sealed_rows(end_bytes, request.records)
        else:
            at_ms = group.now_ms if request.at_ms is None else request.at_ms
            rows, new_head, end_bytes = chain.rows(head, end_bytes, at_ms, request.payloads)
        group.rows += rows
        group.heads[name] = (new_head, end_bytes)
        if entry_id is not None:
            group.entries[entry_id] = (chain.key0, head.seq + 1, new_head.seq, new_head.hash, group.now_ms)
        return Appended(head.seq + 1, new_head)

    def _find_entry(self, entry_id: bytes) -> tuple[int, int, int, bytes, int] | None:
        row: tuple[int, int, int, bytes, int] | None = self.execute(
            "SELECT chain, first_seq, last_seq, last_hash, at_ms FROM entries WHERE entry_id=?", (entry_id,)
        ).fetchone()
        return row

    def _duplicate(self, request: Request, before: tuple[int, int, int, bytes, int], group: _Group) -> Appended:
        key0, first_seq, last_seq, last_hash, _ = before
        chain = group.created.get(request.chain) or self.chain(request.chain)
        if chain is None or chain.key0 != key0:
            raise NetError("invalid-argument", "this entry id was used for another chain", "make a new id per entry")
        return Appended(first_seq, Head(last_seq, last_hash), duplicate=True)

    def _insert_entries(self, group: _Group) -> None:
        self._cursor.executemany(_INSERT_ENTRY, ((entry_id, *entry) for entry_id, entry in group.entries.items()))
        self._entries_since_prune += len(group.entries)
        if self._entries_since_prune >= PRUNE_EVERY:
            # Ids are time-ordered, so the lowest are the oldest: a bounded look at them keeps up with any load.
            self._entries_since_prune = 0
            self.execute(_PRUNE, (PRUNE_AT_MOST, group.now_ms - ENTRY_TTL_MS))

    def chain(self, name: str) -> Chain | None:
        """The chain, from memory or the file. Inside a transaction only."""
        chain = self._chains.get(name)
        if chain is None:
            chain = load_chain(self.execute, name, check_head=True)
            if chain is not None:
                self._chains[name] = chain
        return chain

    def insert_chain(self, name: str, retention: Retention, now_ms: int) -> Chain:
        """Insert a chain's row. Inside a transaction only; the caller checked that the name is free."""
        row = self.execute("SELECT coalesce(max(id), 0) + 1 FROM chains").fetchone()
        assert row is not None
        if row[0] > MAX_CHAINS:
            raise NetError("too-large", f"a store holds at most {MAX_CHAINS} chains")
        limits = (retention.max_records, retention.max_bytes, retention.max_age_ms)
        self.execute(_INSERT_CHAIN, (row[0], name, now_ms, *limits))
        return Chain(name, row[0], now_ms, retention)

    def forget(self, name: str) -> None:
        """Re-read a chain's row at its next use."""
        self._chains.pop(name, None)

    def _on_wal(self, _connection: apsw.Connection, _name: str, pages: int) -> int:
        if pages < self._wal_pages:
            self._checkpoint_at = CHECKPOINT_PAGES
        self._wal_pages = pages
        return apsw.SQLITE_OK

    def checkpoint_if_due(self) -> None:
        """Move the log into the file once it is long enough. Raises `disk-full` (try again later) or `io-error`.

        The log is then used again from its start, without growing: flushes stay cheap.
        """
        if self._wal_pages >= self._checkpoint_at:
            self.checkpoint(apsw.SQLITE_CHECKPOINT_PASSIVE)

    def checkpoint(self, mode: int) -> None:
        """Checkpoint now; in a shared store under the lock."""
        # Set first: after a failure, or when a reader is in the way, wait for some more pages.
        self._checkpoint_at = self._wal_pages + CHECKPOINT_PAGES // 2
        if self._shared:
            self._lock.acquire(self._lock_timeout_s)
        try:
            self.connection.wal_checkpoint(mode=mode)
        except apsw.Error as error:
            raise translate(error, self._path) from error
        finally:
            if self._shared:
                self._lock.release()

    def close(self, *, tidy: bool) -> None:
        """Close the connection; not `tidy`: leave the log as it is, for it must not be written after a failure."""
        if self._shared:
            self._lock.acquire(self._lock_timeout_s)  # the last one to close removes the log; none may open meanwhile
        try:
            if not tidy:
                self.connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            self.connection.close()
        except apsw.ConnectionClosedError:
            return  # a failed roll back closed it
        except apsw.Error as error:
            raise translate(error, self._path) from error
        finally:
            if self._shared:
                self._lock.release()
