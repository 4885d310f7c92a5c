"""Requests between the broker's clients: each subject has one server, each request one answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from substrate.engine.api import MAX_REQUEST_BYTES
from substrate.engine.local.connection import Connection
from substrate.engine.local.kv import check_key
from substrate.engine.local.protocol import Answer, AnswerFailure, Deliver, RequestDone, error_of, failure
from substrate.wire.errors import NetError

MAX_OPEN_PER_CLIENT: Final = 1024
"""Requests of one client without an answer."""
MAX_SUBJECTS: Final = 4096
MAX_TIMEOUT_MS: Final = 3600 * 1000


class _Request:
    __slots__ = ("client", "client_id", "server", "timer")

    def __init__(self, client: Connection, client_id: int, server: Connection, timer: asyncio.TimerHandle) -> None:
        self.client = client
        self.client_id = client_id
        self.server = server
        self.timer = timer


def check_payload(payload: bytes) -> None:
    """Refuse (`too-large`) a request or an answer over `MAX_REQUEST_BYTES`."""
    if len(payload) > MAX_REQUEST_BYTES:
        raise NetError(
            "too-large",
            f"a payload of {len(payload)} bytes is over the limit of {MAX_REQUEST_BYTES}",
            details={"size_bytes": len(payload), "limit_bytes": MAX_REQUEST_BYTES},
        )


def unreachable(subject: str, why: str) -> NetError:
    """The error for a request nobody will answer."""
    return NetError("node-unreachable", f"{why} {subject!r}", details={"subject": subject})


class Router:
    """Subjects, their servers, and the requests on the way."""

    def __init__(self, touched: Callable[[Connection], None]) -> None:
        self._touched = touched
        self._loop = asyncio.get_running_loop()
        self._servers: dict[str, Connection] = {}
        self._requests: dict[int, _Request] = {}
        self._open: dict[Connection, int] = {}
        self._last_id = 0

    def __len__(self) -> int:
        return len(self._servers)

    def serve(self, connection: Connection, subject: str) -> None:
        """Route `subject` to a connection. Raises `conflict` if another one has it."""
        check_key(subject)
        server = self._servers.get(subject)
        if server is not None and server is not connection:
            raise NetError("conflict", f"the subject {subject!r} is served already", details={"subject": subject})
        if len(self._servers) >= MAX_SUBJECTS:
            raise NetError("overloaded", f"more than {MAX_SUBJECTS} subjects are served")
        self._servers[subject] = connection

    def unserve(self, connection: Connection, subject: str) -> bool:
        """End that; False if the connection does not serve `subject`."""
        if self._servers.get(subject) is not connection:
            return False
        del self._servers[subject]
        return True

    def request(self, client: Connection, client_id: int, subject: str, payload: bytes, timeout_ms: int) -> None:
        """Pass a request on. Raises `node-unreachable`, `overloaded`, `too-large`, `invalid-argument`."""
        check_payload(payload)
        if not 1 <= timeout_ms <= MAX_TIMEOUT_MS:
            raise NetError("invalid-argument", f"a timeout must be 1 to {MAX_TIMEOUT_MS} ms")
        server = self._servers.get(subject)
        if server is None:
            raise unreachable(subject, "nobody serves")
        if server.stuck_since is not None or self._open.get(client, 0) >= MAX_OPEN_PER_CLIENT:
            raise NetError("overloaded", f"too many requests to {subject!r} wait", details={"subject": subject})
        self._last_id += 1
        id = self._last_id
        timer = self._loop.call_later(timeout_ms / 1000, self._expired, id, subject, timeout_ms)
        self._requests[id] = _Request(client, client_id, server, timer)
        self._open[client] = self._open.get(client, 0) + 1
        server.send(Deliver(id, subject, payload))
        self._touched(server)

    def answer(self, server: Connection, message: Answer | AnswerFailure) -> None:
        """Pass an answer back; one that comes too late, or from elsewhere than asked, is dropped."""
        request = self._requests.get(message.id)
        if request is None or request.server is not server:
            return
        if isinstance(message, AnswerFailure):
            self._finish(message.id, error_of(message))
            return
        try:
            check_payload(message.payload)
        except NetError as error:
            self._finish(message.id, error)
            return
        self._settle(message.id)
        request.client.send(RequestDone(request.client_id, message.payload))
        self._touched(request.client)

    def drop(self, connection: Connection) -> None:
        """A connection is gone: its subjects, the requests it asked and those it should have answered."""
        for subject in [subject for subject, server in self._servers.items() if server is connection]:
            del self._servers[subject]
        for id, request in list(self._requests.items()):
            if request.client is connection:
                self._settle(id)
            elif request.server is connection:
                self._finish(id, NetError("node-unreachable", "the server went away before it answered"))
        self._open.pop(connection, None)

    def _expired(self, id: int, subject: str, timeout_ms: int) -> None:
        self._finish(
            id, NetError("timeout", f"no answer from {subject!r} within {timeout_ms} ms", details={"subject": subject})
        )

    def _settle(self, id: int) -> _Request:
        request = self._requests.pop(id)
        request.timer.cancel()
        self._open[request.client] -= 1
        return request

    def _finish(self, id: int, error: NetError) -> None:
        request = self._settle(id)
        request.client.send(failure(request.client_id, error))
        self._touched(request.client)
