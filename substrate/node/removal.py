"""Takes a cluster off this machine for good: its nodes and broker are ended, its files and sockets are removed.

Every lock in the cluster's directories is held while its files go, so nothing can start among them half-way.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Final

from substrate.node.lock import holder
from substrate.wire.errors import NetError
from substrate.wire.paths import cluster_dir, engine_dir, runtime_dir

STOP_LIMIT_S: Final = 8.0
"""How long a node may take to stop before it is killed."""
LIMIT_S: Final = 15.0
"""How long the last processes of a stopped cluster may take to let go."""
_POLL_S: Final = 0.02


def end_nodes(cluster: str, limit_s: float = STOP_LIMIT_S) -> list[str]:
    """End every node of the cluster on this machine, also one whose socket does not answer; returns their names.

    All get SIGTERM, which is a graceful stop, and SIGKILL after `limit_s`; then the guardian ends what it left.
    """
    found = {path.name: holder(str(path)) for path in sorted(Path(cluster_dir(cluster)).glob("nodes/*"))}
    living = {name: process for name, process in found.items() if process is not None}
    for process in living.values():
        process.send(signal.SIGTERM)
    deadline = time.monotonic() + limit_s
    for process in living.values():
        if not process.wait_gone(max(0.0, deadline - time.monotonic())):
            process.send(signal.SIGKILL)
            process.wait_gone(limit_s)
    return list(living)


def remove_cluster(cluster: str, limit_s: float = LIMIT_S) -> list[str]:
    """Remove everything the cluster has on this machine; returns the directories removed ([] if there were none).

    Raises `timeout` if a node, a guardian or the broker has not ended after `limit_s`, `io-error`. Call `end_nodes` first.
    """
    state, sockets = Path(cluster_dir(cluster)), Path(runtime_dir(cluster))
    directories = [state] if sockets.is_relative_to(state) else [state, sockets]
    from substrate.engine.local.launch import stop_broker

    deadline = time.monotonic() + limit_s
    stop_broker(Path(engine_dir(cluster)), timeout_ms=int(limit_s * 1000))
    held = _take_locks(directories, deadline)
    try:
        removed = []
        for directory in directories:
            if directory.exists():
                shutil.rmtree(directory)
                removed.append(str(directory))
        return removed
    except OSError as error:
        raise NetError("io-error", f"cannot remove {error.filename}: {error.strerror}", "remove it by hand") from error
    finally:
        for descriptor in held:
            os.close(descriptor)


def _take_locks(directories: list[Path], deadline: float) -> list[int]:
    """Hold every lock file; raises `timeout` naming the one that somebody keeps."""
    held: list[int] = []
    try:
        for path in sorted(path for directory in directories for path in directory.rglob("*.lock")):
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            held.append(descriptor)
            while not _take(descriptor):
                if time.monotonic() > deadline:
                    raise NetError("timeout", f"a process still holds {path}", "try again", {"path": str(path)})
                time.sleep(_POLL_S)
    except BaseException:
        for descriptor in held:
            os.close(descriptor)
        raise
    return held


def _take(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
