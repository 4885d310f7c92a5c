"""Calls to other nodes by id: links are made on demand, shared, renewed and closed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Final, Self

import msgspec

from substrate.mesh.caller import CallerLink, dial, timed_out
from substrate.mesh.channel import cut
from substrate.mesh.handshake import ClientHandshake, Signer
from substrate.mesh.transport import pick_path
from substrate.wire.errors import NetError

MAX_LINKS: Final = 1024
"""Links one node keeps to others; beyond it the longest unused one is closed."""
DEFAULT_TIMEOUT_MS: Final = 5000
PING_TIMEOUT_MS: Final = 2000


class PeerAddress(msgspec.Struct, frozen=True):
    """Where a node is and how it proves itself, as membership says. Endpoints are URLs, best first."""

    node_id: int
    name: str
    public_key: bytes
    endpoints: tuple[str, ...]


Resolve = Callable[[int], PeerAddress | None]
"""The present address of a node id, or None for a node that is not there."""


class PeerPool:
    """Calls other nodes. One link per node, made when first needed.

    A request is sent at most once: after `node-unreachable` with `details.sent` or `timeout` the node may have acted, and
    only the caller knows whether to repeat it.
    """

    def __init__(self, signer: Signer, cluster_id: bytes, resolve: Resolve) -> None:
        self._signer = signer
        self._cluster_id = cluster_id
        self._resolve = resolve
        self._links: dict[int, CallerLink] = {}
        self._dials: dict[int, asyncio.Task[CallerLink]] = {}
        self._closed = False

    async def request(
        self, node_id: int, method: str, payload: bytes, *, timeout_ms: int = DEFAULT_TIMEOUT_MS
    ) -> bytes:
        """The answer of a node. Raises what its handler raised, `node-unreachable`, `timeout`, `not-admitted`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_ms / 1000
        link = await self._link(node_id, timeout_ms)
        left_ms = max(1, int((deadline - loop.time()) * 1000))
        return await link.request(method, payload, left_ms)

    async def stream(
        self, node_id: int, method: str, payload: bytes, *, timeout_ms: int = DEFAULT_TIMEOUT_MS
    ) -> AsyncGenerator[bytes, None]:
        """The items of a node's stream, at the reader's pace; `timeout_ms` limits only the making of the link.

        Use it under `contextlib.aclosing` when leaving early. Ends with `node-unreachable` when the node dies, or when it
        is silent for about ten seconds.
        """
        link = await self._link(node_id, timeout_ms)
        async with aclosing(link.stream(method, payload)) as items:
            async for item in items:
                yield item

    async def ping(self, node_id: int, *, timeout_ms: int = PING_TIMEOUT_MS) -> float:
        """The round trip to a node in milliseconds, without the making of the link."""
        link = await self._link(node_id, timeout_ms)
        return await link.ping(timeout_ms)

    def drop(self, node_id: int) -> None:
        """Cut the link to a node that is lost or removed; calls under way end with `node-unreachable`."""
        link = self._links.pop(node_id, None)
        if link is not None:
            link.fail(cut("the node is no longer part of the cluster"))

    async def close(self) -> None:
        """Cut every link; later calls raise `node-unreachable`. May be called twice."""
        self._closed = True
        dials = list(self._dials.values())
        for task in dials:
            task.cancel()
        if dials:
            await asyncio.wait(dials)
        links = list(self._links.values())
        for link in links:
            link.fail(cut("this node stops"))
        if links:
            await asyncio.wait([link.closed for link in links])
        self._links.clear()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _link(self, node_id: int, timeout_ms: int) -> CallerLink:
        if self._closed:
            raise cut("this node stops")
        address = self._resolve(node_id)
        if address is None:
            raise NetError(
                "node-unreachable",
                f"node {node_id} is not in the cluster at present",
                "see which nodes live: net node ls",
                {"node_id": str(node_id)},
            )
        link = self._links.get(node_id)
        if link is not None and link.ended is None:
            return link
        task = self._dials.get(node_id)
        if task is None:
            # One attempt serves all who wait for it, and outlives the ones whose own time ran out.
            task = asyncio.get_running_loop().create_task(self._dial(address))
            self._dials[node_id] = task
            task.add_done_callback(lambda done: self._dialled(node_id, done))
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                return await asyncio.shield(task)
        except TimeoutError:
            raise timed_out(address.name, "the handshake", timeout_ms) from None
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if task.cancelled() and current is not None and not current.cancelling():
                raise cut("this node stops") from None
            raise

    async def _dial(self, address: PeerAddress) -> CallerLink:
        self._make_room()
        handshake = ClientHandshake(self._signer, self._cluster_id, address.public_key)
        return await dial(pick_path(address.endpoints), address.name, handshake)

    def _dialled(self, node_id: int, task: asyncio.Task[CallerLink]) -> None:
        del self._dials[node_id]
        # Asking for the exception marks it as seen: those who waited got it, and there may be nobody left.
        if not task.cancelled() and task.exception() is None:
            link = task.result()
            self._links[node_id] = link
            link.closed.add_done_callback(lambda _: self._forget(node_id, link))

    def _forget(self, node_id: int, link: CallerLink) -> None:
        if self._links.get(node_id) is link:
            del self._links[node_id]

    def _make_room(self) -> None:
        if len(self._links) + len(self._dials) <= MAX_LINKS:
            return
        idle = [(link.used_at, node_id) for node_id, link in self._links.items() if not link.busy]
        if not idle:
            raise NetError("overloaded", f"all {MAX_LINKS} links to other nodes are in use", "try again in a moment")
        _, node_id = min(idle)
        self._links.pop(node_id).finish(cut("unused"))
