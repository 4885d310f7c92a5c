"""A small real implementation of the control API, and a server of it in a thread, for tests of both ends of the wire."""

from __future__ import annotations

import asyncio
import logging
import shutil
import tempfile
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from substrate.control import ControlServer, End, Lagged, Limits, Request, Subscription
from substrate.control.payloads import payloads_of, record_row
from substrate.wire.errors import NetError
from substrate.wire.records import EMPTY, Record, next_record

AT = "2026-01-31T12:00:00.000Z"
HEX16, HEX32 = "0a" * 16, "0b" * 32
KEEPS = 5000


def node_row(name: str) -> dict[str, Any]:
    return {
        "node_id": "18446744073709551615", "name": name, "node_name": name, "state": "alive", "leader": name == "a",
        "cordoned": False, "maintenance": "active", "session": "7", "labels": ["gpu"], "daemons": 2, "rtt_us": 200,
        "rtt_age_ms": 10, "cpu_percent": None, "mem_used_bytes": 1, "mem_total_bytes": 2, "disk_used_bytes": 1,
        "disk_total_bytes": 2, "load_age_ms": 5, "last_seen_ms": 3, "version": "0.1", "endpoints": ["unix:/x"],
        "public_key": HEX32,
    }  # fmt: skip


def commit_document(commit_id: str = HEX16, **more: Any) -> dict[str, Any]:
    return {
        "commit_id": commit_id, "seq": 3, "operator_id": "5", "operator": "alice",
        "operators": [{"operator_id": "5", "name": "alice"}], "event_kind": "cordon",
        "target": {"node_id": "1", "node_name": "a"}, "outcome": "accepted", "reason": "", "issued_at": AT,
        "committed_at": AT, "expires_at": AT, "gateway": {"node_id": "1", "node_name": "a"}, "warnings": [], **more,
    }  # fmt: skip


def progress_document(state: str = "running", **more: Any) -> dict[str, Any]:
    return {
        "commit_id": HEX16, "state": state, "result": None,
        "remaining": [{"daemon_id": "4", "daemon_name": "web", "instance": 0, "essential": False, "blocked_by": None}],
        "moved": 1, "total": 2, "deadline_at": AT, "time_left_ms": 100, "elapsed_ms": 5, "reasons": [], **more,
    }  # fmt: skip


