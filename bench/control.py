"""Round trips on a node's control socket with a warm client, beside a raw socket that echoes as many bytes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from bench.harness import Row, interleaved, percentile, row, stopwatch
from net_sdk.client import Client
from tests.harness import ClusterHarness
from tests.procs import wait_until

REQUESTS = 3000
REQUEST_BYTES = 128
"""About what a GET with its headers takes."""

ECHO = """
import socket, sys
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
server.listen()
connection, _ = server.accept()
answer = b"x" * int(sys.argv[3])
while True:
    left = int(sys.argv[2])
    while left:
        part = connection.recv(left)
        if not part:
            raise SystemExit
        left -= len(part)
    connection.sendall(answer)
"""


def rows(requests: int = REQUESTS) -> list[Row]:
    """p50 and p99 of `GET /v1/status`."""
    with ClusterHarness() as cluster:
        cluster.operator("alice")
        cluster.start("a")
        with Client(str(cluster.socket("a"))) as client:
            size = len(json.dumps(client.get("/v1/status")))
            path = cluster.root / "echo.sock"
            echo = subprocess.Popen(
                [sys.executable, "-c", ECHO, str(path), str(REQUEST_BYTES), str(size)], env=cluster.env
            )
            try:
                raw = connect(path)

                def ask() -> float:
                    with stopwatch() as seconds:
                        client.get("/v1/status")
                    return seconds() * 1000

                def bounce() -> float:
                    with stopwatch() as seconds:
                        raw.sendall(b"q" * REQUEST_BYTES)
                        left = size
                        while left:
                            left -= len(raw.recv(left))
                    return seconds() * 1000

                times = interleaved({"control": ask, "echo": bounce}, requests)
                raw.close()
            finally:
                echo.kill()
                echo.wait()
    control, bare = times["control"], times["echo"]
    return [
        row(
            f"control round trip ({size} B), p{percent}",
            percentile(control, percent),
            "ms",
            compare=(f"raw socket echo, p{percent}", percentile(bare, percent)),
            at_most=budget,
        )
        for percent, budget in ((50, 0.4), (99, 1.5))
    ]


def connect(path: Path) -> socket.socket:
    """A connection to the echo process once it listens."""

    def attempt() -> socket.socket | None:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(os.fspath(path))
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            return None
        return connection

    return wait_until(attempt, 10.0, "the echo process to listen")
