"""The serving end of node-to-node links: who may call, what they may call, and how much at a time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Final, Self

from substrate.mesh.channel import HANDSHAKE_LIMIT_S, Channel, cut, in_turn
from substrate.mesh.handshake import Authorize, PeerInfo, ServerHandshake, Signer
from substrate.mesh.protocol import (
    ITEM_OVERHEAD_BYTES,
    MAX_IN_FLIGHT,
    STREAM_WINDOW_BYTES,
    Cancel,
    Credit,
    End,
    ErrorBody,
    Fail,
    Hello,
    Item,
    Message,
    Open,
    Ping,
    Pong,
    Proof,
    Ready,
    Refused,
    Reply,
    Request,
    check_payload,
    encode,
)
from substrate.mesh.transport import BACKLOG, UnixListener, check_peer_uid, unix_endpoint
from substrate.wire.errors import NetError

MAX_LINKS: Final = 256
"""Links one node serves at a time."""
MAX_TIMEOUT_MS: Final = 3_600_000
TICK_S: Final = 5.0
IDLE_S: Final = 60.0
"""A caller asks for life every few seconds while it waits for anything: one that is silent for so long is gone."""

_log = logging.getLogger(__name__)

Handler = Callable[[PeerInfo, bytes], Awaitable[bytes]]
"""Answers a request; a `NetError` it raises travels to the caller, anything else becomes `internal` and is logged."""
StreamHandler = Callable[[PeerInfo, bytes], AsyncGenerator[bytes, None]]
"""Yields the items of a stream; closed when the caller leaves."""


class _Work:
    """One call under way. For a stream: what the caller still lets us send."""

    def __init__(self, window_bytes: int = 0) -> None:
        self.task: asyncio.Task[None] | None = None
        self.window_bytes = min(window_bytes, STREAM_WINDOW_BYTES)
        self.granted = asyncio.Event()

    def cancel(self) -> None:
        if self.task is not None:
            self.task.cancel()


class ServedLink(Channel):
    """One caller's connection."""

    def __init__(self, server: PeerServer) -> None:
        super().__init__()
        self._server = server
        self._peer: PeerInfo | None = None
        self._work: dict[int, _Work] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._greeting: asyncio.Task[None] | None = None

    # Handshake

    def connection_made(self, transport: asyncio.BaseTransport) -> None:  # noqa: D102
        super().connection_made(transport)
        self._server.links.add(self)
        try:
            check_peer_uid(transport.get_extra_info("socket"))
            if len(self._server.links) > MAX_LINKS:
                raise NetError("overloaded", f"the node serves {MAX_LINKS} links already")
        except NetError as error:
            self._refuse(error)
            return
        self._greeting = self.loop.create_task(self._greet())

    async def _greet(self) -> None:
        handshake = self._server.handshake()
        try:
            async with asyncio.timeout(HANDSHAKE_LIMIT_S):
                self.send(handshake.welcome(in_turn(await self.receive(), Hello)))
                self._peer = handshake.finish(in_turn(await self.receive(), Proof))
        except TimeoutError:
            self._refuse(NetError("timeout", f"no handshake within {HANDSHAKE_LIMIT_S:g} s"))
        except NetError as error:
            if error is not self.ended:  # else the other side left, which is no refusal
                self._refuse(error)
        except Exception:
            _log.exception("the handshake with a peer failed")
            self._refuse(NetError("internal", "the node failed in the handshake"))
        else:
            self.send(Ready())
            self._timer = self.loop.call_later(TICK_S, self._tick)
            self.open()

    def _refuse(self, error: NetError) -> None:
        self._server.refused[error.kind] += 1
        self.send(Refused(ErrorBody.of(error)))
        self.finish(error)

    def _check_admitted(self) -> PeerInfo | None:
        """The peer as the cluster knows it now; a node that was removed meanwhile is cut off."""
        assert self._peer is not None
        peer = self._server.authorize(self._peer.public_key)
        if peer is None:
            self._refuse(NetError("not-admitted", "this node was removed from the cluster"))
        return peer

    # Channel

    def on_message(self, message: Message) -> None:  # noqa: D102
        match message:
            case Ping(ident):
                self.send(Pong(ident))
            case Request() | Open():
                self._begin(message)
            case Credit(ident, size_bytes):
                work = self._work.get(ident)
                if work is not None and size_bytes > 0:
                    work.window_bytes = min(work.window_bytes + size_bytes, STREAM_WINDOW_BYTES)
                    work.granted.set()
            case Cancel(ident):
                # Out of the count at once: the caller's own count fell when it sent this.
                work = self._work.pop(ident, None)
                if work is not None:
                    work.cancel()
            case _:
                raise cut(f"the caller sent {type(message).__name__} out of turn")

    def on_closed(self, reason: NetError) -> None:  # noqa: D102
        if self._timer is not None:
            self._timer.cancel()
        if self._greeting is not None:
            self._greeting.cancel()
        for work in self._work.values():
            work.cancel()
        self._work.clear()
        self._server.links.discard(self)

    def _tick(self) -> None:
        if self.loop.time() - self.heard_at > IDLE_S:
            self.finish(cut("idle"))
        elif self._check_admitted() is not None:
            self._timer = self.loop.call_later(TICK_S, self._tick)

    # Calls

    def _begin(self, call: Request | Open) -> None:
        peer = self._check_admitted()
        if peer is None:
            return
        if call.id in self._work:
            raise cut(f"the caller used id {call.id} twice")
        if len(self._work) >= MAX_IN_FLIGHT:
            busy = NetError("overloaded", f"{MAX_IN_FLIGHT} calls of this node are under way", "try again in a moment")
            self.send(Fail(call.id, ErrorBody.of(busy)))
            return
        work = self._work[call.id] = _Work(0 if isinstance(call, Request) else call.window_bytes)
        work.task = self.loop.create_task(self._run(call, work, peer))

    async def _run(self, call: Request | Open, work: _Work, peer: PeerInfo) -> None:
        try:
            try:
                run = self._answer(call, peer) if isinstance(call, Request) else self._pour(call, peer, work)
                last = encode(await run)
            except NetError as error:
                last = _encode_failure(call.id, error)
            except Exception as error:
                # A fault in a handler must not end the link, which carries other calls.
                _log.exception("the handler of %r failed", call.method)
                name = type(error).__name__
                last = _encode_failure(call.id, NetError("internal", f"the node failed in {call.method!r}: {name}"))
            with contextlib.suppress(NetError):  # the link ended: on_closed has told everybody
                await self.writable()
                self.send_frame(last)
        finally:
            if self._work.get(call.id) is work:
                del self._work[call.id]

    async def _answer(self, call: Request, peer: PeerInfo) -> Message:
        handler = self._server.handlers.get(call.method)
        if handler is None:
            raise _no_method(call.method)
        timeout_ms = min(max(call.timeout_ms, 1), MAX_TIMEOUT_MS)
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                payload = await handler(peer, call.payload)
        except TimeoutError:
            raise NetError("timeout", f"{call.method!r} took longer than {timeout_ms} ms") from None
        check_payload(payload)
        return Reply(call.id, payload)

    async def _pour(self, call: Open, peer: PeerInfo, work: _Work) -> Message:
        handler = self._server.stream_handlers.get(call.method)
        if handler is None:
            raise _no_method(call.method)
        async with contextlib.aclosing(handler(peer, call.payload)) as items:
            async for item in items:
                check_payload(item)
                while work.window_bytes <= 0:
                    work.granted.clear()
                    await work.granted.wait()
                await self.writable()
                work.window_bytes -= len(item) + ITEM_OVERHEAD_BYTES
                self.send(Item(call.id, item))
        return End(call.id)