class SampleApi:
    """Fixed documents for what reads; one chain, `sensors/temp`, that really takes records and can be followed."""

    cluster, cluster_id, node_id = "default", "c1" * 16, "1"

    def __init__(self, name: str = "a", follow_limit: int = 1024) -> None:
        self.name = name
        self.records: list[Record] = []
        self.followers: set[Subscription[dict[str, Any]]] = set()
        self.follow_limit = follow_limit
        self.seen: list[Request] = []
        self.release = asyncio.Event()
        self.waiting = self.answered = 0
        self.closed_streams = 0

    async def version(self, request: Request) -> Any:
        return {"version": "0.1", "api": 1, "wire": {"ledger": 1}, "features": {"tui": {"present": False}}}

    async def status(self, request: Request) -> Any:
        return {
            "cluster": self.cluster, "cluster_id": self.cluster_id, "node_id": self.node_id, "node_name": self.name,
            "session": "9", "state": "running", "leader": "a", "term": 1, "admin_seq": 4, "control_seq": 2,
            "engine": {"kind": "local"}, "nodes": {"alive": 3, "total": 3},
            "daemons": {"running": 6, "total": 6}, "uptime_ms": 12, "peer_pid": request.peer.pid,
        }  # fmt: skip

    async def health(self, request: Request) -> Any:
        return {"status": "healthy", "checks": [{"name": "engine", "status": "healthy", "detail": None}]}

    async def nodes(self, request: Request) -> Any:
        return [node_row("a"), node_row("b")]

    async def node(self, request: Request) -> Any:
        if request.params["ref"] == "slow":  # answers when the test lets it
            self.waiting += 1
            await self.release.wait()
        if request.params["ref"] == "broken":
            raise ValueError("secret detail")
        if request.params["ref"] == "unjson":
            return {"bytes": b"x"}
        if request.params["ref"] == "big":
            return node_row("x" * 4_000_000)
        if request.params["ref"] == "none":
            raise NetError("node-not-found", "there is no node 'none'", "known: a", {"node": "none"})
        self.answered += 1
        return node_row(request.params["ref"])

    async def node_stop(self, request: Request) -> Any:
        return {"stopping": True}

    async def daemons(self, request: Request) -> Any:
        return [{
            "name": "web", "daemon_id": "4", "instance": 0, "node_name": "a", "node_id": "1", "lifecycle": "running",
            "health": "healthy", "restarts": 0, "pid": 77, "age_ms": 10, "epoch": 2, "essential": False, "labels": [],
            "reason": None, "last_exit": {"code": 1, "at": AT}, "next_start_ms": None,
        }]  # fmt: skip

    async def daemon(self, request: Request) -> Any:
        spec: dict[str, Any] = {
            "name": "web",
            "command": ["/bin/web"],
            "env": {},
            "cwd": None,
            "labels": [],
            "grace_ms": 100,
        }
        return {**spec, "replicas": 1, "restart": "always", "instances": await self.daemons(request)}

    async def logs(self, request: Request) -> Any:
        self.seen.append(request)
        row = {
            "seq": 1, "at": AT, "node_name": "a", "node_id": "1", "daemon": "web", "daemon_id": "4", "instance": 0,
            "stream": "stdout", "level": "info", "message": "hello",
        }  # fmt: skip
        return (
            self._script([row, Lagged(2, 9), {**row, "seq": 10}, End("node-stopping")])
            if request.query.follow
            else [row]
        )

    async def audit(self, request: Request) -> Any:
        self.seen.append(request)
        row = {**commit_document(), "hash": HEX32, "event": {"kind": "cordon", "node": "1"}, "force": False}
        if request.query.kind == "fails":
            return self._script([row, NetError("corrupt-store", "record 4 is damaged", details={"seq": 4})])
        if request.query.kind == "breaks":
            return self._script([row, KeyError("secret detail")])
        return self._script([row]) if request.query.follow else [row]

    async def audit_verify(self, request: Request) -> Any:
        return {"ok": True, "records": 3, "head_seq": 3, "head_hash": HEX32, "checkpoints": 1}

    async def commit(self, request: Request) -> Any:
        if request.params["id"] != HEX16:
            raise NetError("commit-not-found", "no such commit")
        return commit_document()

    async def commit_progress(self, request: Request) -> Any:
        rows = [progress_document(), progress_document("done", result="drained")]
        return self._script(rows) if request.query.follow else rows[0]

    async def propose(self, request: Request) -> Any:
        self.seen.append(request)
        warning = {"kind": "under-replicated"}
        radius = {
            "affected_nodes": [{"node_id": "1", "node_name": "a"}], "affected_replicas": [], "affected_daemons": [],
            "moves": [], "hot_nodes": [], "drain_delay_ms": None, "stability_delta": 0.5, "warnings": [warning],
        }  # fmt: skip
        return {
            "event": request.body.event, "target": {}, "reason": request.body.reason, "cluster_id": HEX16,
            "nonce": HEX16, "issued_at": AT, "issued_at_ms": 1, "expires_at": AT, "expires_at_ms": 2, "threshold": 1,
            "signing_payload": "00ff", "commit_id": HEX16, "blast_radius": radius, "blast_hash": None,
        }  # fmt: skip

    async def commit_post(self, request: Request) -> Any:
        self.seen.append(request)
        return commit_document()

    async def registry(self, request: Request) -> Any:
        alice = {"operator_id": "5", "name": "alice", "public_key": HEX32, "active": True, "added_at": AT, "seq": 1}
        return {"threshold": 1, "operators": [alice]}

    async def policy(self, request: Request) -> Any:
        return {"commit_window_ms": {"value": 1, "default": 1, "min": 0, "max": 9, "meaning": "how long"}}

    async def chains(self, request: Request) -> Any:
        head = self.records[-1] if self.records else None
        holder = {"node_name": "a", "node_id": "1", "seq": len(self.records), "lag": 0}
        return [{
            "name": "sensors/temp", "chain_id": "8", "first_seq": 1, "head_seq": len(self.records),
            "head_hash": head.hash.hex() if head else EMPTY.hash.hex(), "records": len(self.records), "size_bytes": 0,
            "kind": "data", "desired": 1, "holders": [holder], "leader": "a", "created_at": AT,
        }]  # fmt: skip

    async def chain(self, request: Request) -> Any:
        self._known(request)
        return (await self.chains(request))[0]

    async def chain_append(self, request: Request) -> Any:
        self._known(request)
        payloads = payloads_of(request.body)
        if request.body.expect_seq not in (None, len(self.records)):
            raise NetError("conflict", "the head is another", details={"head": {"seq": len(self.records)}})
        first = len(self.records) + 1
        for payload in payloads:
            head = self.records[-1].head if self.records else EMPTY
            record = next_record("sensors/temp", head, 1_769_860_800_000, payload)
            self.records.append(record)
            for follower in self.followers:
                follower.push(record.seq, record_row(record))
        last = self.records[-1]
        return {"first_seq": first, "head_seq": last.seq, "head_hash": last.hash.hex(), "count": len(payloads),
                "duplicate": False}  # fmt: skip

    async def chain_records(self, request: Request) -> Any:
        self._known(request)
        query = request.query
        if not query.follow:
            chosen = self.records[-query.tail :] if query.tail else self.records[query.since or 0 :][: query.limit]
            return [record_row(record) for record in chosen]
        subscription: Subscription[dict[str, Any]]
        subscription = Subscription(self.follow_limit, lambda: self._leave(subscription))
        for record in self.records[query.since or 0 :]:
            subscription.push(record.seq, record_row(record))
        self.followers.add(subscription)
        return subscription

    def _leave(self, subscription: Subscription[dict[str, Any]]) -> None:
        self.followers.discard(subscription)
        self.closed_streams += 1

    async def chain_verify(self, request: Request) -> Any:
        self._known(request)
        return {"ok": True, "records": len(self.records), "head_seq": len(self.records), "head_hash": HEX32}

    async def names(self, request: Request) -> Any:
        return [{"name": f"{request.query.kind}-1", "id": "1"}]

    def _known(self, request: Request) -> None:
        if request.params["ref"] != "sensors/temp":
            raise NetError("chain-not-found", f"there is no chain {request.params['ref']!r}")

    async def _script(self, rows: list[Any]) -> AsyncIterator[Any]:
        try:
            for row in rows:
                if isinstance(row, Exception):
                    raise row
                yield row
        finally:
            self.closed_streams += 1


