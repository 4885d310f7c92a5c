"""A node's verified copy of the control chain, folded in memory and kept in the node's own store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

from substrate.meshos.decisions import ControlState, fold_control, leader_of
from substrate.operator.copy import RETRY_S, submit_all
from substrate.operator.index import LedgerIndex
from substrate.operator.ledger import CONTROL_CHAIN
from substrate.redex import Store
from substrate.wire.errors import NetError
from substrate.wire.records import EMPTY, Head, Record

REPLAY_BATCH: Final = 1000
SNAPSHOT_EVERY: Final = 1024


class ControlCopy:
    """The decisions as one node has verified them.

    `key_of` gives the public key of a node id as the ledger knows it; a leader the ledger does not know yet is the caller's to
    wait for (`unknown_leader`).
    """

    def __init__(self, store: Store, index: LedgerIndex, key_of: Callable[[int], bytes | None]) -> None:
        self.state = ControlState()
        self.failure: NetError | None = None
        self._store = store
        self._index = index
        self._key_of = key_of
        self._changed = asyncio.Condition()
        self._replay()
        self._snapshot_seq = self.state.head.seq

    def _replay(self) -> None:
        try:
            stored = self._store.head(CONTROL_CHAIN)
        except NetError as error:
            if error.kind != "chain-not-found":
                raise
            self._store.create_chain(CONTROL_CHAIN)
            stored = EMPTY
        snapshot = self._index.load(CONTROL_CHAIN, ControlState)
        if snapshot is not None and 0 < snapshot.head.seq <= stored.seq:
            at_snapshot = self._store.read_one(CONTROL_CHAIN, snapshot.head.seq)
            if at_snapshot is not None and at_snapshot.hash == snapshot.head.hash:
                self.state = snapshot
        while self.state.head.seq < stored.seq:
            records = self._store.read(CONTROL_CHAIN, self.state.head.seq + 1, limit=REPLAY_BATCH)
            if not records:
                raise NetError("corrupt-store", "the control chain of this node has a gap", "net audit verify")
            for record in records:
                fold_control(self.state, record, self._key_of(leader_of(record)))

    @property
    def head(self) -> Head:
        """The head the node has folded."""
        return self.state.head

    def unknown_leader(self, records: Sequence[Record]) -> int | None:
        """A leader among `records` whose key the ledger does not know (yet), or None."""
        for record in records:
            leader = leader_of(record)
            if self._key_of(leader) is None:
                return leader
        return None

    async def advance(self, records: Sequence[Record]) -> list[Any]:
        """Verify, fold and keep records after the head; returns their events. Raises `ledger-tampered`."""
        if self.failure is not None:
            raise self.failure
        fresh = [record for record in records if record.seq > self.state.head.seq]
        if not fresh:
            return []
        before = self.state.head
        events: list[Any] = []
        try:
            events.extend(fold_control(self.state, record, self._key_of(leader_of(record))) for record in fresh)
        except NetError as error:
            self.failure = error
            raise
        async with self._changed:
            self._changed.notify_all()
        await self._store_all(fresh, before)
        if self.state.head.seq - self._snapshot_seq >= SNAPSHOT_EVERY:
            self.save()
        return events

    async def _store_all(self, fresh: Sequence[Record], before: Head) -> None:
        """Keep records on this node's disk; while that is full, wait and try again: the engine has them too."""
        while True:
            try:
                await asyncio.wrap_future(submit_all(self._store, CONTROL_CHAIN, fresh, before))
                return
            except NetError as error:
                if error.kind not in ("disk-full", "overloaded", "conflict"):
                    raise
                stored = self._store.head(CONTROL_CHAIN)
                left = [record for record in fresh if record.seq > stored.seq]
                if error.kind == "conflict" and len(left) == len(fresh) and stored != before:
                    raise
                fresh, before = left, stored
            if not fresh:
                return
            await asyncio.sleep(RETRY_S)

    async def wait_for(self, seq: int, timeout_s: float) -> None:
        """Return once `seq` is folded; raises `wait-timeout`, or the failure that stopped the fold."""
        try:
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(lambda: self.state.head.seq >= seq or self.failure is not None)
        except TimeoutError:
            raise NetError("wait-timeout", f"control is folded to {self.state.head.seq}, not to {seq}") from None
        if self.state.head.seq < seq and self.failure is not None:
            raise self.failure

    def save(self) -> None:
        """Keep a snapshot of the fold, unless the disk is full: a later one says the same and more."""
        try:
            self._index.save(CONTROL_CHAIN, self.state)
        except NetError as error:
            if error.kind != "disk-full":
                raise
            return
        self._snapshot_seq = self.state.head.seq
