"""Graceful stops: daemons end with their grace, move at once, and nothing of the node stays behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tests.harness import ClusterHarness
from tests.node.fleet import Fleet, boottime_ns
from tests.procs import wait_until


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with ClusterHarness() as cluster:
        cluster.up(("a", "b", "c"))
        fleet = Fleet(cluster)
        fleet.apply(fleet.spec("w", replicas=3))
        fleet.running("w", count=3)
        yield fleet
        fleet.assert_never_twice()


@pytest.mark.parametrize("how", ["command", "signal"])
def test_stopped_node_hands_its_daemons_over_at_once(fleet: Fleet, how: str) -> None:
    cluster = fleet.cluster
    victim = fleet.row("w")["node_name"]
    via = "b" if victim == "a" else "a"
    pid, guardian, began_ns = cluster.node_pid(victim), cluster.guardian_pid(victim), boottime_ns()
    old = [row["pid"] for row in fleet.rows() if row["node_name"] == victim]
    if how == "command":
        cluster.stop(victim)
    else:
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: pid not in {p.pid for p in cluster.processes()}, 10.0, "the node to end")
    assert not {pid, guardian} & {p.pid for p in cluster.processes()}
    assert not cluster.socket(victim).exists() and not cluster.socket(f"{victim}.peer").exists()
    fleet.running("w", count=3, off=victim, via=via, limit_s=4.0)  # far below the lease of 6 s
    runs = fleet.assert_never_twice()
    assert all(run.terminated for run in runs if run.pid in old), "a daemon was not asked to end"
    assert max(run.first_ns for run in runs) - began_ns < 4e9
    row = next(row for row in cluster.ok("node", "ls", "--via", via) if row["name"] == victim)
    assert row["state"] == "stopped" and row["daemons"] == 0
    cluster.start(victim)
    cluster.wait_nodes("abc", via=via)


def test_daemon_that_ignores_term_is_killed_after_its_grace(fleet: Fleet) -> None:
    cluster = fleet.cluster
    fleet.apply(fleet.spec("deaf", "--deaf", grace="1s", requires=["node=b"]))
    pid = fleet.running("deaf", count=1)[0]["pid"]
    began_ns = boottime_ns()
    cluster.ok("node", "stop", "--name", "b")
    run = next(run for run in fleet.runs() if run.pid == pid)
    assert 0.9e9 < run.last_ns - began_ns < 4e9 and not run.terminated
    assert pid not in {process.pid for process in cluster.processes()}
    assert fleet.row("deaf")["lifecycle"] == "blocked"
    cluster.start("b")
    fleet.running("deaf", count=1, on="b")
    fleet.remove("deaf")


def test_second_signal_hastens_a_stop(fleet: Fleet) -> None:
    cluster = fleet.cluster
    fleet.apply(fleet.spec("slow", "--deaf", grace="60s", requires=["node=c"]))
    fleet.running("slow", count=1)
    pid = cluster.node_pid("c")
    os.kill(pid, signal.SIGTERM)

    def stopping() -> bool:
        return fleet.row("slow", via="a")["lifecycle"] in ("stopping", "unknown", "blocked")

    wait_until(stopping, 5.0, "the daemon to be stopping")
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: pid not in {p.pid for p in cluster.processes()}, 8.0, "the node to end without the grace")
    fleet.remove("slow")
    cluster.start("c")


def test_last_node_takes_everything_along() -> None:
    with ClusterHarness() as cluster:
        cluster.up(("a", "b"))
        fleet = Fleet(cluster)
        fleet.apply(fleet.spec("w", replicas=2))
        pids = {row["pid"] for row in fleet.running("w", count=2)}
        broker = cluster.broker_pid()
        rows = cluster.ok("node", "stop", "--all")
        assert [row["node_name"] for row in rows] == ["a", "b"]
        assert not pids & {process.pid for process in cluster.processes()}
        wait_until(lambda: not cluster.processes(), 15.0, f"the broker {broker} to leave", every_s=0.1)
        assert not list((cluster.root / "r").rglob("*.sock"))
        cluster.started.clear()
        # The daemons come back with the nodes: the cluster's will outlives its processes.
        for name in ("a", "b"):
            cluster.start(name)
        fleet.running("w", count=2)
        fleet.assert_never_twice()
