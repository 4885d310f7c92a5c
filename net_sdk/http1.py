"""HTTP/1.1 from the client's side, without I/O: request bytes out, response bytes in.

Only the standard library, and little of it: the command line pays for every import. Used by both clients.
Source: contract section 8.
"""

from __future__ import annotations

import json
from typing import Any, Final

from substrate.wire.errors import NetError

MAX_HEADER_BYTES: Final = 64 * 1024
MAX_DOCUMENT_BYTES: Final = 64 * 1024 * 1024
MAX_LINE_BYTES: Final = 4 * 1024 * 1024

_PLAIN: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


def quote(text: str) -> str:
    """One part of a path, or a query value, percent-encoded ("/" too)."""
    return "".join(chr(byte) if byte in _PLAIN else f"%{byte:02X}" for byte in text.encode())


def target(path: str, query: dict[str, Any]) -> str:
    """A request target; query values that are None are left out, booleans are `true` and `false`."""
    fields = []
    for name, value in query.items():
        if value is not None:
            text = ("false", "true")[value] if isinstance(value, bool) else str(value)
            fields.append(f"{quote(name)}={quote(text)}")
    return f"{path}?{'&'.join(fields)}" if fields else path


def request_bytes(method: str, where: str, body: Any = None) -> bytes:
    """A whole request; `body` is sent as JSON when it is not None."""
    head = f"{method} {where} HTTP/1.1\r\nHost: net.local\r\n"
    if body is None:
        return f"{head}\r\n".encode("ascii")
    data = json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()
    return f"{head}Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode("ascii") + data


class Malformed(Exception):
    """The bytes are no HTTP/1.1 response, or pass a limit."""


class Response:
    """One response being received: feed it bytes, it returns the body's bytes as they become readable.

    `status` is 0 until the header is complete; `done` is set by the last byte of the body; `reusable` says whether
    the connection may carry another request then; `streaming` that the body is NDJSON. Raises `Malformed`.
    """

    def __init__(self) -> None:
        self.status = 0
        self.done = False
        self.reusable = True
        self.streaming = False
        self._buffer = bytearray()
        self._left: int | None = None  # bytes left of the body or of the chunk; None while a line is awaited
        self._chunked = False
        self._until_close = False
        self._trailer = False

    def feed(self, data: bytes) -> bytes:
        """Take bytes from the connection, return those of the body."""
        self._buffer += data
        if not self.status and not self._read_header():
            return b""
        out = bytearray()
        while not self.done and self._step(out):
            pass
        return bytes(out)

    def eof(self) -> bool:
        """The server closed the connection; True if that was the regular end of the body."""
        if self.status and self._until_close:
            self.done = True
        return self.done

    def _read_header(self) -> bool:
        while True:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                if len(self._buffer) > MAX_HEADER_BYTES:
                    raise Malformed("the header is too large")
                return False
            lines = bytes(self._buffer[:end]).decode("latin-1").split("\r\n")
            del self._buffer[: end + 4]
            version, _, rest = lines[0].partition(" ")
            if version not in ("HTTP/1.1", "HTTP/1.0") or not rest[:3].isdigit() or len(rest) < 3:
                raise Malformed("no status line")
            status = int(rest[:3])
            if status >= 200:
                break
        headers = {
            name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])
        }
        self.reusable = version == "HTTP/1.1" and "close" not in headers.get("connection", "").lower()
        self.streaming = headers.get("content-type", "").startswith("application/x-ndjson")
        length = headers.get("content-length")
        if headers.get("transfer-encoding", "").lower() == "chunked":
            self._chunked = True
        elif length is not None:
            if not (length.isascii() and length.isdigit() and len(length) < 16):
                raise Malformed("the content length is no number")
            self._left = int(length)
        else:
            self._until_close, self.reusable = True, False
        self.status = status
        return True

    def _step(self, out: bytearray) -> bool:
        """Go on by one element of the framing; False when more bytes are needed."""
        if self._until_close:
            out += self._buffer
            self._buffer.clear()
            return False
        if self._left is None:
            return self._read_size()
        piece = self._buffer[: self._left]
        del self._buffer[: len(piece)]
        self._left -= len(piece)
        out += piece
        if self._left:
            return False
        if not self._chunked:
            self.done = True
            return True
        if len(self._buffer) < 2:
            return False
        if self._buffer[:2] != b"\r\n":
            raise Malformed("a chunk does not end where it says")
        del self._buffer[:2]
        self._left = None
        return True

    def _read_size(self) -> bool:
        end = self._buffer.find(b"\r\n")
        if end < 0:
            if len(self._buffer) > 1024:
                raise Malformed("a chunk size is too long")
            return False
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        if self._trailer:
            self.done = not line
            return True
        try:
            self._left = int(line.split(b";")[0], 16)
        except ValueError:
            raise Malformed("a chunk size is no number") from None
        if self._left < 0:
            raise Malformed("a chunk size is negative")
        if self._left == 0:
            self._left, self._trailer = None, True
        return True


def document(status: int, body: bytes | bytearray) -> Any:
    """The JSON of a complete response; raises the `NetError` it carries, or `internal` if it is no JSON."""
    try:
        decoded = json.loads(body)
        if status < 400:
            return decoded
        error = NetError.from_document(decoded)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise NetError(
            "internal", f"the node answered with status {status} and something that is not a document"
        ) from None
    raise error


class Lines:
    """NDJSON from pieces of a body: rows, without heartbeats, up to the end line.

    `ended` is the reason of the end line once it was seen, `failure` the error if an error was the reason.
    """

    def __init__(self) -> None:
        self.ended: str | None = None
        self.failure: NetError | None = None
        self._rest = b""

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """The rows that `data` completes."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE_BYTES:
            raise Malformed("a line is too long")
        rows = []
        for line in lines:
            if self.ended is not None:
                raise Malformed("rows after the end")
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                raise Malformed("a line is not JSON") from None
            if not isinstance(row, dict):
                raise Malformed("a line is not an object")
            if "end" in row and "seq" not in row:
                self.ended = str(row["end"])
                if "error" in row:
                    self.failure = NetError.from_document(row)
            elif "heartbeat" not in row or "seq" in row:
                rows.append(row)
        return rows
