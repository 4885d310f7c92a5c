"""A small implementation of the control API in memory, behind the real server and socket, with real signatures.

It judges as simply as it can; the cluster's own judgement is tested with real nodes elsewhere.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from substrate.control.api import Request
from substrate.control.server import ControlServer
from substrate.control.stream import End, Lagged, Subscription
from substrate.identity.verify import OperatorSignature, check_signatures
from substrate.wire.envelope import Envelope
from substrate.wire.errors import NetError
from substrate.wire.events import THRESHOLD_KINDS, decode_event
from substrate.wire.ids import match_reference
from substrate.wire.times import iso, now_ms

T = TypeVar("T")
CLUSTER_ID = bytes(range(16))
NODES = {11: "a", 12: "b", 13: "c"}
DAEMONS = {21: "web", 22: "db"}


class SmallNode:
    """One node, `a`, that knows three. Set `progress`, `radius`, `reject` to script the rest."""

    def __init__(self, path: Path, cluster: str = "default") -> None:
        self.path, self.cluster = path, cluster
        self.operators: dict[int, tuple[str, bytes]] = {}
        self.threshold = 1
        self.proposals: dict[bytes, Envelope] = {}
        self.ledger: list[dict[str, Any]] = []
        self.queries: list[tuple[str, dict[str, Any]]] = []
        self.chains_: dict[str, list[bytes]] = {"app/orders": []}
        self.entries: dict[str, dict[str, Any]] = {}
        self.progress: list[dict[str, Any]] = []
        self.warnings: list[dict[str, Any]] = []
        self.log_rows: list[dict[str, Any]] = []
        self.reject: NetError | None = None
        self.lose_answers = 0
        self.pid: int | None = None
        self.feed: Subscription[dict[str, Any]] | None = None
        self.fed = threading.Event()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.server: ControlServer | None = None
        self.stopped = threading.Event()
        self.thread.start()
        self.call(self._start())

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
        self.loop.close()

    def call(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(20)

    def soon(self, function: Callable[..., Any], *args: Any) -> None:
        self.loop.call_soon_threadsafe(function, *args)

    async def _start(self) -> None:
        os.makedirs(self.path.parent, mode=0o700, exist_ok=True)
        self.server = ControlServer(self, self.path)
        await self.server.start()

    async def _stop(self, reason: str) -> None:
        if self.server is not None:
            await self.server.close(reason, grace_s=0.2)
            self.server = None
        self.stopped.set()

    def close(self) -> None:
        if self.thread.is_alive():
            self.call(self._stop("node-stopping"))
            self.soon(self.loop.stop)
            self.thread.join(20)

    # -- reads

    def _note(self, request: Request) -> dict[str, Any]:
        query = {
            field.encode_name: value
            for field in msgspec.structs.fields(request.query)
            if (value := getattr(request.query, field.name)) != field.default
        }
        self.queries.append((request.route.name, query))
        return query

    async def version(self, request: Request) -> Any:
        return {"version": "0", "api": 1, "wire": {}, "features": {}}

    async def status(self, request: Request) -> Any:
        return {
            "cluster": self.cluster,
            "cluster_id": CLUSTER_ID.hex(),
            "node_id": "11",
            "node_name": self.path.name.removesuffix(".sock"),
            "state": "alive",
            "pid": self.pid,
        }

    async def health(self, request: Request) -> Any:
        return {"status": "degraded", "checks": [{"name": "engine", "status": "ok", "detail": "up"}]}

    def _node(self, key: int) -> dict[str, Any]:
        known = {"rtt_us": 250, "cpu_percent": 3.0, "mem_used_bytes": 3 * 1024**3} if key != 12 else {}
        return {
            "node_id": str(key),
            "name": NODES[key],
            "node_name": NODES[key],
            "state": "alive",
            "leader": key == 11,
            "cordoned": key == 12,
            "maintenance": "active",
            "session": "1",
            "labels": ["zone=1"],
            "daemons": 2,
            "rtt_us": None,
            "cpu_percent": None,
            "mem_used_bytes": None,
        } | known

    async def nodes(self, request: Request) -> Any:
        return [self._node(key) for key in NODES]

    async def node(self, request: Request) -> Any:
        return self._node(match_reference("node", request.params["ref"], NODES))

    async def node_stop(self, request: Request) -> Any:
        self.loop.call_later(0.05, lambda: self.loop.create_task(self._stop("node-stopping")))
        return {"stopping": True}

    async def daemons(self, request: Request) -> Any:
        return [
            {
                "name": name,
                "daemon_id": str(key),
                "instance": 0,
                "node_name": "a",
                "lifecycle": "running",
                "health": "healthy",
                "restarts": 0,
                "pid": 4000 + key,
                "age_ms": 61_000,
            }
            for key, name in DAEMONS.items()
        ]

    async def daemon(self, request: Request) -> Any:
        key = match_reference("daemon", request.params["ref"], DAEMONS)
        return {"name": DAEMONS[key], "daemon_id": str(key), "instances": []}

    async def logs(self, request: Request) -> Any:
        self._note(request)
        return self._follow() if request.query.follow else self.log_rows

    def _follow(self) -> Subscription[dict[str, Any]]:
        self.feed = Subscription(limit=100)
        self.fed.set()
        return self.feed

    def push(self, seq: int, row: dict[str, Any]) -> None:
        assert self.feed is not None
        self.soon(self.feed.push, seq, row)

    def lag(self, first: int, last: int) -> None:
        assert self.feed is not None
        self.soon(self.feed.push_lagged, first, last)

    def finish(self) -> None:
        assert self.feed is not None
        self.soon(self.feed.finish, "complete")

    async def audit(self, request: Request) -> Any:
        self._note(request)
        return self._follow() if request.query.follow else list(reversed(self.ledger))[: request.query.limit]

    async def audit_verify(self, request: Request) -> Any:
        return {"ok": True, "records": len(self.ledger)}

    async def registry(self, request: Request) -> Any:
        rows = [
            {
                "operator_id": str(key),
                "name": name,
                "public_key": public.hex(),
                "active": True,
                "added_at": iso(0),
                "seq": 1,
            }
            for key, (name, public) in self.operators.items()
        ]
        return {"threshold": self.threshold, "operators": rows}

    async def policy(self, request: Request) -> Any:
        meaning = "time to commit an envelope that one operator signs"
        window = {"value": 60_000, "default": 60_000, "min": 1000, "max": 3_600_000, "meaning": meaning}
        return {"commit_window_ms": window, "crash_limit": {**window, "value": 5}}

    async def names(self, request: Request) -> Any:
        names = {"node": NODES, "daemon": DAEMONS, "chain": dict(enumerate(self.chains_))}.get(request.query.kind, {})
        return [{"name": name, "id": str(key)} for key, name in names.items()]

    # -- signed commands

    async def propose(self, request: Request) -> Any:
        body = request.body
        if self.reject is not None and body.event["kind"] == "cordon" and body.preview:
            raise self.reject
        fields, target = dict(body.event), dict[str, Any]()
        for noun, known in (("node", NODES), ("daemon", DAEMONS)):
            if noun in fields:
                key = match_reference(noun, fields[noun], known)
                fields[noun] = str(key)
                target |= {f"{noun}_id": str(key), f"{noun}_name": known[key]}
        event = decode_event(fields)
        at = now_ms()
        nonce = os.urandom(16)
        envelope = Envelope(CLUSTER_ID, at, at + 60_000, nonce, event, body.reason)
        if not body.preview:
            self.proposals[nonce] = envelope
        document = {
            "event": event.to_document(),
            "target": target,
            "reason": body.reason,
            "cluster_id": CLUSTER_ID.hex(),
            "nonce": nonce.hex(),
            "issued_at": iso(at),
            "issued_at_ms": at,
            "expires_at": iso(at + 60_000),
            "expires_at_ms": at + 60_000,
            "threshold": self._required(event.kind),
            "signing_payload": envelope.payload().hex(),
            "commit_id": envelope.commit_id().hex(),
            "blast_hash": None,
        }
        if body.preview:
            place = {"daemon_name": "web", "daemon_id": "21", "instance": 0}
            document["blast_radius"] = {
                "affected_nodes": [{"node_id": "12", "node_name": "b"}],
                "affected_replicas": [],
                "affected_daemons": [place],
                "moves": [{**place, "from": "b", "to": "c"}],
                "hot_nodes": [],
                "drain_delay_ms": 1500,
                "stability_delta": 0,
                "warnings": self.warnings,
            }
        return document

    def _required(self, kind: str) -> int:
        return self.threshold if kind in THRESHOLD_KINDS else 1

    async def commit_post(self, request: Request) -> Any:
        part = request.body.proposal
        envelope = self.proposals.get(bytes.fromhex(part.nonce))
        if envelope is None or envelope.event.to_document() != part.event:
            raise NetError("simulation-required", "the nonce is unknown", "propose again")
        signatures = [
            OperatorSignature(int(s.operator_id), bytes.fromhex(s.signature)) for s in request.body.signatures
        ]
        keys = {key: public for key, (_, public) in self.operators.items()}
        signers = check_signatures(envelope.payload(), signatures, keys, self._required(envelope.event.kind))
        document = self._document(envelope, signers[0])
        if self.reject is None:
            del self.proposals[envelope.nonce]
            self._apply(envelope.event)
        self.ledger.append(document)
        if self.lose_answers:
            self.lose_answers -= 1
            raise NetError("timeout", "the answer was lost")
        return document

    def _document(self, envelope: Envelope, signer: int) -> dict[str, Any]:
        event = envelope.event
        target = {}
        if hasattr(event, "node"):
            target = {"node_id": str(event.node), "node_name": NODES[event.node]}
        if hasattr(event, "spec"):
            target = {"daemon_id": "99", "daemon_name": event.spec.name}
        document: dict[str, Any] = {
            "commit_id": envelope.commit_id().hex(),
            "seq": len(self.ledger) + 1,
            "operator_id": str(signer),
            "operator": self.operators[signer][0],
            "event_kind": event.kind,
            "target": target,
            "outcome": "rejected" if self.reject else "accepted",
            "reason": envelope.reason,
            "committed_at": iso(now_ms()),
            "expires_at": iso(envelope.expires_at_ms),
            "warnings": [],
        }
        if self.reject:
            document["error"] = {"kind": self.reject.kind, "message": self.reject.message}
        return document

    def _apply(self, event: Any) -> None:
        from substrate.identity.ids import operator_id

        if event.kind == "registry-add":
            self.operators[operator_id(event.public_key)] = (event.name, event.public_key)
        elif event.kind == "registry-rotate":
            name, _ = self.operators.pop(event.operator)
            self.operators[operator_id(event.public_key)] = (name, event.public_key)

    async def commit(self, request: Request) -> Any:
        for document in self.ledger:
            if document["commit_id"] == request.params["id"]:
                return document
        raise NetError("commit-not-found", f"there is no commit {request.params['id']}")

    async def commit_progress(self, request: Request) -> Any:
        async def rows() -> Any:
            for seq, row in enumerate(self.progress):
                yield {"seq": seq, "commit_id": request.params["id"], **row}
            if self.progress and self.progress[-1]["state"] == "running":
                await asyncio.sleep(3600)
            yield End("complete")

        return rows()

    # -- chains

    def _chain(self, name: str) -> list[bytes]:
        if name not in self.chains_:
            raise NetError("chain-not-found", f"there is no chain {name!r}", "net chain ls", {"chain": name})
        return self.chains_[name]

    def _row(self, name: str) -> dict[str, Any]:
        count = len(self._chain(name))
        return {
            "name": name,
            "kind": "data",
            "head_seq": count,
            "records": count,
            "size_bytes": sum(map(len, self._chain(name))),
            "leader": {"node_name": "a", "node_id": "11"},
            "holders": [{"node_name": "a", "node_id": "11", "seq": count, "lag": 0}],
        }

    async def chains(self, request: Request) -> Any:
        return [self._row(name) for name in sorted(self.chains_)]

    async def chain(self, request: Request) -> Any:
        return self._row(request.params["ref"])

    async def chain_append(self, request: Request) -> Any:
        body, records = request.body, self._chain(request.params["ref"])
        texts = [msgspec.json.decode(raw) for raw in body.records]
        known = self.entries.get(body.entry_id)
        if known is None:
            if body.expect_seq is not None and body.expect_seq != len(records):
                details = {"expected": {"seq": body.expect_seq}, "head": {"seq": len(records), "hash": "00" * 32}}
                raise NetError("conflict", "the head has moved", "read it and try again", details)
            first = len(records) + 1
            records += [base64.b64decode(t) if body.encoding == "base64" else t.encode() for t in texts]
            digest = hashlib.sha256(b"".join(records)).hexdigest()
            known = {"first_seq": first, "head_seq": len(records), "head_hash": digest, "count": len(texts)}
            self.entries[body.entry_id] = known
        if self.lose_answers:
            self.lose_answers -= 1
            raise NetError("unknown-outcome", "the engine went away")
        return known

    async def chain_records(self, request: Request) -> Any:
        self._note(request)
        if request.query.follow:
            return self._follow()
        rows = [self._record(seq, data) for seq, data in enumerate(self._chain(request.params["ref"]), 1)]
        if request.query.tail:
            return rows[-request.query.tail :]
        since = request.query.since or 0
        return [row for row in rows if row["seq"] > since][: request.query.limit]

    def _record(self, seq: int, data: bytes) -> dict[str, Any]:
        row: dict[str, Any] = {"seq": seq, "at": iso(0), "hash": "ab" * 32, "size_bytes": len(data)}
        try:
            return row | {"payload": msgspec.json.decode(data), "text": None, "payload_base64": None}
        except msgspec.DecodeError:
            return row | {"payload": None, "text": data.decode("utf-8", "replace"), "payload_base64": None}

    async def chain_verify(self, request: Request) -> Any:
        return {"ok": True, "records": len(self._chain(request.params["ref"]))}


__all__ = ["CLUSTER_ID", "Lagged", "SmallNode"]
