"""`net admin policy`: the cluster's settings, themselves changed by signed commands."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from net_cli.context import App, pass_app
from net_cli.core import group
from net_cli.options import OUT, PREVIEW, REASON, choices, decorate


@group("policy", examples=["net admin policy show", "net admin policy set commit_window_ms=2m --operator alice"])
def policy() -> None:
    """Show and change the cluster's policy."""


@policy.command("show", examples=["net admin policy show --json"])
@pass_app
def show(app: App) -> None:
    """Show the policy in force."""
    with app.attach() as client:
        app.out.record(client.get("/v1/policy"), _view)


def _view(settings: dict[str, Any]) -> Iterator[str]:
    from net_cli.output import screen_width
    from net_cli.table import Column, duration, table

    rows: list[dict[str, Any]] = [{"name": name, **setting} for name, setting in settings.items()]

    def value(row: dict[str, Any]) -> Any:
        return duration(row["value"]) if row["name"].endswith("_ms") else row["value"]

    columns = (Column("SETTING", "name"), Column("VALUE", value, right=True), Column("MEANING", "meaning"))
    yield from table(rows, columns, screen_width(), False)


@policy.command(
    "set",
    examples=[
        "net admin policy set commit_window_ms=2m --operator alice",
        "net admin policy set commit_window_ms=2m --out p.json --operator alice",
    ],
)
@decorate(
    click.Argument(["changes"], nargs=-1, required=True, metavar="KEY=VALUE...", help="Settings to change."),
    REASON,
    PREVIEW,
    OUT,
)
@pass_app
def set_(app: App, /, changes: tuple[str, ...], **values: Any) -> None:
    """Change settings of the policy; those not named stay.

    Settings ending in _ms take durations (30s, 5m), the others whole numbers. Needs the ledger's threshold of signatures.
    """
    from net_cli.signing import command

    command(app, {"kind": "policy", "changes": dict(map(_change, changes))}, choices(values))


def _change(text: str) -> tuple[str, int]:
    from substrate.wire.errors import NetError
    from substrate.wire.times import parse_duration_ms

    key, _, value = text.partition("=")
    if not key or not value:
        raise NetError("invalid-argument", f"{text!r} is not KEY=VALUE", "write it like commit_window_ms=2m")
    if key.endswith("_ms"):
        if value.strip().isdigit():
            # A bare integer is seconds everywhere else, and this key says milliseconds: nobody should have to guess.
            raise NetError("invalid-argument", f"{text!r} names no unit", f"write {key}={value}ms or {key}={value}s")
        return key, parse_duration_ms(value)
    if not (value.isascii() and value.isdigit()):
        raise NetError("invalid-argument", f"{key} takes a whole number, not {value!r}", "net admin policy show")
    return key, int(value)
