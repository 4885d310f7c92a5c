"""The control API's answers about the node and its cluster."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING, Any

from substrate import __version__
from substrate.control.api import Request
from substrate.node.features import features_document
from substrate.node.health import health_document
from substrate.operator.documents import policy_document, registry_document
from substrate.operator.fold import fold_record
from substrate.operator.ledger import ADMIN_CHAIN, RULES_VERSION
from substrate.operator.resolve import resolve_reference
from substrate.operator.state import LedgerState
from substrate.wire import envelope
from substrate.wire.errors import NetError
from substrate.wire.times import now_ms

if TYPE_CHECKING:
    from substrate.node.runtime import Runtime

WIRE = {"api": 1, "envelope": envelope.VERSION, "rules": RULES_VERSION}


class ReadApi:
    """Reads: they need only the socket's uid."""

    runtime: Runtime

    async def version(self, request: Request) -> Any:
        """Version of the node, of its wire formats, and its features."""
        return {
            "version": __version__,
            "api": 1,
            "wire": WIRE,
            "python": sys.version.split()[0],
            "features": features_document(),
        }

    async def status(self, request: Request) -> Any:
        """The attached node, its cluster and its engine."""
        node = self.runtime
        state = node.ledger.state
        leader = state.nodes.get(node.control.state.leader)
        return {
            "cluster": state.cluster,
            "cluster_id": state.cluster_id.hex(),
            "node_id": str(node.node_id),
            "node_name": node.settings.name,
            "session": str(node.lease.session) if node.lease.held else None,
            "state": node.state,
            "pid": os.getpid(),
            "guardian_pid": node.guardian.pid if node.guardian else None,
            "leader": leader.name if leader else None,
            "leader_id": str(node.control.state.leader) if leader else None,
            "term": node.control.state.term,
            "admin_seq": node.ledger.head.seq,
            "admin_hash": node.ledger.head.hash.hex(),
            "control_seq": node.control.head.seq,
            "threshold": state.threshold,
            "engine": node.engine_watch.document(),
            "nodes": node.view.node_counts(),
            "daemons": node.view.daemon_counts(),
            "unrecorded_refusals": node.gateway.unrecorded_refusals,
            "uptime_ms": max(0, now_ms() - node.started_at_ms),
            "version": __version__,
        }

    async def health(self, request: Request) -> Any:
        """Checks of the attached node."""
        await self.runtime.engine_watch.look()
        return health_document(self.runtime)

    async def nodes(self, request: Request) -> Any:
        """Nodes of the cluster, by name."""
        return self.runtime.view.node_rows()

    async def node(self, request: Request) -> Any:
        """One node and the instances on it."""
        node = resolve_reference(self.runtime.ledger.state, "node", request.params["ref"])
        row = self.runtime.view.node_row(node)
        row["instances"] = [item for item in self.runtime.view.daemon_rows() if item["node_id"] == str(node)]
        drain = self.runtime.ledger.state.drains.get(node)
        result = self.runtime.control.state.drains.get(drain.seq) if drain else None
        row["drain"] = (
            None
            if drain is None
            else {
                "commit_id": drain.commit_id.hex(),
                "result": result.result if result else None,
                "moved": result.moved if result else self.runtime.control.state.moved.get(node, 0),
                "reasons": list(result.reasons) if result else [],
            }
        )
        return row

    async def node_stop(self, request: Request) -> Any:
        """Stop the attached node gracefully."""
        self.runtime.request_stop("asked over the control socket")
        return {"stopping": True, "node_name": self.runtime.settings.name, "pid": os.getpid()}

    async def daemons(self, request: Request) -> Any:
        """Daemon instances, by name and instance."""
        return self.runtime.view.daemon_rows()

    async def daemon(self, request: Request) -> Any:
        """One daemon: spec and instances."""
        state = self.runtime.ledger.state
        daemon = resolve_reference(state, "daemon", request.params["ref"])
        entry = state.daemons[daemon]
        return {
            "daemon_id": str(daemon),
            **entry.spec.to_json(),
            "stopped": entry.stopped,
            "seq": entry.seq,
            "instances": self.runtime.view.instance_rows(daemon),
        }

    async def registry(self, request: Request) -> Any:
        """Operators and the threshold."""
        return registry_document(self.runtime.ledger.state)

    async def policy(self, request: Request) -> Any:
        """The cluster's policy."""
        return policy_document(self.runtime.ledger.state)

    async def names(self, request: Request) -> Any:
        """Names and ids of one noun."""
        kind = request.query.kind
        state = self.runtime.ledger.state
        known = {
            "node": state.node_names,
            "daemon": state.daemon_names,
            "chain": state.chain_names,
            "operator": state.operator_names,
        }[kind]()
        rows = [{"name": name, "id": str(key)} for key, name in known.items()]
        return sorted(rows, key=lambda row: row["name"])

    async def audit_verify(self, request: Request) -> Any:
        """Fold this node's copy of the ledger anew from its first record, in a thread."""
        return await asyncio.to_thread(_verify, self.runtime)


def _verify(node: Runtime) -> dict[str, Any]:
    state = LedgerState()
    target = node.ledger.head
    while state.head.seq < target.seq:
        records = node.store.read(ADMIN_CHAIN, state.head.seq + 1, limit=500)
        if not records:
            raise NetError(
                "ledger-tampered", f"record {state.head.seq + 1} is missing", details={"seq": state.head.seq + 1}
            )
        for record in records:
            fold_record(state, record)
    return {
        "ok": True,
        "node_name": node.settings.name,
        "cluster_id": state.cluster_id.hex(),
        "records": state.head.seq,
        "head_seq": state.head.seq,
        "head_hash": state.head.hash.hex(),
    }
