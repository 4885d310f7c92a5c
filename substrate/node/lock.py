"""One process per node directory: a lock that the kernel gives back when its holder dies."""

from __future__ import annotations

import fcntl
import os
import time
from typing import Final, Self

import msgspec

from substrate.node.process import ProcessId
from substrate.wire.errors import NetError

LOCK_NAME: Final = "node.lock"
_SETTLE_S: Final = 0.5
_POLL_S: Final = 0.01
_MAX_BYTES: Final = 4096


class NodeLock:
    """Holds `DIRECTORY/node.lock` for as long as the node runs; the file names the holder.

    The file is never removed: two processes could otherwise hold locks on different files of one name.
    """

    def __init__(self, descriptor: int, path: str) -> None:
        self._descriptor = descriptor
        self.path = path

    @classmethod
    def acquire(cls, directory: str, name: str) -> NodeLock:
        """Take the lock of the node `name`; the directory is made (0700) if missing.

        Raises `node-running` (details: name, pid or None) when another process holds it.
        """
        os.makedirs(directory, mode=0o700, exist_ok=True)
        path = os.path.join(directory, LOCK_NAME)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, msgspec.json.encode(ProcessId.current()) + b"\n", 0)
        except BlockingIOError:
            os.close(descriptor)
            holder = _wait_for_holder(path)
            pid = holder.pid if holder else None
            raise NetError(
                "node-running",
                f"node {name!r} is running already" + (f" as process {pid}" if pid else ""),
                f"net node stop --name {name}",
                {"name": name, "pid": pid},
            ) from None
        except BaseException:
            os.close(descriptor)
            raise
        return cls(descriptor, path)

    def release(self) -> None:
        """Give the lock back. May be called twice."""
        if self._descriptor < 0:
            return
        os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)
        self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def holder(directory: str) -> ProcessId | None:
    """The living process that runs the node of `directory`, or None."""
    return _read_holder(os.path.join(directory, LOCK_NAME))


def _read_holder(path: str) -> ProcessId | None:
    try:
        with open(path, "rb") as file:
            found = msgspec.json.decode(file.read(_MAX_BYTES), type=ProcessId)
    except (FileNotFoundError, msgspec.DecodeError):
        return None  # none yet, or its holder is about to write it
    return found if found.is_alive() else None


def _wait_for_holder(path: str) -> ProcessId | None:
    """Who holds the lock. The winner of a race writes its name a moment after it has won."""
    deadline = time.monotonic() + _SETTLE_S
    while (found := _read_holder(path)) is None and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return found
