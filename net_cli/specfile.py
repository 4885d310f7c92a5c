"""Daemon spec files: TOML with `[[daemon]]` tables (contract section 10)."""

from __future__ import annotations

from typing import Any, Final

from net_cli.appending import source
from substrate.wire.errors import NetError

MAX_FILE_BYTES: Final = 4 * 1024 * 1024
MAX_DAEMONS: Final = 1000


def read_specs(file: str) -> list[dict[str, Any]]:
    """The checked specs of a file (`-` is stdin), in its order; raises `invalid-argument`, `file-not-found`."""
    import tomllib

    from substrate.wire.specs import DaemonSpec

    where = "stdin" if file == "-" else file
    with source(file, None) as stream:
        content = stream.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise NetError("too-large", f"{where} is larger than {MAX_FILE_BYTES} bytes", "split it")
    try:
        document = tomllib.loads(content.decode())
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError
        raise NetError("invalid-argument", f"{where}: {error}", f"edit {where}", {"file": where}) from None
    tables = document.pop("daemon", None)
    if document or not isinstance(tables, list) or not tables or len(tables) > MAX_DAEMONS:
        unknown = f"the key {min(document)!r} is unknown" if document else "it holds no [[daemon]] tables"
        raise NetError("invalid-argument", f"{where}: {unknown}", "write [[daemon]] tables", {"file": where})
    try:
        specs = [DaemonSpec.parse(table).to_json() for table in tables]
    except NetError as error:
        raise NetError(error.kind, f"{where}: {error.message}", error.hint, error.details) from None
    names = [spec["name"] for spec in specs]
    if len(set(names)) < len(names):
        double = next(name for name in names if names.count(name) > 1)
        raise NetError("invalid-argument", f"{where}: two daemons are called {double!r}", "rename one", {"file": where})
    return specs
