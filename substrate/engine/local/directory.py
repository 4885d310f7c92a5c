"""The engine directory: which files the broker keeps, and who the broker is.

engine.db    the chains (and engine.db.lock, -wal, -shm beside it)
broker.lock  flock held by the one broker for its life, taken before anything else here is touched
broker.sock  where it listens (0600, in this 0700 directory)
broker.json  {pid, start_time, epoch} of the present or last broker
start.lock   flock held by the client that is starting a broker, so that not all of them do
broker.log   what brokers had to say
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from substrate.wire.errors import NetError
from substrate.wire.paths import MAX_SOCKET_PATH_BYTES

_EPOCH_ORIGIN_S: Final = 1_767_225_600
"""2026-01-01, where the hours in `next_epoch` count from."""


class BrokerIdentity(msgspec.Struct, frozen=True):
    """A broker process. `start_time` is in clock ticks since boot, so pid and start time name a process for good."""

    pid: int
    start_time: int
    epoch: int


class EngineDirectory:
    """The paths of one engine directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.database = path / "engine.db"
        self.lock = path / "broker.lock"
        self.start_lock = path / "start.lock"
        self.socket = path / "broker.sock"
        self.identity = path / "broker.json"
        self.log = path / "broker.log"

    def create(self) -> None:
        """Make the directory, 0700, if it is not there; then `check` it. Raises as that, or `io-error`."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise NetError("io-error", f"the engine directory {self.path}: {error.strerror}") from error
        self.check()

    def check(self) -> None:
        """Raise `permissive-mode` if others may enter the directory, `io-error` if it cannot be looked at.

        All that a broker does: one that starts late must not bring a removed cluster back.
        """
        try:
            mode = self.path.stat().st_mode & 0o777
        except OSError as error:
            raise NetError("io-error", f"the engine directory {self.path}: {error.strerror}") from error
        if mode & 0o077:
            raise NetError(
                "permissive-mode",
                f"the engine directory {self.path} is open to others (mode {mode:04o})",
                f"chmod 700 {self.path}",
            )

    def read_identity(self) -> BrokerIdentity | None:
        """Who `broker.json` names; None if it is missing or damaged (a new broker rewrites it)."""
        try:
            return msgspec.json.decode(self.identity.read_bytes(), type=BrokerIdentity)
        except (FileNotFoundError, msgspec.DecodeError):
            return None

    def write_identity(self, identity: BrokerIdentity) -> None:
        """Replace `broker.json` durably: revisions grow across restarts because epochs do."""
        fresh = self.identity.with_suffix(".new")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(msgspec.json.encode(identity))
            file.flush()
            os.fsync(descriptor)
        fresh.replace(self.identity)
        directory = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    @contextmanager
    def socket_address(self) -> Iterator[str]:
        """An address to bind or connect to, also where the path is too long for one (then by way of /proc)."""
        path = str(self.socket)
        if len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES:
            yield path
            return
        directory = os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield f"/proc/self/fd/{directory}/{self.socket.name}"
        finally:
            os.close(directory)


def next_epoch(last: BrokerIdentity | None, now_s: float) -> int:
    """The epoch after `last`. The hours since 2026 are its floor, for the case that `broker.json` was lost."""
    hours = max(0, int(now_s - _EPOCH_ORIGIN_S) // 3600)
    return max(hours, last.epoch if last is not None else 0) + 1


def start_time(pid: int) -> int | None:
    """Start of a living process in clock ticks since boot; None if there is none (a zombie counts as gone)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])
