"""The control socket as a client without our SDK meets it: one HTTP request on a fresh connection."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any, NamedTuple

from tests.harness import ClusterHarness


class Answer(NamedTuple):
    """Status and document of one answer."""

    status: int
    document: Any

    @property
    def kind(self) -> str:
        """The error's kind."""
        return str(self.document["error"]["kind"])


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("net.local", timeout=timeout_s)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def request(path: Path, method: str, target: str, body: Any = None, timeout_s: float = 15.0) -> Answer:
    """Send one request to the control socket at `path`."""
    connection = _Connection(path, timeout_s)
    try:
        content = None if body is None else json.dumps(body).encode()
        headers = {} if content is None else {"Content-Type": "application/json"}
        connection.request(method, target, content, headers)
        response = connection.getresponse()
        return Answer(response.status, json.loads(response.read()))
    finally:
        connection.close()


def get(cluster: ClusterHarness, target: str, via: str = "a") -> Any:
    """The document at `target`, which must be there."""
    answer = request(cluster.socket(via), "GET", target)
    assert answer.status == 200, answer
    return answer.document


def admin_seq(cluster: ClusterHarness, via: str = "a") -> int:
    """How many records of the ledger a node has folded."""
    return int(get(cluster, "/v1/status", via)["admin_seq"])
