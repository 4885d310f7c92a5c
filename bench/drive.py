"""Clients that commit as fast as they can: `python -m bench.drive KEYS NAME SECONDS THREADS SOCKET...`.

A process of its own, so that the clients' work is measured as clients are: beside the nodes, not inside the
measurement. Each thread keeps one commit in flight. Prints one JSON document: the latencies in ms, the highest seq
committed, and when the first commit was begun on CLOCK_MONOTONIC, which all processes of a machine share.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any

from net_sdk.client import Client
from substrate.identity.keyfile import load
from substrate.identity.keys import Keypair
from substrate.wire.envelope import Envelope
from substrate.wire.events import decode_event


def commit(client: Client, keypair: Keypair, event: dict[str, Any]) -> dict[str, Any]:
    """One signed commit: proposal, signature over bytes derived from what was asked, commit. Returns its document."""
    asked: dict[str, Any] = client.post(
        "/v1/proposals", {"event": event, "reason": "bench", "operator_id": str(keypair.operator_id), "preview": False}
    )
    envelope = Envelope(
        cluster_id=bytes.fromhex(asked["cluster_id"]),
        issued_at_ms=asked["issued_at_ms"],
        expires_at_ms=asked["expires_at_ms"],
        nonce=bytes.fromhex(asked["nonce"]),
        event=decode_event(asked["event"]),
        reason="bench",
    )
    payload = envelope.payload()
    if payload.hex() != asked["signing_payload"]:
        raise RuntimeError("the node's signing payload differs from ours")
    proposal = {key: asked[key] for key in ("event", "reason", "issued_at_ms", "expires_at_ms", "nonce", "cluster_id")}
    signature = {"operator_id": str(keypair.operator_id), "signature": keypair.sign(payload).hex()}
    done: dict[str, Any] = client.post("/v1/commits", {"proposal": proposal, "signatures": [signature]})
    if done["outcome"] != "accepted":
        raise RuntimeError(f"refused: {done}")
    return done


def drive(keys: str, name: str, seconds: float, threads: int, sockets: list[str]) -> dict[str, Any]:
    """Commit cordon and uncordon of one node in turn from every thread until the time is over."""
    keypair = load(keys, name).keypair
    latencies_ms: list[float] = []  # list.append is atomic
    failures: list[BaseException] = []
    highest = [0] * threads
    began = time.monotonic()
    end = began + seconds

    def work(index: int) -> None:
        try:
            with Client(sockets[index % len(sockets)]) as client:
                turn = index
                while time.monotonic() < end:
                    turn += 1
                    kind = "cordon" if turn % 2 else "uncordon"
                    begin = time.perf_counter()
                    done = commit(client, keypair, {"kind": kind, "node": "c"})
                    latencies_ms.append((time.perf_counter() - begin) * 1000)
                    highest[index] = int(done["seq"])
        except BaseException as error:  # handed to the main thread, which raises it
            failures.append(error)

    workers = [threading.Thread(target=work, args=(index,)) for index in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if failures:
        raise failures[0]
    return {"latencies_ms": latencies_ms, "highest_seq": max(highest), "began": began}


if __name__ == "__main__":
    document = drive(sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4]), sys.argv[5:])
    print(json.dumps(document))
