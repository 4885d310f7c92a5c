"""The calling end of a link: requests, streams and pings multiplexed over one connection."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import AsyncGenerator
from typing import Final

from substrate.mesh.channel import HANDSHAKE_LIMIT_S, Channel, M, cut, in_turn
from substrate.mesh.handshake import ClientHandshake
from substrate.mesh.protocol import (
    ITEM_OVERHEAD_BYTES,
    MAX_IN_FLIGHT,
    MAX_PAYLOAD_BYTES,
    STREAM_WINDOW_BYTES,
    Cancel,
    Credit,
    End,
    Fail,
    Item,
    Message,
    Open,
    Ping,
    Pong,
    Ready,
    Refused,
    Reply,
    Request,
    Welcome,
    check_call,
)
from substrate.mesh.transport import connect_unix
from substrate.wire.errors import NetError

TICK_S: Final = 2.0
QUIET_S: Final = 2.0
"""With work under way and nothing heard for so long, the peer is asked whether it lives."""
SILENCE_S: Final = 8.0
"""Unanswered for so long, the link is given up."""
IDLE_S: Final = 30.0
"""An unused link is closed; the serving side waits twice as long, so a link never ends under a call just made."""
_MAX_PINGS: Final = 16
_REFUSALS: Final = frozenset({"not-admitted", "cluster-changed", "peer-uid", "overloaded"})
"""What a peer that has proved nothing yet may make this node report."""


def timed_out(name: str, what: str, timeout_ms: int) -> NetError:
    """The error of a peer that did not answer in time."""
    return NetError(
        "timeout", f"node {name!r} did not answer {what} within {timeout_ms} ms", details={"timeout_ms": timeout_ms}
    )


class _Inlet:
    """Items of one stream that arrived and wait for the reader."""

    def __init__(self) -> None:
        self.items: deque[bytes] = deque()
        self.owed_bytes = 0  # received and not granted again
        self.arrived = asyncio.Event()
        self.ended = False
        self.error: NetError | None = None

    def end(self, error: NetError | None) -> None:
        self.ended = True
        self.error = error
        self.arrived.set()


class CallerLink(Channel):
    """An open link to one node. Made by `dial`."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.used_at = self.loop.time()
        self._ids = itertools.count(1)
        self._calls: dict[int, asyncio.Future[bytes]] = {}
        self._streams: dict[int, _Inlet] = {}
        self._pings: dict[int, asyncio.Future[int]] = {}
        self._slots = asyncio.Semaphore(MAX_IN_FLIGHT)
        self._asked_at: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def busy(self) -> bool:
        """Whether anybody waits for this link."""
        return bool(self._calls or self._streams or self._pings)

    def open(self) -> None:
        """Begin to take messages and to watch over the link."""
        super().open()
        self._timer = self.loop.call_later(TICK_S, self._tick)

    # Calls

    async def request(self, method: str, payload: bytes, timeout_ms: int) -> bytes:
        """The answer of the node's `method` handler.

        Raises what the handler raised, `timeout`, or `node-unreachable` (details.sent: whether the node may have acted).
        """
        check_call(method, payload)
        deadline = self.loop.time() + timeout_ms / 1000
        ident = next(self._ids)
        self.used_at = self.loop.time()
        try:
            async with asyncio.timeout_at(deadline), self._slots:
                await self.writable()
                left_ms = max(1, int((deadline - self.loop.time()) * 1000))
                answer: asyncio.Future[bytes] = self.loop.create_future()
                self._calls[ident] = answer
                self.send(Request(ident, method, payload, left_ms))
                return await answer
        except TimeoutError:
            raise timed_out(self.name, method, timeout_ms) from None
        finally:
            self.used_at = self.loop.time()
            if self._calls.pop(ident, None) is not None:
                self.send(Cancel(ident))

    async def stream(self, method: str, payload: bytes) -> AsyncGenerator[bytes, None]:
        """The items of the node's `method` stream, at the reader's pace; leaving the iteration cancels it there.

        Raises what the handler raised, or `node-unreachable` when the link ends or the node stays silent.
        """
        check_call(method, payload)
        ident = next(self._ids)
        inlet = _Inlet()
        taken_bytes = 0
        async with self._slots:
            await self.writable()
            self._streams[ident] = inlet
            try:
                self.send(Open(ident, method, payload, STREAM_WINDOW_BYTES))
                while True:
                    if inlet.items:
                        item = inlet.items.popleft()
                        taken_bytes += len(item) + ITEM_OVERHEAD_BYTES
                        if taken_bytes >= STREAM_WINDOW_BYTES // 2 and not inlet.ended:
                            inlet.owed_bytes -= taken_bytes
                            self.send(Credit(ident, taken_bytes))
                            taken_bytes = 0
                        yield item
                    elif inlet.error is not None:
                        raise inlet.error
                    elif inlet.ended:
                        return
                    else:
                        inlet.arrived.clear()
                        await inlet.arrived.wait()
            finally:
                self.used_at = self.loop.time()
                if self._streams.pop(ident, None) is not None:
                    self.send(Cancel(ident))

    async def ping(self, timeout_ms: int) -> float:
        """Milliseconds from sending a ping to its pong; raises `timeout` or `node-unreachable`."""
        if len(self._pings) >= _MAX_PINGS:
            raise NetError("overloaded", f"{_MAX_PINGS} pings to node {self.name!r} are unanswered")
        if self.ended is not None:
            raise self.ended
        ident = next(self._ids)
        pong: asyncio.Future[int] = self.loop.create_future()
        self._pings[ident] = pong
        self.used_at = self.loop.time()
        sent_ns = time.perf_counter_ns()
        self.send(Ping(ident))
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                return (await pong - sent_ns) / 1e6
        except TimeoutError:
            raise timed_out(self.name, "a ping", timeout_ms) from None
        finally:
            self._pings.pop(ident, None)

    # Channel

    def on_message(self, message: Message) -> None:  # noqa: D102
        # Answers to calls that were given up are nobody's any more and fall through: that is no fault of the peer.
        match message:
            case Reply(ident, payload):
                call = self._calls.pop(ident, None)
                if call is not None and not call.done():
                    call.set_result(payload)
            case Item(ident, payload):
                if (inlet := self._streams.get(ident)) is not None:
                    self._take(inlet, payload)
            case End(ident):
                if (inlet := self._streams.pop(ident, None)) is not None:
                    inlet.end(None)
            case Fail(ident, body):
                self._failed(ident, body.error())
            case Pong(ident):
                pong = self._pings.get(ident)
                if pong is not None and not pong.done():
                    pong.set_result(time.perf_counter_ns())
            case Refused(body):
                error = body.error()
                raise error if error.kind in _REFUSALS else cut(error.message)
            case _:
                raise cut(f"the node sent {type(message).__name__} out of turn")

    def _take(self, inlet: _Inlet, payload: bytes) -> None:
        if inlet.owed_bytes >= STREAM_WINDOW_BYTES or len(payload) > MAX_PAYLOAD_BYTES:
            raise cut("the node sent more than was granted")
        inlet.owed_bytes += len(payload) + ITEM_OVERHEAD_BYTES
        inlet.items.append(payload)
        inlet.arrived.set()

    def _failed(self, ident: int, error: NetError) -> None:
        call = self._calls.pop(ident, None)
        if call is not None and not call.done():
            call.set_exception(error)
        inlet = self._streams.pop(ident, None)
        if inlet is not None:
            inlet.end(error)

    def on_closed(self, reason: NetError) -> None:  # noqa: D102
        if self._timer is not None:
            self._timer.cancel()
        error = NetError(reason.kind, reason.message, reason.hint, {**reason.details, "sent": True})
        for call in self._calls.values():
            if not call.done():
                call.set_exception(error)
        for pong in self._pings.values():
            if not pong.done():
                pong.set_exception(error)
        for inlet in self._streams.values():
            inlet.end(reason)
        self._calls.clear()
        self._streams.clear()
        self._pings.clear()

    def _tick(self) -> None:
        now = self.loop.time()
        if self._asked_at is not None and self.heard_at >= self._asked_at:
            self._asked_at = None
        if not self.busy:
            self._asked_at = None
            if now - self.used_at > IDLE_S:
                self.finish(cut("idle"))
                return
        elif self._asked_at is None:
            if now - self.heard_at > QUIET_S:
                self._asked_at = now
                self.send(Ping(0))
        elif now - self._asked_at > SILENCE_S:
            self.fail(cut(f"nothing heard for {SILENCE_S:g} s"))
            return
        self._timer = self.loop.call_later(TICK_S, self._tick)


