"""Power cuts under writing clients: what was acknowledged before the cut is there after it.

Everything of the cluster dies at one moment, and the disk forgets each byte that was not synced (`lazyfs`).
Source: budgets, "Reliability": 10 cuts in every run, 500 in the campaign.
"""

from __future__ import annotations

import functools
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import procs
from tests.harness import ClusterHarness
from tests.procs import wait_until
from tests.reliability.clients import CHAIN, Crowd

NODES = "ab"
LAZYFS = Path(__file__).with_name("lazyfs.py")


class LazyDisk:
    """A mounted `lazyfs` and the way to cut its power."""

    def __init__(self, directory: Path, torn: int | None) -> None:
        more = [] if torn is None else ["--torn", str(torn)]
        self._process = subprocess.Popen(
            [sys.executable, str(LAZYFS), str(directory), *more],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            _, err = self._process.communicate()
            pytest.skip(f"no FUSE file system can be mounted here: {err.splitlines()[-1]}")

    def cut(self) -> dict[str, Any]:
        """Forget what was not synced; how much that was."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("cut\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        """Unmount."""
        _, err = self._process.communicate(timeout=10)
        assert self._process.returncode == 0, err


@contextmanager
def lazy_disk(directory: Path, torn: int | None = None) -> Iterator[LazyDisk]:
    directory.mkdir(mode=0o700, exist_ok=True)
    disk = LazyDisk(directory, torn)
    try:
        yield disk
    finally:
        disk.close()


def run_cuts(cuts: int, seed: int) -> None:
    rng = random.Random(seed)
    with ClusterHarness() as cluster:
        cluster.expect_clean = False
        with lazy_disk(cluster.root / "s", None if seed % 2 else seed) as disk:
            try:
                _cut_again_and_again(cluster, disk, cuts, rng)
            finally:
                procs.kill_all(cluster.marker)  # nothing may wait for the file system when it goes


def _cut_again_and_again(cluster: ClusterHarness, disk: LazyDisk, cuts: int, rng: random.Random) -> None:
    cluster.up(tuple(NODES))
    cluster.ok("chain", "create", CHAIN, "--operator", "alice")
    undone = 0
    with Crowd(cluster, NODES) as crowd:
        for _ in range(cuts):
            # Of each cut the clients see some units through: they ask the cluster that comes back for the outcome.
            enough = crowd.count() + 20 + rng.randrange(60)
            wait_until(functools.partial(_reached, crowd, enough), 20.0, "the clients to be at work")
            procs.kill_all(cluster.marker)
            undone = disk.cut()["undone"]
            with ThreadPoolExecutor(len(NODES)) as pool:
                list(pool.map(cluster.start, NODES))
    for name in NODES:
        cluster.wait_nodes(NODES, via=name)
    assert undone > 0, "the disk forgot nothing, so this showed nothing"
    for name in NODES:
        crowd.check(via=name)
    cluster.ok("node", "stop", "--all")
    for name in NODES:
        assert cluster.ok("audit", "verify", "--node", name)["ok"] is True


def _reached(crowd: Crowd, enough: int) -> bool:
    return crowd.count() >= enough


def test_ten_power_cuts() -> None:
    run_cuts(10, seed=2)


@pytest.mark.campaign
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", range(10))
def test_five_hundred_power_cuts(seed: int) -> None:
    run_cuts(50, seed)


def test_the_lazy_disk_itself_forgets_only_what_was_not_synced(tmp_path: Path) -> None:
    with lazy_disk(tmp_path / "disk") as disk:
        kept, lost = tmp_path / "disk" / "kept", tmp_path / "disk" / "lost"
        with open(kept, "wb", buffering=0) as file:
            file.write(b"a" * 300_000)
            os.fsync(file.fileno())
            file.seek(10)
            file.write(b"not synced")
            file.truncate(200_000)
        lost.write_bytes(b"never synced")
        lost.rename(tmp_path / "disk" / "renamed")
        assert kept.stat().st_size == 200_000
        assert disk.cut()["undone"] >= 3
        assert kept.read_bytes() == b"a" * 300_000
        assert sorted(path.name for path in (tmp_path / "disk").iterdir()) == ["kept", "renamed"]
        assert (tmp_path / "disk" / "renamed").read_bytes() == b""
        kept.write_bytes(b"short")
        (tmp_path / "disk" / "renamed").unlink()
        (tmp_path / "disk" / "sub").mkdir()
        assert (tmp_path / "disk" / "sub").is_dir()
