"""The asynchronous client of a node's control socket: the surface of `net_sdk.client` for TUIs and daemons."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from net_sdk import commits
from net_sdk.client import SILENCE_S
from net_sdk.http1 import MAX_DOCUMENT_BYTES, Lines, Malformed, Response, document, quote, request_bytes, target
from net_sdk.proposals import Signer
from substrate.wire.errors import NetError

__all__ = ["AsyncClient", "AsyncCommits", "quote"]

_RECEIVE_BYTES: Final = 256 * 1024
_RETRY_S: Final = (0.05, 2.0)
"""First and longest pause between attempts to resume a stream."""

T = TypeVar("T")
_Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class AsyncClient:
    """Requests to the node behind `socket_path`, up to `max_connections` at a time; further ones wait their turn.

    Errors, `timeout_s` and `cluster_id` are those of `net_sdk.client.Client`. Streams have connections of their own, outside the pool.
    """

    cluster_id: str | None = None

    def __init__(self, socket_path: str, timeout_s: float = 30.0, max_connections: int = 8) -> None:
        self.socket_path = socket_path
        self.timeout_s = timeout_s
        self._free: list[_Pair] = []
        self._turn = asyncio.Semaphore(max_connections)

    @classmethod
    async def attach(
        cls, cluster: str = "default", via: str | None = None, socket: str | None = None, timeout_s: float = 30.0
    ) -> AsyncClient:
        """A client of the node that `net_sdk.discovery.attach` finds, its cluster pinned."""
        from net_sdk.discovery import attach

        found = await asyncio.to_thread(attach, cluster, via, socket, timeout_s)
        found.close()
        client = cls(found.socket_path, timeout_s)
        client.cluster_id = found.cluster_id
        return client

    async def get(self, path: str, **query: Any) -> Any:
        """The document at `path`."""
        return await self._request("GET", target(path, query), None, self.timeout_s)

    async def post(self, path: str, body: Any, *, timeout_s: float | None = None) -> Any:
        """Post `body` as JSON; the document that comes back. Never sent twice on its own account."""
        return await self._request("POST", path, body, self.timeout_s if timeout_s is None else timeout_s)

    async def stream(
        self, path: str, *, timeout_s: float | None = None, resume: bool = False, **query: Any
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The rows of a stream until its end line; see `Client.stream`.

        With `resume`, a stream that breaks, or ends because its node stops, is taken up again after the last `seq` seen (`since`), for
        ever or until `timeout_s` is over; rows neither repeat nor go missing unseen. Close the iterator (`aclosing`) when leaving early.
        """
        loop = asyncio.get_running_loop()
        deadline = None if timeout_s is None else loop.time() + timeout_s
        pause_s = _RETRY_S[0]
        while True:
            try:
                lines = Lines()
                async with aclosing(self._rows(target(path, query), lines, deadline)) as rows:
                    async for row in rows:
                        pause_s = _RETRY_S[0]
                        seq = row["lagged"]["to"] if "lagged" in row else row.get("seq")
                        if isinstance(seq, int):
                            query["since"] = seq
                            query.pop("tail", None)
                        yield row
                if not resume or lines.ended != "node-stopping":
                    return
            except NetError as failure:
                if not resume or failure.kind != "not-connected":
                    raise
            if deadline is not None and loop.time() + pause_s >= deadline:
                raise NetError("timeout", "the time ran out before the stream could be resumed")
            await asyncio.sleep(pause_s)
            pause_s = min(_RETRY_S[1], pause_s * 2)

    async def close(self) -> None:
        """Close the pooled connections; the client may be used again."""
        while self._free:
            await _close(self._free.pop())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _request(self, method: str, where: str, body: Any, timeout_s: float) -> Any:
        data = request_bytes(method, where, body)
        sent = False
        try:
            async with asyncio.timeout(timeout_s), self._turn:
                pair = self._take() or await _open(self.socket_path)
                sent = True
                kept = False
                try:
                    response, received = await _exchange(pair, data, self.socket_path)
                    kept = response.reusable
                finally:
                    if kept:
                        self._free.append(pair)
                    else:
                        await _close(pair)
        except TimeoutError:
            raise NetError(
                "timeout",
                "the time ran out before the answer came",
                "raise the timeout, or look at: net node health",
                {"sent": sent},
            ) from None
        return document(response.status, received)

    def _take(self) -> _Pair | None:
        while self._free:
            reader, writer = self._free.pop()
            if not reader.at_eof() and not writer.is_closing():
                return reader, writer
            writer.close()
        return None

    async def _rows(self, where: str, lines: Lines, deadline: float | None) -> AsyncGenerator[dict[str, Any], None]:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.timeout_s):
                pair = await _open(self.socket_path)
        except TimeoutError:
            raise NetError("timeout", f"the node at {self.socket_path} does not take the connection") from None
        response, whole = Response(), bytearray()
        try:
            await _send(pair[1], request_bytes("GET", where))
            while not response.done and lines.ended is None:
                now = loop.time()
                patience = SILENCE_S if response.status else self.timeout_s
                async with asyncio.timeout_at(min(now + patience, deadline or now + patience)):
                    piece = await pair[0].read(_RECEIVE_BYTES)
                if not piece and not response.eof():
                    raise _broken(self.socket_path)
                body = response.feed(piece)
                if response.streaming:
                    for row in lines.feed(body):
                        yield row
                else:
                    whole += body
        except TimeoutError:
            raise NetError("timeout", "the time ran out before the next row came") from None
        except OSError as failure:
            raise _broken(self.socket_path) from failure
        except Malformed as failure:
            raise NetError("internal", f"the node's stream cannot be read: {failure}") from None
        finally:
            await _close(pair)
        if lines.failure is not None:
            raise lines.failure
        if not response.streaming:
            for row in document(response.status, whole):
                yield row
        elif lines.ended is None:
            raise _broken(self.socket_path)


