"""The fold of the ledger: verify a record against the state before it, then apply it.

Every node runs this on every record. A record whose hash, seal, signatures or verdict do not follow raises
`ledger-tampered` with `details.seq`; nothing is applied then.
"""

from __future__ import annotations

from typing import Any

import msgspec

from substrate.identity import ids
from substrate.identity.verify import verify_strict
from substrate.operator.judge import judge
from substrate.operator.ledger import ADMIN_CHAIN, RULES_VERSION, LedgerBody, Refusal
from substrate.operator.state import LedgerState
from substrate.wire import events
from substrate.wire.envelope import Envelope, seal_payload
from substrate.wire.errors import NetError
from substrate.wire.postcard import PostcardError
from substrate.wire.records import Record, record_hash

ATTESTED_KINDS = frozenset(("clock-skew", "simulation-stale", "simulation-required", "freeze-in-effect"))
"""Refusals that follow from live state; the gateway attests them and nobody recomputes them."""


class Entry(msgspec.Struct, frozen=True):
    """A verified record, decoded."""

    record: Record
    body: LedgerBody
    envelope: Envelope

    @property
    def event(self) -> Any:
        """The admin event."""
        return self.envelope.event

    @property
    def accepted(self) -> bool:
        """Whether it takes effect."""
        return self.body.refusal is None


def decode_entry(record: Record) -> Entry:
    """Decode without verifying; raises `ledger-tampered` when the bytes are no ledger record."""
    try:
        body = LedgerBody.from_bytes(record.payload)
        return Entry(record, body, body.envelope())
    except PostcardError as error:
        raise tampered(record.seq, f"it cannot be decoded: {error}") from error


def fold_record(state: LedgerState, record: Record) -> Entry:
    """Verify `record` as the successor of `state.head`, apply it, and return it decoded."""
    if record.seq != state.head.seq + 1:
        raise tampered(state.head.seq + 1, f"record {record.seq} stands in its place")
    true_hash = record_hash(ADMIN_CHAIN, state.head.hash, record.seq, record.at_ms, record.payload)
    if record.prev_hash != state.head.hash or record.hash != true_hash:
        raise tampered(record.seq, "its hash does not continue the chain")
    if record.at_ms < state.at_ms:
        raise tampered(record.seq, "its time lies before that of its predecessor")
    entry = decode_entry(record)
    if entry.body.rules_version != RULES_VERSION:
        raise tampered(record.seq, f"its rules version {entry.body.rules_version} is not known; this node is too old")
    _check_seal(state, entry)
    _check_verdict(state, entry)
    state.pass_time(record.at_ms)
    if entry.accepted:
        state.burn(entry.envelope.nonce, record.seq, entry.envelope.expires_at_ms)
        state.apply(entry.event, record.seq, record.at_ms, entry.body.commit_id(), record.hash)
        if isinstance(entry.event, events.NodeJoin):
            for signature in entry.body.signatures:
                if signature.operator_id in state.tokens:
                    state.tokens[signature.operator_id].used = True
    state.head = record.head
    return entry


def gateway_key(state: LedgerState, gateway: int, event: Any) -> bytes | None:
    """The key that may seal a record: an admitted node's, or the one that the record itself admits."""
    node = state.nodes.get(gateway)
    if node is not None and not node.removed:
        return node.public_key
    own = None
    if isinstance(event, events.Genesis):
        own = event.node_key
    elif isinstance(event, events.NodeJoin):
        own = event.public_key
    return own if own is not None and ids.node_id(own) == gateway else None


def _check_seal(state: LedgerState, entry: Entry) -> None:
    key = gateway_key(state, entry.body.gateway, entry.event)
    if key is None:
        raise tampered(entry.record.seq, f"its gateway {entry.body.gateway} is no node of the cluster")
    if not verify_strict(key, seal_payload(entry.record.hash), entry.record.seal):
        raise tampered(entry.record.seq, "its gateway's signature does not verify")


def _check_verdict(state: LedgerState, entry: Entry) -> None:
    refusal = entry.body.refusal
    if refusal is not None and refusal.kind in ATTESTED_KINDS:
        return
    found = verdict(state, entry.envelope, entry.body, entry.record.at_ms)
    if (found is None) != (refusal is None) or (found and refusal and found.kind != refusal.kind):
        claimed = "accepted" if refusal is None else f"rejected as {refusal.kind}"
        true = "acceptance" if found is None else f"rejection as {found.kind}: {found.message}"
        raise tampered(entry.record.seq, f"it is {claimed}, the rules say {true}")


def verdict(state: LedgerState, envelope: Envelope, body: LedgerBody, at_ms: int) -> Refusal | None:
    """The refusal the rules give, or None for acceptance."""
    try:
        judge(state, envelope, body.payload, body.signatures, at_ms)
    except NetError as error:
        return Refusal(error.kind, error.message)
    return None


def tampered(seq: int, reason: str) -> NetError:
    """The error for a record that cannot be what the cluster committed."""
    return NetError(
        "ledger-tampered",
        f"record {seq} of the ledger is not genuine: {reason}",
        "stop this node, keep its files, and compare with another node: net audit verify",
        {"seq": seq, "reason": reason},
    )
