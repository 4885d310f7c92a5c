"""The control API's part of the operator plane: proposals, commits, audit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final

import msgspec

from substrate.control.api import Request
from substrate.control.stream import End
from substrate.identity.verify import OperatorSignature
from substrate.meshos.preview import preview
from substrate.node.progress import progress_document
from substrate.operator.documents import audit_document, commit_document, proposal_document
from substrate.operator.fold import Entry
from substrate.operator.index import AuditFilter
from substrate.operator.resolve import check_supported, resolve_event, resolve_reference
from substrate.wire.envelope import Envelope
from substrate.wire.errors import NetError
from substrate.wire.events import decode_event
from substrate.wire.ids import match_reference

if TYPE_CHECKING:
    from substrate.node.runtime import Runtime

PROGRESS_EVERY_S: Final = 0.1
AUDIT_BATCH: Final = 200


class CommitApi:
    """Writes are authorised by their signatures, never by the socket."""

    runtime: Runtime

    async def propose(self, request: Request) -> Any:
        """Resolve an event, refuse what would fail, and make it ready to sign."""
        body = request.body
        check_supported(body.event)
        event = resolve_event(self.runtime.ledger.state, body.event)
        envelope = await self.runtime.gateway.propose(event, body.reason)
        document = proposal_document(self.runtime.ledger.state, envelope)
        if body.preview:
            document["blast_radius"] = await asyncio.to_thread(preview, self.runtime.view.world(), event)
        return document

    async def commit_post(self, request: Request) -> Any:
        """Commit a signed proposal."""
        part = request.body.proposal
        envelope = Envelope(
            bytes.fromhex(part.cluster_id),
            part.issued_at_ms,
            part.expires_at_ms,
            bytes.fromhex(part.nonce),
            decode_event(part.event),
            part.reason,
            bytes.fromhex(part.blast_hash) if part.blast_hash else None,
        )
        if envelope.blast_hash is None and envelope.domain == b"net-deck-ice:":
            raise NetError(
                "simulation-required", "a break-glass commit carries the hash of its simulation", "--preview first"
            )
        signatures = [
            OperatorSignature(int(item.operator_id), bytes.fromhex(item.signature)) for item in request.body.signatures
        ]
        entry = await self.runtime.gateway.commit(envelope, signatures)
        return commit_document(self.runtime.ledger.state, entry)

    async def commit(self, request: Request) -> Any:
        """What became of a commit."""
        return commit_document(self.runtime.ledger.state, self._find(request.params["id"]))

    def _find(self, text: str) -> Entry:
        try:
            commit_id = bytes.fromhex(text)
        except ValueError:
            commit_id = b""
        if len(commit_id) != 16:
            raise NetError("invalid-argument", f"{text!r} is no commit id", "a commit id is 32 hex digits")
        entry = self.runtime.ledger.find(commit_id)
        if entry is None:
            raise NetError(
                "commit-not-found",
                f"the ledger holds no commit {text}",
                "net audit recent",
                {"commit_id": text, "folded_seq": self.runtime.ledger.head.seq},
            )
        return entry

    async def commit_progress(self, request: Request) -> Any:
        """How far a commit's work has come; with follow, a line for every change until it is over."""
        entry = self._find(request.params["id"])
        if not request.query.follow:
            return progress_document(self.runtime.view, entry)
        return self._progress_stream(entry)

    async def _progress_stream(self, entry: Entry) -> AsyncIterator[Any]:
        shown: dict[str, Any] | None = None
        seq = 0
        while True:
            document = progress_document(self.runtime.view, entry)
            steady = {name: value for name, value in document.items() if name not in ("elapsed_ms", "time_left_ms")}
            if steady != shown:
                shown, seq = steady, seq + 1
                yield {"seq": seq, **document}
            if document["state"] != "running":
                yield End("complete")
                return
            await asyncio.sleep(PROGRESS_EVERY_S)

    async def audit(self, request: Request) -> Any:
        """Ledger records: newest first, or followed oldest first."""
        query = request.query
        wanted = AuditFilter(
            limit=query.limit,
            since=query.since or 0,
            operator=self._operator(query.operator) if query.operator else None,
            from_ms=query.from_ms,
            to_ms=query.to_ms,
            force_only=query.force_only,
            kind=query.kind,
            node=resolve_reference(self.runtime.ledger.state, "node", query.node) if query.node else None,
            outcome=query.outcome,
        )
        if query.follow:
            return self._audit_stream(wanted)
        state = self.runtime.ledger.state
        return [audit_document(state, entry) for entry in self.runtime.ledger.query(wanted)]

    def _operator(self, reference: str) -> int:
        """Anybody who ever was in the registry may be asked for, by id or name."""
        names = {key: operator.name for key, operator in self.runtime.ledger.state.operators.items()}
        return match_reference("operator", reference, names)

    async def _audit_stream(self, wanted: AuditFilter) -> AsyncIterator[Any]:
        ledger = self.runtime.ledger
        position = wanted.since
        while True:
            head = ledger.head.seq
            entries = ledger.query(_after(wanted, position), newest_first=False)
            if entries:
                position = entries[-1].record.seq
                yield [{**audit_document(ledger.state, entry)} for entry in entries]
                continue
            position = max(position, head)
            try:
                await ledger.wait_for(position + 1, 60.0)
            except NetError as error:
                if error.kind != "wait-timeout":
                    raise


def _after(wanted: AuditFilter, seq: int) -> AuditFilter:
    return msgspec.structs.replace(wanted, since=seq, limit=AUDIT_BATCH)
