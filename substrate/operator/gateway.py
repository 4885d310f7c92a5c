"""The gateway: where a commit enters the ledger (contract sections 5 and 6).

Commits are judged on the folded head and appended with that head as expectation; whoever loses the race is judged anew.
Waiting commits whose verdicts cannot influence each other share one append, so throughput does not end at the disk's latency.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from substrate.engine.api import Engine
from substrate.identity.keys import Keypair
from substrate.identity.verify import OperatorSignature, verify_strict
from substrate.operator.copy import LedgerCopy
from substrate.operator.documents import commit_document
from substrate.operator.fold import Entry
from substrate.operator.judge import MAX_SKEW_MS, check_cluster, check_event, check_window, judge
from substrate.operator.ledger import ADMIN_CHAIN, RULES_VERSION, LedgerBody, Refusal
from substrate.wire.envelope import Envelope, commit_id_of, seal_payload
from substrate.wire.errors import NetError
from substrate.wire.events import ADMIN_KINDS, Event, Genesis
from substrate.wire.records import MAX_ENTRY_BYTES, MAX_PAYLOAD_BYTES, RECORD_OVERHEAD_BYTES, Record, next_record

LEASE_COUNT: Final = 1024
"""Nonces of one lease: a nonce is the lease's 8 random bytes and a counter."""
LEASE_TTL_MS: Final = 2 * 3_600_000
"""Longer than the longest commit window."""
MAX_WAITING: Final = 512
SIGNATURES_ROOM_BYTES: Final = 8 * 1024
"""What 64 signatures and the rest of a record's body take beside the signed bytes."""
MAX_BATCH: Final = 64
APPEND_TIMEOUT_S: Final = 10.0
MAX_RACES: Final = 50
_COMMUTING: Final = frozenset(ADMIN_KINDS)
"""Events whose verdicts do not depend on one another: the nine verbs on nodes."""


class _Waiting(msgspec.Struct, eq=False):
    envelope: Envelope
    payload: bytes
    signatures: tuple[OperatorSignature, ...]
    done: asyncio.Future[Entry]
    refusal: NetError | None = None
    """Why it was judged so, with the hint and details that the record does not keep."""


