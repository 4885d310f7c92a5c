"""Nodes and the broker are killed and frozen under eight writing clients: nothing acknowledged is lost, doubled, reordered.

Source: budgets, "Reliability": 20 kills in every run, 2 000 in the campaign.
"""

from __future__ import annotations

import os
import random
import signal
import time
from typing import Any

import pytest

from net_sdk.client import Client
from substrate.wire.errors import NetError
from tests import procs
from tests.harness import ClusterHarness
from tests.procs import wait_until
from tests.reliability.clients import CHAIN, Crowd

NODES = "abc"


def kill_node(cluster: ClusterHarness, rng: random.Random) -> None:
    name = rng.choice(NODES)
    cluster.kill(name)
    time.sleep(rng.random() * 0.2)  # the others go on without it for a moment
    cluster.start(name)


def freeze_node(cluster: ClusterHarness, rng: random.Random) -> None:
    name = rng.choice(NODES)
    cluster.signal(name, signal.SIGSTOP)
    time.sleep(0.5 + rng.random())  # below its lease: it must come back as if nothing had been
    cluster.signal(name, signal.SIGCONT)


def broker(cluster: ClusterHarness) -> int | None:
    """The broker that runs now."""
    try:
        pid = cluster.broker_pid()
    except (OSError, ValueError):
        return None
    return pid if procs.start_time(pid) is not None else None


def hit_broker(cluster: ClusterHarness, number: signal.Signals) -> None:
    old = wait_until(lambda: broker(cluster), 10.0, "a broker")
    os.kill(old, number)
    wait_until(lambda: broker(cluster) not in (None, old), 15.0, "another broker", every_s=0.01)


def one_round(cluster: ClusterHarness, crowd: Crowd, kind: str, rng: random.Random) -> None:
    """One blow, then wait until commits and appends both go on, so that each blow meets real work."""
    match kind:
        case "node":
            kill_node(cluster, rng)
        case "broker":
            hit_broker(cluster, signal.SIGKILL)
        case "frozen-broker":
            hit_broker(cluster, signal.SIGSTOP)
        case "frozen-node":
            freeze_node(cluster, rng)
    for writers in (crowd.committers, crowd.appenders):
        crowd.wait_for_work(writers, f"work to go on after {kind}")


def run_kills(rounds: list[str], seed: int) -> None:
    rng = random.Random(seed)
    with ClusterHarness() as cluster:
        cluster.expect_clean = False
        cluster.up(tuple(NODES))
        cluster.ok("chain", "create", CHAIN, "--operator", "alice")
        with Crowd(cluster) as crowd:
            wait_until(lambda: crowd.count() > 16, 10.0, "the clients to be at work")
            for kind in rounds:
                one_round(cluster, crowd, kind, rng)
        for name in NODES:
            cluster.wait_nodes(NODES, via=name)
        heads = wait_until(lambda: _same_heads(cluster), 10.0, "the nodes to have the same ledger", every_s=0.1)
        for name in NODES:
            crowd.check(via=name)
        assert cluster.ok("audit", "verify", "--online", "--via", "a")["ok"] is True
        assert cluster.ok("chain", "verify", CHAIN, "--via", "b")["ok"] is True
        # The same from the files alone, every node's own copy.
        cluster.ok("node", "stop", "--all")
        for name in NODES:
            offline = cluster.ok("audit", "verify", "--node", name)
            assert offline["ok"] is True and offline["head_seq"] == heads, offline


def _same_heads(cluster: ClusterHarness) -> int | None:
    seen: set[Any] = set()
    for name in NODES:
        try:
            with Client(str(cluster.socket(name))) as client:
                status = client.get("/v1/status")
        except NetError:
            return None
        seen.add((status["admin_seq"], status["admin_hash"]))
    return int(seen.pop()[0]) if len(seen) == 1 else None


def schedule(rounds: int, seed: int) -> list[str]:
    """Half of the blows on nodes, most of the others on the broker; every kind at least once."""
    mix = ["node"] * 10 + ["broker"] * 7 + ["frozen-broker"] + ["frozen-node"] * 2
    plan = [mix[i % len(mix)] for i in range(rounds)]
    random.Random(seed).shuffle(plan)
    return plan


def test_twenty_kills() -> None:
    run_kills(schedule(20, 1), seed=1)


@pytest.mark.campaign
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(20))
def test_two_thousand_kills(seed: int) -> None:
    run_kills(schedule(100, seed), seed)
