"""A node's own key: `<node dir>/node.key`, 32 bytes as hex, 0600, made at the first start."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from substrate.identity.keys import Keypair
from substrate.wire.errors import NetError


def load_or_create(directory: Path) -> Keypair:
    """The node's key; raises `permissive-mode` or `invalid-config` for a file that is not as it was made."""
    path = directory / "node.key"
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return _create(directory, path)
    try:
        mode = stat.S_IMODE(os.fstat(handle).st_mode)
        content = os.read(handle, 256)
    finally:
        os.close(handle)
    if mode & 0o077:
        raise NetError(
            "permissive-mode",
            f"the node key {path} can be read by others (mode {mode:04o})",
            f"chmod 600 {path}",
            {"path": str(path), "mode": f"{mode:04o}"},
        )
    try:
        return Keypair(bytes.fromhex(content.decode("ascii").strip()))
    except ValueError:
        raise NetError(
            "invalid-config",
            f"{path} holds no node key",
            "restore it, or remove the node (net node rm) and start it under a new name",
            {"path": str(path)},
        ) from None


def _create(directory: Path, path: Path) -> Keypair:
    keypair = Keypair.generate()
    draft = directory / f".node.key.{os.getpid()}"
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(keypair.seed().hex().encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    os.rename(draft, path)
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return keypair
