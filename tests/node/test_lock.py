"""Two nodes with one name: the lock of the node's directory, between real processes."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from substrate.node.lock import LOCK_NAME, NodeLock, holder
from substrate.node.process import ProcessId
from substrate.wire.errors import Exit, NetError
from tests.harness import REPO

HOLD = """
import sys
from substrate.node.lock import NodeLock
from substrate.wire.errors import NetError
try:
    lock = NodeLock.acquire(sys.argv[1], "a")
except NetError as error:
    print(error.kind, error.details["pid"], flush=True)
else:
    print("held", flush=True)
    sys.stdin.read()
"""


def start(directory: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPO,
    )


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def end(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        process.kill()
        process.communicate(timeout=10)


def test_second_process_is_told_who_runs_the_node(tmp_path: Path) -> None:
    directory = tmp_path / "nodes" / "a"
    first = start(directory)
    assert first_line(first) == "held"
    with pytest.raises(NetError) as caught:
        NodeLock.acquire(str(directory), "a")
    assert caught.value.kind == "node-running"
    assert caught.value.exit_code == Exit.EXISTS
    assert caught.value.details == {"name": "a", "pid": first.pid}
    assert str(first.pid) in caught.value.message
    found = holder(str(directory))
    assert found is not None
    assert found.pid == first.pid
    end(first)
    assert holder(str(directory)) is None
    # The kernel gave the lock back; what the killed process wrote is overwritten.
    with NodeLock.acquire(str(directory), "a") as lock:
        assert json.loads(Path(lock.path).read_text())["pid"] == os.getpid()
        assert holder(str(directory)) == ProcessId.current()


def test_files_are_private(tmp_path: Path) -> None:
    directory = tmp_path / "a"
    with NodeLock.acquire(str(directory), "a") as lock:
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert stat.S_IMODE(os.stat(lock.path).st_mode) == 0o600


def test_released_lock_names_nobody_and_may_be_taken_again(tmp_path: Path) -> None:
    lock = NodeLock.acquire(str(tmp_path), "a")
    lock.release()
    lock.release()
    assert (tmp_path / LOCK_NAME).read_bytes() == b""
    assert holder(str(tmp_path)) is None
    NodeLock.acquire(str(tmp_path), "a").release()


def test_of_many_at_once_one_wins_and_the_others_name_it(tmp_path: Path) -> None:
    processes = [start(tmp_path) for _ in range(6)]
    lines = {process.pid: first_line(process) for process in processes}
    winners = [pid for pid, line in lines.items() if line == "held"]
    assert len(winners) == 1
    assert {line for line in lines.values() if line != "held"} == {f"node-running {winners[0]}"}
    end(*processes)


def test_holder_that_did_not_write_its_name_is_unknown(tmp_path: Path) -> None:
    lock = NodeLock.acquire(str(tmp_path), "a")
    Path(lock.path).write_text('{"pid": 4194304, "start_time": 1}\n')  # of an earlier holder, long gone
    with pytest.raises(NetError) as caught:
        NodeLock.acquire(str(tmp_path), "a")
    assert caught.value.details["pid"] is None
    lock.release()


def test_link_in_the_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("keep")
    (tmp_path / LOCK_NAME).symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic links"):
        NodeLock.acquire(str(tmp_path), "a")
    assert (tmp_path / "precious").read_text() == "keep"