class Gateway:
    """One node's gateway to the ledger. `now_ms` is the node's clock, `engine_skew_ms` its distance to the engine's."""

    def __init__(
        self,
        engine: Engine,
        ledger: LedgerCopy,
        keypair: Keypair,
        now_ms: Callable[[], int],
        engine_skew_ms: Callable[[], int],
    ) -> None:
        self._engine = engine
        self._ledger = ledger
        self._keypair = keypair
        self._now_ms = now_ms
        self._engine_skew_ms = engine_skew_ms
        self._lease = b""
        self._lease_next = LEASE_COUNT
        self._lease_lock = asyncio.Lock()
        self._known_leases: dict[bytes, int] = {}
        self._waiting: list[_Waiting] = []
        self._wake = asyncio.Event()
        self.unrecorded_refusals = 0

    async def propose(self, event: Event, reason: str) -> Envelope:
        """An envelope to be signed, with a fresh nonce. Raises what would make its commit fail already now."""
        self._check_clock()
        if self._ledger.failure is not None:
            raise self._ledger.failure
        state = self._ledger.state
        check_event(state, event)
        issued = max(self._now_ms(), state.at_ms)
        envelope = Envelope(
            state.cluster_id or bytes(16),
            issued,
            issued + state.window_ms(event.kind),
            await self._mint_nonce(),
            event,
            reason,
        )
        if len(envelope.payload()) > MAX_PAYLOAD_BYTES - SIGNATURES_ROOM_BYTES:
            raise NetError("too-large", "the event is too large for a ledger record", "make it smaller")
        return envelope

    async def commit(self, envelope: Envelope, signatures: Sequence[OperatorSignature]) -> Entry:
        """Judge and append; returns the accepted entry once it is durable and folded here.

        Raises the refusal (details.commit when it was recorded), `overloaded`, or `unknown-outcome` with the commit id.
        """
        self._check_clock()
        if len(self._waiting) >= MAX_WAITING:
            raise NetError("overloaded", f"{MAX_WAITING} commits are waiting on this node", "try again in a moment")
        payload = envelope.payload()
        if len(signatures) > 64:
            raise NetError("invalid-argument", "a commit carries at most 64 signatures")
        if any(len(item.signature) != 64 for item in signatures):
            raise NetError("signature-invalid", "a signature is 64 bytes", "sign the proposal again")
        if not await self._is_live(envelope.nonce):
            known = self._ledger.find(commit_id_of(payload))
            if known is None and envelope.nonce not in self._ledger.state.nonces:
                self.unrecorded_refusals += 1
                # What is wrong whatever its nonce is said first: the window comes before the nonce (contract section 5).
                check_cluster(self._ledger.state, envelope)
                check_window(self._ledger.state, envelope, max(self._now_ms(), self._ledger.state.at_ms))
                raise NetError(
                    "simulation-required",
                    "no node has proposed this: its nonce is unknown",
                    "propose it on this cluster first, then sign what the node returns",
                )
        done: asyncio.Future[Entry] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(envelope, payload, tuple(signatures), done))
        self._wake.set()
        return await done

    async def run(self) -> None:
        """Append waiting commits until cancelled."""
        races = 0
        try:
            while True:
                await self._wake.wait()
                batch = self._take_batch()
                try:
                    lost = await self._append(batch)
                except NetError as error:
                    lost = []
                    for item in batch:
                        _refuse(item, _with_commit(error, item.payload))
                races = races + 1 if lost else 0
                if races > MAX_RACES:
                    late = NetError("conflict", "other nodes' commits kept coming first", "try again")
                    for item in lost:
                        _refuse(item, _with_commit(late, item.payload))
                    lost, races = [], 0
                # Losers go first, together with what has come in meanwhile: the more contention, the larger the batches.
                self._waiting[:0] = lost
                if not self._waiting:
                    self._wake.clear()
        finally:
            for item in self._waiting:
                _refuse(item, NetError("node-unreachable", "the node is stopping", "use another node"))

    def _take_batch(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        size = 0
        nonces: set[bytes] = set()
        while self._waiting and len(batch) < MAX_BATCH:
            item = self._waiting[0]
            alone = item.envelope.event.kind not in _COMMUTING
            size += len(item.payload) + 80 * len(item.signatures) + RECORD_OVERHEAD_BYTES + 256
            if batch and (alone or size > MAX_ENTRY_BYTES // 2 or item.envelope.nonce in nonces):
                break
            nonces.add(item.envelope.nonce)
            batch.append(self._waiting.pop(0))
            if alone:
                break
        return batch

    async def _append(self, batch: list[_Waiting]) -> list[_Waiting]:
        """Judge a batch on the folded head and append it; returns the items to be judged anew after a lost race."""
        head = self._ledger.head
        at_ms = max(self._now_ms(), self._ledger.state.at_ms)
        records: list[Record] = []
        kept: list[_Waiting] = []
        for item in batch:
            if item.done.done():
                continue  # its client has left
            refusal = item.refusal = self._judge(item, at_ms)
            if refusal is not None and not self._is_recordable(item):
                self.unrecorded_refusals += 1
                _refuse(item, self._explain(refusal, item))
                continue
            claim = None if refusal is None else Refusal(refusal.kind, refusal.message)
            body = LedgerBody(RULES_VERSION, self._keypair.node_id, item.payload, item.signatures, (), claim).to_bytes()
            record = next_record(ADMIN_CHAIN, records[-1].head if records else head, at_ms, body)
            record = msgspec.structs.replace(record, seal=self._keypair.sign(seal_payload(record.hash)))
            records.append(record)
            kept.append(item)
        if not records:
            return []
        try:
            appended = await self._engine.append_records(ADMIN_CHAIN, records, expect=head, create=True)
        except NetError as error:
            if error.kind != "conflict":
                raise
            # Somebody else's record came first: fold it, then judge on the new head.
            await self._ledger.wait_for(int(error.details["head"]["seq"]), APPEND_TIMEOUT_S)
            return kept
        await self._ledger.wait_for(appended.head.seq, APPEND_TIMEOUT_S)
        for item, record in zip(kept, records, strict=True):
            self._answer(item, record.seq)
        return []

    def _judge(self, item: _Waiting, at_ms: int) -> NetError | None:
        try:
            judge(self._ledger.state, item.envelope, item.payload, item.signatures, at_ms)
        except NetError as error:
            return error
        return None

    def _is_recordable(self, item: _Waiting) -> bool:
        """Only what a known operator really signed is worth a record; the rest could be anybody's noise."""
        state = self._ledger.state
        if item.envelope.nonce in state.nonces or not state.head.seq:
            return False
        known = self._ledger.find(commit_id_of(item.payload))
        if known is not None and (known.accepted or _same_kind(known.body.refusal, item.refusal)):
            return False  # sent again: the ledger has its answer, and cannot be filled with copies of it
        if isinstance(item.envelope.event, Genesis):
            return False  # it lost the race of the founders, which is no act against the cluster
        keys = state.active_keys()
        return any(
            signature.operator_id in keys
            and verify_strict(keys[signature.operator_id], item.payload, signature.signature)
            for signature in item.signatures
        )

    def _answer(self, item: _Waiting, seq: int) -> None:
        if item.done.done():
            return
        entry = self._ledger.entry(seq)
        if entry is None or entry.body.payload != item.payload:
            item.done.set_exception(NetError("internal", f"record {seq} is not what this node appended"))
        elif entry.accepted:
            item.done.set_result(entry)
        else:
            refusal = entry.body.refusal
            assert refusal is not None
            judged = item.refusal
            error = NetError(
                refusal.kind, refusal.message, judged.hint if judged else None, judged.details if judged else None
            )
            item.done.set_exception(self._explain(error, item))

    def _explain(self, error: NetError, item: _Waiting) -> NetError:
        """Add the document of the record that already answers this commit, if there is one."""
        details: dict[str, Any] = {**error.details, "commit_id": commit_id_of(item.payload).hex()}
        known = self._ledger.find(commit_id_of(item.payload))
        if known is not None:
            details["commit"] = commit_document(self._ledger.state, known)
        return NetError(error.kind, error.message, error.hint, details)

    def _check_clock(self) -> None:
        skew = self._engine_skew_ms()
        if abs(skew) > MAX_SKEW_MS:
            raise NetError(
                "clock-skew",
                f"this node's clock is {abs(skew) // 1000} s {'ahead of' if skew > 0 else 'behind'} the engine's",
                "set the machine's clock (NTP), then try again",
                {"skew_ms": skew},
            )

    async def _mint_nonce(self) -> bytes:
        async with self._lease_lock:
            if self._lease_next >= LEASE_COUNT:
                lease = os.urandom(8)
                await self._engine.kv_put(f"nonce/{lease.hex()}", b"", ttl_ms=LEASE_TTL_MS, expect=0)
                self._lease, self._lease_next = lease, 0
                self._remember(lease)
            nonce = self._lease + self._lease_next.to_bytes(8, "little")
            self._lease_next += 1
            return nonce

    async def _is_live(self, nonce: bytes) -> bool:
        """Whether some node of the cluster minted the nonce (it may be used already)."""
        lease, count = nonce[:8], int.from_bytes(nonce[8:], "little")
        if len(nonce) != 16 or count >= LEASE_COUNT:
            return False
        if self._known_leases.get(lease, 0) >= self._now_ms():
            return not (lease == self._lease and count >= self._lease_next)
        if await self._engine.kv_get(f"nonce/{lease.hex()}") is None:
            return False
        self._remember(lease)
        return True

    def _remember(self, lease: bytes) -> None:
        if len(self._known_leases) > 8192:
            now = self._now_ms()
            self._known_leases = {key: until for key, until in self._known_leases.items() if until >= now}
        self._known_leases[lease] = self._now_ms() + LEASE_TTL_MS


def _refuse(item: _Waiting, error: NetError) -> None:
    if not item.done.done():
        item.done.set_exception(error)


def _same_kind(recorded: Refusal | None, refusal: NetError | None) -> bool:
    return recorded is not None and refusal is not None and recorded.kind == refusal.kind


def _with_commit(error: NetError, payload: bytes) -> NetError:
    return NetError(error.kind, error.message, error.hint, {**error.details, "commit_id": commit_id_of(payload).hex()})
