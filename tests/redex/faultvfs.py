"""A SQLite VFS that fails on cue and can forget what was not synced: crashes and power cuts without a machine to cut.

Counts the writes, truncations and syncs of all files opened through it. At the n-th one it does what `fault` says.
`power_cut()` undoes, in every file, what was written since that file's last sync. Names (create, delete) are durable at once, as
on a journalling file system; content and size are not.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import apsw

_names = itertools.count()


class Fault(Enum):
    """What happens at the chosen operation."""

    CRASH = "the process dies before it: nothing works afterwards"
    TORN = "the process dies in the middle of it: half of the bytes are written"
    EIO = "it fails once"
    ENOSPC = "the disk is full from then on, until `release()`; syncs still work"
    SHORT = "the disk gets full in the middle of it: half of the bytes are written"


class FaultVFS(apsw.VFS):
    """Use it as `Store.open(..., vfs=fault_vfs.name)` and `unregister()` it afterwards."""

    def __init__(self, fault: Fault | None = None, at: int = 0) -> None:
        self.name = f"fault-{next(_names)}"
        self.fault = fault
        self.at = at
        self.operations = 0
        self.dead = False
        self.full = False
        self.full_for: Callable[[str], bool] = lambda name: True
        """Which files find no space while the disk is full."""
        self.struck = False
        self.unsynced: dict[str, list[tuple[int, bytes, int]]] = {}
        super().__init__(self.name, "")

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> FaultFile:
        return FaultFile(self, name, flags)

    def xDelete(self, name: str, sync_directory: bool) -> None:
        if self.dead:
            raise apsw.IOError("the process is dead")
        super().xDelete(name, sync_directory)
        self.unsynced.pop(name, None)

    def release(self) -> None:
        """There is space again."""
        self.full = False

    def step(self, name: str, size: int | None, write: Callable[[int], None]) -> None:
        """One operation on file `name` of `size` bytes (None: a sync), done by `write(how many of them)`."""
        if self.dead:
            raise apsw.IOError("the process is dead")
        self.operations += 1
        if self.operations == self.at and self.fault is not None:
            self._strike(self.fault, size, write)
        if self.full and size and self.full_for(name):
            raise apsw.FullError("no space")
        write(size or 0)

    def _strike(self, fault: Fault, size: int | None, write: Callable[[int], None]) -> None:
        if fault in (Fault.ENOSPC, Fault.SHORT):
            if size is None:
                return  # a full disk does not fail syncs
            self.full = True
        self.struck = True
        if fault in (Fault.TORN, Fault.SHORT) and size:
            write(size // 2)
        if fault in (Fault.CRASH, Fault.TORN):
            self.dead = True
            raise apsw.IOError("the process dies")
        if fault is Fault.EIO:
            raise apsw.IOError("input/output error")

    def power_cut(self) -> None:
        """Undo what was not synced. Only when no connection is open any more."""
        for name, undo in self.unsynced.items():
            if not Path(name).exists():
                continue
            with open(name, "r+b") as file:
                for offset, old, size in reversed(undo):
                    file.seek(offset)
                    file.write(old)
                    file.truncate(size)
        self.unsynced.clear()


class FaultFile(apsw.VFSFile):
    """A file that asks its VFS before every write, truncation and sync, and keeps what it overwrites."""

    def __init__(self, vfs: FaultVFS, name: str | apsw.URIFilename | None, flags: list[int]) -> None:
        self._vfs = vfs
        filename = name.filename() if isinstance(name, apsw.URIFilename) else name
        self._name = os.path.abspath(filename) if filename else ""
        super().__init__("", name, flags)

    def _remember(self, offset: int, length: int) -> None:
        size = self.xFileSize()
        there = max(0, min(length, size - offset))
        old = self.xRead(there, offset) if there else b""
        self._vfs.unsynced.setdefault(self._name, []).append((offset, old, size))

    def xWrite(self, data: Any, offset: int) -> None:
        content = bytes(data)

        def write(count: int) -> None:
            self._remember(offset, count)
            super(FaultFile, self).xWrite(content[:count], offset)

        self._vfs.step(self._name, len(content), write)

    def xTruncate(self, size: int) -> None:
        def truncate(_: int) -> None:
            self._remember(size, max(0, self.xFileSize() - size))
            super(FaultFile, self).xTruncate(size)

        self._vfs.step(self._name, 0, truncate)

    def xSync(self, flags: int) -> None:
        def sync(_: int) -> None:
            super(FaultFile, self).xSync(flags)
            self._vfs.unsynced.pop(self._name, None)

        self._vfs.step(self._name, None, sync)
