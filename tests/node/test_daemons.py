"""Daemons as operators command them: apply, scale, restart, stop, remove; what keeps one from running is shown."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from tests.harness import ClusterHarness
from tests.node.fleet import Fleet, admin, leader
from tests.procs import wait_until


@pytest.fixture(scope="module")
def cluster() -> Iterator[ClusterHarness]:
    with ClusterHarness() as cluster:
        cluster.up(("a", "b", "c"))
        leader(cluster)
        # Short times, set as every cluster sets them: by a signed event.
        times = ("backoff_initial_ms=50ms", "backoff_max_ms=100ms", "crash_limit=3", "crash_cooldown_ms=2s")
        cluster.ok("admin", "policy", "set", *times, "--operator", "alice")
        yield cluster


@pytest.fixture
def fleet(cluster: ClusterHarness) -> Iterator[Fleet]:
    fleet = Fleet(cluster)
    yield fleet
    fleet.remove(*{row["name"] for row in fleet.rows()})
    fleet.assert_never_twice()


def pids(rows: list[dict[str, Any]]) -> dict[tuple[str, int], int]:
    return {(row["name"], row["instance"]): row["pid"] for row in rows}


def test_scaling_does_not_disturb_the_instances_that_stay(fleet: Fleet) -> None:
    fleet.apply(fleet.spec("w", replicas=2))
    two = pids(fleet.running(count=2))
    fleet.apply(fleet.spec("w", replicas=4))
    four = pids(fleet.running(count=4))
    assert {key: four[key] for key in two} == two
    assert sorted(row["node_name"] for row in fleet.rows()) in (
        ["a", "a", "b", "c"],
        ["a", "b", "b", "c"],
        ["a", "b", "c", "c"],
    )
    fleet.apply(fleet.spec("w", replicas=1))
    one = pids(fleet.running(count=1))
    assert one == {("w", 0): two["w", 0]}
    gone = [run for run in fleet.assert_never_twice() if run.pid in set(four.values()) - set(one.values())]
    assert len(gone) == 3 and all(run.terminated for run in gone)


def test_changed_spec_replaces_the_process_where_it_is(fleet: Fleet) -> None:
    fleet.apply(fleet.spec("plain"))
    before = fleet.running(count=1)[0]
    fleet.apply(fleet.spec("plain"))  # the same again: nothing to do
    fleet.apply(fleet.spec("plain", env=fleet.spec("plain")["env"] | {"COLOUR": "green"}))

    def replaced() -> dict[str, Any] | None:
        row = fleet.row("plain")
        return row if row["lifecycle"] == "running" and row["pid"] != before["pid"] else None

    after = wait_until(replaced, 10.0, "a new process", every_s=0.05)
    assert after["node_name"] == before["node_name"]
    with open(f"/proc/{after['pid']}/environ", "rb") as file:
        assert b"COLOUR=green" in file.read().split(b"\0")
    assert len(fleet.pids("plain")) == 2, "applying the same spec restarted it"


def test_restart_stop_and_remove(fleet: Fleet) -> None:
    cluster = fleet.cluster
    fleet.apply(fleet.spec("w", replicas=2))
    before = pids(fleet.running(count=2))
    commit = cluster.ok("daemon", "restart", "w", "--wait", "--operator", "alice")
    assert (commit["outcome"], commit["result"]) == ("accepted", "running")
    after = pids(fleet.running(count=2))
    assert not set(after.values()) & set(before.values())
    commit = cluster.ok("daemon", "stop", "w", "--wait", "--operator", "alice")
    assert (commit["outcome"], commit["result"]) == ("accepted", "stopped")
    assert not set(after.values()) & {process.pid for process in cluster.processes()}
    rows = fleet.rows()
    assert [(row["lifecycle"], row["node_name"], row["reason"]) for row in rows] == [
        ("stopped", None, "stopped by an operator")
    ] * 2
    # Applied anew it runs again.
    cluster.ok("daemon", "restart", "w", "--wait", "--operator", "alice")
    fleet.running(count=2)
    commit = cluster.ok("daemon", "rm", "w", "--wait", "--operator", "alice")
    assert (commit["outcome"], commit["result"]) == ("accepted", "removed")
    assert fleet.rows() == []
    cluster.refused("daemon-not-found", "daemon", "show", "w")
    cluster.refused("daemon-not-found", "daemon", "restart", "w", "--operator", "alice")
    assert all(run.terminated for run in fleet.assert_never_twice())


def test_restart_all_daemons_goes_one_by_one(fleet: Fleet) -> None:
    cluster = fleet.cluster
    fleet.apply(
        *(fleet.spec(name, requires=["node=b"]) for name in ("one", "two", "three")),
        fleet.spec("away", requires=["node=a"]),
    )
    before = pids(fleet.running(count=4))
    commit = admin(cluster, "restart-all-daemons", "b", "--wait")
    assert commit["result"] == "restarted"
    after = pids(fleet.running(count=4))
    assert after["away", 0] == before["away", 0]
    runs = fleet.assert_never_twice()
    starts = sorted(
        (run for run in runs if run.pid in set(after.values()) and run.node == "b"), key=lambda r: r.first_ns
    )
    ends = {run.who: run for run in runs if run.pid in set(before.values()) and run.node == "b"}
    assert len(starts) == 3 and all(run.terminated for run in ends.values())
    for earlier, later in itertools.pairwise(starts):
        # While one is restarted the next still runs, and it ends only after the one before was started again.
        assert ends[later.who].last_ns > earlier.born_ns, (earlier, later)


def test_anti_affinity_and_requires_decide_the_place(fleet: Fleet) -> None:
    cluster = fleet.cluster
    fleet.apply(
        fleet.spec("primary", labels=["db"], anti_affinity=["db"], replicas=3),
        fleet.spec("pinned", requires=["node=c", "os=linux"]),
    )
    rows = fleet.running(count=4)
    assert sorted(row["node_name"] for row in rows if row["name"] == "primary") == ["a", "b", "c"]
    assert next(row["node_name"] for row in rows if row["name"] == "pinned") == "c"
    fleet.apply(fleet.spec("primary", labels=["db"], anti_affinity=["db"], replicas=4))
    fourth = wait_until(lambda: fleet.row("primary", 3), 5.0, "a fourth instance")
    assert (fourth["lifecycle"], fourth["node_name"]) == ("blocked", None)
    for name in "abc":
        assert f"{name}: runs primary, kept apart by db" in fourth["reason"], fourth
    # What no label allows moves when the node is taken out of service and the others are full: nowhere.
    refused = cluster.run(
        "admin", "drain", "--node", "a", "--drain-for", "1s", "--wait", "--yes", "--operator", "alice", "--json"
    )
    assert refused.code == 1 and "kept apart by db" in refused.error["details"]["reasons"][0], refused
    admin(cluster, "exit-maintenance", "a")


def test_crash_loop_and_missing_program_are_visible(fleet: Fleet) -> None:
    cluster = fleet.cluster
    missing = fleet.spec("ghost") | {"command": ["/nonexistent/program"]}
    fleet.apply(fleet.spec("frail", "--crash-after", "0.05"), missing)

    def looping() -> dict[str, Any] | None:
        row = fleet.row("frail")
        return row if row["lifecycle"] == "crash-looping" else None

    row = wait_until(looping, 15.0, "the crash loop to be seen", every_s=0.05)
    assert row["last_exit"]["code"] == 3 and row["restarts"] >= 2
    assert 0 <= row["next_start_ms"] <= 2_200 and row["pid"] is None  # up to a tenth longer, to spread starts
    ghost = wait_until(lambda: fleet.row("ghost"), 5.0, "a row")
    assert ghost["lifecycle"] in ("crash-looping", "backing-off"), ghost
    assert "/nonexistent/program" in ghost["reason"], ghost
    # It is tried again after the cooldown.
    tried = len(fleet.pids("frail"))
    wait_until(lambda: len(fleet.pids("frail")) > tried, 10.0, "another try", every_s=0.05)
    log = cluster.run("daemon", "logs", "frail", "-n", "200", "--json", check=0).lines
    assert any("beacon is up" in line["message"] for line in log)
    # A mended spec ends the loop at once.
    fleet.apply(fleet.spec("frail"), fleet.spec("ghost"))
    fleet.running(count=2, limit_s=3.0)


def test_daemon_that_ends_by_itself_follows_its_restart_mode(fleet: Fleet) -> None:
    once = fleet.spec("once", restart="never") | {"command": ["sh", "-c", "echo done; exit 0"]}
    fails = fleet.spec("fails", restart="on-failure", replicas=1) | {"command": ["sh", "-c", "exit 0"]}
    fleet.apply(once, fails)

    def ended() -> bool:
        return all(row["lifecycle"] == "stopped" and row["last_exit"] is not None for row in fleet.rows())

    wait_until(ended, 10.0, "both to have ended", every_s=0.05)
    assert {row["last_exit"]["code"] for row in fleet.rows()} == {0}
    assert {row["restarts"] for row in fleet.rows()} == {0}