def _no_method(method: str) -> NetError:
    return NetError("invalid-argument", f"the node has no method {method!r}", "run the same release on all nodes")


def _encode_failure(ident: int, error: NetError) -> bytes:
    try:
        return encode(Fail(ident, ErrorBody.of(error)))
    except (NetError, TypeError, ValueError, OverflowError):
        # Details that do not fit or cannot be encoded must not hide the error itself.
        return encode(Fail(ident, ErrorBody(error.kind, error.message[:4096], error.hint)))


class PeerServer:
    """Serves other nodes of the cluster on one Unix socket.

    `authorize` names the admitted node of a public key; `cluster_id` is 16 bytes. Handlers are added before `start`, which
    raises `conflict` when another process listens on `path`, `invalid-config`, or `permissive-mode`.
    """

    def __init__(self, path: str, signer: Signer, cluster_id: bytes, authorize: Authorize) -> None:
        self.path = path
        self.endpoint = unix_endpoint(path)
        self.authorize = authorize
        self.handlers: dict[str, Handler] = {}
        self.stream_handlers: dict[str, StreamHandler] = {}
        self.links: set[ServedLink] = set()
        self.refused: Counter[str] = Counter()
        """Refused connections by kind since the start."""
        self._signer = signer
        self._cluster_id = cluster_id
        self._listener: UnixListener | None = None
        self._server: asyncio.Server | None = None

    def handle(self, method: str, handler: Handler) -> None:
        """Answer requests for `method`."""
        assert method not in self.handlers, f"{method!r} has a handler"
        self.handlers[method] = handler

    def handle_stream(self, method: str, handler: StreamHandler) -> None:
        """Serve streams of `method`."""
        assert method not in self.stream_handlers, f"{method!r} has a stream handler"
        self.stream_handlers[method] = handler

    def handshake(self) -> ServerHandshake:
        """A new handshake, for one connection."""
        return ServerHandshake(self._signer, self._cluster_id, self.authorize)

    async def start(self) -> None:
        """Begin to listen."""
        self._listener = UnixListener(self.path)
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_unix_server(
                lambda: ServedLink(self), sock=self._listener.sock, backlog=BACKLOG
            )
        except BaseException:
            self._listener.close()
            raise

    async def close(self) -> None:
        """Stop listening, cut every link, cancel what is under way. May be called twice."""
        if self._server is not None:
            self._server.close()
        links = list(self.links)
        for link in links:
            link.fail(cut("the node stops"))
        if links:
            await asyncio.wait([link.closed for link in links])
        if self._listener is not None:
            self._listener.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
