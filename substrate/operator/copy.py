"""A node's verified copy of the ledger: folded in memory, kept in the node's own store, indexed for audit.

The engine orders and makes durable; this is what the node believes, checked record by record. It lives in the event loop: `advance`
folds, wakes those who wait for a seq, and lets the node's own disk follow: what a crash takes from there is read from the engine again.
"""

from __future__ import annotations

import asyncio
import errno
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Final, NoReturn

from substrate.identity.keys import Keypair
from substrate.operator.checkpoints import write_checkpoint
from substrate.operator.fold import Entry, decode_entry, fold_record, tampered
from substrate.operator.index import SNAPSHOT_EVERY, AuditFilter, LedgerIndex
from substrate.operator.ledger import ADMIN_CHAIN
from substrate.operator.state import LedgerState
from substrate.redex import Appended, Store
from substrate.wire.errors import NetError
from substrate.wire.records import (
    EMPTY,
    MAX_ENTRY_BYTES,
    MAX_ENTRY_RECORDS,
    RECORD_OVERHEAD_BYTES,
    Head,
    Record,
)
from substrate.wire.times import now_ms

REPLAY_BATCH: Final = 1000
KEEP_AFTER_S: Final = 0.02
"""How long folded records wait for others before they go to this node's disk together."""
MAX_STORING: Final = 64
"""Batches that may be on their way to this node's disk."""
MAX_UNSTORED: Final = 8192
"""Records held in memory while this node's disk has no room; then the fold waits."""
RETRY_S: Final = 1.0
"""Pause before a full disk is tried again."""
KEEP_RECENT: Final = 1024
"""Decoded entries held in memory for the questions that follow a commit."""
CHECKPOINT_EVERY: Final = 256
"""Records between two checkpoints; one is also written when the ledger rests and when the node stops."""


def submit_all(store: Store, chain: str, records: Sequence[Record], head: Head) -> Future[Appended]:
    """Hand verified records to a node's store in entries within the limits; the future is that of the last one."""
    entry: list[Record] = []
    size = 0
    for record in records:
        cost = len(record.payload) + len(record.seal) + RECORD_OVERHEAD_BYTES
        if entry and (size + cost > MAX_ENTRY_BYTES or len(entry) >= MAX_ENTRY_RECORDS):
            store.submit(chain, records=entry, expect=head)  # a failure here fails the ones after it too
            head, entry, size = entry[-1].head, [], 0
        entry.append(record)
        size += cost
    return store.submit(chain, records=entry, expect=head)


