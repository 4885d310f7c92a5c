"""Processes that outlive their parent and say when they are ready."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from substrate.node.detach import READY_VARIABLE, ReadyMessage, ReadyPipe, spawn_detached
from substrate.node.process import ProcessId
from substrate.wire.errors import NetError
from tests import procs
from tests.harness import REPO
from tests.procs import wait_until

PRELUDE = """
import os, signal, sys, time
from substrate.node.detach import ReadyPipe
from substrate.wire.errors import NetError
pipe = ReadyPipe.from_environment()
"""


def spawn(code: str, log: Path, limit_s: float = 20.0) -> ReadyMessage:
    env = {**os.environ, "PYTHONPATH": str(REPO)}
    return spawn_detached([sys.executable, "-c", PRELUDE + code], env, str(log), limit_s=limit_s)


def refused(kind: str, code: str, log: Path, limit_s: float = 20.0) -> NetError:
    with pytest.raises(NetError) as caught:
        spawn(code, log, limit_s)
    assert caught.value.kind == kind, caught.value
    return caught.value


def reap(process: ProcessId) -> None:
    process.send(signal.SIGKILL)
    os.waitpid(process.pid, 0)


def test_child_is_ready_and_cut_off_from_its_parent(tmp_path: Path) -> None:
    log = tmp_path / "log"
    code = """
