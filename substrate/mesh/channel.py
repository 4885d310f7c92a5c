"""One connection between two nodes as messages with backpressure; the base of both ends of a link.

Until `open()` arriving messages wait for `receive()` (the handshake); afterwards each goes to `on_message` at once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final, TypeVar

from substrate.mesh.protocol import Message, decode, encode
from substrate.wire.errors import NetError
from substrate.wire.frames import MAX_FRAME_BYTES, FrameDecoder

HANDSHAKE_LIMIT_S: Final = 2.0
_MAX_EARLY: Final = 4  # messages that may arrive ahead of the handshake's steps
_HIGH_WATER_BYTES: Final = MAX_FRAME_BYTES
_HARD_LIMIT_BYTES: Final = 4 * MAX_FRAME_BYTES
"""Buffered bytes at which a peer that does not read is cut off (only unpaced messages can get here)."""
_LINGER_S: Final = 1.0

M = TypeVar("M", bound=Message)


def cut(detail: str) -> NetError:
    """The error of a connection that ended."""
    return NetError("node-unreachable", f"the connection to the node ended: {detail}")


def in_turn(message: Message, kind: type[M]) -> M:
    """The message, if it is the one that the handshake wants now; else raises `not-admitted`."""
    if not isinstance(message, kind):
        raise NetError("not-admitted", f"the peer sent {type(message).__name__} out of turn")
    return message


class Channel(asyncio.Protocol):
    """Frames in and out of one connection. Subclasses say what messages mean."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.closed: asyncio.Future[NetError] = self.loop.create_future()
        """Done when the connection is gone; the result says why."""
        self.heard_at = self.loop.time()
        self._transport: asyncio.Transport | None = None
        self._decoder = FrameDecoder()
        self._opened = False
        self._early: deque[Message] = deque()
        self._early_waiter: asyncio.Future[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._reason: NetError | None = None

    # What subclasses say

    def on_message(self, message: Message) -> None:
        """Take one message of an open channel; a `NetError` raised here ends the connection."""
        raise NotImplementedError

    def on_closed(self, reason: NetError) -> None:
        """Release whoever waits for this connection. Called once, also if the handshake never ended."""
        raise NotImplementedError

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:  # noqa: D102
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=_HIGH_WATER_BYTES)

    def data_received(self, data: bytes) -> None:  # noqa: D102
        self.heard_at = self.loop.time()
        try:
            for payload in self._decoder.feed(data):
                if self._reason is not None:
                    return
                message = decode(payload)
                if self._opened:
                    self.on_message(message)
                else:
                    self._hold(message)
        except NetError as error:
            self.fail(error)

    def pause_writing(self) -> None:  # noqa: D102
        self._writable.clear()

    def resume_writing(self) -> None:  # noqa: D102
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: D102
        reason = self._reason or cut(str(exc) if exc else "closed by the other side")
        self._reason = reason
        self._writable.set()  # waiting writers must see the end
        if self._early_waiter is not None and not self._early_waiter.done():
            self._early_waiter.set_result(None)
        self.closed.set_result(reason)
        self.on_closed(reason)

    # Handshake

    def _hold(self, message: Message) -> None:
        if len(self._early) >= _MAX_EARLY:
            raise NetError("not-admitted", "the peer sends before the handshake is over")
        self._early.append(message)
        if self._early_waiter is not None and not self._early_waiter.done():
            self._early_waiter.set_result(None)

    async def receive(self) -> Message:
        """The next message of the handshake; raises the reason if the connection ends first."""
        while not self._early:
            if self._reason is not None:
                raise self._reason
            self._early_waiter = self.loop.create_future()
            await self._early_waiter
        return self._early.popleft()

    def open(self) -> None:
        """The handshake is over: from now on messages go to `on_message`, first those that came meanwhile."""
        self._opened = True
        while self._early and self._reason is None:
            try:
                self.on_message(self._early.popleft())
            except NetError as error:
                self.fail(error)

    # Sending

    @property
    def ended(self) -> NetError | None:
        """Why the connection is over, or None while it can be used."""
        return self._reason

    async def writable(self) -> None:
        """Wait until the other side takes what was written; raises the reason if the connection ends."""
        while not self._writable.is_set():  # again, because the first of several waiters may fill the buffer anew
            await self._writable.wait()
        if self._reason is not None:
            raise self._reason

    def send(self, message: Message) -> None:
        """Write at once. What may be large or many goes after `writable()`; a peer that never reads is cut off."""
        self.send_frame(encode(message))

    def send_frame(self, frame: bytes) -> None:
        """Write an encoded message; nothing happens when the connection is over."""
        if self._reason is not None or self._transport is None:
            return
        self._transport.write(frame)
        if self._transport.get_write_buffer_size() > _HARD_LIMIT_BYTES:
            self.fail(cut("the other side does not read"))

    # Ending

    def fail(self, reason: NetError) -> None:
        """End the connection now; whoever waits for it gets `reason`."""
        if self._reason is None:
            self._reason = reason
        if self._transport is not None:
            self._transport.abort()

    def finish(self, reason: NetError) -> None:
        """End the connection after what was written has left, or after a second if it does not leave."""
        if self._reason is None:
            self._reason = reason
        if self._transport is not None:
            self._transport.close()
            self.loop.call_later(_LINGER_S, self._transport.abort)
