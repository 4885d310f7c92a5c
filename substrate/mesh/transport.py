"""Endpoints of nodes: `unix:/path` now, `tls:host:port` when nodes live on several machines.

All that knows about sockets is here; handshake and links work on whatever byte stream comes out.
Sources: contract section 8 (socket rules), architecture ("Endpoints").
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import socket
import stat
import struct
from collections.abc import Sequence
from typing import Final

from substrate.wire.errors import NetError
from substrate.wire.paths import check_socket_path

BACKLOG: Final = 128
_UCRED: Final = struct.Struct("3i")
_RETRY_S: Final = 0.02


def unix_endpoint(path: str) -> str:
    """The endpoint URL of a Unix socket."""
    return f"unix:{path}"


def pick_path(endpoints: Sequence[str]) -> str:
    """The socket path of the first endpoint this version can reach; raises `node-unreachable` when there is none."""
    for endpoint in endpoints:
        scheme, _, rest = endpoint.partition(":")
        if scheme == "unix" and rest.startswith("/"):
            return rest
    shown = ", ".join(endpoints) or "none"
    raise NetError("node-unreachable", f"no endpoint of the node can be used from here: {shown}")


def check_peer_uid(sock: socket.socket) -> int:
    """The pid at the other end of a Unix socket, if it runs as this user or as root; else raises `peer-uid`."""
    pid, uid, _gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    if uid not in (os.geteuid(), 0):
        raise NetError("peer-uid", f"the process at the other end runs as uid {uid}", details={"uid": uid})
    return int(pid)


class UnixListener:
    """A listening Unix socket with mode 0600 that nobody else can take away.

    The lock file beside the socket is taken before the path is touched, so a path found in the way is left over and may be
    removed; the lock file itself stays for ever (removing it would let two processes lock different files).
    Raises `conflict` when another process listens there, `invalid-config` for a path that is too long or no socket,
    `permissive-mode` and `io-error` for a directory that cannot be used.
    """

    def __init__(self, path: str) -> None:
        self.path = check_socket_path(path)
        directory = os.path.dirname(path)
        try:
            os.makedirs(directory, mode=0o700, exist_ok=True)
        except OSError as error:
            raise NetError(
                "io-error",
                f"the socket directory {directory} cannot be made: {error.strerror}",
                "choose another NET_RUNTIME_DIR",
            ) from error
        if os.stat(directory).st_mode & 0o077:
            raise NetError(
                "permissive-mode",
                f"the directory {directory} of the peer socket is open to other users",
                f"chmod 700 {directory}",
            )
        self._lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            self.sock = self._bind()
        except BaseException:
            os.close(self._lock)
            raise

    def _bind(self) -> socket.socket:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise NetError("conflict", f"another process listens on {self.path}", details={"path": self.path}) from None
        try:
            mode = os.lstat(self.path).st_mode
        except FileNotFoundError:
            pass
        else:
            if not stat.S_ISSOCK(mode):
                raise NetError(
                    "invalid-config", f"{self.path} is in the way and is no socket", f"move {self.path} away"
                )
            os.unlink(self.path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # Linux gives the path the mode of the unbound socket: there is no moment at which others may connect.
            os.fchmod(sock.fileno(), 0o600)
            sock.bind(self.path)
            sock.listen(BACKLOG)
            sock.setblocking(False)
        except BaseException:
            sock.close()
            raise
        return sock

    def close(self) -> None:
        """Stop listening, remove the path, give up the lock. May be called twice."""
        if self._lock < 0:
            return
        self.sock.close()
        try:
            os.unlink(self.path)
        except FileNotFoundError:
            pass  # somebody cleaned the runtime directory; the aim is reached
        os.close(self._lock)
        self._lock = -1


async def connect_unix(path: str) -> socket.socket:
    """A connected non-blocking socket. Waits while the listener's backlog is full: the caller sets the limit.

    Raises `node-unreachable` when nobody listens there, `peer-uid` when it is not one of us.
    """
    check_socket_path(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        # Not loop.sock_connect: for a full backlog a Unix socket says EAGAIN, which that takes for "in progress".
        while (code := sock.connect_ex(path)) == errno.EAGAIN:
            await asyncio.sleep(_RETRY_S)
        if code:
            raise NetError(
                "node-unreachable",
                f"nobody listens on {path}: {os.strerror(code)}",
                "see which nodes live: net node ls",
                {"path": path},
            )
        check_peer_uid(sock)
    except BaseException:
        sock.close()
        raise
    return sock
