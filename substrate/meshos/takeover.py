"""How a guardian takes charge of a node: one at a time, and never beside what an earlier one left running.

Standard library only: part of the guardian.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import select
import socket
import time
from typing import Final

from substrate.meshos import proctree

LOCK_FILE: Final = "guardian.lock"
"""In the node's directory: locked by the guardian in charge, and holding the token of its processes' marks."""


def take_over(directory: str, node: socket.socket, limit_s: float) -> str | None:
    """Wait for the lock, kill what the previous guardian could not, and claim a token. None when `node` hung up.

    The lock is held for the life of the process.

    Raises TimeoutError when the previous guardian, or something it started, is still there after `limit_s`.
    """
    path = os.path.join(directory, LOCK_FILE)
    lock_fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    end = time.monotonic() + limit_s
    hang_up = select.poll()
    hang_up.register(node, 0)
    while True:
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() >= end:
                raise TimeoutError("another guardian still holds this node's lock") from None
        if hang_up.poll(20):
            return None
    old = os.pread(lock_fd, 64, 0).decode("ascii", "replace").strip()
    if len(old) == 32:  # anything else is an interrupted first write, after which nothing was started
        survivors = proctree.kill_marked(old, limit_s=max(1.0, end - time.monotonic()))
        if survivors:
            raise TimeoutError(f"processes of an earlier guardian do not die: {survivors}")
    token = secrets.token_hex(16)
    os.pwrite(lock_fd, token.encode() + b"\n", 0)
    return token
