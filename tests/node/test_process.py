"""Process identity on real processes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from substrate.node import process
from substrate.node.process import ProcessId, is_alive, start_time
from tests.procs import wait_until


def sleeper(argv0: str = "/bin/sleep") -> subprocess.Popen[bytes]:
    return subprocess.Popen([argv0, "60"])


def test_current_process_is_alive_and_known_by_its_start() -> None:
    own = ProcessId.current()
    assert own.pid == os.getpid()
    assert own.is_alive()
    assert is_alive(own.pid, own.start_time)
    assert not is_alive(own.pid, own.start_time + 1), "another process had this pid then"
    booted = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert 0 < own.start_time / os.sysconf("SC_CLK_TCK") <= booted


def test_ended_process_and_zombie_are_not_alive() -> None:
    child = sleeper()
    found = ProcessId.of(child.pid)
    assert found is not None
    assert found.is_alive()
    child.kill()
    wait_until(lambda: not found.is_alive(), 5, "the zombie to count as dead")
    assert start_time(child.pid) == found.start_time, "it is still in the table"
    child.wait()
    assert not found.is_alive()
    assert ProcessId.of(child.pid) is None
    assert not found.send(signal.SIGTERM)


def test_program_name_with_parentheses_and_spaces(tmp_path: Path) -> None:
    odd = tmp_path / "a) R (b 1"
    shutil.copy("/bin/sleep", odd)
    child = sleeper(str(odd))
    try:
        found = ProcessId.of(child.pid)
        assert found is not None
        assert found.is_alive()
    finally:
        child.kill()
        child.wait()


def test_signal_goes_to_that_process_only() -> None:
    child = sleeper()
    found = ProcessId.of(child.pid)
    assert found is not None
    stranger = ProcessId(found.pid, found.start_time - 1)
    assert not stranger.send(signal.SIGKILL)
    assert child.poll() is None
    assert found.send(signal.SIGTERM)
    assert child.wait(5) == -signal.SIGTERM
    assert found.wait_gone(1)


def test_process_that_ends_between_the_look_and_the_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    child = sleeper()
    found = ProcessId.of(child.pid)
    assert found is not None

    def ends_now(pid: int, start: int) -> bool:
        child.kill()
        child.wait()
        return True

    monkeypatch.setattr(process, "is_alive", ends_now)
    assert not found.send(signal.SIGTERM)


def test_waiting_for_the_end_has_a_limit() -> None:
    child = sleeper()
    found = ProcessId.of(child.pid)
    assert found is not None
    start = time.monotonic()
    assert not found.wait_gone(0.1)
    assert time.monotonic() - start < 5
    child.kill()
    assert found.wait_gone(5)
    child.wait()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_process_of_another_user_is_a_clear_error() -> None:
    code = """
import os, signal
from substrate.node.process import ProcessId
found = ProcessId.of(os.getppid())
os.setuid(65534)
try:
    found.send(signal.SIGTERM)
except PermissionError:
    print("refused")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=20)
    assert done.stdout == "refused\n"
