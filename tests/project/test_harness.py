"""The test tools themselves: a tool that finds nothing would make every test that leans on it pass."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import procs
from tests.harness import REPO, ClusterHarness


@pytest.fixture
def marker() -> Iterator[str]:
    mark = f"NET_TEST_RUN={uuid.uuid4().hex}"
    yield mark
    procs.kill_all(mark)


def sleeper(marker: str, code: str = "import time; time.sleep(60)") -> subprocess.Popen[bytes]:
    name, _, value = marker.partition("=")
    return subprocess.Popen([sys.executable, "-c", code], env={**os.environ, name: value})


def test_marked_processes_are_found_with_their_children_and_killed(marker: str) -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    parent = sleeper(marker, code)
    found = procs.wait_until(lambda: (rows := procs.find(marker)) and len(rows) == 2 and rows, 10.0, "two processes")
    assert parent.pid in [process.pid for process in found]
    assert len(procs.kill_all(marker)) == 2
    assert procs.find(marker) == []
    assert parent.wait(10) == -signal.SIGKILL


def test_a_zombie_and_a_missing_process_have_no_start_time(marker: str) -> None:
    child = sleeper(marker, "pass")
    procs.wait_until(lambda: procs.start_time(child.pid) is None, 10.0, "the child to end")
    assert Path(f"/proc/{child.pid}").exists(), "not waited for yet: a zombie"
    child.wait(10)
    assert procs.start_time(child.pid) is None
    assert procs.start_time(os.getpid()) is not None


def test_kill_spares_a_process_that_took_over_the_pid(marker: str) -> None:
    child = sleeper(marker)
    started = procs.wait_until(lambda: procs.start_time(child.pid), 10.0, "the child to start")
    procs.Process(child.pid, started + 1, ()).kill()
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.2)
    procs.Process(child.pid, started, ()).kill()
    assert child.wait(10) == -signal.SIGKILL


def test_wait_until_fails_with_what_it_waited_for() -> None:
    with pytest.raises(AssertionError, match=r"waited 0\.05 s for rain; last seen: 0"):
        procs.wait_until(lambda: 0, 0.05, "rain")


def test_a_survivor_of_a_clean_end_fails_the_test_and_is_killed() -> None:
    harness = ClusterHarness()
    with pytest.raises(AssertionError, match="still running"), harness:
        child = sleeper(harness.marker)
    assert child.wait(10) == -signal.SIGKILL
    assert harness.root.exists(), "kept for reading"
    harness.__exit__(None, None, None)
    assert not harness.root.exists()


def test_leftovers_are_only_removed_where_a_clean_end_is_not_expected() -> None:
    with ClusterHarness() as harness:
        child = sleeper(harness.marker)
        harness.expect_clean = False
    assert child.wait(10) == -signal.SIGKILL
    assert not harness.root.exists()


def test_socket_paths_of_a_test_cluster_fit_into_a_socket_address() -> None:
    with ClusterHarness() as harness:
        assert len(os.fsencode(harness.socket("a-rather-long-node-name.peer"))) <= 107


CONFTEST = """
import pytest
from pathlib import Path
from tests.conftest import pytest_collection_modifyitems
from tests.snapshots_ext import TextSnapshot

class Here(TextSnapshot):
    root = Path(__file__).parent / "snapshots"

@pytest.fixture
def page(snapshot):
    return snapshot.use_extension(Here)
"""
TESTS = """
import pytest

def test_pages(page):
    assert "one\\r\\n" == page(name="one")
    assert "two" == page(name="two")

@pytest.mark.campaign
def test_long():
    raise AssertionError("campaigns are opt-in")
"""
INI = "[pytest]\nmarkers = campaign: long\n"


def run_pytest(directory: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "pytest.ini", *args],
        cwd=directory,
        env={
            "PATH": os.defpath,
            "PYTHONPATH": str(REPO),
        },  # nothing of the run this is part of, xdist's variables above all
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_snapshot_files_are_exact_and_an_unused_one_fails_the_run(tmp_path: Path) -> None:
    for name, text in {"conftest.py": CONFTEST, "test_pages.py": TESTS, "pytest.ini": INI}.items():
        (tmp_path / name).write_text(text)
    first = run_pytest(tmp_path)
    assert first.returncode == 1, first.stdout
    assert not (tmp_path / "snapshots").exists(), "a missing snapshot is a failure, not written by itself"

    assert run_pytest(tmp_path, "--snapshot-update").returncode == 0
    assert (tmp_path / "snapshots/text/one.txt").read_bytes() == b"one\r\n"
    again = run_pytest(tmp_path)
    assert again.returncode == 0, again.stdout
    assert "1 passed" in again.stdout, "the campaign test was left out"

    (tmp_path / "snapshots/text/one.txt").write_bytes(b"one\n")
    assert run_pytest(tmp_path).returncode == 1, "a carriage return counts"
    (tmp_path / "snapshots/text/one.txt").write_bytes(b"one\r\n")

    (tmp_path / "snapshots/text/old.txt").write_text("nobody asks for this page")
    for workers in ([], ["-n", "2"]):
        unused = run_pytest(tmp_path, *workers)
        assert unused.returncode == 1, unused.stdout
        assert "1 snapshot unused" in unused.stdout


def test_campaigns_run_when_asked_for(tmp_path: Path) -> None:
    for name, text in {"conftest.py": CONFTEST, "test_pages.py": TESTS, "pytest.ini": INI}.items():
        (tmp_path / name).write_text(text)
    campaign = run_pytest(tmp_path, "-m", "campaign")
    assert campaign.returncode == 1
    assert "campaigns are opt-in" in campaign.stdout
