"""A node's index of its ledger copy: commit ids and what audit queries filter by.

Derived from the copy, so it is written without waiting for the disk and rebuilt from the copy where it is behind.
It also keeps a snapshot of the folded state, so that a start replays at most `SNAPSHOT_EVERY` records.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import apsw
import msgspec

from substrate.operator.fold import Entry
from substrate.redex.database import translate
from substrate.wire.events import ICE_KINDS

State = TypeVar("State", bound=msgspec.Struct)

SCHEMA_VERSION: Final = 1
SNAPSHOT_EVERY: Final = 2048

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS entries (
    seq INTEGER PRIMARY KEY, commit_id BLOB NOT NULL, at_ms INTEGER NOT NULL, kind TEXT NOT NULL,
    force INTEGER NOT NULL, accepted INTEGER NOT NULL, node BLOB
) STRICT;
CREATE INDEX IF NOT EXISTS entries_by_commit ON entries (commit_id);
CREATE INDEX IF NOT EXISTS entries_by_time ON entries (at_ms);
CREATE INDEX IF NOT EXISTS entries_by_kind ON entries (kind, seq);
CREATE INDEX IF NOT EXISTS entries_by_node ON entries (node, seq) WHERE node IS NOT NULL;
CREATE INDEX IF NOT EXISTS entries_by_force ON entries (seq) WHERE force;
CREATE TABLE IF NOT EXISTS signers (operator BLOB NOT NULL, seq INTEGER NOT NULL, PRIMARY KEY (operator, seq)) WITHOUT ROWID, STRICT;
CREATE TABLE IF NOT EXISTS snapshots (fold TEXT PRIMARY KEY, state BLOB NOT NULL) WITHOUT ROWID, STRICT;
"""


class AuditFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which entries a query wants; all conditions hold together. Times are inclusive, `since` is exclusive."""

    limit: int = 100
    since: int = 0
    operator: int | None = None
    from_ms: int | None = None
    to_ms: int | None = None
    force_only: bool = False
    kind: str | None = None
    node: int | None = None
    outcome: str | None = None


def _id(value: int) -> bytes:
    return value.to_bytes(8, "big")  # SQLite integers are signed; ids use all 64 bits


class LedgerIndex:
    """The index file of one ledger copy. Used from one thread."""

    def __init__(self, path: Path) -> None:
        # SQLite would make it readable to others; its companion files take the mode of this one.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        self._path = path
        self._db = apsw.Connection(str(path))
        self._db.set_busy_timeout(2000)
        self._db.execute("PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF").fetchall()
        if self._db.pragma("user_version") not in (0, SCHEMA_VERSION):
            # Derived data of another version: made anew rather than converted.
            self._db.execute("DROP TABLE entries; DROP TABLE signers; DROP TABLE snapshots")
        with self._room():
            self._db.execute(_SCHEMA)
            self._db.pragma("user_version", SCHEMA_VERSION)

    @contextmanager
    def _room(self) -> Iterator[None]:
        """Tell a full disk as `disk-full`; what was to be written is not there then."""
        try:
            yield
        except apsw.FullError as error:
            raise translate(error, self._path) from error

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def head(self) -> int:
        """The last indexed seq, 0 if none."""
        return int(self._db.execute("SELECT coalesce(max(seq), 0) FROM entries").get)

    def cut(self, head: int) -> None:
        """Forget entries after `head`: the copy does not have them. Raises `disk-full`."""
        with self._room(), self._db:
            self._db.execute("DELETE FROM entries WHERE seq > ?", (head,))
            self._db.execute("DELETE FROM signers WHERE seq > ?", (head,))

    def add(self, entries: Sequence[Entry]) -> None:
        """Index verified entries, all or none. Raises `disk-full`."""
        rows, signers = [], []
        for entry in entries:
            event, seq = entry.event, entry.record.seq
            node = getattr(event, "node", None)
            force, target = event.kind in ICE_KINDS, None if node is None else _id(node)
            rows.append((seq, entry.body.commit_id(), entry.record.at_ms, event.kind, force, entry.accepted, target))
            signers += [(_id(signature.operator_id), seq) for signature in entry.body.signatures]
        with self._room(), self._db:
            self._db.executemany("INSERT OR REPLACE INTO entries VALUES (?,?,?,?,?,?,?)", rows)
            self._db.executemany("INSERT OR REPLACE INTO signers VALUES (?,?)", signers)

    def seq_of(self, commit_id: bytes) -> int | None:
        """The seq of a commit: of its acceptance if there is one, else of its latest rejection."""
        found = self._db.execute(
            "SELECT seq FROM entries WHERE commit_id = ? ORDER BY accepted DESC, seq DESC LIMIT 1", (commit_id,)
        ).get
        return None if found is None else int(found)

    def seqs(self, wanted: AuditFilter, newest_first: bool = True) -> list[int]:
        """The seqs that match, at most `wanted.limit` of them."""
        conditions, values = ["e.seq > ?"], [wanted.since]
        arguments: list[Any] = values
        table = "entries e"
        if wanted.operator is not None:
            table = "signers s JOIN entries e ON e.seq = s.seq"
            conditions.append("s.operator = ?")
            arguments.append(_id(wanted.operator))
        for condition, value in (
            ("e.at_ms >= ?", wanted.from_ms),
            ("e.at_ms <= ?", wanted.to_ms),
            ("e.kind = ?", wanted.kind),
            ("e.node = ?", None if wanted.node is None else _id(wanted.node)),
            ("e.accepted = ?", None if wanted.outcome is None else wanted.outcome == "accepted"),
        ):
            if value is not None:
                conditions.append(condition)
                arguments.append(value)
        if wanted.force_only:
            conditions.append("e.force")
        order = "DESC" if newest_first else "ASC"
        arguments.append(wanted.limit)
        rows = self._db.execute(
            f"SELECT e.seq FROM {table} WHERE {' AND '.join(conditions)} ORDER BY e.seq {order} LIMIT ?", arguments
        )
        return [int(seq) for (seq,) in rows]

    def save(self, fold: str, state: msgspec.Struct) -> None:
        """Keep a snapshot of a folded state under the fold's name. Raises `disk-full`."""
        with self._room():
            self._db.execute("INSERT OR REPLACE INTO snapshots VALUES (?, ?)", (fold, msgspec.msgpack.encode(state)))

    def load(self, fold: str, kind: type[State]) -> State | None:
        """The last snapshot of a fold, or None; one of another layout counts as none."""
        blob = self._db.execute("SELECT state FROM snapshots WHERE fold = ?", (fold,)).get
        if blob is None:
            return None
        try:
            return msgspec.msgpack.decode(blob, type=kind)
        except msgspec.ValidationError:
            return None  # written by an earlier version; the fold starts from the first record instead
