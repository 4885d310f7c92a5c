"""One client connection: h11 on an asyncio transport, one request at a time, a deadline for every phase.

The connection's task reads a request, has it answered, writes the answer and goes round; pipelined requests wait in h11's
buffer. The server's clock calls `tick` a few times a second: deadlines, stalled readers and heartbeats cost no timer each.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

import h11

from substrate.control.dispatch import Answer, StreamAnswer, encode_line, error_answer, malformed, too_large
from substrate.control.socketfile import Peer, check_peer, peer_of
from substrate.control.stream import End
from substrate.wire.errors import NetError
from substrate.wire.times import iso, now_ms

if TYPE_CHECKING:
    from substrate.control.server import ControlServer

_JSON: Final = (b"Content-Type", b"application/json")
_NDJSON: Final = (b"Content-Type", b"application/x-ndjson")
_MAX_UNREAD_BYTES: Final = 64 * 1024
"""Bytes of pipelined requests taken in while one is being answered; then reading pauses."""
_NEVER: Final = float("inf")


class Phase(Enum):
    """What the connection is doing; each has its own deadline."""

    IDLE = "idle"  # between requests
    HEADER = "header"  # a request has begun
    BODY = "body"
    ANSWER = "answer"  # the node works
    STREAM = "stream"  # rows go out
    LINGER = "linger"  # all is said; what still comes in is thrown away, so that the client can read it
    CLOSED = "closed"


class _Gone(Exception):
    """The client has left."""


class _Refused(Exception):
    """The request cannot be read; the answer ends the connection."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.answer = answer


