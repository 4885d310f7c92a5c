"""Option types: durations, times, ids and references, and the completion of names."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final

import click

from net_cli.context import App
from substrate.wire.errors import NetError

COMPLETION_TIMEOUT_S: Final = 0.5
MAX_COMPLETIONS: Final = 1000


class _Parsed(click.ParamType[Any]):
    """A type whose text one function of `substrate.wire` reads."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self.parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The parsed value; what is no text was parsed before."""
        if not isinstance(value, str):
            return value
        try:
            return self.parse(value)
        except NetError as error:
            self.fail(f"{error.message} ({error.hint})" if error.hint else error.message, param, ctx)


def _duration(text: str) -> int:
    from substrate.wire.times import parse_duration_ms

    return parse_duration_ms(text)


def _positive_duration(text: str) -> int:
    value = _duration(text)
    if value == 0:
        raise NetError("invalid-argument", "the duration must be longer than 0")
    return value


def _moment(text: str) -> str:
    from substrate.wire.times import iso, now_ms, parse_duration_ms, parse_iso

    if "-" in text or ":" in text:
        return iso(parse_iso(text))
    return iso(now_ms() - parse_duration_ms(text))


def _hexadecimal(length: int) -> Callable[[str], str]:
    def parse(text: str) -> str:
        try:
            good = len(bytes.fromhex(text)) == length
        except ValueError:
            good = False
        if not good:
            raise NetError("invalid-argument", f"{text!r} is not {length} bytes in hex")
        return text.lower()

    return parse


def _label(text: str) -> str:
    if not text or len(text) > 128 or any(char.isspace() or not char.isprintable() for char in text):
        raise NetError("invalid-argument", f"{text!r} is no label: 1 to 128 printable characters without spaces")
    return text


def _reference(text: str) -> str:
    if not text or len(text) > 128 or not text.isprintable():
        raise NetError("invalid-argument", f"{text!r} is neither a name nor an id")
    return text


DURATION: Final = _Parsed("duration", _duration)
"""`30s`, `5m`, `1h30m`; the value is milliseconds."""
POSITIVE_DURATION: Final = _Parsed("duration", _positive_duration)
"""A duration above zero."""
MOMENT: Final = _Parsed("time", _moment)
"""An ISO 8601 time, or a duration that means so long ago; the value is ISO 8601 in UTC."""
KEY_HEX: Final = _Parsed("hex", _hexadecimal(32))
"""32 bytes in hex."""
SIGNATURE_HEX: Final = _Parsed("hex", _hexadecimal(64))
"""64 bytes in hex."""
LABEL: Final = _Parsed("label", _label)
"""A node or daemon label."""
REF: Final = _Parsed("reference", _reference)
"""A name, an id, or a unique beginning of a name; the node resolves it."""

Completer = Callable[[click.Context, click.Parameter, str], list[str]]


def complete(kind: str) -> Completer:
    """A completer of node, daemon, chain, operator (asked of the node), identity or profile names (read from disk)."""

    def completer(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
        app = ctx.find_object(App)
        if app is None:
            return []
        try:
            names = _local_names(app, kind) if kind in ("identity", "profile") else _remote_names(app, kind)
        except (NetError, OSError):
            return []  # a shell's prompt is no place for errors
        return [name for name in names if name.startswith(incomplete)][:MAX_COMPLETIONS]

    return completer


def _local_names(app: App, kind: str) -> list[str]:
    from net_cli.config import config_path, read_config
    from substrate.wire.paths import operator_directory

    if kind == "profile":
        return sorted(read_config(*config_path(app.flags.get("config"))).get("profiles", {}))
    return sorted(entry[:-4] for entry in os.listdir(operator_directory()) if entry.endswith(".key"))


def _remote_names(app: App, kind: str) -> list[str]:
    app.flags["timeout"] = int(COMPLETION_TIMEOUT_S * 1000)
    with app.attach() as client:
        return sorted(str(row["name"]) for row in client.get("/v1/names", kind=kind))