class AsyncCommits:
    """The commit flow of `net_sdk.commits` on an async client."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def propose(
        self, event: dict[str, Any], reason: str = "", *, operator_id: str | None = None, preview: bool = False
    ) -> dict[str, Any]:
        """The proposal document of an event."""
        body = {"event": event, "reason": reason, "operator_id": operator_id, "preview": preview}
        document: dict[str, Any] = await self._client.post("/v1/proposals", body)
        return document

    async def submit(self, proposal: dict[str, Any], signatures: list[dict[str, str]]) -> dict[str, Any]:
        """Commit a proposal with signatures collected for it."""
        return await self.drive(commits.commit_flow(proposal, signatures))

    async def run(
        self,
        signer: Signer,
        event: dict[str, Any],
        reason: str = "",
        *,
        preview: bool = False,
        approve: Callable[[dict[str, Any]], None] | None = None,
    ) -> dict[str, Any]:
        """Carry out a command with one signature; the document of the accepted commit."""
        cluster_id = self._client.cluster_id
        return await self.drive(commits.command_flow(signer, event, reason, cluster_id, preview, approve))

    async def wait(
        self, commit_id: str, timeout_s: float, on_progress: Callable[[dict[str, Any]], None] | None = None
    ) -> dict[str, Any]:
        """Follow the commit's work to its end; see `net_sdk.commits.wait`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        path = f"/v1/commits/{quote(commit_id)}/progress"
        last: dict[str, Any] | None = None
        pause_s = _RETRY_S[0]
        while (left := deadline - loop.time()) > 0:
            try:
                async with aclosing(self._client.stream(path, timeout_s=left, follow=True)) as rows:
                    async for row in rows:
                        if "state" not in row:
                            continue
                        last, pause_s = row, _RETRY_S[0]
                        if on_progress is not None:
                            on_progress(row)
                        if row["state"] != "running":
                            return row
            except NetError as failure:
                if failure.kind not in commits.WAIT_THROUGH:
                    raise
            await asyncio.sleep(max(0.0, min(pause_s, deadline - loop.time())))
            pause_s = min(_RETRY_S[1], pause_s * 2)
        raise commits.wait_timeout(commit_id, last)

    async def drive(self, flow: commits.Flow[T]) -> T:
        """Drive a flow to its end."""
        answer: Any = None
        failure: NetError | None = None
        try:
            while True:
                step = flow.send(answer) if failure is None else flow.throw(failure)
                answer, failure = None, None
                if isinstance(step, commits.Pause):
                    await asyncio.sleep(step.seconds)
                    continue
                try:
                    if step.method == "GET":
                        answer = await self._client.get(step.path)
                    else:
                        answer = await self._client.post(step.path, step.body)
                except NetError as error:
                    failure = error
        except StopIteration as end:
            result: T = end.value
            return result


async def _open(path: str) -> _Pair:
    while True:
        try:
            return await asyncio.open_unix_connection(path)
        except BlockingIOError:  # the node's queue of new connections is full; the caller's timeout bounds this
            await asyncio.sleep(0.01)
        except OSError as failure:
            if failure.errno == errno.EACCES:
                raise NetError(
                    "peer-uid", f"the socket {path} belongs to another user", "run as the user that started the node"
                ) from None
            raise NetError(
                "not-connected", f"no node listens on {path}", "net node start", {"socket": path, "sent": False}
            ) from None


async def _send(writer: asyncio.StreamWriter, data: bytes) -> None:
    try:
        writer.write(data)
        await writer.drain()
    except (BrokenPipeError, ConnectionResetError):
        pass  # refused early: the reason may be waiting to be read


async def _exchange(pair: _Pair, data: bytes, path: str) -> tuple[Response, bytearray]:
    response, received = Response(), bytearray()
    try:
        await _send(pair[1], data)
        while not response.done:
            piece = await pair[0].read(_RECEIVE_BYTES)
            if not piece:
                if response.eof():
                    break
                raise _broken(path)
            received += response.feed(piece)
            if len(received) > MAX_DOCUMENT_BYTES:
                raise Malformed("the document is too large")
    except OSError as failure:
        raise _broken(path) from failure
    except Malformed as failure:
        raise NetError("internal", f"the node's answer cannot be read: {failure}") from None
    return response, received


async def _close(pair: _Pair) -> None:
    pair[1].close()
    try:
        await pair[1].wait_closed()
    except OSError:
        pass  # broken before it was closed: closed all the same


def _broken(path: str) -> NetError:
    return NetError(
        "not-connected",
        "the connection to the node broke before its answer was complete",
        "net node status tells whether the node still runs",
        {"socket": path, "sent": True},
    )
