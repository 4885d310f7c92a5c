"""Makes ledgers as a cluster would: envelopes signed by operators, judged on the fold, sealed by a node. No disk, no clock."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import msgspec

from substrate.identity.keys import Keypair
from substrate.identity.verify import OperatorSignature
from substrate.operator.fold import Entry, fold_record, verdict
from substrate.operator.judge import judge
from substrate.operator.ledger import ADMIN_CHAIN, RULES_VERSION, LedgerBody, Refusal
from substrate.operator.state import LedgerState
from substrate.wire import events
from substrate.wire.envelope import Envelope, join_proof_payload, key_proof_payload, seal_payload
from substrate.wire.errors import NetError
from substrate.wire.records import Record, next_record
from substrate.wire.specs import DaemonSpec

START_MS = 1_700_000_000_000


def key(name: str) -> Keypair:
    """The key of this name, the same in every run."""
    return Keypair(name.encode().ljust(32, b".")[:32])


def proof(name: str) -> bytes:
    """A key's proof of possession for the registry."""
    return key(name).sign(key_proof_payload(key(name).public_key))


def spec(name: str, **fields: Any) -> DaemonSpec:
    """A small daemon."""
    return DaemonSpec(name, ("sleep", "1"), **fields)


class Ledger:
    """A growing ledger. Operators and nodes are named by the names of their keys."""

    def __init__(self, cluster: str = "default", policy: dict[str, int] | None = None) -> None:
        self.state = LedgerState()
        self.records: list[Record] = []
        self.entries: list[Entry] = []
        self.now_ms = START_MS
        self.gateway = "node-a"
        self._nonces = 0
        a = key("node-a")
        founding = events.Genesis(cluster, "alice", key("alice").public_key, "a", a.public_key, policy or {})
        self.commit(founding)

    # pieces

    def envelope(self, event: events.Event, reason: str = "", **changes: Any) -> Envelope:
        """A fresh envelope; `changes` override its fields."""
        self._nonces += 1
        fields: dict[str, Any] = {
            "cluster_id": self.state.cluster_id or bytes(16),
            "issued_at_ms": self.now_ms,
            "expires_at_ms": self.now_ms + self.state.window_ms(event.kind),
            "nonce": self._nonces.to_bytes(16, "big"),
            "event": event,
            "reason": reason,
            "blast_hash": bytes(32) if event.kind in events.ICE_KINDS else None,
        }
        return Envelope(**fields | changes)

    def judge(self, envelope: Envelope, *by: str, at_ms: int | None = None) -> list[int]:
        """The verdict on an envelope signed by these keys; the state is not touched."""
        at = self.now_ms if at_ms is None else at_ms
        return judge(self.state, envelope, envelope.payload(), sign(envelope, *by), at)

    def refusal(self, event: events.Event, *by: str) -> str | None:
        """The kind of the refusal a commit would meet, or None."""
        try:
            self.judge(self.envelope(event), *(by or ("alice",)))
        except NetError as error:
            return error.kind
        return None

    def record(self, body: LedgerBody, at_ms: int | None = None, sealed_by: str | None = None) -> Record:
        """A record that follows the head with this body, sealed."""
        at = self.now_ms if at_ms is None else at_ms
        return seal(next_record(ADMIN_CHAIN, self.state.head, at, body.to_bytes()), sealed_by or self.gateway)

    def body(self, envelope: Envelope, signatures: Sequence[OperatorSignature], **changes: Any) -> LedgerBody:
        """The body a true gateway would write; `changes` override its fields."""
        gateway = key(self.gateway).node_id
        draft = LedgerBody(RULES_VERSION, gateway, envelope.payload(), tuple(signatures), (), None)
        found = verdict(self.state, envelope, draft, self.now_ms)
        return msgspec.structs.replace(draft, refusal=found, **changes)

    # growth

    def commit(self, event: events.Event, *by: str, envelope: Envelope | None = None) -> Entry:
        """Append an event with its true verdict; the caller looks at the entry's `accepted`."""
        self.now_ms += 10
        envelope = envelope or self.envelope(event)
        record = self.record(self.body(envelope, sign(envelope, *(by or ("alice",)))))
        entry = fold_record(self.state, record)
        self.records.append(record)
        self.entries.append(entry)
        return entry

    def accept(self, event: events.Event, *by: str) -> Entry:
        """Append an event that must be accepted."""
        entry = self.commit(event, *by)
        assert entry.accepted, entry.body.refusal
        return entry

    def join(self, name: str, *by: str) -> int:
        """Admit the node `node-<name>` under `name`; returns its id."""
        self.accept(self.node_join(name), *by)
        return key(f"node-{name}").node_id

    def node_join(self, name: str, key_name: str | None = None) -> events.NodeJoin:
        """The admission of a node with a true proof."""
        pair = key(key_name or f"node-{name}")
        return events.NodeJoin(
            name, pair.public_key, pair.sign(join_proof_payload(self.state.cluster_id, name, pair.public_key))
        )

    def add_operator(self, name: str, *by: str) -> int:
        """Register an operator; returns its id."""
        self.accept(events.RegistryAdd(name, key(name).public_key, proof(name)), *by)
        return key(name).operator_id

    def fork(self) -> Ledger:
        """A copy that grows on its own."""
        return copy.deepcopy(self)


