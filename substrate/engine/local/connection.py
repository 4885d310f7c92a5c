"""One client's connection at the broker: frames in, frames out, and where reading stops.

Backpressure: messages are handled one by one as long as the client takes its answers and has no more than
`MAX_IN_FLIGHT` appends waiting for their commit; otherwise they wait in the socket, and the client with them. Nobody
else is held up.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from typing import Final, Protocol

import msgspec

from substrate.engine.local.launch import check_peer, peer_of
from substrate.engine.local.protocol import ClientMessage, Message, decode_client, encode, failure
from substrate.wire.errors import NetError
from substrate.wire.frames import FrameDecoder

MAX_IN_FLIGHT: Final = 1024
OUT_CHUNK_BYTES: Final = 256 * 1024
"""What is gathered before it is handed to the socket within one turn."""
OUT_HIGH_BYTES: Final = 1024 * 1024
"""What may wait unsent before this client gets nothing more."""


class Service(Protocol):
    """What a connection speaks for."""

    def opened(self, connection: Connection) -> None:
        """A client of an allowed uid connected; raises `overloaded` to refuse it."""
        ...

    def handle(self, connection: Connection, message: ClientMessage) -> None:
        """Act on a message; a raised `NetError` is answered as its failure."""
        ...

    def writable(self, connection: Connection) -> None:
        """The client takes data again."""
        ...

    def closed(self, connection: Connection) -> None:
        """The connection is gone."""
        ...

    def log(self, text: str) -> None:
        """Say something in the log."""
        ...


class Connection(asyncio.Protocol):
    """See the module. `in_flight` is counted by the service, through `append_began` and `append_ended`."""

    def __init__(self, service: Service, now_s: float) -> None:
        self.greeted = False
        self.in_flight = 0
        self.stuck_since: float | None = None
        """Loop time since when the client takes nothing; None while it does."""
        self.heard_at = now_s
        self._service = service
        self._loop = asyncio.get_running_loop()
        self._decoder = FrameDecoder()
        self._inbox: deque[bytes] = deque()
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._transport: asyncio.Transport | None = None
        self._reading = True
        self._stopped = False
        self._accepted = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Check the peer's uid and the limit on connections."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=OUT_HIGH_BYTES)
        connection: socket.socket = transport.get_extra_info("socket")
        try:
            check_peer(peer_of(connection)[1])
            self._service.opened(self)
            self._accepted = True
        except NetError as error:
            self.refuse(error)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the service, once."""
        self._transport = None
        self._inbox.clear()
        self._out.clear()
        if self._accepted:
            self._accepted = False
            self._service.closed(self)

    def data_received(self, data: bytes) -> None:
        """Take a piece of the stream."""
        self.heard_at = self._loop.time()
        try:
            self._inbox.extend(self._decoder.feed(data))
        except NetError as error:
            self.refuse(error)
            return
        self._process()

    def pause_writing(self) -> None:
        """The client does not take what it is sent."""
        self.stuck_since = self._loop.time()

    def resume_writing(self) -> None:
        """It does again."""
        self.stuck_since = None
        self._process()
        self._service.writable(self)

    def append_began(self) -> None:
        """An append waits for its commit."""
        self.in_flight += 1

    def append_ended(self) -> None:
        """It has been answered; go on with what had to wait for that."""
        self.in_flight -= 1
        if self._inbox or not self._reading:
            self._process()

    def send(self, message: Message) -> None:
        """Queue a message; `flush` hands the queue to the socket."""
        if self._transport is None:
            return
        data = encode(message)
        self._out.append(data)
        self._out_bytes += len(data)
        if self._out_bytes >= OUT_CHUNK_BYTES:
            self.flush()

    def flush(self) -> None:
        """Hand everything queued to the socket in one piece."""
        if self._out and self._transport is not None:
            data = b"".join(self._out)
            self._out.clear()
            self._out_bytes = 0
            self._transport.write(data)

    def refuse(self, error: NetError) -> None:
        """Say why and close; what came in is not handled any more."""
        self._inbox.clear()
        self.send(failure(0, error))
        self.close()

    def close(self) -> None:
        """Close after what is queued was sent."""
        self.flush()
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def stop_reading(self) -> None:
        """Take no further messages; what is in progress is still answered."""
        self._stopped = True
        self._inbox.clear()
        self._accepting_reads(False)

    def _process(self) -> None:
        if self._stopped:
            return
        inbox = self._inbox
        while inbox and self.stuck_since is None and self.in_flight < MAX_IN_FLIGHT:
            payload = inbox.popleft()
            try:
                message = decode_client(payload)
            except msgspec.DecodeError as error:
                self._service.log(f"a client sent nonsense: {error}")
                self.refuse(NetError("invalid-argument", f"the broker does not understand this message: {error}"))
                return
            try:
                self._service.handle(self, message)
            except NetError as error:
                self.send(failure(message.id, error))
        self._accepting_reads(not inbox and self.stuck_since is None and self.in_flight < MAX_IN_FLIGHT)
        self.flush()

    def _accepting_reads(self, wanted: bool) -> None:
        if self._transport is None or wanted == self._reading or self._transport.is_closing():
            return
        self._reading = wanted
        if wanted:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()
