"""A file system that forgets what was not synced: power cuts without cutting power.

    python lazyfs.py MOUNTPOINT [--torn SEED]     as root, on Linux with FUSE in the kernel; nothing to install

The model is that of a journalling file system in ordered mode: names (create, rename, unlink, mkdir) are durable at
once; content and size only after a sync of that file. A line `cut` on stdin is a power cut: everything written since a
file's last sync is undone; with --torn, a random first part of each file's unsynced writes survives. The answer is one
line of JSON. The end of stdin unmounts and ends the program.

It speaks the kernel's FUSE protocol (linux/fuse.h, version 7.31) itself, and only the part that a database, locks,
sockets and log files need.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import random
import select
import stat
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

_IN = struct.Struct("<IIQQIIII")
_OUT = struct.Struct("<IiQ")
_ATTR = struct.Struct("<QQQQQQIIIIIIIIII")
_SETATTR = struct.Struct("<IIQQQQQQIIIIIIII")
_MAX_WRITE = 128 * 1024
_ROOT = 1
_BIG_WRITES = 1 << 5
_SET_MODE, _SET_SIZE = 1, 8
_MNT_DETACH = 2


@dataclass
class Node:
    """A file, directory or socket. `undo` holds, for each unsynced change, offset, bytes replaced, and size before."""

    number: int
    mode: int
    data: bytearray = field(default_factory=bytearray)
    undo: list[tuple[int, bytes, int]] = field(default_factory=list)
    children: dict[bytes, Node] = field(default_factory=dict)
    links: int = 1
    changed: float = field(default_factory=time.time)

    def write(self, offset: int, data: bytes) -> None:
        size = len(self.data)
        self.undo.append((offset, bytes(self.data[offset : offset + len(data)]), size))
        if offset > size:
            self.data.extend(bytes(offset - size))
        self.data[offset : offset + len(data)] = data
        self.changed = time.time()

    def truncate(self, length: int) -> None:
        size = len(self.data)
        if length < size:
            self.undo.append((length, bytes(self.data[length:]), size))
            del self.data[length:]
        elif length > size:
            self.undo.append((size, b"", size))
            self.data.extend(bytes(length - size))
        self.changed = time.time()

    def forget(self, keep: int) -> int:
        """Undo all but the first `keep` unsynced changes; returns how many were undone."""
        undone = len(self.undo) - keep
        while len(self.undo) > keep:
            offset, old, size = self.undo.pop()
            del self.data[size:]
            self.data.extend(bytes(size - len(self.data)))
            self.data[offset : offset + len(old)] = old
        self.undo.clear()
        return undone


class Refusal(Exception):
    """An errno for the kernel."""

    def __init__(self, number: int) -> None:
        super().__init__(os.strerror(number))
        self.number = number


class LazyFS:
    """The tree and the operations on it; each takes the node number and the request's body and returns the reply's."""

    def __init__(self, torn: int | None) -> None:
        self._rng = None if torn is None else random.Random(torn)
        self._nodes = {_ROOT: Node(_ROOT, stat.S_IFDIR | 0o700)}
        self._next = _ROOT + 1
        self.syncs = self.cuts = self.undone = 0
        self._operations: dict[int, Callable[[int, bytes], bytes | None]] = {
            1: self._lookup, 2: self._ignore, 3: self._getattr, 4: self._setattr, 8: self._mknod, 9: self._mkdir,
            10: self._unlink, 11: self._rmdir, 12: self._rename, 14: self._open, 15: self._read, 16: self._write,
            17: self._statfs, 18: self._nothing, 20: self._fsync, 25: self._nothing, 26: self._init, 27: self._open,
            28: self._readdir, 29: self._nothing, 30: self._nothing, 35: self._create, 36: self._ignore,
            42: self._ignore, 45: self._rename2,
        }  # fmt: skip

    def handle(self, request: bytes) -> bytes | None:
        """Answer one request of the kernel; None where it wants no answer."""
        length, opcode, unique, number, *_ = _IN.unpack_from(request)
        try:
            operation = self._operations.get(opcode)
            if operation is None:
                raise Refusal(errno.ENOSYS)
            body = operation(number, request[_IN.size : length])
        except Refusal as refusal:
            return _OUT.pack(_OUT.size, -refusal.number, unique)
        return None if body is None else _OUT.pack(_OUT.size + len(body), 0, unique) + body

    def cut(self) -> dict[str, int]:
        """The power fails and comes back."""
        self.cuts += 1
        for node in self._nodes.values():
            self.undone += node.forget(self._rng.randint(0, len(node.undo)) if self._rng and node.undo else 0)
        return {"cuts": self.cuts, "undone": self.undone, "syncs": self.syncs}

    # -- names

    def _add(self, parent: int, name: bytes, mode: int) -> Node:
        directory = self._nodes[parent]
        if name in directory.children:
            raise Refusal(errno.EEXIST)
        node = Node(self._next, mode)
        self._next += 1
        self._nodes[node.number] = directory.children[name] = node
        return node

    def _child(self, parent: int, name: bytes) -> Node:
        try:
            return self._nodes[parent].children[name]
        except KeyError:
            raise Refusal(errno.ENOENT) from None

    def _lookup(self, number: int, body: bytes) -> bytes:
        return _entry(self._child(number, body.rstrip(b"\0")))

    def _mknod(self, number: int, body: bytes) -> bytes:
        (mode,) = struct.unpack_from("<I", body)
        return _entry(self._add(number, body[16:].rstrip(b"\0"), mode))

    def _mkdir(self, number: int, body: bytes) -> bytes:
        (mode,) = struct.unpack_from("<I", body)
        return _entry(self._add(number, body[8:].rstrip(b"\0"), stat.S_IFDIR | mode))

    def _create(self, number: int, body: bytes) -> bytes:
        _, mode = struct.unpack_from("<II", body)
        return _entry(self._add(number, body[16:].rstrip(b"\0"), stat.S_IFREG | mode)) + bytes(16)

    def _unlink(self, number: int, body: bytes) -> bytes:
        name = body.rstrip(b"\0")
        self._child(number, name).links = 0  # an open one is still reached by its number
        del self._nodes[number].children[name]
        return b""

    def _rmdir(self, number: int, body: bytes) -> bytes:
        if self._child(number, body.rstrip(b"\0")).children:
            raise Refusal(errno.ENOTEMPTY)
        return self._unlink(number, body)

    def _rename(self, number: int, body: bytes, skip: int = 8) -> bytes:
        (target,) = struct.unpack_from("<Q", body)
        old, new = body[skip:].split(b"\0")[:2]
        node = self._child(number, old)
        replaced = self._nodes[target].children.get(new)
        if replaced is not None and replaced is not node:
            replaced.links = 0
        del self._nodes[number].children[old]
        self._nodes[target].children[new] = node
        return b""

    def _rename2(self, number: int, body: bytes) -> bytes:
        _, flags = struct.unpack_from("<QI", body)
        if flags:
            raise Refusal(errno.EINVAL)
        return self._rename(number, body, 16)

    def _readdir(self, number: int, body: bytes) -> bytes:
        _, offset, size = struct.unpack_from("<QQI", body)
        listing = bytearray()
        entries = sorted(self._nodes[number].children.items())
        for position, (name, node) in list(enumerate(entries, 1))[offset:]:
            entry = struct.pack("<QQII", node.number, position, len(name), node.mode >> 12) + name
            entry += bytes(-len(entry) % 8)
            if len(listing) + len(entry) > size:
                break
            listing += entry
        return bytes(listing)

    # -- content

    def _getattr(self, number: int, _: bytes) -> bytes:
        return struct.pack("<QII", 0, 0, 0) + _attributes(self._nodes[number])

    def _setattr(self, number: int, body: bytes) -> bytes:
        fields = _SETATTR.unpack_from(body)
        node, valid = self._nodes[number], fields[0]
        if valid & _SET_MODE:
            node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(fields[11])
        if valid & _SET_SIZE:
            node.truncate(fields[3])
        return self._getattr(number, b"")

    def _open(self, number: int, _: bytes) -> bytes:
        return bytes(16)  # no handle needed; the page cache is dropped at each open

    def _read(self, number: int, body: bytes) -> bytes:
        _, offset, size = struct.unpack_from("<QQI", body)
        return bytes(self._nodes[number].data[offset : offset + size])

    def _write(self, number: int, body: bytes) -> bytes:
        _, offset, size = struct.unpack_from("<QQI", body)
        self._nodes[number].write(offset, body[40 : 40 + size])
        return struct.pack("<II", size, 0)

    def _fsync(self, number: int, _: bytes) -> bytes:
        self.syncs += 1
        self._nodes[number].undo.clear()
        return b""

    # -- the rest

    def _init(self, _: int, body: bytes) -> bytes:
        _, _, readahead, flags = struct.unpack_from("<IIII", body)
        return struct.pack("<IIIIHHII", 7, 31, readahead, flags & _BIG_WRITES, 16, 12, _MAX_WRITE, 1) + bytes(36)

    def _statfs(self, _: int, __: bytes) -> bytes:
        free = 1 << 20
        return struct.pack("<QQQQQIIII", 2 * free, free, free, free, free, 4096, 255, 4096, 0) + bytes(24)

    def _nothing(self, _: int, __: bytes) -> bytes:
        return b""

    def _ignore(self, _: int, __: bytes) -> None:
        return None


def _attributes(node: Node) -> bytes:
    size, seconds = len(node.data), int(node.changed)
    nanoseconds = int((node.changed - seconds) * 1e9)
    return _ATTR.pack(
        node.number, size, (size + 511) // 512, seconds, seconds, seconds, nanoseconds, nanoseconds, nanoseconds,
        node.mode, 2 if stat.S_ISDIR(node.mode) else node.links, os.getuid(), os.getgid(), 0, 4096, 0,
    )  # fmt: skip


def _entry(node: Node) -> bytes:
    return struct.pack("<QQQQII", node.number, 0, 0, 0, 0, 0) + _attributes(node)


def mount(directory: str) -> int:
    """Mount on `directory`; returns the descriptor to serve. Raises OSError where that is not allowed."""
    libc = ctypes.CDLL(None, use_errno=True)
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={device},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}"
    if libc.mount(b"lazyfs", os.fsencode(directory), b"fuse", 0, options.encode()) != 0:
        os.close(device)
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), directory)
    return device


def unmount(directory: str) -> None:
    """Unmount; what still uses it is cut off when the program ends."""
    ctypes.CDLL(None).umount2(os.fsencode(directory), _MNT_DETACH)


def main() -> None:
    directory = sys.argv[1]
    torn = int(sys.argv[sys.argv.index("--torn") + 1]) if "--torn" in sys.argv else None
    system, device = LazyFS(torn), mount(directory)
    print(json.dumps({"mounted": directory}), flush=True)
    try:
        while True:
            ready, _, _ = select.select([device, sys.stdin], [], [])
            if device in ready:
                try:
                    request = os.read(device, _MAX_WRITE + 4096)
                except OSError as error:
                    if error.errno == errno.ENODEV:
                        return  # unmounted by somebody else
                    if error.errno in (errno.ENOENT, errno.EINTR, errno.EAGAIN):
                        continue  # the request was taken back
                    raise
                reply = system.handle(request)
                if reply is not None:
                    try:
                        os.write(device, reply)
                    except FileNotFoundError:
                        pass  # whoever asked has been killed
            elif sys.stdin in ready:  # only when the kernel has nothing more to say
                if not sys.stdin.readline():
                    return
                print(json.dumps(system.cut()), flush=True)
    finally:
        unmount(directory)


if __name__ == "__main__":
    main()
