"""The socket file of a node: who may listen on the path, and who may talk through it.

Contract section 8: directory 0700, socket 0600, a lock file taken before the path is touched, and only a
socket is ever unlinked. The lock file stays behind for ever: removing it would let two processes hold "the" lock.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import struct
from typing import Final, NamedTuple

from substrate.wire.errors import NetError
from substrate.wire.paths import check_socket_path

BACKLOG: Final = 128
_CREDENTIALS: Final = struct.Struct("3i")


class Peer(NamedTuple):
    """The process at the other end of a connection, as the kernel saw it when it connected."""

    pid: int
    uid: int
    gid: int


def peer_of(connected: socket.socket) -> Peer:
    """`SO_PEERCRED` of a connected Unix socket."""
    return Peer(*_CREDENTIALS.unpack(connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)))


def check_peer(peer: Peer) -> None:
    """Raise `peer-uid` unless the peer runs as this process's user or as root."""
    if peer.uid not in (os.geteuid(), 0):
        raise NetError(
            "peer-uid",
            f"user {peer.uid} may not talk to this node: it belongs to user {os.geteuid()}",
            "run the command as the user that started the node",
            {"uid": peer.uid},
        )


class SocketFile:
    """A listening Unix socket at `path`, held from construction to `close`.

    Raises `invalid-config` (path longer than 107 bytes, or its place taken by something that is not a socket),
    `permissive-mode` (directory open to others), `node-running` (another process holds the path), `io-error`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = check_socket_path(os.path.abspath(os.fspath(path)))
        _prepare_directory(os.path.dirname(self.path))
        self._lock_fd = _take_lock(self.path)
        try:
            _clear_stale(self.path)
            self.listener = _listen(self.path)
        except BaseException:
            os.close(self._lock_fd)
            raise
        status = os.lstat(self.path)
        self._inode = (status.st_dev, status.st_ino)
        self._open = True

    def close(self) -> None:
        """Stop listening, remove the socket if it still is ours, let go of the lock. May be called twice."""
        if not self._open:
            return
        self._open = False
        self.listener.close()
        try:
            status = os.lstat(self.path)
            if (status.st_dev, status.st_ino) == self._inode:
                os.unlink(self.path)
        except FileNotFoundError:
            pass  # somebody removed it: what we wanted
        finally:
            os.close(self._lock_fd)


def _prepare_directory(directory: str) -> None:
    try:
        os.makedirs(os.path.dirname(directory), exist_ok=True)
        try:
            os.mkdir(directory, 0o700)
        except FileExistsError:
            pass
        status = os.lstat(directory)
    except OSError as failure:
        raise NetError("io-error", f"the socket directory {directory} cannot be made: {failure.strerror}") from failure
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise NetError(
            "invalid-config",
            f"{directory} is not a directory of user {os.geteuid()}",
            "point NET_RUNTIME_DIR at a directory of your own",
        )
    if status.st_mode & 0o077:
        raise NetError(
            "permissive-mode",
            f"the socket directory {directory} is open to other users",
            f"chmod 700 {directory}",
            {"path": directory, "mode": f"{stat.S_IMODE(status.st_mode):04o}"},
        )


def _take_lock(path: str) -> int:
    lock = path + ".lock"
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as failure:
        raise NetError("io-error", f"the lock file {lock} cannot be opened: {failure.strerror}") from failure
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as failure:
        os.close(descriptor)
        if failure.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise NetError(
                "node-running",
                f"another process listens on {path}",
                "net node stop, or choose another node name",
                {"path": path},
            ) from None
        raise NetError("io-error", f"the lock file {lock} cannot be locked: {failure.strerror}") from failure
    return descriptor


def _clear_stale(path: str) -> None:
    """Remove what a killed owner left: we hold the lock, so a socket here has no listener of ours behind it."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise NetError("invalid-config", f"{path} exists and is not a socket", f"move {path} away", {"path": path})
    os.unlink(path)


def _listen(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.fchmod(listener.fileno(), 0o600)  # Linux gives the file the socket's own mode: 0600 from the first moment
        listener.bind(path)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as failure:
        listener.close()
        raise NetError("io-error", f"the socket {path} cannot be made: {failure.strerror}") from failure
    return listener
