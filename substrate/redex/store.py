"""A store: one SQLite file that holds many append-only hash chains (contract section 6; architecture, RedEX).

Everything acknowledged under `Durability.EVERY` is on disk. All methods may be called from any thread; asyncio code
uses `submit` with `asyncio.wrap_future`. A store that failed to write refuses everything: what reached the disk is unknown
until the file is opened again, so the process should end (`on_fatal`).
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

import apsw

from substrate.redex import database
from substrate.redex.flusher import Flusher
from substrate.redex.groupcommit import GroupCommit, Request
from substrate.redex.lock import FileLock
from substrate.redex.reader import Reader
from substrate.redex.readside import ReadSide
from substrate.redex.retention import cut_point, remove_through
from substrate.redex.types import (
    Appended,
    Durability,
    Interval,
    Retention,
    chain_not_found,
)
from substrate.redex.writer import Writer, wall_ms
from substrate.wire.errors import NetError
from substrate.wire.records import (
    MAX_ENTRY_BYTES,
    MAX_ENTRY_RECORDS,
    MAX_PAYLOAD_BYTES,
    Head,
    Record,
    check_chain_name,
    check_entry_size,
    check_follows,
)

ENTRY_ID_BYTES: Final = 16
LOCK_TIMEOUT_S: Final = 30.0
MAX_AT_MS: Final = (1 << 62) - 1


class Store(ReadSide):
    """One file of chains. Open it with `Store.open`, close it with `close()` or a with block."""

    def __init__(self, path: Path, lock: FileLock | None, *, shared: bool, lock_timeout_s: float) -> None:
        super().__init__(path, shared=shared)
        self.checkpoint_trouble: NetError | None = None
        """Why the last checkpoint did not happen; appends go on, the log grows meanwhile."""
        self._lock = lock
        self._lock_timeout_s = lock_timeout_s
        self._state_mutex = threading.Lock()
        self._on_fatal: Callable[[NetError], None] | None = None
        self._flusher: Flusher | None = None
        self._group = GroupCommit(self._commit, self._after_commit)

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        mode: Literal["owned", "shared"] = "owned",
        durability: Durability = Durability.EVERY,
        create: bool = True,
        read_only: bool = False,
        on_fatal: Callable[[NetError], None] | None = None,
        lock_timeout_s: float = LOCK_TIMEOUT_S,
        vfs: str | None = None,
    ) -> Store:
        """Open the store at `path`, making it (and its directory, 0700) if `create` and it is not there.

        `owned`: this process is the only writer and holds `path.lock` until it closes or dies; `conflict` for a second.
        `shared`: many processes write, each holding `path.lock` for one commit, waiting at most `lock_timeout_s` for it.
        `read_only`: takes no lock, works beside a writer, never changes the file.
        `on_fatal` is called once, in a thread of its own, when the store fails. `vfs`: the SQLite VFS to go through.

        Raises `store-not-found`, `conflict`, `corrupt-store`, `not-yet-supported`, `missing-feature`, `disk-full`,
        `io-error`, `timeout`.
        """
        database.check_library()
        if read_only:
            store = cls(path, None, shared=True, lock_timeout_s=lock_timeout_s)
            store._reader = Reader(database.connect(path, read_only=True, vfs=vfs), path)
            return store
        try:
            if create:
                database.make_directory(path.parent)
            elif not path.exists():
                raise NetError("store-not-found", f"there is no store at {path}", None, {"path": str(path)})
            lock = FileLock(path.with_name(path.name + ".lock"))
        except OSError as error:
            raise NetError("io-error", f"cannot open {path}: {error.strerror}", None, {"path": str(path)}) from error
        store = cls(path, lock, shared=mode == "shared", lock_timeout_s=lock_timeout_s)
        store._on_fatal = on_fatal
        try:
            if mode == "shared":
                with lock.held(lock_timeout_s):
                    store._connect(lock, durability, vfs)
            elif lock.try_acquire():
                store._connect(lock, durability, vfs)
            else:
                raise NetError(
                    "conflict",
                    f"another process owns the store {path}",
                    f"find it with: fuser -v {lock.path}",
                    {"path": str(path)},
                )
        except BaseException:
            lock.close()
            raise
        return store

    def _connect(self, lock: FileLock, durability: Durability, vfs: str | None) -> None:
        try:
            if not self.path.exists():
                database.create(self.path, vfs)
        except OSError as error:
            kind = "disk-full" if error.errno == errno.ENOSPC else "io-error"
            raise NetError(kind, f"cannot create {self.path}: {error.strerror}") from error
        interval = durability if isinstance(durability, Interval) else None
        synchronous = "FULL" if interval is None else "NORMAL"
        connection = database.connect(self.path, read_only=False, vfs=vfs, synchronous=synchronous)
        try:
            self._reader = Reader(database.connect(self.path, read_only=True, vfs=vfs), self.path)
        except BaseException:
            connection.close()
            raise
        self._writer = Writer(connection, self.path, lock, shared=self.shared, lock_timeout_s=self._lock_timeout_s)
        if interval is not None:
            self._flusher = Flusher(self.path.with_name(self.path.name + "-wal"), interval, self._fail)

    # -- appending ---------------------------------------------------------------------------------------------------

    def append(
        self,
        chain: str,
        payloads: Sequence[bytes],
        *,
        expect: Head | None = None,
        at_ms: int | None = None,
        entry_id: bytes | None = None,
        create: bool = False,
    ) -> Appended:
        """Append one atomic entry of `payloads` and return when it is as durable as the store promises.

        `expect`: the head it must follow. `at_ms`: the stamp (default: the wall clock at the commit). `entry_id`: 16
        bytes, time-ordered; sent again within an hour it returns the first outcome as a `duplicate`, before `expect` is
        looked at. `create`: make the chain if it is not there.

        Raises `conflict` (details: chain, expected, head), `chain-not-found`, `too-large`, `invalid-argument`,
        `disk-full`, `io-error` (details.outcome: `unknown` when it may be there after a restart), `read-only`.
        """
        return self._group.run(self._request(chain, payloads, None, expect, at_ms, entry_id, create))

    def append_records(
        self,
        chain: str,
        records: Sequence[Record],
        *,
        expect: Head,
        entry_id: bytes | None = None,
        create: bool = False,
    ) -> Appended:
        """Append records sealed elsewhere that continue `expect`. Raises as `append`; `corrupt-store` for a bad one."""
        return self._group.run(self._request(chain, (), records, expect, None, entry_id, create))

    def submit(
        self,
        chain: str,
        payloads: Sequence[bytes] = (),
        *,
        records: Sequence[Record] | None = None,
        expect: Head | None = None,
        at_ms: int | None = None,
        entry_id: bytes | None = None,
        create: bool = False,
    ) -> Future[Appended]:
        """As `append` (or with `records`, `append_records`) without waiting; submissions share one flush, in order.

        Errors of the arguments are raised here, also `overloaded`; what the commit says is in the future. Its callbacks
        run in the committing thread.
        """
        return self._group.submit(self._request(chain, payloads, records, expect, at_ms, entry_id, create))

    def _request(
        self,
        chain: str,
        payloads: Sequence[bytes],
        records: Sequence[Record] | None,
        expect: Head | None,
        at_ms: int | None,
        entry_id: bytes | None,
        create: bool,
    ) -> Request:
        self._check_writable()
        if self._writer is None or not self._writer.knows(chain):
            check_chain_name(chain)
        if entry_id is not None and (type(entry_id) is not bytes or len(entry_id) != ENTRY_ID_BYTES):
            raise NetError("invalid-argument", f"an entry id is {ENTRY_ID_BYTES} bytes, not {entry_id!r}")
        if at_ms is not None and (type(at_ms) is not int or not 0 <= at_ms <= MAX_AT_MS):
            raise NetError("invalid-argument", f"the stamp {at_ms!r} is not one of milliseconds since 1970")
        request = Request(
            chain, payloads, records=records, expect=expect, at_ms=at_ms, entry_id=entry_id, create=create
        )
        contents = payloads if records is None else [record.payload for record in records]
        seals = () if records is None else [record.seal for record in records]
        if not {*map(type, contents), *map(type, seals)} <= {bytes}:  # found out in the commit, it would fail the group
            raise NetError("invalid-argument", "payloads and seals are bytes")
        over = request.size > MAX_ENTRY_BYTES or len(contents) > MAX_ENTRY_RECORDS
        if over or not contents or max(map(len, contents)) > MAX_PAYLOAD_BYTES:
            check_entry_size(contents)  # says which limit; what it lets through is too large by its seals
            raise NetError("too-large", f"an entry of {request.size} bytes is over the limit of {MAX_ENTRY_BYTES}")
        if records is not None:
            if expect is None:
                raise NetError("invalid-argument", "records need the head they follow")
            check_follows(chain, expect, records)
        return request

    def _commit(self, group: list[Request]) -> None:
        """Settle a group (called by the leader). Never raises what is an answer to the group."""
        writer = self._writer
        assert writer is not None
        try:
            self._check_alive()
            writer.commit(group)
            if self._flusher is not None:
                size, writer.appended_bytes = writer.appended_bytes, 0
                self._flusher.note(size)
            return
        except (apsw.Error, NetError) as error:
            trouble = self._write_trouble(error)
        except Exception as error:  # a bug of ours: nobody must wait for ever, nothing may build on what it left
            trouble = NetError("internal", f"committing failed: {error!r}", None, {"outcome": "unknown"})
            self._fail(trouble)
        for request in group:
            if request.error is None:
                request.result = None
                request.error = NetError(trouble.kind, trouble.message, trouble.hint, dict(trouble.details))

    def _write_trouble(self, error: apsw.Error | NetError) -> NetError:
        """What a failed write is to its caller. An I/O error ends the store; a full disk, a timeout or damage does not."""
        trouble = error if isinstance(error, NetError) else database.translate(error, self.path)
        if trouble.kind == "io-error" and self.failed is None:
            trouble.details["outcome"] = "unknown"
            self._fail(trouble)
        return trouble

    def _after_commit(self) -> None:
        writer = self._writer
        assert writer is not None
        committed, writer.committed = writer.committed, []
        self._watchers.notify(committed)
        if self.failed is None:
            self._checkpoint_if_due(writer)

    def _checkpoint_if_due(self, writer: Writer) -> None:
        try:
            writer.checkpoint_if_due()
            self.checkpoint_trouble = None
        except NetError as error:
            self.checkpoint_trouble = error
            if error.kind == "io-error":
                self._fail(error)

    def _fail(self, error: NetError) -> None:
        with self._state_mutex:
            if self.failed is not None:
                return
            self.failed = error
        self._watchers.end("store-failed")
        if self._on_fatal is not None:
            # Its own thread: the failing one still holds the lead, and a callback may want to close the store.
            threading.Thread(target=self._on_fatal, args=(error,), name="redex-fatal", daemon=True).start()

    # -- chains ------------------------------------------------------------------------------------------------------

    @contextmanager
    def _turn(self) -> Iterator[Writer]:
        """A write transaction of our own, between groups."""
        self._check_writable()
        with self._group.exclusive():
            self._check_writable()
            writer = self._writer
            assert writer is not None
            try:
                with writer.transaction():
                    yield writer
                if self._flusher is not None:
                    self._flusher.flush()
            except apsw.Error as error:
                raise self._write_trouble(error) from error
            except NetError as error:
                self._write_trouble(error)
                raise
            self._checkpoint_if_due(writer)

    def create_chain(self, name: str, retention: Retention | None = None) -> None:
        """Make an empty chain, durably. Raises `chain-exists`, `invalid-argument`."""
        check_chain_name(name)
        with self._turn() as writer:
            if writer.chain(name) is not None:
                raise NetError("chain-exists", f"the chain {name!r} exists already", None, {"chain": name})
            writer.insert_chain(name, retention or Retention(), wall_ms())

    def set_retention(self, name: str, retention: Retention) -> None:
        """Change what the next sweeps keep. Raises `chain-not-found`."""
        limits = (retention.max_records, retention.max_bytes, retention.max_age_ms)
        with self._turn() as writer:
            if writer.chain(name) is None:
                raise chain_not_found(name)
            writer.execute("UPDATE chains SET max_records=?, max_bytes=?, max_age_ms=? WHERE name=?", (*limits, name))
            writer.forget(name)

    def sweep(self, chain: str, now_ms: int) -> int:
        """Remove what the chain's retention no longer keeps at `now_ms`, oldest first; return how many records.

        In bounded steps: appends go on between them. Raises `chain-not-found`.
        """
        removed = 0
        while True:
            with self._turn() as writer:
                state = writer.chain(chain)
                if state is None:
                    raise chain_not_found(chain)
                step = remove_through(writer.execute, state, cut_point(writer.execute, state, now_ms))
                writer.forget(chain)
            if step == 0:
                return removed
            removed += step
            self._watchers.notify([(chain, state.head)])

    # -- end ---------------------------------------------------------------------------------------------------------

    def _check_writable(self) -> None:
        self._check_open()
        if self._writer is None:
            raise NetError("read-only", f"the store {self.path} was opened to be read only")

    def close(self) -> None:
        """Finish what is being committed, refuse what still waits, flush, close. Closing twice is fine.

        Raises what kept the last flush or checkpoint from working; the store is closed all the same.
        """
        with self._state_mutex:
            if self._closed:
                return
            self._closed = True
        self._watchers.end("store-closed")
        if self._writer is None:
            self._reader.close()
            return
        assert self._lock is not None
        try:
            with self._group.exclusive(last=True):
                self._close_files(self._writer)
        finally:
            self._lock.close()
        self._group.join_thread()

    def _close_files(self, writer: Writer) -> None:
        try:
            if self.failed is None:
                if self._flusher is not None:
                    self._flusher.flush()
                if not self.shared:
                    writer.checkpoint(apsw.SQLITE_CHECKPOINT_TRUNCATE)
        finally:
            if self._flusher is not None:
                self._flusher.close()
            self._reader.close()
            writer.close(tidy=self.failed is None)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
