"""A control API with the commit rules that clients depend on: real envelopes, real verification, single-use nonces."""

from __future__ import annotations

import os
from typing import Any

from substrate.control import Request
from substrate.identity.keys import Keypair
from substrate.identity.verify import verify_strict
from substrate.wire.envelope import Envelope
from substrate.wire.errors import NetError
from substrate.wire.events import decode_event
from substrate.wire.times import iso, now_ms
from tests.control.sample import SampleApi, commit_document, progress_document

NODES = {"1": "a", "7": "backup"}


class LedgerApi(SampleApi):
    """Knows the operator `key` and the nodes `NODES`. `lie(proposal)` may change a proposal before it is answered."""

    def __init__(self, key: Keypair | None = None) -> None:
        super().__init__()
        self.key = key or Keypair.generate()
        self.live: set[bytes] = set()
        self.committed: dict[str, dict[str, Any]] = {}
        self.attempts = 0
        self.proposals = 0
        self.lie: Any = None
        self.refuse: NetError | None = None
        self.forget_nonces = 0
        self.progress: list[Any] = [progress_document(), progress_document("done", result="drained")]

    async def propose(self, request: Request) -> Any:
        self.proposals += 1
        body, event = request.body, dict(request.body.event)
        target: dict[str, Any] = {}
        if "node" in event:
            found = [key for key, name in NODES.items() if event["node"] == key or name.startswith(event["node"])]
            if not found:
                raise NetError("node-not-found", f"there is no node {event['node']!r}")
            event["node"] = found[0]
            target = {"node_id": found[0], "node_name": NODES[found[0]]}
        if event["kind"] == "policy":
            event = {"kind": "policy", "changes": {key: value for key, value in event.items() if key != "kind"}}
        at, nonce = now_ms(), os.urandom(16)
        envelope = Envelope(bytes.fromhex(self.cluster_id), at, at + 60_000, nonce, decode_event(event), body.reason)
        self.live.add(nonce)
        proposal = proposal_document(envelope, target)
        if self.lie is not None:
            self.lie(proposal)
        if self.forget_nonces:
            self.forget_nonces -= 1
            self.live.clear()
        return proposal

    async def commit_post(self, request: Request) -> Any:
        self.attempts += 1
        part, signature = request.body.proposal, request.body.signatures[0]
        envelope = Envelope(
            bytes.fromhex(part.cluster_id), part.issued_at_ms, part.expires_at_ms, bytes.fromhex(part.nonce),
            decode_event(part.event), part.reason,
        )  # fmt: skip
        commit_id = envelope.commit_id().hex()
        if self.refuse is not None:
            raise self.refuse
        if commit_id in self.committed:
            raise NetError("replayed", "committed already", details={"commit": self.committed[commit_id]})
        if envelope.nonce not in self.live:
            raise NetError("simulation-required", "the nonce is unknown")
        if not verify_strict(self.key.public_key, envelope.payload(), bytes.fromhex(signature.signature)):
            raise NetError("signature-invalid", "the signature does not verify")
        document = commit_document(commit_id, event_kind=envelope.event.kind, seq=len(self.committed) + 1)
        self.committed[commit_id] = document
        return document

    async def commit(self, request: Request) -> Any:
        if request.params["id"] not in self.committed:
            raise NetError("commit-not-found", "no such commit")
        return self.committed[request.params["id"]]

    async def commit_progress(self, request: Request) -> Any:
        return self._script(self.progress) if request.query.follow else self.progress[0]


def proposal_document(envelope: Envelope, target: dict[str, Any]) -> dict[str, Any]:
    return {
        "event": envelope.event.to_document(), "target": target, "reason": envelope.reason,
        "cluster_id": envelope.cluster_id.hex(), "nonce": envelope.nonce.hex(), "issued_at": iso(envelope.issued_at_ms),
        "issued_at_ms": envelope.issued_at_ms, "expires_at": iso(envelope.expires_at_ms),
        "expires_at_ms": envelope.expires_at_ms, "threshold": 1, "signing_payload": envelope.payload().hex(),
        "commit_id": envelope.commit_id().hex(), "blast_radius": None, "blast_hash": None,
    }  # fmt: skip
