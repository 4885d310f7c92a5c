"""Starting, finding and removing the broker process, from the side of its clients."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import struct
import sys
import time
from pathlib import Path
from typing import Final

import substrate
from substrate.engine.local.directory import EngineDirectory, start_time
from substrate.wire.errors import NetError

MAX_LOG_BYTES: Final = 1024 * 1024
PATIENCE_S: Final = 1.5
_UCRED: Final = struct.Struct("3i")


def peer_of(connection: socket.socket) -> tuple[int, int]:
    """(pid, uid) of the process at the other end; at a client's end, of the process that listens (unix(7))."""
    pid, uid, _ = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return pid, uid


def check_peer(uid: int) -> None:
    """Refuse (`peer-uid`) a peer that is neither this user nor root."""
    if uid not in (os.getuid(), 0):
        raise NetError("peer-uid", f"the process at the other end belongs to uid {uid}", details={"uid": uid})


def dial(directory: EngineDirectory) -> socket.socket | None:
    """A connected, non-blocking socket to whoever listens in the directory; None if nobody does."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        with directory.socket_address() as address:
            connection.connect(address)
        check_peer(peer_of(connection)[1])
    except (FileNotFoundError, ConnectionError, BlockingIOError):  # the last: its backlog is full
        connection.close()
        return None
    except BaseException:
        connection.close()
        raise
    return connection


class Starter:
    """Starts brokers for one client, and reaps those that ended.

    Clients take turns by `start.lock`; `PATIENCE_S` after its first try a client starts one without its turn, because
    the one whose turn it is may be frozen. More brokers than one do no harm: the losers of the election leave.
    """

    def __init__(self, directory: EngineDirectory) -> None:
        self._directory = directory
        self._turn: int | None = None
        self._since: float | None = None
        self._not_before = 0.0
        self._starting: set[int] = set()
        self._serving: set[int] = set()
        self._failures = 0

    def attempt(self) -> None:
        """Start a broker, unless one started by this client is about to answer or it is another client's turn.

        Raises `engine-unavailable` with the broker's own words if one failed to start; further attempts then come
        at growing intervals.
        """
        self.reap()
        now = time.monotonic()
        if self._since is None:
            self._since = now
        if self._starting or now < self._not_before:
            return
        if self._turn is None:
            self._turn = self._take_turn()
        if self._turn is not None or now - self._since > PATIENCE_S:
            self._since = now
            self._starting.add(spawn_broker(self._directory))

    def settle(self, *, answered: bool) -> None:
        """The try is over: give the turn away. `answered`: some broker serves."""
        self._since = None
        if answered:
            self._failures = 0
            self._serving |= self._starting
            self._starting.clear()
            self.reap()
        if self._turn is not None:
            os.close(self._turn)
            self._turn = None

    def reap(self) -> None:
        """Collect brokers of ours that ended, so that they do not stay zombies. Raises as `attempt`."""
        for pid in tuple(self._serving | self._starting):
            try:
                ended, status = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:  # somebody else in this process collected it
                ended, status = pid, 0
            if not ended:
                continue
            failed = pid in self._starting and os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0
            self._starting.discard(pid)
            self._serving.discard(pid)
            if failed:
                self._failures += 1
                self._not_before = time.monotonic() + min(5.0, 0.25 * 2**self._failures)
                raise NetError(
                    "engine-unavailable",
                    f"the broker could not start: {self._last_words(pid)}",
                    f"see {self._directory.log}",
                )

    def _last_words(self, pid: int) -> str:
        mark = f"broker {pid}: "
        lines = self._directory.log.read_text(errors="replace")[-8192:].splitlines()
        said = [line.partition(mark)[2] for line in lines if mark in line]
        return (said or lines or ["it said nothing"])[-1].removeprefix("ending: ")

    def _take_turn(self) -> int | None:
        descriptor = os.open(self._directory.start_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return descriptor


def spawn_broker(directory: EngineDirectory) -> int:
    """Start a broker in a session of its own; it outlives this process. Returns its pid."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    log = os.open(directory.log, flags, 0o600)
    try:
        if os.fstat(log).st_size > MAX_LOG_BYTES:
            os.ftruncate(log, 0)
        root = str(Path(substrate.__file__).resolve().parent.parent)
        inherited = os.environ.get("PYTHONPATH")
        environment = dict(os.environ, PYTHONPATH=os.pathsep.join((root, inherited) if inherited else (root,)))
        environment.pop("NOTIFY_SOCKET", None)  # the service manager's word is with the node, not with its broker
        return os.posix_spawn(
            sys.executable,
            [sys.executable, "-m", "substrate.engine.local.broker", "--dir", str(directory.path)],
            environment,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, log, 1),
                (os.POSIX_SPAWN_DUP2, log, 2),
            ],
            setsid=True,
        )
    finally:
        os.close(log)


def kill_broker(directory: EngineDirectory, pid: int, started: int | None) -> bool:
    """SIGKILL the broker `pid`; False if that process is gone already.

    `started` is its start time as told by itself; None (it never answered) means: as `broker.json` has it. A process
    whose start time differs is another one and left alone.
    """
    if started is None:
        known = directory.read_identity()
        if known is None or known.pid != pid:
            return False
        started = known.start_time
    return _signal(pid, started, signal.SIGKILL)


def stop_broker(path: Path, timeout_ms: int = 5000) -> bool:
    """Ask the broker of an engine directory to end and wait until it has; False if none was running.

    Raises `timeout` if it does not end in time.
    """
    directory = EngineDirectory(path)
    known = directory.read_identity()
    if known is None or not _signal(known.pid, known.start_time, signal.SIGTERM):
        return False
    deadline = time.monotonic() + timeout_ms / 1000
    while start_time(known.pid) == known.start_time:
        if time.monotonic() > deadline:
            raise NetError("timeout", f"the broker {known.pid} did not end within {timeout_ms} ms")
        time.sleep(0.01)
    return True


def _signal(pid: int, started: int, number: signal.Signals) -> bool:
    try:
        descriptor = os.pidfd_open(pid)  # pins the process: what is checked is what is signalled
    except ProcessLookupError:
        return False
    try:
        if start_time(pid) != started:
            return False
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True
