"""Fixtures every test may use, and two rules of the run: campaigns are opt-in, snapshots live in `snapshots/`."""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterator

import pytest
from syrupy.assertion import SnapshotAssertion

from tests.harness import ClusterHarness
from tests.snapshots_ext import HelpSnapshot, JsonSnapshot

# A shell starts background jobs with SIGINT ignored, and everything started from here would inherit that: then no
# test could interrupt a command as a user does.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave campaign tests out unless `-m` asks for them.

    Done here and not by a default `-m`, because this runs before the snapshot plugin counts what was collected: it
    reports unused snapshots (and fails the run) only when everything it counted was also selected.
    """
    if "campaign" in config.option.markexpr:
        return
    campaigns = [item for item in items if item.get_closest_marker("campaign")]
    if campaigns:
        items[:] = [item for item in items if not item.get_closest_marker("campaign")]
        config.hook.pytest_deselected(items=campaigns)


FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember on the item that it failed, so that fixtures can keep what helps to find out why."""
    report = yield
    item.stash[FAILED] = item.stash.get(FAILED, False) or report.failed
    return report


@pytest.fixture
def cluster(request: pytest.FixtureRequest) -> Iterator[ClusterHarness]:
    """An empty home: no key, no node. The end of the test demands a clean stop (see ClusterHarness)."""
    with ClusterHarness() as harness:
        yield harness
        if request.node.stash.get(FAILED, False):
            harness.keep_files = True
            harness.expect_clean = False  # one failure is enough to read


@pytest.fixture
def three_nodes(cluster: ClusterHarness) -> ClusterHarness:
    """Nodes a, b, c and the operator alice, all seeing each other; fresh for each test."""
    cluster.up(("a", "b", "c"))
    return cluster


@pytest.fixture(scope="module")
def shared_nodes() -> Iterator[ClusterHarness]:
    """Nodes a, b, c and the operator alice, shared by a module's tests that leave no trace (reads, refusals)."""
    with ClusterHarness() as harness:
        harness.up(("a", "b", "c"))
        yield harness


@pytest.fixture
def help_snapshot(snapshot: SnapshotAssertion) -> SnapshotAssertion:
    """`help_snapshot(name="admin-drain") == text` against `snapshots/help/admin-drain.txt`, byte for byte."""
    return snapshot.use_extension(HelpSnapshot)


@pytest.fixture
def json_snapshot(snapshot: SnapshotAssertion) -> SnapshotAssertion:
    """`json_snapshot(name="node-ls") == document` against `snapshots/json/node-ls.json`."""
    return snapshot.use_extension(JsonSnapshot)