def sign(envelope: Envelope, *by: str) -> tuple[OperatorSignature, ...]:
    """The signatures of these keys over an envelope."""
    payload = envelope.payload()
    return tuple(OperatorSignature(key(name).operator_id, key(name).sign(payload)) for name in by)


def seal(record: Record, by: str) -> Record:
    """The record under the seal of a node key."""
    return msgspec.structs.replace(record, seal=key(by).sign(seal_payload(record.hash)))


def snapshot(state: LedgerState) -> bytes:
    """All of a state, to compare."""
    return msgspec.msgpack.encode(state)


def refuse(ledger: Ledger, kind: str, event: events.Event, *by: str) -> None:
    """Append the rejection of an event."""
    entry = ledger.commit(event, *by)
    assert entry.body.refusal is not None
    assert entry.body.refusal.kind == kind


def long_ledger() -> Ledger:
    """Thirty records with every supported event, rejections among them."""
    ledger = Ledger(policy={"crash_limit": 7})
    node = ledger.join("b")
    bob = ledger.add_operator("bob")
    ledger.add_operator("carol")
    ledger.accept(events.RegistryThreshold(2), "alice")
    refuse(ledger, "insufficient-signatures", events.Policy({"crash_limit": 9}), "alice")
    ledger.accept(events.Policy({"crash_limit": 9, "commit_window_ms": 30_000}), "bob", "alice")
    ledger.accept(events.DaemonApply(spec("web", replicas=2, labels=("x",))))
    ledger.accept(events.Cordon(node), "bob")
    refuse(ledger, "node-not-found", events.Drain(12345, 1000), "carol")
    ledger.accept(events.Drain(node, 60_000), "carol")
    ledger.gateway = "node-b"
    ledger.accept(events.ExitMaintenance(node))
    ledger.accept(events.Drain(node, 1_500))
    ledger.accept(events.Uncordon(node))
    ledger.accept(events.RestartAllDaemons(node))
    ledger.accept(events.JoinToken(key("token").public_key, 60_000))
    ledger.gateway = "node-c"
    ledger.join("c", "token")
    ledger.gateway = "node-a"
    web = ledger.state.daemon_id("web")
    ledger.accept(events.DaemonStop(web))
    ledger.accept(events.DaemonRestart(web))
    ledger.accept(events.DaemonApply(spec("job", restart="never", env={"A": "1"})), "bob")
    refuse(ledger, "not-yet-supported", events.InvalidatePlacement(node))
    ledger.accept(events.DaemonRemove(web), "alice", "bob")
    ledger.accept(events.ChainCreate("sensors/temp"))
    refuse(ledger, "chain-exists", events.ChainCreate("sensors/temp"), "bob")
    ledger.accept(events.RegistryRotate(bob, key("bob-2").public_key, proof("bob-2")), "bob", "alice")
    refuse(ledger, "invalid-argument", events.RegistryThreshold(9), "bob-2", "alice")
    ledger.accept(events.RegistryRemove(key("carol").operator_id), "bob-2", "alice")
    ledger.accept(events.RegistryThreshold(1), "alice", "bob-2")
    ledger.accept(events.NodeRemove(node), "bob-2")
    ledger.accept(events.Cordon(key("node-c").node_id), "bob-2")
    assert len(ledger.records) == 30
    return ledger


REFUSAL = Refusal("node-not-found", "there is no such node")