print("to the log", flush=True)
print("errors too", file=sys.stderr, flush=True)
pipe.ready({
    "pid": os.getpid(), "sid": os.getsid(0), "stdin": sys.stdin.read(),
    "fds": sorted(int(fd) for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")),
    "inherits": os.get_inheritable(3), "variable": "NET_READY_FD" in os.environ,
    "pipe_signal": signal.getsignal(signal.SIGPIPE) == signal.SIG_IGN, "mask": sorted(signal.pthread_sigmask(0, [])),
})
time.sleep(60)
"""
    handed_down, _other = os.pipe()
    os.set_inheritable(handed_down, True)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        message = spawn(code, log)
    finally:
        os.close(handed_down)
        os.close(_other)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
    said = message.document
    assert message.process.is_alive()
    assert said["pid"] == said["sid"] == message.process.pid, "a session of its own"
    assert said["stdin"] == ""
    assert said["fds"] == [0, 1, 2, 3], "nothing else of the parent's is open in the child"
    assert said["inherits"] is False
    assert said["variable"] is False
    assert said["mask"] == []
    assert log.read_text() == "to the log\nerrors too\n"
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    reap(message.process)


def test_child_survives_the_parent_and_its_process_group(tmp_path: Path) -> None:
    parent_code = """
import json, os, sys
from substrate.node.detach import spawn_detached
message = spawn_detached([sys.executable, "-c", sys.argv[1]], dict(os.environ), sys.argv[2])
print(json.dumps([message.process.pid, message.process.start_time]), flush=True)
sys.stdin.read()
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", parent_code, PRELUDE + "pipe.ready({}); time.sleep(60)", str(tmp_path / "log")],
        env={**os.environ, "PYTHONPATH": str(REPO)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert parent.stdout is not None
    child = ProcessId(*json.loads(parent.stdout.readline()))
    os.killpg(parent.pid, signal.SIGKILL)
    parent.communicate(timeout=10)
    assert child.is_alive()
    assert child.send(signal.SIGTERM)
    assert child.wait_gone(10), "it is not immune to signals of its own"


def test_parent_without_standard_descriptors_can_detach(tmp_path: Path) -> None:
    code = """
import os, sys
from substrate.node.detach import spawn_detached
os.closerange(0, 3)
message = spawn_detached([sys.executable, "-c", sys.argv[1]], dict(os.environ), sys.argv[2])
os._exit(0 if message.document == {"heard": True} else 1)
"""
    log = tmp_path / "log"
    child_code = PRELUDE + "print('spoken', flush=True); pipe.ready({'heard': True})"
    env = {**os.environ, "PYTHONPATH": str(REPO)}
    done = subprocess.run([sys.executable, "-c", code, child_code, str(log)], env=env, timeout=20, check=False)
    assert done.returncode == 0
    assert log.read_text() == "spoken\n"


def test_error_of_the_child_is_the_parents_error(tmp_path: Path) -> None:
    code = 'pipe.fail(NetError("node-running", "node a is running", "net node stop", {"pid": 7})); sys.exit(4)'
    error = refused("node-running", code, tmp_path / "log")
    assert (error.hint, error.details) == ("net node stop", {"pid": 7})


@pytest.mark.parametrize(
    ("code", "exit_code", "words"),
    [
        ("print('bad config', file=sys.stderr); sys.exit(3)", 3, "exit code 3"),
        ("print('bad config', flush=True); os.kill(os.getpid(), signal.SIGKILL)", -9, "SIGKILL"),
        ("print('bad config'); os.write(3, b'{\"ready\": {')", 0, "exit code 0"),
        ("print('bad config'); os.write(3, b'no json\\n')", 0, "exit code 0"),
        ("print('bad config'); os.write(3, b'{}\\n')", 0, "exit code 0"),
        ("print('bad config', flush=True); os.write(3, b'x' * 200_000); time.sleep(60)", -15, "SIGTERM"),
    ],
    ids=["exits", "killed", "half a line", "no json", "neither", "endless line"],
)
def test_child_that_ends_without_a_word(code: str, exit_code: int, words: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("of an earlier run\n")
    error = refused("internal", code, log)
    assert error.details == {"exit_code": exit_code, "log": str(log), "output": "bad config\n"}
    assert words in error.message
    assert error.hint == f"see {log}"
    assert log.read_text() == "of an earlier run\nbad config\n"


def test_child_that_is_not_ready_in_time_is_ended(tmp_path: Path) -> None:
    marker = f"NET_TEST_RUN={tmp_path}"
    env = {**os.environ, "PYTHONPATH": str(REPO), "NET_TEST_RUN": str(tmp_path)}
    stubborn = "signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    for code in ("time.sleep(60)", stubborn):
        start = time.monotonic()
        with pytest.raises(NetError) as caught:
            spawn_detached([sys.executable, "-c", PRELUDE + code], env, str(tmp_path / "log"), limit_s=1.0)
        assert caught.value.kind == "timeout"
        assert 1.0 <= time.monotonic() - start < 10
        assert procs.find(marker) == []


def test_interrupted_parent_leaves_nothing_behind(tmp_path: Path) -> None:
    marker = f"NET_TEST_RUN={tmp_path}"
    env = {**os.environ, "PYTHONPATH": str(REPO), "NET_TEST_RUN": str(tmp_path)}
    starting = threading.get_ident()

    def interrupt() -> None:
        wait_until(lambda: procs.find(marker), 10, "the child to start")
        signal.pthread_kill(starting, signal.SIGINT)  # a command has one thread; here it must not be this one

    waiting = threading.Thread(target=interrupt)
    waiting.start()
    with pytest.raises(KeyboardInterrupt):
        spawn_detached([sys.executable, "-c", "import time; time.sleep(60)"], env, str(tmp_path / "log"))
    waiting.join()
    assert procs.find(marker) == []


def test_what_cannot_be_started_is_a_clear_error(tmp_path: Path) -> None:
    open_before = len(os.listdir("/proc/self/fd"))
    for argv0, log in (("/nonexistent/python", tmp_path / "log"), (sys.executable, tmp_path / "missing" / "log")):
        with pytest.raises(NetError) as caught:
            spawn_detached([argv0], {}, str(log))
        assert caught.value.kind == "io-error"
    assert len(os.listdir("/proc/self/fd")) == open_before


def test_without_a_waiting_parent_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(READY_VARIABLE, raising=False)
    pipe = ReadyPipe.from_environment()
    pipe.ready({"pid": 1})
    pipe.fail(NetError("internal", "x"))


def test_parent_that_gave_up_does_not_harm_the_child(monkeypatch: pytest.MonkeyPatch) -> None:
    listen, speak = os.pipe()
    os.close(listen)
    monkeypatch.setenv(READY_VARIABLE, str(speak))
    pipe = ReadyPipe.from_environment()
    assert READY_VARIABLE not in os.environ
    pipe.ready({})
    pipe.ready({})  # said once only
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(speak)


@pytest.mark.parametrize("text", ["", "x", "9999"])
def test_nonsense_in_the_environment_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(READY_VARIABLE, text)
    with pytest.raises(NetError) as caught:
        ReadyPipe.from_environment()
    assert caught.value.kind == "invalid-config"
