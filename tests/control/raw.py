"""A bare socket to a server, for requests no decent client would send."""

from __future__ import annotations

import json
import socket
from types import TracebackType
from typing import Any


class Raw:
    """A connection; reads are bounded by `limit_s`."""

    def __init__(self, path: str, limit_s: float = 10.0) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(limit_s)
        self.socket.connect(path)
        self.held = b""

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def until(self, mark: bytes) -> bytes:
        while mark not in self.held:
            piece = self.socket.recv(65536)
            assert piece, f"closed after {self.held!r}"
            self.held += piece
        end = self.held.index(mark) + len(mark)
        taken, self.held = self.held[:end], self.held[end:]
        return taken

    def response(self) -> tuple[int, dict[str, str], Any]:
        """The next response with a Content-Length: status, headers, document (None for an empty body)."""
        lines = self.until(b"\r\n\r\n").decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:-2])}
        length = int(headers["content-length"])
        while len(self.held) < length:
            piece = self.socket.recv(65536)
            assert piece, "closed in the body"
            self.held += piece
        body, self.held = self.held[:length], self.held[length:]
        return int(lines[0].split()[1]), headers, json.loads(body) if body else None

    def rest(self) -> bytes:
        """Everything up to the end of the connection."""
        while True:
            try:
                piece = self.socket.recv(65536)
            except ConnectionResetError:
                piece = b""
            if not piece:
                return self.held
            self.held += piece

    def __enter__(self) -> Raw:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()


def get(target: str, *headers: str, host: str = "net.local") -> bytes:
    """A GET request."""
    return "\r\n".join([f"GET {target} HTTP/1.1", f"Host: {host}", *headers, "", ""]).encode()


def post(target: str, body: bytes) -> bytes:
    """A POST request."""
    return f"POST {target} HTTP/1.1\r\nHost: net.local\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
