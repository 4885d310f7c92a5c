"""Nodes on state that is damaged, older than they know, or somebody else's; and removing nodes for good."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import ClusterHarness
from tests.node.fleet import Fleet, admin, dismiss_broker
from tests.procs import wait_until


@pytest.fixture(scope="module")
def template() -> Iterator[ClusterHarness]:
    """One node's cluster with some history, stopped; its state is kept aside in `good`."""
    with ClusterHarness() as cluster:
        cluster.operator()
        cluster.start("a")
        for verb in ("cordon", "uncordon") * 3:
            admin(cluster, verb, "a")
        cluster.stop("a")
        dismiss_broker(cluster)
        shutil.copytree(cluster.root / "s", cluster.root / "good")
        yield cluster


@pytest.fixture
def stopped(template: ClusterHarness) -> Iterator[ClusterHarness]:
    """The template's state as it was; the test starts it as it likes."""
    shutil.rmtree(template.root / "s")
    shutil.copytree(template.root / "good", template.root / "s")
    yield template
    if template.run("node", "ls", "--json").code == 0:
        template.stop("a")
    dismiss_broker(template)


def history(cluster: ClusterHarness) -> list[str]:
    return [row["commit_id"] for row in cluster.ok("audit", "recent", "-n", "100")]


def start_a(*more: str) -> tuple[str, ...]:
    return ("node", "start", "--name", "a", "--detach", *more)


@pytest.mark.parametrize("what", ["flipped", "cut", "empty", "garbage"])
def test_node_with_a_damaged_copy_says_so_and_mends_it_from_the_engine(stopped: ClusterHarness, what: str) -> None:
    cluster = stopped
    copy = cluster.node_dir("a") / "ledger.db"
    data = bytearray(copy.read_bytes())
    match what:
        case "flipped":
            data[100 :: len(data) // 16] = bytes(byte ^ 0xFF for byte in data[100 :: len(data) // 16])
        case "cut":
            del data[len(data) // 2 :]
        case "empty":
            data.clear()
        case "garbage":
            data[:] = os.urandom(len(data))
    copy.write_bytes(data)
    error = cluster.refused("corrupt-store", *start_a()).error
    assert str(copy) in error["message"] and str(copy) in error["hint"], error
    # The engine holds the ledger too, so a copy may be made anew.
    for name in ("ledger.db", "audit.db"):
        (cluster.node_dir("a") / name).unlink()
    cluster.start("a", operator=None)
    assert len(history(cluster)) == 7
    assert cluster.ok("audit", "verify", "--online")["ok"] is True


def test_node_that_knows_more_than_the_engine_keeps_to_itself(stopped: ClusterHarness) -> None:
    cluster = stopped
    old, new = cluster.root / "old", cluster.root / "new"
    shutil.copytree(cluster.engine_dir(), old)
    cluster.start("a")
    admin(cluster, "cordon", "a")
    whole = history(cluster)
    cluster.stop("a")
    dismiss_broker(cluster)
    cluster.engine_dir().rename(new)
    shutil.copytree(old, cluster.engine_dir())
    error = cluster.refused("ledger-behind", *start_a()).error
    assert (error["details"]["own_seq"], error["details"]["engine_seq"]) == (8, 7), error
    assert "backup" in error["hint"]
    dismiss_broker(cluster)
    shutil.rmtree(cluster.engine_dir())
    new.rename(cluster.engine_dir())
    cluster.start("a")
    assert history(cluster) == whole


def test_engine_of_another_cluster_is_not_followed(stopped: ClusterHarness) -> None:
    cluster = stopped
    with ClusterHarness() as other:
        other.operator()
        other.start("a")
        other.stop("a")
        dismiss_broker(other)
        other.started.clear()
        shutil.rmtree(cluster.engine_dir())
        shutil.copytree(other.engine_dir(), cluster.engine_dir())
    result = cluster.run(*start_a(), "--json")
    assert result.code == 1 and result.error["kind"] in ("ledger-behind", "ledger-tampered"), result


def test_lost_or_open_node_key(stopped: ClusterHarness) -> None:
    cluster = stopped
    key = cluster.node_dir("a") / "node.key"
    key.chmod(0o640)
    error = cluster.refused("permissive-mode", *start_a()).error
    assert str(key) in error["message"] and "chmod" in error["hint"], error
    key.chmod(0o600)
    content = key.read_bytes()
    key.write_bytes(b"nonsense")
    error = cluster.refused("invalid-config", *start_a()).error
    assert str(key) in error["message"], error
    key.unlink()
    # A new key is another node: its name is taken by the one the cluster knows.
    result = cluster.run(*start_a("--operator", "alice"), "--json")
    assert result.code == 4, result
    assert "net node rm a" in result.error["hint"] or "a" in result.error["message"], result
    key.unlink()
    _write_private(key, content)
    cluster.start("a")


def _write_private(path: Path, content: bytes) -> None:
    path.touch(0o600)
    path.write_bytes(content)


def test_engine_store_that_is_damaged_is_named(stopped: ClusterHarness) -> None:
    cluster = stopped
    store = cluster.engine_dir() / "engine.db"
    good = store.read_bytes()
    store.write_bytes(os.urandom(len(good)))
    result = cluster.run(*start_a(), "--json", limit_s=40.0)
    assert result.code in (1, 6), result
    assert str(cluster.engine_dir()) in result.err and "damaged" in result.err, result
    store.write_bytes(good)
    cluster.start("a")
    assert len(history(cluster)) == 7


def test_removed_nodes_stop_and_their_name_is_free_again(cluster: ClusterHarness) -> None:
    cluster.up(("a", "b", "c"))
    fleet = Fleet(cluster)
    fleet.apply(fleet.spec("w", replicas=3))
    fleet.running(count=3)
    # A live one: it stops by itself, and its daemons move at once.
    old = next(row["node_id"] for row in cluster.ok("node", "ls") if row["name"] == "b")
    pid = cluster.node_pid("b")
    cluster.ok("node", "rm", "b", "--yes", "--operator", "alice")
    wait_until(lambda: pid not in {p.pid for p in cluster.processes()}, 5.0, "the removed node to stop")
    fleet.running(count=3, off="b", limit_s=4.0)
    assert [row["name"] for row in cluster.ok("node", "ls")] == ["a", "c"]
    # A stopped one.
    cluster.stop("c")
    cluster.ok("node", "rm", "c", "--yes", "--operator", "alice")
    assert [row["name"] for row in cluster.ok("node", "ls")] == ["a"]
    fleet.running(count=3, on="a")
    cluster.refused("node-not-found", "node", "rm", "c", "--yes", "--operator", "alice")
    # The old key stays out for good, a new node may take the name.
    cluster.refused("not-authorized", "node", "start", "--name", "b", "--detach", "--operator", "alice")
    shutil.rmtree(cluster.node_dir("b"))
    cluster.start("b")
    cluster.wait_nodes("ab", via="a")
    assert next(row["node_id"] for row in cluster.ok("node", "ls") if row["name"] == "b") != old
    fleet.apply(fleet.spec("new", requires=["node=b"]))
    fleet.running("new", count=1, on="b")
    fleet.assert_never_twice()
