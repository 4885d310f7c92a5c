"""`config.toml`, the `NET_*` variables and the flags, merged: flag > environment > profile > default (contract section 2).

Nothing here imports click, and `tomllib` only when a config file exists.
"""

from __future__ import annotations

import os
from typing import Any, Final, NamedTuple

from substrate.wire.errors import NetError


class Key(NamedTuple):
    """One setting: its name in the file, its variable, the kind of value, and what it is for."""

    name: str
    variable: str
    kind: str
    help: str


KEYS: Final = (
    Key("socket", "NET_SOCKET", "text", "control socket to attach to"),
    Key("cluster", "NET_CLUSTER", "name", "cluster on this machine"),
    Key("via", "NET_VIA", "text", "node to attach to"),
    Key("operator", "NET_OPERATOR", "text", "identity that signs"),
    Key("timeout", "NET_TIMEOUT", "duration", "longest wait for an answer"),
    Key("output", "NET_OUTPUT", "output", "pretty or json"),
    Key("netdb", "NET_NETDB", "text", "path of the local NetDB store"),
    Key("ice_signature_threshold", "NET_ICE_SIGNATURE_THRESHOLD", "count", "may only raise the ledger's threshold"),
    Key("read_only", "NET_READ_ONLY", "flag", "refuse every write"),
)
BY_NAME: Final = {key.name: key for key in KEYS}
PROFILE_VARIABLE: Final = "NET_PROFILE"
CONFIG_VARIABLE: Final = "NET_CONFIG"
MAX_CONFIG_BYTES: Final = 1024 * 1024
DEFAULTS: Final[dict[str, Any]] = {"cluster": "default", "timeout": 30_000, "read_only": False}
"""What holds where nobody says otherwise; `timeout` is in milliseconds."""
_FLAG_WORDS: Final = {
    "1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False,
}  # fmt: skip


class Value(NamedTuple):
    """A resolved setting. `rank` orders sources (3 flag, 2 environment, 1 profile, 0 default); `source` names it."""

    value: Any
    rank: int
    source: str


def config_path(flag: str | None) -> tuple[str, bool]:
    """(path of the config file, whether somebody named it explicitly)."""
    from substrate.wire.paths import config_home

    named = flag or os.environ.get(CONFIG_VARIABLE)
    return (named, True) if named else (os.path.join(config_home(), "config.toml"), False)


def read_config(path: str, named: bool) -> dict[str, Any]:
    """The tables of the file, checked; an absent file nobody named is empty. Raises `invalid-config`."""
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_CONFIG_BYTES + 1)
    except FileNotFoundError:
        if not named:
            return {}
        raise NetError(
            "invalid-config", f"there is no config file {path}", f"create {path}, or drop --config"
        ) from None
    except OSError as error:
        raise NetError("invalid-config", f"cannot read {path}: {error.strerror}", f"look at {path}") from error
    if len(content) > MAX_CONFIG_BYTES:
        raise NetError("invalid-config", f"{path} is larger than {MAX_CONFIG_BYTES} bytes", f"edit {path}")
    import tomllib

    try:
        document = tomllib.loads(content.decode())
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError
        raise NetError("invalid-config", f"{path}: {error}", f"edit {path}") from None
    _check_tables(path, document)
    return document


def _check_tables(path: str, document: dict[str, Any]) -> None:
    for name, table in document.items():
        if name not in ("default", "profiles"):
            raise _invalid(path, f"the key {name!r} is unknown at the top", "use [default] and [profiles.NAME]", name)
        if not isinstance(table, dict):
            raise _invalid(path, f"{name!r} must be a table", f"write [{name}]", name)
    for name, table in document.get("profiles", {}).items():
        if not isinstance(table, dict):
            raise _invalid(path, f"the profile {name!r} must be a table", f"write [profiles.{name}]", name)
    tables = {"default": document.get("default", {})}
    tables |= {f"profiles.{name}": table for name, table in document.get("profiles", {}).items()}
    for where, table in tables.items():
        for key, raw in table.items():
            check_value(path, f"[{where}] ", key, raw)


