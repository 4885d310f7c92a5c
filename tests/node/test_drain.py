"""Drains and cordons on a real cluster of three, one of it with a label: what moves, what cannot, and what is said."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.harness import ClusterHarness
from tests.node.fleet import Fleet, admin, boottime_ns, drain, leader
from tests.procs import wait_until


@pytest.fixture(scope="module")
def cluster() -> Iterator[ClusterHarness]:
    with ClusterHarness() as cluster:
        cluster.operator()
        for name, more in (("a", ()), ("b", ()), ("c", ("--label", "gpu"))):
            cluster.start(name, *more)
        cluster.wait_nodes("abc", via="a")
        leader(cluster)
        yield cluster


@pytest.fixture
def fleet(cluster: ClusterHarness) -> Iterator[Fleet]:
    """No daemons, no node cordoned; the same again afterwards."""
    fleet = Fleet(cluster)
    yield fleet
    for row in cluster.ok("node", "ls"):
        if row["maintenance"] != "active":
            admin(cluster, "exit-maintenance", row["name"])
        elif row["cordoned"]:
            admin(cluster, "uncordon", row["name"])
    fleet.remove(*{row["name"] for row in fleet.rows()})
    fleet.assert_never_twice()


def node(cluster: ClusterHarness, name: str) -> dict[str, Any]:
    document: dict[str, Any] = cluster.ok("node", "show", name)
    return document


def places(fleet: Fleet) -> dict[tuple[str, int], str | None]:
    return {(row["name"], row["instance"]): row["node_name"] for row in fleet.rows()}


def commit_progress(cluster: ClusterHarness, commit_id: str) -> dict[str, Any]:
    from net_sdk.client import Client

    with Client(str(cluster.socket("a"))) as client:
        document: dict[str, Any] = client.get(f"/v1/commits/{commit_id}/progress")
        return document


def test_drain_moves_everything_the_essential_last(fleet: Fleet) -> None:
    cluster = fleet.cluster
    admin(cluster, "cordon", "a")
    admin(cluster, "cordon", "c")
    fleet.apply(fleet.spec("front", replicas=3), fleet.spec("base", essential=True))
    fleet.running(count=4, on="b")
    admin(cluster, "uncordon", "a")
    admin(cluster, "uncordon", "c")
    result = drain(cluster, "b", "30s", "--wait")
    assert result.code == 0, result
    document = result.json
    assert (document["outcome"], document["result"]) == ("accepted", "drained")
    fleet.running(count=4, off="b")
    row = node(cluster, "b")
    assert (row["maintenance"], row["cordoned"], row["daemons"]) == ("drained", True, 0)
    runs = fleet.assert_never_twice()
    ended = {run.who: run for run in runs if run.node == "b"}
    assert all(run.terminated for run in ended.values()), "a daemon was not asked to end"
    assert ended["base/0"].last_ns > max(ended[f"front/{i}"].last_ns for i in range(3)), "essential did not go last"
    progress = commit_progress(cluster, document["commit_id"])
    assert (progress["state"], progress["result"], progress["moved"], progress["total"]) == ("done", "drained", 4, 4)
    # Drained again: nothing to do, and done.
    again = drain(cluster, "b", "10s", "--wait")
    assert again.code == 0 and again.json["result"] == "drained", again


def test_drain_that_cannot_end_tells_why_and_keeps_what_it_holds(fleet: Fleet) -> None:
    cluster = fleet.cluster
    fleet.apply(
        fleet.spec("render", requires=["gpu"]), fleet.spec("base", requires=["node=c"], essential=True), fleet.spec("x")
    )
    fleet.running(count=3)
    before = {row["name"]: row["pid"] for row in fleet.rows()}
    result = drain(cluster, "c", "2s", "--wait")
    assert result.code == 1, result
    error = result.error
    assert error["kind"] == "drain-failed"
    reasons = error["details"]["reasons"]
    assert len(reasons) == 2, error
    assert reasons[0].startswith("base/0: ") or reasons[1].startswith("base/0: "), reasons
    render = next(reason for reason in reasons if reason.startswith("render/0: "))
    assert "a: lacks gpu" in render and "b: lacks gpu" in render, render
    row = node(cluster, "c")
    assert (row["maintenance"], row["cordoned"], row["daemons"]) == ("drain-failed", True, 2)
    assert {row["name"]: row["pid"] for row in fleet.rows()} == before, "a daemon that cannot move was disturbed"
    # A later drain succeeds once there is somewhere to go.
    fleet.apply(fleet.spec("render", labels=["v2"]), fleet.spec("base", essential=True))
    assert drain(cluster, "c", "20s", "--wait").json["result"] == "drained"
    fleet.running(count=3, off="c")


def test_cancelled_drain(fleet: Fleet) -> None:
    cluster = fleet.cluster
    fleet.apply(fleet.spec("render", requires=["gpu"]))
    fleet.running(count=1)
    for verb in ("exit-maintenance", "uncordon"):
        commit = drain(cluster, "c", "60s").json
        wait_until(lambda: node(cluster, "c")["maintenance"] == "draining", 5.0, "the drain to begin")
        progress = commit_progress(cluster, commit["commit_id"])
        assert progress["state"] == "running" and 0 < progress["time_left_ms"] <= 60_000
        assert "lacks gpu" in progress["remaining"][0]["blocked_by"]
        admin(cluster, verb, "c")
        wait_until(lambda: node(cluster, "c")["maintenance"] == "active", 5.0, "the drain to be over")
        progress = commit_progress(cluster, commit["commit_id"])
        assert (progress["state"], progress["result"]) == ("failed", "cancelled"), progress
        assert not node(cluster, "c")["cordoned"]
    # The node takes work again.
    fleet.apply(fleet.spec("more", requires=["node=c"]))
    fleet.running("more", count=1, on="c")


def test_waiting_for_a_drain_that_is_cancelled_meanwhile(fleet: Fleet) -> None:
    cluster = fleet.cluster
    fleet.apply(fleet.spec("render", requires=["gpu"]))
    fleet.running(count=1)
    args = ("--drain-for", "60s", "--wait", "--yes", "--operator", "alice", "--json")
    waiting = cluster.popen("admin", "drain", "--node", "c", *args)
    try:
        wait_until(lambda: node(cluster, "c")["maintenance"] == "draining", 10.0, "the drain to begin")
        admin(cluster, "exit-maintenance", "c")
        out, err = waiting.communicate(timeout=10)
    finally:
        waiting.kill()
    assert waiting.returncode == 1, (out, err)
    assert "ended cancelled: the node was taken back" in err, err


def test_drain_of_the_leader(fleet: Fleet) -> None:
    cluster = fleet.cluster
    fleet.apply(fleet.spec("w", replicas=3))
    fleet.running(count=3)
    victim = leader(cluster)
    assert drain(cluster, victim, "20s", "--wait").json["result"] == "drained"
    fleet.running(count=3, off=victim)
    assert leader(cluster) == victim, "a drain ended the leadership, which it does not ask for"


def test_drain_of_all_nodes_but_one(fleet: Fleet) -> None:
    cluster = fleet.cluster
    fleet.apply(fleet.spec("w", replicas=3))
    fleet.running(count=3)
    assert drain(cluster, "a", "20s", "--wait").json["result"] == "drained"
    assert drain(cluster, "c", "20s", "--wait").json["result"] == "drained"
    fleet.running(count=3, on="b")
    refused = drain(cluster, "b", "1s", "--wait")
    assert refused.code == 1, refused
    assert all(
        "a: is drained" in reason and "c: is drained" in reason for reason in refused.error["details"]["reasons"]
    )
    fleet.running(count=3, on="b")  # nowhere to go: it keeps them


def test_two_nodes_drained_at_once_do_not_pass_daemons_to_each_other(fleet: Fleet) -> None:
    cluster = fleet.cluster
    fleet.apply(fleet.spec("w", replicas=6))
    fleet.running(count=6)
    first, second = drain(cluster, "a", "30s").json, drain(cluster, "b", "30s").json
    both_ns = boottime_ns()
    fleet.running(count=6, on="c")
    ids = [first["commit_id"], second["commit_id"]]
    wait_until(lambda: {commit_progress(cluster, each)["result"] for each in ids} == {"drained"}, 5.0, "both to end")
    late = [run for run in fleet.assert_never_twice() if run.first_ns > both_ns + 500_000_000]
    assert all(run.node == "c" for run in late), late


def test_too_short_a_drain_fails_while_a_daemon_still_stops(fleet: Fleet) -> None:
    cluster = fleet.cluster
    admin(cluster, "cordon", "a")
    admin(cluster, "cordon", "c")
    fleet.apply(fleet.spec("deaf", "--deaf", grace="3s"))
    fleet.running(count=1, on="b")
    admin(cluster, "uncordon", "a")
    began_ns = boottime_ns()
    result = drain(cluster, "b", "1s", "--wait")
    assert result.code == 1 and result.error["kind"] == "drain-failed", result
    assert result.error["details"]["reasons"] == ["deaf/0: is still stopping"]
    assert boottime_ns() - began_ns < 2.9e9, "it waited for more than its deadline"
    fleet.running(count=1, on="a", limit_s=10.0)  # what was begun is finished
    fleet.assert_never_twice()


def test_cordon_keeps_what_runs_and_takes_nothing_new(fleet: Fleet) -> None:
    cluster = fleet.cluster
    fleet.apply(fleet.spec("old", requires=["node=b"]))
    pid = fleet.running(count=1)[0]["pid"]
    admin(cluster, "cordon", "b")
    fleet.apply(fleet.spec("new", replicas=4), fleet.spec("picky", requires=["node=b"]))
    fleet.running("new", count=4, off="b")
    row = fleet.row("picky")
    assert (row["lifecycle"], row["node_name"]) == ("blocked", None)
    assert "b: is cordoned" in row["reason"] and "a: lacks node=b" in row["reason"], row
    assert fleet.row("old")["pid"] == pid
    assert node(cluster, "b")["cordoned"] is True
    admin(cluster, "uncordon", "b")
    fleet.running("picky", count=1, on="b")