async def dial(path: str, name: str, handshake: ClientHandshake) -> CallerLink:
    """Connect to the Unix socket `path`, prove the keys both ways, return the open link.

    Raises `node-unreachable`, `timeout` (connected, but no handshake within 2 s: frozen), `not-admitted`,
    `cluster-changed`, `peer-uid`, `overloaded`.
    """
    loop = asyncio.get_running_loop()
    link: CallerLink | None = None
    try:
        async with asyncio.timeout(HANDSHAKE_LIMIT_S):
            sock = await connect_unix(path)
            try:
                _, link = await loop.create_unix_connection(lambda: CallerLink(name), sock=sock)
            except BaseException:
                sock.close()
                raise
            link.send(handshake.hello)
            welcome = await _expect(link, Welcome)
            link.send(handshake.prove(welcome))
            await _expect(link, Ready)
    except BaseException as error:
        if link is not None:
            link.fail(cut("the handshake failed"))
        if isinstance(error, TimeoutError):
            raise timed_out(name, "the handshake", int(HANDSHAKE_LIMIT_S * 1000)) from None
        if isinstance(error, OSError):
            raise NetError("node-unreachable", f"node {name!r} cannot be reached: {error}") from None
        raise
    link.open()
    return link


async def _expect(link: CallerLink, kind: type[M]) -> M:
    message = await link.receive()
    if isinstance(message, Refused):
        error = message.error.error()
        raise error if error.kind in _REFUSALS else cut(error.message)
    return in_turn(message, kind)