def _invalid(path: str, problem: str, hint: str, key: str) -> NetError:
    return NetError("invalid-config", f"{path}: {problem}", hint, {"file": path, "key": key})


def check_value(source: str, where: str, name: str, raw: Any) -> Any:
    """The typed value of one setting; raises `invalid-config` naming `source` and the key."""
    key = BY_NAME.get(name)
    if key is None:
        known = ", ".join(BY_NAME)
        raise _invalid(source, f"{where}the key {name!r} is unknown", f"known keys: {known}", name)
    if key.kind == "duration" and (isinstance(raw, str) or type(raw) is int):
        from substrate.wire.times import parse_duration_ms

        try:
            return parse_duration_ms(str(raw))
        except NetError as error:
            raise _invalid(source, f"{where}{name}: {error.message}", error.hint or "", name) from None
    if key.kind == "count" and type(raw) is int and raw >= 1:
        return raw
    if key.kind == "flag" and isinstance(raw, bool):
        return raw
    if key.kind == "output" and raw in ("pretty", "json"):
        return raw
    if key.kind == "text" and isinstance(raw, str) and raw:
        return raw
    if key.kind == "name" and isinstance(raw, str):
        return check_cluster(raw, f"{source}: {where}{name}: ")
    wanted = {
        "count": "a whole number from 1", "flag": "true or false", "output": '"pretty" or "json"',
        "duration": 'a duration like "30s"',
    }.get(key.kind, "a non-empty text")  # fmt: skip
    raise _invalid(source, f"{where}{name} must be {wanted}", f"change {name} in {source}", name)


def check_cluster(name: str, where: str = "") -> str:
    """Return a cluster name that may become a directory; raises `invalid-argument` (`invalid-config` with `where`)."""
    from substrate.wire.ids import check_name

    try:
        return check_name("cluster", name)
    except NetError as error:
        raise NetError("invalid-config" if where else error.kind, where + error.message, error.hint) from None


def _from_environment(key: Key) -> Any:
    raw: Any = os.environ.get(key.variable)
    if not raw:
        return None
    if key.kind == "flag":
        raw = _FLAG_WORDS.get(raw.lower(), raw)
    elif key.kind == "count" and raw.isascii() and raw.isdigit():
        raw = int(raw)
    return check_value(key.variable, "", key.name, raw)


def resolve(flags: dict[str, Any]) -> dict[str, Value]:
    """Every setting that has a value. `flags` holds what the command line said (timeout in ms).

    Raises `invalid-config` and `profile-not-found`.
    """
    path, named = config_path(flags.get("config"))
    document = read_config(path, named)
    profile = flags.get("profile") or os.environ.get(PROFILE_VARIABLE)
    profiles = document.get("profiles", {})
    if profile and profile not in profiles:
        known = ", ".join(sorted(profiles)) or "none"
        raise NetError(
            "profile-not-found",
            f"there is no profile {profile!r} in {path}",
            f"known: {known}; add [profiles.{profile}] to {path}",
            {"profile": profile, "file": path},
        )
    values = {name: Value(value, 0, "built in") for name, value in DEFAULTS.items()}
    layers = [("default", document.get("default", {}), 0)]
    if profile:
        layers.append((f"profiles.{profile}", profiles[profile], 1))
    for where, table, rank in layers:
        for name, raw in table.items():
            values[name] = Value(check_value(path, f"[{where}] ", name, raw), rank, f"{path} [{where}]")
    for key in KEYS:
        found = _from_environment(key)
        if found is not None:
            values[key.name] = Value(found, 2, key.variable)
    for name, value in flags.items():
        if name in BY_NAME and value is not None:
            values[name] = Value(value, 3, "--" + name)
    check_cluster(values["cluster"].value)
    return values
