"""The synchronous client of a node's control socket: what the command line speaks through.

One kept-alive connection for requests; every stream has its own. Not for use by several threads at once.
"""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Final, Self

from net_sdk.http1 import MAX_DOCUMENT_BYTES, Lines, Malformed, Response, document, quote, request_bytes, target
from substrate.wire.errors import NetError

__all__ = ["Client", "quote"]

SILENCE_S: Final = 45.0
"""A stream without even a heartbeat (every 15 s) for this long is dead."""
_RECEIVE_BYTES: Final = 256 * 1024
_NOT_THERE: Final = frozenset((errno.ENOENT, errno.ECONNREFUSED, errno.ENOTDIR, errno.ENOTSOCK))


class Client:
    """Requests to the node behind `socket_path`.

    `timeout_s` bounds each request as a whole (connecting to the last byte). `relocate`, if given, names the socket of another
    node to use when nobody listens on the present one. Every method raises `NetError`: what the node answered,
    `not-connected` (nobody there, or the connection broke; `details.sent` tells whether the request had been sent), `timeout`.
    """

    cluster_id: str | None = None
    """Set by `net_sdk.discovery.attach`: the id (32 hex digits) of the cluster it found there."""

    def __init__(
        self, socket_path: str, timeout_s: float = 30.0, relocate: Callable[[str], str | None] | None = None
    ) -> None:
        self.socket_path = socket_path
        self.timeout_s = timeout_s
        self._relocate = relocate
        self._kept: socket.socket | None = None

    def get(self, path: str, **query: Any) -> Any:
        """The document at `path`; `path` parts that are names go through `quote` first."""
        return self._request("GET", target(path, query), None, self.timeout_s)

    def post(self, path: str, body: Any, *, timeout_s: float | None = None) -> Any:
        """Post `body` as JSON; the document that comes back. Never sent twice on its own account."""
        return self._request("POST", path, body, self.timeout_s if timeout_s is None else timeout_s)

    def stream(self, path: str, *, timeout_s: float | None = None, **query: Any) -> Iterator[dict[str, Any]]:
        """The rows of a stream, `{"lagged": ...}` rows among them, until its end line.

        `timeout_s` bounds the whole stream (`timeout` afterwards); without it a stream lasts as long as it lives. A connection
        cut before the end line raises `not-connected`. A route that answers with an array yields its items.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        connection = self._connect(time.monotonic() + self.timeout_s)
        try:
            yield from self._rows(connection, target(path, query), deadline)
        finally:
            connection.close()

    def close(self) -> None:
        """Close the kept connection; the client may be used again."""
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _request(self, method: str, where: str, body: Any, timeout_s: float) -> Any:
        data = request_bytes(method, where, body)
        deadline = time.monotonic() + timeout_s
        connection = self._take() or self._connect(deadline)
        response = Response()
        received = bytearray()
        try:
            _send(connection, data, deadline)
            while not response.done:
                piece = _receive(connection, deadline, "the answer")
                if not piece:
                    if response.eof():
                        break
                    raise _broken(self.socket_path)
                received += response.feed(piece)
                if len(received) > MAX_DOCUMENT_BYTES:
                    raise Malformed("the document is too large")
        except OSError as failure:
            connection.close()
            raise _broken(self.socket_path) from failure
        except Malformed as failure:
            connection.close()
            raise NetError("internal", f"the node's answer cannot be read: {failure}") from None
        except BaseException:
            connection.close()
            raise
        if response.reusable:
            self._kept = connection
        else:
            connection.close()
        return document(response.status, received)

    def _rows(self, connection: socket.socket, where: str, deadline: float | None) -> Iterator[dict[str, Any]]:
        response, lines, whole = Response(), Lines(), bytearray()
        started = False
        try:
            _send(connection, request_bytes("GET", where), time.monotonic() + self.timeout_s)
            while not response.done:
                now = time.monotonic()
                patience = SILENCE_S if started else self.timeout_s
                piece = _receive(connection, min(now + patience, deadline or now + patience), "the next row")
                if not piece and not response.eof():
                    raise _broken(self.socket_path)
                body = response.feed(piece)
                started = started or bool(response.status)
                if response.status == 200 and response.streaming:
                    yield from lines.feed(body)
                    if lines.ended is not None:
                        break
                else:
                    whole += body
        except OSError as failure:
            raise _broken(self.socket_path) from failure
        except Malformed as failure:
            raise NetError("internal", f"the node's stream cannot be read: {failure}") from None
        if lines.failure is not None:
            raise lines.failure
        if not response.streaming:
            yield from document(response.status, whole)
        elif lines.ended is None:
            raise _broken(self.socket_path)

    def _take(self) -> socket.socket | None:
        """The kept connection, unless the node has closed it meanwhile."""
        kept, self._kept = self._kept, None
        if kept is None:
            return None
        try:
            kept.settimeout(0)
            kept.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return kept  # open, and nothing waits: as it should be
        except OSError:
            pass  # broken: a new one is made
        kept.close()
        return None

    def _connect(self, deadline: float) -> socket.socket:
        try:
            return _open(self.socket_path, deadline)
        except NetError as failure:
            other = self._relocate(self.socket_path) if self._relocate and failure.kind == "not-connected" else None
            if other is None:
                raise
        self.socket_path = other
        return _open(other, deadline)


def _open(path: str, deadline: float) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        while True:
            try:
                connection.connect(path)
                break
            except BlockingIOError:  # the node's queue of new connections is full, and Linux does not wait
                if time.monotonic() >= deadline:
                    raise TimeoutError from None
                time.sleep(0.01)
    except TimeoutError:
        connection.close()
        raise NetError(
            "timeout", f"the node at {path} does not take the connection", "is the node stopped or overloaded?"
        ) from None
    except OSError as failure:
        connection.close()
        if failure.errno in _NOT_THERE:
            raise NetError(
                "not-connected", f"no node listens on {path}", "net node start", {"socket": path, "sent": False}
            ) from None
        if failure.errno == errno.EACCES:
            raise NetError(
                "peer-uid", f"the socket {path} belongs to another user", "run as the user that started the node"
            ) from None
        raise NetError(
            "not-connected",
            f"the socket {path} cannot be reached: {failure.strerror or failure}",
            "net node status",
            {"socket": path, "sent": False},
        ) from None
    return connection


def _send(connection: socket.socket, data: bytes, deadline: float) -> None:
    try:
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        connection.sendall(data)
    except TimeoutError:
        raise NetError("timeout", "the node does not read the request", details={"sent": True}) from None
    except (BrokenPipeError, ConnectionResetError):
        pass  # refused early: the reason may be waiting to be read


def _receive(connection: socket.socket, deadline: float, what: str) -> bytes:
    left = deadline - time.monotonic()
    try:
        if left > 0:
            connection.settimeout(left)
            return connection.recv(_RECEIVE_BYTES)
    except TimeoutError:
        pass
    except ConnectionResetError:
        return b""
    raise NetError(
        "timeout",
        f"the time ran out before {what} came",
        "raise --timeout, or look at: net node health",
        {"sent": True},
    )


def _broken(path: str) -> NetError:
    return NetError(
        "not-connected",
        "the connection to the node broke before its answer was complete",
        "net node status tells whether the node still runs",
        {"socket": path, "sent": True},
    )
