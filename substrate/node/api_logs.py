"""The control API's part of logs: this node's lines and, over the peer links, those of the others."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TYPE_CHECKING, Any, Final

import msgspec

from substrate.control.api import Request
from substrate.control.stream import Lagged
from substrate.mesh import PeerInfo
from substrate.meshos.loglines import Level
from substrate.meshos.logs import StoredLine
from substrate.operator.resolve import resolve_reference
from substrate.redex import Lagged as StoreLagged
from substrate.wire.errors import NetError
from substrate.wire.times import iso, now_ms

if TYPE_CHECKING:
    from substrate.node.runtime import Runtime

PEER_TIMEOUT_MS: Final = 3000
MERGE_QUEUE: Final = 1024


class LogRequest(msgspec.Struct, frozen=True):
    """What one node asks another for."""

    limit: int = 100
    min_level: Level = "trace"
    daemon_id: int | None = None
    contains: str | None = None


_requests: Final = msgspec.msgpack.Decoder(LogRequest)
_rows: Final = msgspec.msgpack.Decoder(list[dict[str, Any]])


def log_row(node_id: int, node_name: str, stored: StoredLine) -> dict[str, Any]:
    """A line as shown. `seq` counts on the node that holds it."""
    line = stored.line
    return {
        "seq": stored.seq,
        "at": iso(line.at_ms),
        "node_name": node_name,
        "node_id": str(node_id),
        "daemon": line.daemon,
        "daemon_id": str(line.daemon_id) if line.daemon_id is not None else None,
        "instance": line.instance,
        "stream": line.stream,
        "level": line.level,
        "message": line.message,
    }


class LogApi:
    """Logs of the cluster. Each line stays on the node that captured it; reading asks the nodes that are alive."""

    runtime: Runtime

    async def logs(self, request: Request) -> Any:
        """The newest lines that match, oldest first; with follow, those to come."""
        query, node = request.query, self.runtime
        wanted = LogRequest(
            query.limit,
            query.min_level,
            resolve_reference(node.ledger.state, "daemon", query.daemon) if query.daemon else None,
            query.contains,
        )
        only = resolve_reference(node.ledger.state, "node", query.node) if query.node else None
        others = [peer for peer in node.live_peers() if only is None or peer == only]
        if only is not None and only != node.node_id and not others:
            name = node.ledger.state.nodes[only].name
            raise NetError("node-unreachable", f"node {name!r} is not there to be asked", "net node ls", {"node": name})
        local = only is None or only == node.node_id
        if query.follow:
            return self._follow(wanted, query.since, others, local)
        parts = await asyncio.gather(
            *([self._local(wanted, query.since)] if local else []), *(self._remote(peer, wanted) for peer in others)
        )
        merged = heapq.merge(*parts, key=lambda row: (row["at"], row["node_name"], row["seq"]))
        return list(merged)[-query.limit :]

    async def _local(self, wanted: LogRequest, since: int | None) -> list[dict[str, Any]]:
        node = self.runtime
        await node.logs.flush()
        lines = await node.logs.query(
            since=since or 0,
            limit=wanted.limit,
            min_level=wanted.min_level,
            daemon_id=wanted.daemon_id,
            contains=wanted.contains,
        )
        return [log_row(node.node_id, node.settings.name, line) for line in lines]

    async def _remote(self, peer: int, wanted: LogRequest) -> list[dict[str, Any]]:
        payload = msgspec.msgpack.encode(wanted)
        try:
            answer = await self.runtime.pool.request(peer, "logs", payload, timeout_ms=PEER_TIMEOUT_MS)
        except NetError as error:
            return [self._trouble(peer, error)]
        return _rows.decode(answer)

    def _trouble(self, peer: int, error: NetError) -> dict[str, Any]:
        """A line that says a node's lines are missing, instead of missing them in silence."""
        node = self.runtime
        entry = node.ledger.state.nodes.get(peer)
        return {
            "seq": 0,
            "at": iso(now_ms()),
            "node_name": entry.name if entry else str(peer),
            "node_id": str(peer),
            "daemon": None,
            "daemon_id": None,
            "instance": None,
            "stream": "node",
            "level": "warn",
            "message": f"the log of this node cannot be read: {error.message}",
        }

    async def _follow(
        self, wanted: LogRequest, since: int | None, others: list[int], local: bool
    ) -> AsyncIterator[Any]:
        queue: asyncio.Queue[Any] = asyncio.Queue(MERGE_QUEUE)
        tasks = [asyncio.create_task(self._pump_peer(peer, wanted, queue)) for peer in others]
        if local:
            tasks.append(asyncio.create_task(self._pump_local(wanted, since, queue)))
        try:
            while True:
                yield await queue.get()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _pump_local(self, wanted: LogRequest, since: int | None, queue: asyncio.Queue[Any]) -> None:
        node = self.runtime
        async for batch in node.logs.follow(
            since=since, min_level=wanted.min_level, daemon_id=wanted.daemon_id, contains=wanted.contains
        ):
            if isinstance(batch, StoreLagged):
                await queue.put(Lagged(batch.from_seq, batch.to_seq))
            else:
                await queue.put([log_row(node.node_id, node.settings.name, line) for line in batch])

    async def _pump_peer(self, peer: int, wanted: LogRequest, queue: asyncio.Queue[Any]) -> None:
        """Lines of another node; when it goes away, a line says so and the node is asked again when it is back."""
        payload = msgspec.msgpack.encode(wanted)
        told = False
        while True:
            try:
                async for item in self.runtime.pool.stream(peer, "logs.follow", payload):
                    told = False
                    await queue.put(_rows.decode(item))
            except NetError as error:
                if not told:
                    await queue.put(self._trouble(peer, error))
                    told = True
            await asyncio.sleep(1.0)


class LogPeer:
    """Answers other nodes' questions for this node's log."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def query(self, peer: PeerInfo, payload: bytes) -> bytes:
        """The newest matching lines as rows."""
        wanted = _requests.decode(payload)
        node = self._runtime
        await node.logs.flush()
        lines = await node.logs.query(
            limit=wanted.limit,
            min_level=wanted.min_level,
            daemon_id=wanted.daemon_id,
            contains=wanted.contains,
        )
        return msgspec.msgpack.encode([log_row(node.node_id, node.settings.name, line) for line in lines])

    async def follow(self, peer: PeerInfo, payload: bytes) -> AsyncGenerator[bytes, None]:
        """New matching lines as they come."""
        wanted = _requests.decode(payload)
        node = self._runtime
        async for batch in node.logs.follow(
            min_level=wanted.min_level, daemon_id=wanted.daemon_id, contains=wanted.contains
        ):
            if not isinstance(batch, StoreLagged):
                yield msgspec.msgpack.encode([log_row(node.node_id, node.settings.name, line) for line in batch])
