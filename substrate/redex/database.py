"""The SQLite file under a store: creating it, opening connections, and what its errors mean.

Schema. A record's row id is `chain id << 44 | seq`, so a chain is one range of one b-tree: its head is
the last row of the range, a read is a range scan, and a commit dirties one leaf. The previous hash is not stored: it
is the row before, or `base_hash` of the chain when retention removed that one. `end_bytes` is the running
total of payload and seal bytes, which makes the size of any stretch a subtraction.

The file is built under another name and renamed, so a file that is there but empty is damage, not a new store.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

import apsw

from substrate.wire.errors import NetError

MIN_LIBRARY: Final = (3, 51, 3)
"""Oldest SQLite without the bug that can corrupt a database when its write-ahead log restarts."""
APPLICATION_ID: Final = 0x4E655258
SCHEMA_VERSION: Final = 1
SEQ_BITS: Final = 44
MAX_CHAINS: Final = (1 << (63 - SEQ_BITS)) - 1
BUSY_MS: Final = 10_000
PAGE_BYTES: Final = 4096

_SCHEMA: Final = f"""
PRAGMA page_size={PAGE_BYTES};
PRAGMA application_id={APPLICATION_ID};
PRAGMA user_version={SCHEMA_VERSION};
CREATE TABLE chains (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, created_at_ms INTEGER NOT NULL,
    max_records INTEGER, max_bytes INTEGER, max_age_ms INTEGER,
    base_seq INTEGER NOT NULL, base_hash BLOB NOT NULL, base_bytes INTEGER NOT NULL
) STRICT;
CREATE TABLE records (
    key INTEGER PRIMARY KEY, at_ms INTEGER NOT NULL, end_bytes INTEGER NOT NULL,
    hash BLOB NOT NULL, seal BLOB NOT NULL, payload BLOB NOT NULL
) STRICT;
CREATE TABLE entries (
    entry_id BLOB PRIMARY KEY, chain INTEGER NOT NULL, first_seq INTEGER NOT NULL,
    last_seq INTEGER NOT NULL, last_hash BLOB NOT NULL, at_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
"""

_DAMAGE: Final = (
    apsw.CorruptError,
    apsw.NotADBError,
    apsw.FormatError,
    apsw.SQLError,
    apsw.ConstraintError,
    apsw.MismatchError,
)
"""Our statements are fixed and our keys new: what does not compile or collides is damage in the file."""


def check_library(version: str | None = None) -> None:
    """Refuse a SQLite library older than MIN_LIBRARY with `missing-feature`."""
    version = version or apsw.sqlite_lib_version()
    if tuple(int(part) for part in version.split(".")[:3]) < MIN_LIBRARY:
        wanted = ".".join(map(str, MIN_LIBRARY))
        raise NetError(
            "missing-feature",
            f"apsw uses SQLite {version}, which can corrupt its write-ahead log; at least {wanted} is needed",
            f"pip install 'apsw>={wanted}.0'",
        )


def translate(error: apsw.Error, path: Path) -> NetError:
    """The NetError of a failed SQLite call: `corrupt-store`, `disk-full`, `timeout`, else `io-error`."""
    details: dict[str, Any] = {"path": str(path), "sqlite": str(error)}
    short_read = getattr(error, "extendedresult", 0) in (apsw.SQLITE_IOERR_SHORT_READ, apsw.SQLITE_IOERR_CORRUPTFS)
    if short_read or isinstance(error, _DAMAGE):
        return corrupt(path, f"the store {path} is damaged: {error}", details)
    if isinstance(error, apsw.FullError):
        return NetError(
            "disk-full", f"no space left for {path}", "free some space; the store goes on by itself", details
        )
    if isinstance(error, apsw.BusyError | apsw.LockedError):
        return NetError("timeout", f"another program keeps {path} locked", f"find it with: fuser -v {path}", details)
    return NetError("io-error", f"cannot use {path}: {error}", "see the system log for errors of the disk", details)


def corrupt(path: Path, message: str, details: dict[str, Any]) -> NetError:
    """A `corrupt-store` error whose hint is the way back."""
    hint = f"stop what uses it, move {path} aside and restore it from another node's copy or a backup"
    return NetError("corrupt-store", message, hint, details)


def make_directory(path: Path) -> None:
    """Make a directory (0700) and the missing ones above it, each durable in the one that holds it."""
    if path.is_dir():
        return
    make_directory(path.parent)
    path.mkdir(mode=0o700, exist_ok=True)
    _fsync(path.parent)


def create(path: Path, vfs: str | None) -> None:
    """Make an empty store at `path`: mode 0600 from the first byte, durable before it gets its name.

    The caller holds the lock file, so a left-over of a crashed creation is ours to remove.
    """
    draft = path.with_name(path.name + ".new")
    for suffix in ("", "-wal", "-shm", "-journal"):
        draft.with_name(draft.name + suffix).unlink(missing_ok=True)
    os.close(os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    try:
        connection = apsw.Connection(str(draft), vfs=vfs)
        try:
            connection.execute(_SCHEMA)
            connection.execute("PRAGMA synchronous=FULL")
            if connection.pragma("journal_mode", "wal") != "wal":
                raise NetError("io-error", f"the file system of {path} cannot hold a write-ahead log")
        finally:
            connection.close()
        # The rename must never get ahead of the content, whatever closing the connection flushed.
        _fsync(draft)
        os.rename(draft, path)
        _fsync(path.parent)
    except apsw.Error as error:
        raise translate(error, path) from error


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def connect(path: Path, *, read_only: bool, vfs: str | None, synchronous: str = "FULL") -> apsw.Connection:
    """Open one connection and check that the file is a store of ours; cost independent of its size.

    Raises `corrupt-store`, `not-yet-supported` (made by a newer version), `io-error`, `timeout`.
    """
    flags = apsw.SQLITE_OPEN_READONLY if read_only else apsw.SQLITE_OPEN_READWRITE
    try:
        if path.stat().st_size == 0:
            raise corrupt(path, f"the store {path} is empty: it was cut", {"path": str(path)})
        name = str(path)
        log = path.with_name(path.name + "-wal")
        immutable = read_only and not os.access(path.parent, os.W_OK) and not log.exists()
        if immutable:
            # SQLite cannot make its shared-memory file there, and nobody can be writing either.
            name = f"{path.absolute().as_uri()}?immutable=1"
            flags |= apsw.SQLITE_OPEN_URI
        connection = apsw.Connection(name, flags=flags, vfs=vfs)
    except apsw.Error as error:
        raise translate(error, path) from error
    except FileNotFoundError as error:
        raise NetError("store-not-found", f"there is no store at {path}", None, {"path": str(path)}) from error
    except OSError as error:
        raise NetError("io-error", f"cannot read {path}: {error.strerror}", None, {"path": str(path)}) from error
    try:
        _check_and_set_up(connection, path, synchronous, immutable=immutable)
    except apsw.Error as error:
        connection.close()
        raise translate(error, path) from error
    except NetError:
        connection.close()
        raise
    return connection


def _check_and_set_up(connection: apsw.Connection, path: Path, synchronous: str, *, immutable: bool) -> None:
    connection.set_busy_timeout(BUSY_MS)
    if connection.pragma("application_id") != APPLICATION_ID:
        raise corrupt(path, f"{path} is not a RedEX store", {"path": str(path)})
    if (version := connection.pragma("user_version")) != SCHEMA_VERSION:
        raise NetError(
            "not-yet-supported",
            f"{path} has layout {version}; this version reads layout {SCHEMA_VERSION}",
            "use the version of net that wrote it",
            {"path": str(path)},
        )
    # The header says WAL since creation; anything else would mean rollback journals and other guarantees.
    if not immutable and (journal := connection.pragma("journal_mode")) != "wal":
        raise corrupt(path, f"{path} lost its write-ahead mode ({journal})", {"path": str(path)})
    connection.pragma("synchronous", synchronous)
    connection.pragma("wal_autocheckpoint", 0)  # the writer checkpoints where it can see the outcome
    connection.pragma("cache_size", -2048)
    connection.pragma("cell_size_check", 1)
    for sql in ("SELECT * FROM chains LIMIT 0", "SELECT * FROM records LIMIT 0", "SELECT * FROM entries LIMIT 0"):
        connection.execute(sql)