class Serving:
    """A control server in a thread of its own; a context manager. Leaving it closes the server gracefully."""

    def __init__(
        self,
        limits: Limits | None = None,
        api: Any = None,
        path: str | Path | None = None,
        logger: logging.Logger | None = None,
    ) -> None:
        self._root = None if path else tempfile.mkdtemp(prefix="net", dir="/tmp")
        self.path = str(path or f"{self._root}/r/a.sock")
        self._limits = limits
        self._api_given = api
        self._logger = logger
        self.api: Any = None
        self.server: ControlServer
        self._loop: asyncio.AbstractEventLoop
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self.api = self._api_given() if isinstance(self._api_given, type) else self._api_given or SampleApi()
        try:
            self.server = ControlServer(self.api, self.path, limits=self._limits, logger=self._logger)
            await self.server.start()
        except BaseException as failure:
            self._failure = failure
            return
        finally:
            self._ready.set()
        await self._stop.wait()
        await self.server.close()

    def call(self, function: Callable[[], Any]) -> Any:
        """Run `function` in the server's loop and return what it returns."""

        async def run() -> Any:
            return function()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(10)

    def stop(self) -> None:
        """Close the server and wait for its thread."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(30)
            assert not self._thread.is_alive(), "the server does not end"

    def begin_stop(self) -> None:
        """Tell the server to close, without waiting."""
        self._loop.call_soon_threadsafe(self._stop.set)

    def __enter__(self) -> Serving:
        self._thread.start()
        assert self._ready.wait(10)
        if self._failure is not None:
            self._thread.join(10)
            raise self._failure
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if self._root:
            shutil.rmtree(self._root)