class Connection(asyncio.Protocol):
    """The protocol object of one accepted connection."""

    def __init__(self, server: ControlServer) -> None:
        self._server = server
        self._limits = server.limits
        self._loop = asyncio.get_running_loop()
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=self._limits.header_bytes)
        self._phase = Phase.HEADER
        self._deadline = self._loop.time() + self._limits.header_s
        self._readable: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._reading = True
        self._unread = 0
        self._head_only = False  # the request in work is a HEAD: its answer has no body
        self._write_paused = False
        self._unsent = 0
        self._stall_deadline = _NEVER
        self._last_write = 0.0
        self._stopping: str | None = None
        self._task: asyncio.Task[None] | None = None
        self._transport: asyncio.Transport
        self._peer: Peer

    @property
    def phase(self) -> Phase:
        """What the connection is doing."""
        return self._phase

    # --- called by asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Accepted: admit or refuse."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        try:
            self._server.admit(self)
            if transport.is_closing():
                return  # far over the limit: not even told why
            self._peer = peer_of(transport.get_extra_info("socket"))
            check_peer(self._peer)
        except NetError as refusal:
            self._say_last(error_answer(refusal))
        else:
            self._task = self._loop.create_task(self._serve())

    def connection_lost(self, failure: Exception | None) -> None:
        """The transport is gone: an answer in work is finished for nobody, a stream is given up."""
        streaming = self._phase is Phase.STREAM
        self._enter(Phase.CLOSED)
        self._server.forget(self)
        for waiter in (self._readable, self._writable):
            if waiter is not None and not waiter.done():
                waiter.set_exception(_Gone())
        if streaming and self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        """Bytes from the client."""
        if self._phase is Phase.LINGER:
            return
        if self._phase is Phase.IDLE:
            self._enter(Phase.HEADER, self._limits.header_s)
        elif self._phase in (Phase.ANSWER, Phase.STREAM):
            self._unread += len(data)
            if self._unread > _MAX_UNREAD_BYTES and self._reading:
                self._reading = False
                self._transport.pause_reading()
        self._http.receive_data(data)
        self._wake_reader()

    def eof_received(self) -> bool:
        """The client has sent all it will; a stream's reader has then left, others still get their answer."""
        if self._phase in (Phase.STREAM, Phase.LINGER):
            return False
        self._http.receive_data(b"")
        self._wake_reader()
        return True

    def pause_writing(self) -> None:
        """The client reads slower than we write."""
        self._write_paused = True
        self._unsent = self._transport.get_write_buffer_size()
        self._stall_deadline = self._loop.time() + self._limits.stall_s

    def resume_writing(self) -> None:
        """The client has caught up."""
        self._write_paused = False
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)

    # --- called by the server

    def tick(self, now: float) -> None:
        """Enforce what time demands at `now` (the loop's clock)."""
        if self._write_paused:
            unsent = self._transport.get_write_buffer_size()
            if unsent < self._unsent:
                self._unsent = unsent
                self._stall_deadline = now + self._limits.stall_s
            elif now >= self._stall_deadline:
                self._transport.abort()
                return
        elif self._phase is Phase.STREAM and now - self._last_write >= self._limits.heartbeat_s:
            self._write_line({"heartbeat": True, "at": iso(now_ms())})
        if now < self._deadline:
            return
        if self._phase in (Phase.HEADER, Phase.BODY):
            late = NetError("timeout", "the request did not arrive in time", details={"phase": self._phase.value})
            if self._readable is not None and not self._readable.done():
                self._readable.set_exception(_Refused(error_answer(late, 408)))
        elif self._phase is Phase.IDLE:
            self._part()
        elif not self._transport.get_write_buffer_size() or now >= self._deadline + self._limits.stall_s:
            self._transport.abort()  # lingered long enough

    def stop(self, reason: str) -> None:
        """The node stops: streams end with `reason`, an answer in work is finished, everything else closes."""
        self._stopping = reason
        if self._phase is Phase.STREAM:
            assert self._task is not None
            self._task.cancel()
        elif self._phase in (Phase.IDLE, Phase.HEADER, Phase.LINGER):
            self._transport.close()  # what is written already still goes out

    def abort(self) -> None:
        """Close at once, whatever is unsent."""
        if self._task is not None:
            self._task.cancel()
        self._transport.abort()

    # --- the connection's task

    async def _serve(self) -> None:
        try:
            try:
                while await self._exchange():
                    pass
            except _Refused as refused:
                self._say_last(refused.answer)
        except _Gone:
            pass  # nobody is left to be told
        except asyncio.CancelledError:
            self._transport.abort()
        except Exception:
            self._server.dispatcher.internal("a connection")
            self._transport.abort()

    async def _exchange(self) -> bool:
        """One request and its answer; True if another may follow."""
        self._head_only = False
        head = await self._next_event()
        if not isinstance(head, h11.Request):
            self._part()  # a clean end between requests
            return False
        self._head_only = head.method == b"HEAD"
        headers = list(head.headers)
        self._check_head(head, headers)
        body = await self._read_body(headers)
        self._enter(Phase.ANSWER)
        self._unread = 0
        method, target = head.method.decode("ascii"), head.target.decode("ascii")  # h11 lets nothing else through
        answer = await self._server.dispatcher.answer(method, target, headers, body, self._peer)
        if self._phase is Phase.CLOSED:
            if isinstance(answer, StreamAnswer):
                await _close_rows(answer.rows)
            raise _Gone
        if isinstance(answer, StreamAnswer):
            await self._stream(answer.rows)
        else:
            self._write_answer(answer)
        await self._drain()
        if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE or self._stopping:
            self._linger()
            return False
        self._http.start_next_cycle()
        if not self._reading:
            self._reading = True
            self._transport.resume_reading()
        if self._http.trailing_data[0]:
            self._enter(Phase.HEADER, self._limits.header_s)
        else:
            self._enter(Phase.IDLE, self._limits.idle_s)
        return True

    async def _next_event(self) -> Any:
        while True:
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError as failure:
                raise _Refused(malformed(failure, self._limits.header_bytes)) from None
            if event is not h11.NEED_DATA:
                return event
            if self._phase is Phase.CLOSED:
                raise _Gone
            if self._http.they_are_waiting_for_100_continue:
                self._transport.write(self._http.send(h11.InformationalResponse(status_code=100, headers=[])))
            self._readable = self._loop.create_future()
            try:
                await self._readable
            finally:
                self._readable = None

    async def _read_body(self, headers: list[tuple[bytes, bytes]]) -> bytes:
        for name, value in headers:
            if name == b"content-length" and (len(value) > 12 or int(value) > self._limits.body_bytes):
                raise _Refused(too_large("body", self._limits.body_bytes))
        event = await self._next_event()
        if isinstance(event, h11.EndOfMessage):
            return b""
        self._enter(Phase.BODY, self._limits.body_s)
        pieces: list[bytes] = []
        size = 0
        while isinstance(event, h11.Data):
            pieces.append(bytes(event.data))
            size += len(event.data)
            if size > self._limits.body_bytes:
                raise _Refused(too_large("body", self._limits.body_bytes))
            event = await self._next_event()
        return b"".join(pieces)

    def _check_head(self, head: h11.Request, headers: list[tuple[bytes, bytes]]) -> None:
        """h11 takes any version, and bounds only an unfinished header; one that came whole is measured here."""
        if not head.http_version.startswith(b"1."):
            version = head.http_version.decode("ascii", "replace")
            raise _Refused(error_answer(NetError("invalid-argument", f"HTTP/{version} is not spoken here"), 505))
        size = len(head.target) + sum(len(name) + len(value) + 4 for name, value in headers)
        if size > self._limits.header_bytes:
            raise _Refused(too_large("header", self._limits.header_bytes, 431))

    async def _stream(self, rows: AsyncIterator[Any]) -> None:
        self._enter(Phase.STREAM)
        self._send(h11.Response(status_code=200, headers=[_NDJSON]))
        last: dict[str, Any] = {"end": "complete"}
        try:
            async for row in rows:
                if isinstance(row, End):
                    last = {"end": row.reason}
                    break
                self._write_rows(row)
                await self._drain()
        except asyncio.CancelledError:
            if self._stopping is None or self._phase is Phase.CLOSED:
                raise
            assert self._task is not None
            self._task.uncancel()
            last = {"end": self._stopping}
        except NetError as error:
            last = {"end": "error", **error.document()}
        except _Gone:
            raise
        except Exception:
            last = {"end": "error", **self._server.dispatcher.internal("a stream").document()}
        finally:
            self._enter(Phase.ANSWER)  # from here on neither a stop nor a lost client cuts in
            await _close_rows(rows)
        self._write_line(last)
        self._send(h11.EndOfMessage())

    # --- writing

    def _write_rows(self, row: Any) -> None:
        if isinstance(row, list):
            if row:
                self._write_bytes(b"".join([encode_line(each) for each in row]))
        else:
            self._write_line(row)

    def _write_line(self, document: Any) -> None:
        self._write_bytes(encode_line(document))

    def _write_bytes(self, data: bytes) -> None:
        self._send(h11.Data(data=data))
        self._last_write = self._loop.time()

    def _write_answer(self, answer: Answer) -> None:
        headers = [_JSON, (b"Content-Length", str(len(answer.body)).encode()), *answer.headers]
        if self._stopping:
            headers.append((b"Connection", b"close"))
        send = self._http.send
        parts = [send(h11.Response(status_code=answer.status, headers=headers)) or b""]
        if not self._head_only:
            parts.append(send(h11.Data(data=answer.body)) or b"")
        parts.append(send(h11.EndOfMessage()) or b"")
        self._transport.write(b"".join(parts))

    def _send(self, event: h11.Event) -> None:
        data = self._http.send(event)
        if data and self._phase is not Phase.CLOSED:
            self._transport.write(data)

    async def _drain(self) -> None:
        """Wait until the client has read enough; the stall deadline bounds it."""
        while self._write_paused:
            if self._phase is Phase.CLOSED:
                raise _Gone
            self._writable = self._loop.create_future()
            try:
                await self._writable
            finally:
                self._writable = None

    def _say_last(self, answer: Answer) -> None:
        """Write a final answer outside the request cycle and let the connection end."""
        if self._phase is Phase.CLOSED:
            return
        if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # else another answer is on its way already
            self._write_answer(Answer(answer.status, answer.body, (*answer.headers, (b"Connection", b"close"))))
        self._linger()

    def _part(self) -> None:
        """Close between requests; a client that has not read all yet may still do so, but not for ever."""
        if self._transport.get_write_buffer_size():
            self._linger()
        else:
            self._transport.close()

    def _linger(self) -> None:
        """End our side; closing now would cut off a client that is still sending and so has not read the answer."""
        if self._phase is Phase.CLOSED:
            return
        if self._stopping:
            self._transport.close()
            return
        self._enter(Phase.LINGER, self._limits.linger_s)
        if not self._reading:
            self._reading = True
            self._transport.resume_reading()
        self._transport.write_eof()

    def _enter(self, phase: Phase, seconds: float = _NEVER) -> None:
        if self._phase is Phase.CLOSED:
            return
        self._phase = phase
        self._deadline = self._loop.time() + seconds

    def _wake_reader(self) -> None:
        if self._readable is not None and not self._readable.done():
            self._readable.set_result(None)


async def _close_rows(rows: AsyncIterator[Any]) -> None:
    close = getattr(rows, "aclose", None)
    if close is not None:
        await close()