class LedgerCopy:
    """The ledger as one node has verified it."""

    def __init__(self, directory: Path, store: Store, keypair: Keypair) -> None:
        self.state = LedgerState()
        self._directory = directory
        self._store = store
        self._keypair = keypair
        self.index = LedgerIndex(directory / "audit.db")
        self._changed = asyncio.Condition()
        self._snapshot_seq = self._checkpoint_seq = 0
        self._recent: dict[int, Entry] = {}
        self._stored = EMPTY
        self._storing: deque[tuple[Head, Future[Appended]]] = deque()
        self._unkept: list[Entry] = []
        self._keeping: asyncio.TimerHandle | None = None
        self.failure: NetError | None = None
        self._replay()

    def _replay(self) -> None:
        """Fold what the node's own store holds, from the last snapshot on."""
        try:
            stored = self._store.head(ADMIN_CHAIN)
        except NetError as error:
            if error.kind != "chain-not-found":
                raise
            self._store.create_chain(ADMIN_CHAIN)
            stored = EMPTY
        self.index.cut(stored.seq)
        snapshot = self.index.load(ADMIN_CHAIN, LedgerState)
        if snapshot is not None and snapshot.head.seq and snapshot.head.seq <= self.index.head():
            at_snapshot = self._store.read_one(ADMIN_CHAIN, snapshot.head.seq)
            if at_snapshot is not None and at_snapshot.hash == snapshot.head.hash:
                self.state = snapshot
        indexed = self.index.head()
        while self.state.head.seq < stored.seq:
            records = self._store.read(ADMIN_CHAIN, self.state.head.seq + 1, limit=REPLAY_BATCH)
            if not records:
                raise tampered(self.state.head.seq + 1, "it is missing from this node's store")
            entries = [fold_record(self.state, record) for record in records]
            self.index.add([entry for entry in entries if entry.record.seq > indexed])
        self._snapshot_seq = self._checkpoint_seq = self.state.head.seq
        self._stored = self.state.head

    @property
    def head(self) -> Head:
        """The head the node has folded."""
        return self.state.head

    async def advance(self, records: Sequence[Record]) -> list[Entry]:
        """Verify, fold and keep records that follow the head; those already folded are compared, not repeated.

        Raises `ledger-tampered`; after that nothing more is folded.
        """
        if self.failure is not None:
            raise self.failure
        fresh: list[Record] = []
        for record in records:
            if record.seq <= self.state.head.seq:
                own = self.entry(record.seq)
                if own is not None and own.record.hash != record.hash:
                    self._fail(tampered(record.seq, "the engine has another record than this node's copy"))
                continue
            fresh.append(record)
        if not fresh:
            return []
        entries: list[Entry] = []
        try:
            entries.extend(fold_record(self.state, record) for record in fresh)
        except NetError as error:
            self.failure = error  # what was folded before it is kept all the same
        for entry in entries:
            self._recent[entry.record.seq] = entry
        self._unkept += entries
        self._keep_later(KEEP_AFTER_S)
        async with self._changed:
            self._changed.notify_all()
        if self.failure is not None:
            raise self.failure
        await self._pace()
        return entries

    async def _pace(self) -> None:
        """Wait while this node's disk is too far behind the fold."""
        while self._is_behind():
            self._keep()
            if not self._is_behind():
                return
            try:
                async with asyncio.timeout(RETRY_S):
                    if self._storing and not self._storing[0][1].done():
                        await asyncio.wrap_future(self._storing[0][1])
                    else:
                        await asyncio.sleep(RETRY_S)
            except (NetError, TimeoutError):
                continue  # `_keep` sees how it ended, and tries again what a full disk refused

    def _is_behind(self) -> bool:
        return len(self._storing) >= MAX_STORING or self.state.head.seq - self._stored.seq >= MAX_UNSTORED

    def _keep(self) -> None:
        """Index what was folded since the last time and hand it to the node's disk: many records, one flush.

        Without room on the disk all of it stays in memory and is tried again, by every question and once a second.
        """
        if self._keeping is not None:
            self._keeping.cancel()
            self._keeping = None
        try:
            if self._unkept:
                self.index.add(self._unkept)
                self._unkept = []
            self._submit()
            self._keep_up()
        except NetError as error:
            if error.kind not in ("disk-full", "overloaded"):
                raise
            self._keep_later(RETRY_S)

    def _keep_later(self, pause_s: float) -> None:
        if self._keeping is None:
            self._keeping = asyncio.get_running_loop().call_later(pause_s, self._keep)

    def _submit(self) -> None:
        """Hand the store everything after what it has or is being given."""
        self._note_stored()
        given = self._storing[-1][0] if self._storing else self._stored
        if given.seq < self.state.head.seq:
            records = [self._recent[seq].record for seq in range(given.seq + 1, self.state.head.seq + 1)]
            self._storing.append((records[-1].head, submit_all(self._store, ADMIN_CHAIN, records, given)))

    def _fail(self, error: NetError) -> NoReturn:
        self.failure = error
        raise error

    def _keep_up(self) -> None:
        self._note_stored()
        head = self.state.head.seq
        if head - self._snapshot_seq >= SNAPSHOT_EVERY:
            self.index.save(ADMIN_CHAIN, self.state)
            self._snapshot_seq = head
        if self._stored.seq - self._checkpoint_seq >= CHECKPOINT_EVERY:
            self.checkpoint()

    def _note_stored(self) -> None:
        """Advance the stored head over the writes that are done; a failed one ends the node through the store's `on_fatal`.

        Raises `disk-full` when a write found no room and none is under way any more: they can be given again.
        """
        while self._storing and self._storing[0][1].done():
            head, written = self._storing[0]
            error = written.exception()
            if error is None:
                self._storing.popleft()
                self._stored = head
                continue
            # Those behind a write that found no room conflict with the head it was to make.
            if not isinstance(error, NetError) or error.kind not in ("disk-full", "conflict"):
                raise error
            if not all(later.done() for _, later in self._storing):
                self._keep_later(KEEP_AFTER_S)
                break
            self._storing.clear()
            self._stored = self._store.head(ADMIN_CHAIN)
            raise NetError("disk-full", f"no room for the ledger's copy in {self._directory}", "free some space")
        while len(self._recent) > KEEP_RECENT and next(iter(self._recent)) <= self._stored.seq:
            del self._recent[next(iter(self._recent))]

    def checkpoint(self) -> None:
        """Write a signed checkpoint of the last record on this node's disk, unless there is one already."""
        try:
            self._note_stored()
            if self._stored.seq > self._checkpoint_seq:
                write_checkpoint(self._directory, self._keypair, self.state.cluster_id, self._stored, now_ms())
                self._checkpoint_seq = self._stored.seq
        except (OSError, NetError) as error:
            full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
            if not full and not (isinstance(error, NetError) and error.kind == "disk-full"):
                raise
            # A later checkpoint says the same and more.

    async def wait_for(self, seq: int, timeout_s: float) -> None:
        """Return once `seq` is folded; raises `wait-timeout`, or the failure that stopped the fold."""
        if self.state.head.seq >= seq:
            return
        try:
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(lambda: self.state.head.seq >= seq or self.failure is not None)
        except TimeoutError:
            raise NetError(
                "wait-timeout",
                f"this node has folded the ledger to {self.state.head.seq}, not yet to {seq}",
                "try again",
                {"folded_seq": self.state.head.seq, "seq": seq},
            ) from None
        if self.state.head.seq < seq and self.failure is not None:
            raise self.failure

    def entry(self, seq: int) -> Entry | None:
        """The verified entry with that seq, or None."""
        if not 1 <= seq <= self.state.head.seq:
            return None
        recent = self._recent.get(seq)
        if recent is not None:
            return recent
        record = self._store.read_one(ADMIN_CHAIN, seq)
        return None if record is None else decode_entry(record)

    def find(self, commit_id: bytes) -> Entry | None:
        """The entry of a commit: its acceptance if there is one, else its latest rejection."""
        self._keep()
        seq = self.index.seq_of(commit_id)
        found = [] if seq is None else [self.entry(seq)]
        found += [entry for entry in self._unkept if entry.body.commit_id() == commit_id]  # the disk is full
        return next((entry for entry in found if entry is not None and entry.accepted), found[-1] if found else None)

    def query(self, wanted: AuditFilter, newest_first: bool = True) -> list[Entry]:
        """Entries that match, newest first unless asked otherwise.

        Raises `disk-full` while the index lacks entries for want of room: half an answer would be a wrong one.
        """
        self._keep()
        if self._unkept:
            raise NetError(
                "disk-full",
                f"this node's index lacks the ledger from seq {self._unkept[0].record.seq} on: no room in {self._directory}",
                "free some space there, or ask another node: --via",
            )
        found = (self.entry(seq) for seq in self.index.seqs(wanted, newest_first))
        return [entry for entry in found if entry is not None]

    def close(self) -> None:
        """Write a last checkpoint and snapshot. The store belongs to the caller."""
        self._keep()
        wait([written for _, written in self._storing])
        if self._keeping is not None:
            self._keeping.cancel()
        if self.failure is None and self.state.head.seq:
            self.checkpoint()
            try:
                self.index.save(ADMIN_CHAIN, self.state)
            except NetError as error:
                if error.kind != "disk-full":
                    raise
                # The next start folds from an older snapshot, and fetches what the disk had no room for.
        self.index.close()
