"""Signed admin commits on three nodes, 16 in flight: durable, verified, and folded by every node.

Beside them the disk alone (fdatasync one after another) and the least code that does the same per commit: parse the
request with h11, verify the signature strictly, append durably, 16 in one group.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import h11

from bench.harness import Row, fdatasync_rate, percentile, row, stopwatch
from net_sdk.client import Client
from substrate.identity.keys import Keypair
from substrate.identity.verify import verify_strict
from substrate.redex import Store
from tests.harness import ClusterHarness
from tests.procs import wait_until

SECONDS = 8.0
IN_FLIGHT = 16
CLIENT_PROCESSES = 2
"""One process of Python clients would be the bottleneck; more would take the nodes' cores."""


def rows(seconds: float = SECONDS) -> list[Row]:
    """Commits a second until the last node has folded the last one, and the latency a client saw."""
    with ClusterHarness() as cluster:
        cluster.up(("a", "b", "c"))
        sockets = [str(cluster.socket(name)) for name in ("a", "b", "c")]
        disk = fdatasync_rate(cluster.root)
        bare = bare_loop(cluster.root)
        keys = str(cluster.key_file("alice").parent)
        arguments = [keys, "alice", str(seconds), str(IN_FLIGHT // CLIENT_PROCESSES)]
        clients = [
            subprocess.Popen(
                [sys.executable, "-m", "bench.drive", *arguments, *sockets],
                env=cluster.env,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(CLIENT_PROCESSES)
        ]
        answers = [finish(client, seconds + 60) for client in clients]
        highest = max(answer["highest_seq"] for answer in answers)
        wait_until(lambda: min(map(folded, sockets)) >= highest, 20.0, f"every node to fold {highest}")
        elapsed_s = time.monotonic() - min(answer["began"] for answer in answers)
    latencies = [value for answer in answers for value in answer["latencies_ms"]]
    rate = len(latencies) / elapsed_s
    name = f"admin commits, 3 nodes, {IN_FLIGHT} in flight, durable + verified + folded everywhere"
    return [
        row(name, rate, "/s", compare=("bare h11 + verify + commit", bare), at_least=600),
        row("the same beside the disk", rate, "/s", compare=("fdatasync one by one", disk)),
        row("admin commit latency under that load, p50", percentile(latencies, 50), "ms"),
        row("admin commit latency under that load, p99", percentile(latencies, 99), "ms"),
    ]


def finish(client: subprocess.Popen[str], limit_s: float) -> dict[str, Any]:
    """A driver's answer; raises if it failed."""
    out, _ = client.communicate(timeout=limit_s)
    if client.returncode != 0:
        raise RuntimeError(f"a client ended with {client.returncode}")
    document: dict[str, Any] = json.loads(out)
    return document


def folded(path: str) -> int:
    """The seq up to which a node has folded the ledger."""
    with Client(path) as client:
        return int(client.get("/v1/status")["admin_seq"])


def bare_loop(directory: Path, count: int = 2000) -> float:
    """Commits a second of one process that parses, verifies and appends, and does nothing else."""
    keypair = Keypair.generate()
    payload = b"net-deck-admin:" + bytes(120)
    body = json.dumps({"payload": payload.hex(), "signature": keypair.sign(payload).hex()}).encode()
    request = b"POST /v1/commits HTTP/1.1\r\nHost: net.local\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    waiting: list[Future[Any]] = []
    with Store.open(directory / "bare.db") as store:
        store.create_chain("bare")
        connection = h11.Connection(h11.SERVER)
        with stopwatch() as seconds:
            for _ in range(count):
                document = json.loads(parse(connection, request))
                signed = bytes.fromhex(document["payload"])
                if not verify_strict(keypair.public_key, signed, bytes.fromhex(document["signature"])):
                    raise RuntimeError("the signature must verify")
                waiting.append(store.submit("bare", [signed]))
                if len(waiting) == IN_FLIGHT:
                    for future in waiting:
                        future.result(30)
                    waiting.clear()
            for future in waiting:
                future.result(30)
        return count / seconds()


def parse(connection: h11.Connection, request: bytes) -> bytes:
    """One request through h11, answered, and the connection made ready for the next."""
    connection.receive_data(request)
    body = bytearray()
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            break
    connection.send(h11.Response(status_code=200, headers=[("Content-Length", "2")]))
    connection.send(h11.Data(data=b"{}"))
    connection.send(h11.EndOfMessage())
    connection.start_next_cycle()
    return bytes(body)
