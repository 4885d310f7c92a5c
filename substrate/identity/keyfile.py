"""Operator key files: `<config home>/operator/<name>.key` (contract section 4).

A key is created 0600 from its first byte and never overwritten; every read refuses a file others could read, and one whose
stored id or key does not match its seed. No flag skips these gates.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import tomllib
from typing import Any, Final

import msgspec

from substrate.identity.ids import fingerprint
from substrate.identity.keys import Keypair
from substrate.wire.errors import NetError
from substrate.wire.ids import check_name
from substrate.wire.times import iso, now_ms

VERSION: Final = 1
SUFFIX: Final = ".key"
NEXT_SUFFIX: Final = ".key.next"
"""The new key of a rotation that has not been finished."""
MAX_FILE_BYTES: Final = 16 * 1024


class KeyFile(msgspec.Struct, frozen=True):
    """A key file as read. `created_at` is ISO 8601; `keypair` holds the secret."""

    name: str
    path: str
    created_at: str
    note: str | None
    keypair: Keypair

    def document(self) -> dict[str, Any]:
        """What may be shown: everything but the seed."""
        return {
            "name": self.name,
            "operator_id": str(self.keypair.operator_id),
            "public_key": self.keypair.public_key.hex(),
            "fingerprint": fingerprint(self.keypair.public_key),
            "created_at": self.created_at,
            "note": self.note,
            "path": self.path,
        }


def key_path(directory: str, name: str) -> str:
    """Where the key called `name` lives."""
    return os.path.join(directory, check_name("identity", name) + SUFFIX)


def generate(directory: str, name: str, note: str | None = None) -> KeyFile:
    """Create a new random key; raises `identity-exists`."""
    return _create(key_path(directory, name), name, Keypair.generate(), note)


def import_seed(directory: str, name: str, seed: bytes, note: str | None = None) -> KeyFile:
    """Create a key file from a 32-byte seed; raises `identity-exists`."""
    return _create(key_path(directory, name), name, Keypair(seed), note)


def load(directory: str, name: str) -> KeyFile:
    """Read a key; raises `identity-not-found`, `permissive-mode`, `key-mismatch`, `invalid-config`."""
    return _load(key_path(directory, name), name, directory)


def names(directory: str) -> list[str]:
    """The names of the keys in `directory`, sorted; an absent directory holds none."""
    try:
        entries = os.listdir(directory)
    except FileNotFoundError:
        return []
    return sorted(entry[: -len(SUFFIX)] for entry in entries if entry.endswith(SUFFIX))


def begin_rotation(directory: str, name: str) -> tuple[KeyFile, KeyFile]:
    """(current key, next key): the next one is created beside the current, or found there after a crash."""
    current = load(directory, name)
    path = os.path.join(directory, name + NEXT_SUFFIX)
    if os.path.lexists(path):
        return current, _load(path, name, directory)
    return current, _create(path, name, Keypair.generate(), current.note)


def finish_rotation(directory: str, name: str) -> KeyFile:
    """After the ledger took the new key: make it the current one, keeping the retired key beside it."""
    path, next_path = key_path(directory, name), os.path.join(directory, name + NEXT_SUFFIX)
    fresh = _load(next_path, name, directory)
    retired = os.path.join(directory, f"{name}.retired-{now_ms()}")
    if os.path.lexists(path):
        os.link(path, retired)  # the old key stays on disk under its own name before its place is taken
    os.rename(next_path, path)
    _sync_directory(directory)
    return KeyFile(name, path, fresh.created_at, fresh.note, fresh.keypair)


def abandon_rotation(directory: str, name: str) -> None:
    """Remove the next key of a rotation the cluster refused; the current key stays as it is."""
    try:
        os.unlink(os.path.join(directory, name + NEXT_SUFFIX))
    except FileNotFoundError:
        return
    _sync_directory(directory)


def _require_linux() -> None:
    if sys.platform != "linux":
        raise NetError(
            "unsupported-platform",
            f"key files are guarded by Linux file modes; this is {sys.platform}",
            "run net on Linux",
        )


def _sync_directory(directory: str) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _create(path: str, name: str, keypair: Keypair, note: str | None) -> KeyFile:
    import tomli_w

    _require_linux()
    directory = os.path.dirname(path)
    try:
        os.makedirs(os.path.dirname(directory) or ".", mode=0o700, exist_ok=True)
        try:
            os.mkdir(directory, 0o700)
        except FileExistsError:
            pass  # made earlier, or by another process a moment ago
        _check_directory(directory)
        created_at = iso(now_ms())
        document: dict[str, Any] = {
            "version": VERSION,
            "name": name,
            "operator_id": str(keypair.operator_id),
            "public_key": keypair.public_key.hex(),
            "seed": keypair.seed().hex(),
            "created_at": created_at,
        }
        if note:
            document["note"] = note
        content = tomli_w.dumps(document).encode()
        # Written whole under a private name, then linked: a crash never leaves half a key under the real name.
        # link() fails where the name is taken, so nothing is ever overwritten.
        draft = os.path.join(directory, f".{os.path.basename(path)}.{os.getpid()}.{os.urandom(4).hex()}")
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            try:
                written = 0
                while written < len(content):
                    written += os.write(handle, content[written:])
                os.fsync(handle)
            finally:
                os.close(handle)
            os.link(draft, path, follow_symlinks=False)
        finally:
            os.unlink(draft)
        _sync_directory(directory)
    except FileExistsError:
        raise NetError(
            "identity-exists",
            f"there is an identity {name!r} already: {path}",
            "choose another name, or rotate it: net identity rotate " + name,
            {"path": path},
        ) from None
    except OSError as error:
        kind = "disk-full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "io-error"
        raise NetError(
            kind, f"cannot write {path}: {error.strerror}", "make room or check the directory", {"path": path}
        ) from error
    return KeyFile(name, path, created_at, note or None, keypair)


def _check_directory(directory: str) -> None:
    mode = stat.S_IMODE(os.stat(directory).st_mode)
    if mode & 0o077:
        raise NetError(
            "permissive-mode",
            f"the key directory {directory} is open to others (mode {mode:04o})",
            f"chmod 700 {directory}",
            {"path": directory, "mode": f"{mode:04o}"},
        )


def _load(path: str, name: str, directory: str) -> KeyFile:
    _require_linux()
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        known = ", ".join(names(directory)) or "none"
        raise NetError(
            "identity-not-found",
            f"there is no identity {name!r} in {directory}",
            f"known: {known}; create it with: net identity generate {name}",
            {"identity": name, "path": path},
        ) from None
    except OSError as error:
        raise NetError("io-error", f"cannot read {path}: {error.strerror}", f"look at {path}") from error
    try:
        status = os.fstat(handle)
        mode = stat.S_IMODE(status.st_mode)
        if not stat.S_ISREG(status.st_mode):
            raise NetError("invalid-config", f"{path} is no regular file", "put the key file itself there")
        if mode & 0o077:
            raise NetError(
                "permissive-mode",
                f"the key file {path} can be read by others (mode {mode:04o})",
                f"chmod 600 {path}",
                {"path": path, "mode": f"{mode:04o}"},
            )
        _check_directory(directory)
        content = os.read(handle, MAX_FILE_BYTES + 1)
    finally:
        os.close(handle)
    return _parse(path, name, content)


def _parse(path: str, name: str, content: bytes) -> KeyFile:
    hint = f"restore {path} from a backup, or import its seed: net identity import"
    try:
        if len(content) > MAX_FILE_BYTES:
            raise ValueError("it is too large")
        document = tomllib.loads(content.decode())
        if document["version"] != VERSION:
            raise ValueError(f"version {document['version']} is not known")
        keypair = Keypair(bytes.fromhex(document["seed"]))
        stored = (document["operator_id"], document["public_key"])
        created_at, note = document["created_at"], document.get("note")
        if not isinstance(created_at, str) or not isinstance(note, str | None):
            raise ValueError("a field has the wrong type")
    except (KeyError, TypeError, ValueError) as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else _without_secret(error)
        raise NetError("invalid-config", f"{path} is no key file: {reason}", hint, {"path": path}) from None
    if stored != (str(keypair.operator_id), keypair.public_key.hex()):
        raise NetError(
            "key-mismatch", f"the id or public key stored in {path} does not belong to its seed", hint, {"path": path}
        )
    return KeyFile(name, path, created_at, note, keypair)


def _without_secret(error: Exception) -> str:
    # A parser's message may quote the file, and the file holds the seed.
    return str(error) if str(error).startswith(("it is", "version", "a field", "a seed")) else "it cannot be parsed"
