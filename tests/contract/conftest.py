"""One cluster for the tests of this folder that only read or are refused; those that change much start their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.harness import ClusterHarness


@pytest.fixture(scope="package")
def calm() -> Iterator[ClusterHarness]:
    """Nodes a, b, c, the operator alice, a running daemon `web` and a chain `app/log`; tests leave it as they found it."""
    with ClusterHarness() as cluster:
        cluster.up(("a", "b", "c"))
        cluster.ok(
            "daemon", "run", "--name", "web", "--operator", "alice", "--", "sh", "-c", "echo up; exec sleep 9999"
        )
        cluster.ok("chain", "create", "app/log", "--operator", "alice")
        cluster.ok("chain", "append", "app/log", "-", stdin='{"n":1}\n{"n":2}\n')
        yield cluster
