"""Starting nodes for real: founding races, failures a detached start must tell, foreground with a service manager."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.harness import ClusterHarness, Result, net_command
from tests.node.fleet import dismiss_broker, leader, only_broker_left
from tests.procs import wait_until


def start(cluster: ClusterHarness, name: str, *more: str, **env: str) -> Result:
    """One attempt, whatever comes of it."""
    return cluster.run("node", "start", "--name", name, "--detach", "--json", *more, env=env)


def audit(cluster: ClusterHarness, via: str) -> list[str]:
    """The kinds of all ledger events, oldest first."""
    return [row["event_kind"] for row in cluster.ok("audit", "recent", "-n", "50", "--via", via)][::-1]


def test_of_five_racing_founders_one_founds_and_the_others_join(cluster: ClusterHarness) -> None:
    cluster.operator()
    names = ("a", "b", "c", "d", "e")
    with ThreadPoolExecutor(len(names)) as pool:
        documents = list(pool.map(cluster.start, names))
    assert len({document["cluster_id"] for document in documents}) == 1
    for name in names:
        cluster.wait_nodes(names, via=name)
    kinds = audit(cluster, "e")
    assert kinds[0] == "genesis" and sorted(kinds[1:]) == ["node-join"] * 4
    assert {tuple(audit(cluster, name)) for name in names} == {tuple(kinds)}, "the copies differ"
    assert cluster.ok("audit", "verify", "--online", "--via", "d")["ok"] is True
    assert leader(cluster, via="a") == leader(cluster, via="e")


def test_failures_of_a_detached_start_reach_the_caller_and_leave_nothing(cluster: ClusterHarness) -> None:
    cluster.operator("alice")
    cluster.operator("mallory")
    assert cluster.refused("no-operator-key", "node", "start", "--name", "a", "--detach").error["hint"]
    cluster.refused("identity-not-found", "node", "start", "--name", "a", "--detach", "--operator", "nobody")
    wait_until(lambda: only_broker_left(cluster), 10.0, "nothing to be left of starts that failed")
    cluster.start("a")
    cluster.refused("node-running", "node", "start", "--name", "a", "--detach", "--operator", "alice")
    cluster.refused("not-authorized", "node", "start", "--name", "b", "--detach", "--operator", "mallory")
    cluster.refused("no-operator-key", "node", "start", "--name", "b", "--detach")
    cluster.key_file("alice").chmod(0o644)
    error = cluster.refused("permissive-mode", "node", "start", "--name", "b", "--detach", "--operator", "alice").error
    assert "chmod" in error["hint"] and str(cluster.key_file("alice")) in error["hint"]
    cluster.key_file("alice").chmod(0o600)
    assert "node-join" not in audit(cluster, "a"), "a start that failed joined"
    cluster.start("b")  # the attempts before left nothing in the way
    cluster.wait_nodes("ab", via="a")


def test_places_where_no_node_can_live(cluster: ClusterHarness) -> None:
    cluster.operator()
    alice = ("--operator", "alice")
    long = start(cluster, "a", *alice, NET_RUNTIME_DIR=str(cluster.root / ("r" * 100)))
    assert (long.code, long.error["kind"]) == (2, "invalid-config"), long
    assert "107" in long.error["message"] and "NET_RUNTIME_DIR" in long.error["hint"]
    (cluster.root / "file").write_text("")
    blocked = start(cluster, "a", *alice, NET_STATE_HOME=str(cluster.root / "file"))
    assert (blocked.code, blocked.error["kind"]) == (1, "io-error"), blocked
    assert str(cluster.root / "file") in blocked.error["message"]
    blocked = start(cluster, "a", *alice, NET_RUNTIME_DIR=str(cluster.root / "file"))
    assert (blocked.code, blocked.error["kind"]) == (1, "io-error"), blocked
    assert str(cluster.root / "file") in blocked.error["message"]
    bad = start(cluster, "A b", *alice)
    assert (bad.code, bad.error["kind"]) == (2, "invalid-argument"), bad
    dismiss_broker(cluster)


def test_nothing_of_a_cluster_is_open_to_others(cluster: ClusterHarness) -> None:
    cluster.operator()
    cluster.start("a")
    cluster.stop("a")
    for path in (cluster.state_dir, cluster.engine_dir(), cluster.node_dir("a"), cluster.socket("a").parent):
        assert path.stat().st_mode & 0o077 == 0, f"{path} is open to others"
    for path in cluster.state_dir.rglob("*"):
        if path.is_file():
            assert path.stat().st_mode & 0o077 == 0, f"{path} is open to others"


class Foreground:
    """`net node start` in the foreground under a make-believe service manager."""

    def __init__(self, cluster: ClusterHarness, name: str) -> None:
        self.address = str(cluster.root / "notify")
        self.manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.manager.bind(self.address)
        self.manager.settimeout(15)
        self.process = subprocess.Popen(
            [*net_command(), "node", "start", "--name", name, "--operator", "alice"],
            env=cluster.env | {"NOTIFY_SOCKET": self.address, "WATCHDOG_USEC": "400000"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.manager.close()

    def until(self, word: str) -> str:
        """Receive until a message with `word` comes; returns it."""
        while True:
            message = self.manager.recv(4096).decode()
            if word in message:
                return message


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_foreground_tells_the_service_manager_and_ends_well(cluster: ClusterHarness, number: signal.Signals) -> None:
    cluster.operator()
    node = Foreground(cluster, "a")
    try:
        assert "STATUS=node a" in node.until("READY=1")
        assert cluster.ok("node", "status")["pid"] == node.process.pid, "the foreground node is a process of its own"
        node.until("WATCHDOG=1")
        node.process.send_signal(number)
        node.until("STOPPING=1")
        out, err = node.process.communicate(timeout=15)
    finally:
        node.end()
    assert node.process.returncode == 0, err
    assert out == "" and "Traceback" not in err, err
    assert "is ready; Ctrl-C stops it" in err
    assert not cluster.socket("a").exists()
    dismiss_broker(cluster)


def test_start_again_after_the_sockets_were_left_behind(cluster: ClusterHarness) -> None:
    cluster.operator()
    cluster.start("a")
    cluster.kill("a")
    assert cluster.socket("a").exists(), "this test needs the socket of a dead node"
    cluster.refused("not-connected", "node", "status", "--via", "a")
    cluster.start("a")
    assert cluster.ok("node", "status", "--via", "a")["state"] == "ready"
    cluster.stop("a")
    # The sockets' directory may vanish at a reboot; the state stays.
    shutil.rmtree(cluster.root / "r")
    cluster.start("a")
    assert audit(cluster, "a") == ["genesis"]


def test_copied_node_directory_is_refused_under_another_name(cluster: ClusterHarness) -> None:
    cluster.operator()
    cluster.start("a")
    shutil.copytree(cluster.node_dir("a"), cluster.node_dir("b"), ignore=_only_key)
    error = cluster.refused("invalid-config", "node", "start", "--name", "b", "--detach", "--operator", "alice").error
    assert "'a'" in error["message"]


def _only_key(directory: str, names: list[str]) -> list[str]:
    return [name for name in names if name != "node.key" and os.path.isfile(Path(directory) / name)]
