"""A disk that fills up under writing clients: refused plainly, nothing acknowledged lost, and work goes on after room is made."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from net_sdk.client import Client
from tests.harness import ClusterHarness
from tests.node.fleet import Fleet
from tests.procs import wait_until
from tests.reliability.clients import CHAIN, Crowd

SIZE = "24m"
_MNT_DETACH = 2


@pytest.fixture
def small_disk() -> Iterator[ClusterHarness]:
    """A cluster whose whole state is on a file system of 24 MiB."""
    libc = ctypes.CDLL(None, use_errno=True)
    with ClusterHarness() as cluster:
        cluster.expect_clean = False
        target = cluster.root / "s"
        target.mkdir(mode=0o700)
        if libc.mount(b"none", os.fsencode(target), b"tmpfs", 0, f"size={SIZE},mode=700".encode()) != 0:
            pytest.skip(f"a small file system cannot be mounted here: {os.strerror(ctypes.get_errno())}")
        try:
            yield cluster
        finally:
            # Detached: what still runs keeps it until the harness has ended it.
            assert libc.umount2(os.fsencode(target), _MNT_DETACH) == 0


def fill(directory: Path) -> Path:
    """Take every last byte of the file system."""
    path = directory / "ballast"
    with open(path, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(64 * 1024))
        except OSError:
            pass
        try:
            while True:
                file.write(b"x")
        except OSError:
            return path


def test_full_disk(small_disk: ClusterHarness) -> None:
    cluster = small_disk
    cluster.up(("a", "b", "c"))
    cluster.ok("chain", "create", CHAIN, "--operator", "alice")
    fleet = Fleet(cluster)
    fleet.apply(fleet.spec("w", replicas=3))
    pids = {row["pid"] for row in fleet.running(count=3)}
    with Crowd(cluster) as crowd:
        wait_until(lambda: crowd.count() > 50, 20.0, "the clients to be at work")
        for _ in range(2):
            with no_room(cluster, crowd), Client(str(cluster.socket("a"))) as client:
                assert client.get("/v1/status")["state"] == "ready"  # reads go on
                wait_until(functools.partial(notices, client), 15.0, "the node to notice", every_s=0.1)
            for writers in (crowd.committers, crowd.appenders):
                crowd.wait_for_work(writers, "work to go on with room on the disk")
        assert {row["pid"] for row in fleet.running(count=3)} == pids, "a full disk disturbed the daemons"
        # A node can be stopped without room for a byte; what that calls for is decided as soon as there is some.
        with no_room(cluster, crowd):
            cluster.stop("c")
        fleet.running(count=3, off="c")
    cluster.start("c")
    for name in "abc":
        cluster.wait_nodes("abc", via=name)
        crowd.check(via=name)
    fleet.assert_never_twice()
    cluster.ok("node", "stop", "--all")
    for name in "abc":
        assert "Traceback" not in (cluster.node_dir(name) / "node.log").read_text()
        assert cluster.ok("audit", "verify", "--node", name)["ok"] is True


@contextlib.contextmanager
def no_room(cluster: ClusterHarness, crowd: Crowd) -> Iterator[None]:
    """Fill the disk until the clients hear of it; give the room back afterwards."""
    heard = disk_full(crowd)
    ballast = fill(cluster.root / "s")
    wait_until(lambda: disk_full(crowd) > heard, 20.0, "the clients to hear that the disk is full")
    yield
    ballast.unlink()


def disk_full(crowd: Crowd) -> int:
    """How many commits were refused for want of room."""
    return sum(text.startswith("disk-full") for writer in crowd.writers for text in writer.unclear.values())


def notices(client: Client) -> bool:
    checks = client.get("/v1/health")["checks"]
    return any((check["name"], check["status"]) == ("disk", "degraded") for check in checks)
