"""A chain followed through another node, and what a node costs when nothing happens.

A record is appended through node a and read from a stream of node b: HTTP, engine, fsync and both sockets are in the number.
"""

from __future__ import annotations

import queue
import threading
import time
from typing import Any

import psutil

from bench.harness import Row, percentile, row
from net_sdk.client import Client
from tests.harness import ClusterHarness

RECORDS = 400
IDLE_SECONDS = 10.0
SPEC = '[[daemon]]\nname = "idle"\ncommand = ["sleep", "3600"]\nreplicas = 3\n'


def rows(records: int = RECORDS, idle_seconds: float = IDLE_SECONDS) -> list[Row]:
    """p50 and p99 from the append's answer to the subscriber, and the processor time of an idle node."""
    with ClusterHarness() as cluster:
        cluster.up(("a", "b", "c"))
        spec = cluster.root / "idle.toml"
        spec.write_text(SPEC)
        cluster.ok("daemon", "apply", str(spec), "--operator", "alice", "--wait")
        cluster.ok("chain", "create", "bench", "--operator", "alice")
        after_ack, whole = follow(cluster, records)
        idle = [idle_percent(cluster.node_pid(name), idle_seconds) for name in ("a", "b")]
    return [
        row("tail through another node, answer to subscriber, p50", percentile(after_ack, 50), "ms", at_most=3),
        row("tail through another node, answer to subscriber, p99", percentile(after_ack, 99), "ms", at_most=10),
        row("append sent to subscriber, p50", percentile(whole, 50), "ms"),
        row("append sent to subscriber, p99", percentile(whole, 99), "ms"),
        row("idle node (leader) with daemons and two peers", idle[0], "%", at_most=1.0),
        row("idle node (follower) with daemons and two peers", idle[1], "%", at_most=1.0),
    ]


def follow(cluster: ClusterHarness, records: int) -> tuple[list[float], list[float]]:
    """Milliseconds from the append's answer, and from its sending, until the subscriber has the record."""
    seen: queue.Queue[tuple[int, float]] = queue.Queue()

    def subscribe() -> None:
        with Client(str(cluster.socket("b"))) as client:
            for line in client.stream("/v1/chains/bench/records", since=0, follow=True, timeout_s=60):
                at = time.perf_counter()
                if "seq" in line:
                    seen.put((int(line["seq"]), at))
                    if line["seq"] > records:
                        return

    thread = threading.Thread(target=subscribe)
    thread.start()
    after_ack: list[float] = []
    whole: list[float] = []
    with Client(str(cluster.socket("a"))) as client:
        for number in range(records + 1):
            sent = time.perf_counter()
            answer: dict[str, Any] = client.post(
                "/v1/chains/bench/records", {"records": [{"n": number}], "encoding": "json"}
            )
            acknowledged = time.perf_counter()
            seq, at = seen.get(timeout=10)
            assert seq == answer["head_seq"], "one record at a time is in flight"
            if number:  # the first one opens connections and files
                after_ack.append(max(0.0, at - acknowledged) * 1000)
                whole.append((at - sent) * 1000)
    thread.join(timeout=10)
    return after_ack, whole


def idle_percent(pid: int, seconds: float) -> float:
    """Processor time of a process over a while, in percent of one core."""
    process = psutil.Process(pid)
    before = process.cpu_times()
    time.sleep(seconds)
    after = process.cpu_times()
    return (after.user + after.system - before.user - before.system) / seconds * 100
