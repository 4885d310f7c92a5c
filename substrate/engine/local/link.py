"""One connection of a client to the broker: calls with answers, messages to streams, signs of life."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

import msgspec

from substrate.engine.local import protocol as p
from substrate.engine.local.directory import EngineDirectory
from substrate.engine.local.launch import dial, kill_broker, peer_of
from substrate.wire.errors import NetError
from substrate.wire.frames import FrameDecoder

PING_S: Final = 0.5
SILENCE_S: Final = 2.0
"""A broker that says nothing for so long, pings outstanding, is frozen and is killed."""
CLOSE_S: Final = 0.5

StreamMessage = p.TailBatch | p.TailLagged | p.WatchBatch | p.Failure


class LinkLostError(Exception):
    """The connection ended before the answer came."""


class Link(asyncio.Protocol):
    """An open connection. `lost` is done when it has ended; `call` then raises `LinkLostError`."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[None] = loop.create_future()
        self.welcome: p.Welcome | None = None
        self.heard_at = time.monotonic()
        self.on_deliver: Callable[[p.Deliver], None] | None = None
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._decoder = FrameDecoder()
        self._last_id = 0
        self._calls: dict[int, asyncio.Future[p.BrokerMessage]] = {}
        self._streams: dict[int, Callable[[StreamMessage], None]] = {}
        self._out: list[bytes] = []
        self._clock_offset_ms = 0.0
        self._refusal: NetError | None = None

    # asyncio.Protocol --------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail what waits for an answer."""
        self._transport = None
        self._out.clear()
        calls, self._calls = self._calls, {}
        for future in calls.values():
            if not future.done():
                future.set_exception(LinkLostError())
        self._streams.clear()
        if not self.lost.done():
            self.lost.set_result(None)

    def data_received(self, data: bytes) -> None:
        """Take a piece of the stream."""
        self.heard_at = time.monotonic()
        try:
            for payload in self._decoder.feed(data):
                self._dispatch(p.decode_broker(payload))
        except (NetError, msgspec.DecodeError) as error:
            self._refusal = NetError("internal", f"the broker sent nonsense: {error}")
            self.abort()

    # use ---------------------------------------------------------------------------------------------------

    @property
    def refusal(self) -> NetError | None:
        """Why the broker refused this connection, if it did."""
        return self._refusal

    def now_ms(self) -> int:
        """The broker's wall clock, reckoned from its last pong."""
        return int(time.monotonic() * 1000 + self._clock_offset_ms)

    async def call(self, message: p.Message) -> p.BrokerMessage:
        """Send a request and wait for its answer. Raises `LinkLostError`, or the `NetError` the broker answered."""
        if self._transport is None:
            raise LinkLostError
        id = self._last_id = self._last_id + 1
        message.id = id
        future: asyncio.Future[p.BrokerMessage] = self._loop.create_future()
        self.send(message)
        self._calls[id] = future
        try:
            return await future
        finally:
            self._calls.pop(id, None)

    def open_stream(self, message: p.Message, on_message: Callable[[StreamMessage], None]) -> int:
        """Send the request that opens a stream; returns its id, under which `on_message` gets what comes."""
        id = self._last_id = self._last_id + 1
        message.id = id
        self._streams[id] = on_message
        self.send(message)
        return id

    def close_stream(self, id: int) -> None:
        """End a stream; what still comes for it is dropped."""
        if self._streams.pop(id, None) is not None:
            self.send(p.CloseStream(id))

    def send(self, message: p.Message) -> None:
        """Queue a message; everything queued in one turn of the loop goes out together. Raises `too-large`."""
        data = p.encode(message)
        if self._transport is not None:
            if not self._out:
                self._loop.call_soon(self._flush)
            self._out.append(data)

    def ping(self) -> None:
        """Ask for a sign of life."""
        self.send(p.Ping(0))

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    async def close(self) -> None:
        """Send what is queued, close, and wait until it is closed; a broker that takes nothing is given `CLOSE_S`."""
        self._flush()
        if self._transport is not None:
            self._transport.close()
        await asyncio.wait((self.lost,), timeout=CLOSE_S)
        self.abort()
        await self.lost

    def _flush(self) -> None:
        if self._out and self._transport is not None:
            data = b"".join(self._out)
            self._out.clear()
            self._transport.write(data)

    def _dispatch(self, message: p.BrokerMessage) -> None:
        future = self._calls.get(message.id)
        if isinstance(message, p.Deliver):  # numbered by the broker
            if self.on_deliver is not None:
                self.on_deliver(message)
        elif isinstance(message, p.Pong):
            self._clock(message.now_ms)
        elif future is not None:
            if future.done():
                return  # its caller gave up
            if isinstance(message, p.Failure):
                future.set_exception(p.error_of(message))
            else:
                if isinstance(message, p.Welcome):
                    self.welcome = message
                    self._clock(message.now_ms)
                future.set_result(message)
        elif isinstance(message, p.TailBatch | p.TailLagged | p.WatchBatch | p.Failure):
            stream = self._streams.get(message.id)
            if stream is not None:
                stream(message)
            elif message.id == 0 and isinstance(message, p.Failure):
                self._refusal = p.error_of(message)

    def _clock(self, broker_now_ms: int) -> None:
        self._clock_offset_ms = broker_now_ms - time.monotonic() * 1000


async def open_link(directory: EngineDirectory) -> Link | None:
    """Connect to the broker of a directory and greet it; None if nobody answers there.

    One that accepts but stays silent for `SILENCE_S` is killed. Raises the `NetError` of a broker that refuses.
    """
    loop = asyncio.get_running_loop()
    connection = dial(directory)
    if connection is None:
        return None
    pid, _ = peer_of(connection)
    _, link = await loop.create_unix_connection(Link, sock=connection)
    try:
        async with asyncio.timeout(SILENCE_S):
            await link.call(p.Hello(0, p.VERSION))
    except LinkLostError:  # it was just ending
        if link.refusal is not None:
            raise link.refusal from None
        return None
    except TimeoutError:
        link.abort()
        kill_broker(directory, pid, None)
        return None
    except BaseException:
        link.abort()
        raise
    return link


async def watch_over(link: Link, directory: EngineDirectory) -> None:
    """Ping until the link is lost; kill the broker when it is silent for `SILENCE_S`.

    Only silence during which this process itself ran counts: after being stopped or starved it first listens.
    """
    assert link.welcome is not None
    ticked = listening_since = time.monotonic()
    while not link.lost.done():
        link.ping()
        await asyncio.wait((link.lost,), timeout=PING_S)
        now = time.monotonic()
        if now - ticked > 2 * PING_S:
            listening_since = now
        ticked = now
        if now - max(link.heard_at, listening_since) >= SILENCE_S:
            kill_broker(directory, link.welcome.pid, link.welcome.start_time)
            link.abort()
            await link.lost
