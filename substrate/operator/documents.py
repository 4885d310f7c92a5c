"""The JSON documents of the operator plane: commits, audit rows, proposals, the registry (contract sections 1 and 10)."""

from __future__ import annotations

from typing import Any

from substrate.operator.fold import Entry
from substrate.operator.policy import SETTINGS
from substrate.operator.resolve import target_document
from substrate.operator.state import LedgerState
from substrate.wire.envelope import Envelope
from substrate.wire.events import ICE_KINDS
from substrate.wire.times import iso


def signer_name(state: LedgerState, operator: int) -> str | None:
    """The name of an operator, or of the join token that signed; None for an unknown id."""
    known = state.operators.get(operator)
    if known is not None:
        return known.name
    return "join-token" if operator in state.tokens else None


def commit_document(state: LedgerState, entry: Entry) -> dict[str, Any]:
    """What became of a commit."""
    envelope, body, record = entry.envelope, entry.body, entry.record
    signers = list(dict.fromkeys(signature.operator_id for signature in body.signatures))
    gateway = state.nodes.get(body.gateway)
    document: dict[str, Any] = {
        "commit_id": body.commit_id().hex(),
        "seq": record.seq,
        "operator_id": str(signers[0]) if signers else None,
        "operator": signer_name(state, signers[0]) if signers else None,
        "operators": [{"operator_id": str(key), "name": signer_name(state, key)} for key in signers],
        "event_kind": entry.event.kind,
        "target": target_document(state, entry.event),
        "outcome": "accepted" if entry.accepted else "rejected",
        "reason": envelope.reason,
        "issued_at": iso(envelope.issued_at_ms),
        "committed_at": iso(record.at_ms),
        "expires_at": iso(envelope.expires_at_ms),
        "gateway": {"node_id": str(body.gateway), "node_name": gateway.name if gateway else None},
        "warnings": list(body.warnings),
    }
    if body.refusal is not None:
        document["error"] = {"kind": body.refusal.kind, "message": body.refusal.message}
    return document


def audit_document(state: LedgerState, entry: Entry) -> dict[str, Any]:
    """A commit with everything the ledger holds about it."""
    return commit_document(state, entry) | {
        "event": entry.event.to_document(),
        "force": entry.event.kind in ICE_KINDS,
        "hash": entry.record.hash.hex(),
        "prev_hash": entry.record.prev_hash.hex(),
    }


def proposal_document(state: LedgerState, envelope: Envelope) -> dict[str, Any]:
    """What a client rebuilds, shows and signs."""
    return {
        "event": envelope.event.to_document(),
        "target": target_document(state, envelope.event),
        "reason": envelope.reason,
        "cluster_id": envelope.cluster_id.hex(),
        "nonce": envelope.nonce.hex(),
        "issued_at": iso(envelope.issued_at_ms),
        "issued_at_ms": envelope.issued_at_ms,
        "expires_at": iso(envelope.expires_at_ms),
        "expires_at_ms": envelope.expires_at_ms,
        "threshold": state.required(envelope.event.kind),
        "signing_payload": envelope.payload().hex(),
        "commit_id": envelope.commit_id().hex(),
        "blast_hash": envelope.blast_hash.hex() if envelope.blast_hash else None,
    }


def registry_document(state: LedgerState) -> dict[str, Any]:
    """The operators of the cluster, active ones first, then by name."""
    rows = [
        {
            "operator_id": str(key),
            "name": operator.name,
            "public_key": operator.public_key.hex(),
            "active": operator.active,
            "added_at": iso(operator.added_at_ms),
            "seq": operator.added_seq,
        }
        for key, operator in state.operators.items()
    ]
    rows.sort(key=lambda row: (not row["active"], row["name"], row["operator_id"]))
    return {"threshold": state.threshold, "operators": rows}


def policy_document(state: LedgerState) -> dict[str, Any]:
    """The settings in force, with what they mean and may be."""
    return {
        name: {
            "value": state.policy[name],
            "default": setting.default,
            "min": setting.low,
            "max": setting.high,
            "meaning": setting.meaning,
        }
        for name, setting in SETTINGS.items()
    }
