"""What hard failures of nodes do to the daemons: they die with their node, run elsewhere later, and never twice at once.

One cluster of three for the whole module; every test leaves all three nodes running. The lease lasts 6 s and the margin
is 3 s, so each takeover takes some 10 s.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tests import procs
from tests.harness import ClusterHarness
from tests.node.fleet import TAKEOVER_LIMIT_S, Fleet, boottime_ns, leader
from tests.procs import wait_until

TTL_S = 6.0
MARGIN_S = 3.0


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with ClusterHarness() as cluster:
        cluster.expect_clean = False  # nodes are killed here
        cluster.up(("a", "b", "c"))
        fleet = Fleet(cluster)
        fleet.apply(fleet.spec("w", replicas=6))
        fleet.running("w", count=6)
        yield fleet
        fleet.assert_never_twice()


def daemons_on(fleet: Fleet, node: str) -> list[procs.Process]:
    """The live processes of the daemons on a node."""
    pids = {row["pid"] for row in fleet.rows() if row["node_name"] == node}
    return [process for process in fleet.cluster.processes() if process.pid in pids]


def other(node: str) -> str:
    return "b" if node == "a" else "a"


def session(fleet: Fleet, node: str, via: str) -> str:
    return str(next(row["session"] for row in fleet.cluster.ok("node", "ls", "--via", via) if row["name"] == node))


def even_out(fleet: Fleet) -> None:
    """Let the six instances spread again: the leader never moves what fits where it is."""
    fleet.apply(fleet.spec("w", replicas=1))
    fleet.running("w", count=1)
    fleet.apply(fleet.spec("w", replicas=6))
    fleet.running("w", count=6)


def test_killed_node_loses_its_daemons_at_once_and_others_run_them_after_its_lease(fleet: Fleet) -> None:
    cluster = fleet.cluster
    victim = next(name for name in "abc" if name != leader(cluster))
    via = other(victim)
    before, old_session = daemons_on(fleet, victim), session(fleet, victim, via)
    assert len(before) == 2
    killed_ns = boottime_ns()
    cluster.kill(victim)
    wait_until(lambda: not any(process.alive for process in before), 2.0, "the daemons to die with their node")
    fleet.running("w", count=6, off=victim, via=via, limit_s=TAKEOVER_LIMIT_S)
    moved = [run for run in fleet.assert_never_twice() if run.first_ns > killed_ns]
    assert len(moved) == 2
    # Up to a second of the lease may have passed when the node was killed.
    assert all(run.first_ns - killed_ns >= (TTL_S - 1.1 + MARGIN_S) * 1e9 for run in moved), moved
    cluster.start(victim)
    cluster.wait_nodes("abc", via=victim)
    assert session(fleet, victim, via) != old_session
    even_out(fleet)
    assert {row["node_name"] for row in fleet.rows()} == set("abc")


def test_frozen_leader_is_fenced_replaced_and_comes_back(fleet: Fleet) -> None:
    cluster = fleet.cluster
    victim = leader(cluster)
    via = other(victim)
    before, old_session = daemons_on(fleet, victim), session(fleet, victim, via)
    assert before
    frozen_ns = boottime_ns()
    cluster.signal(victim, signal.SIGSTOP)
    try:
        wait_until(lambda: not any(p.alive for p in before), TTL_S + 2, "the guardian to end the daemons")
        assert boottime_ns() - frozen_ns >= (TTL_S - 1.1) * 1e9, "the guardian ended them before the deadline"
        fleet.running("w", count=6, off=victim, via=via, limit_s=TAKEOVER_LIMIT_S)
        assert next(row["leader"] for row in cluster.ok("node", "ls", "--via", via) if row["name"] == victim) is False
        wait_until(lambda: boottime_ns() - frozen_ns >= 2 * TTL_S * 1e9, 2 * TTL_S, "twice the lease to pass")
    finally:
        cluster.signal(victim, signal.SIGCONT)
    cluster.wait_nodes("abc", via=victim)
    fleet.assert_never_twice()
    assert session(fleet, victim, via) != old_session
    even_out(fleet)
    assert victim in {row["node_name"] for row in fleet.rows()}, "the node that woke up takes no work"
    health = cluster.ok("node", "health", "--via", victim)
    assert health["status"] == "healthy", health


def test_killed_guardian_takes_its_daemons_along_and_is_replaced(fleet: Fleet) -> None:
    cluster = fleet.cluster
    before = daemons_on(fleet, "b")
    old = cluster.guardian_pid("b")
    assert before
    os.kill(old, signal.SIGKILL)
    wait_until(lambda: not any(process.alive for process in before), 2.0, "the daemons to die with their guardian")

    def replaced() -> bool:
        rows = [row for row in fleet.rows() if row["lifecycle"] == "running"]
        return len(rows) == 6 and not {row["pid"] for row in rows} & {process.pid for process in before}

    wait_until(replaced, 10.0, "all daemons to run again", every_s=0.1)
    assert cluster.guardian_pid("b") != old
    fleet.assert_never_twice()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_daemons_run_on_through_the_loss_of_the_broker(fleet: Fleet, how: signal.Signals) -> None:
    cluster = fleet.cluster
    before = {(row["instance"], row["pid"]) for row in fleet.running("w", count=6)}
    old = cluster.broker_pid()
    os.kill(old, how)
    wait_until(lambda: _broker(cluster) not in (None, old), 10.0, "another broker", every_s=0.05)
    # A commit shows that the new one serves, and the next one that the cluster is led again.
    cluster.ok("admin", "cordon", "--node", "c", "--yes", "--operator", "alice")
    cluster.ok("admin", "uncordon", "--node", "c", "--operator", "alice")
    cluster.wait_nodes("abc", via="a")
    leader(cluster)
    assert {(row["instance"], row["pid"]) for row in fleet.running("w", count=6)} == before
    assert procs.start_time(old) is None, "the old broker is still there"


def _broker(cluster: ClusterHarness) -> int | None:
    try:
        return cluster.broker_pid()
    except (OSError, ValueError):
        return None
