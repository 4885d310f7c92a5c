"""`net chain`: event chains of the cluster."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import click

from net_cli.context import App, pass_app
from net_cli.core import group
from net_cli.options import PREVIEW, REASON, YES, choices, decorate
from net_cli.params import complete
from net_cli.table import Column, moment, printable, size

if TYPE_CHECKING:
    from net_sdk.client import Client

PAGE: Final = 1000
COLUMNS = (
    Column("NAME", "name"),
    Column("KIND", "kind"),
    Column("HEAD", "head_seq", right=True),
    Column("RECORDS", "records", right=True),
    Column("SIZE", lambda row: size(row.get("size_bytes")), right=True),
    Column("LEADER", lambda row: _node(row.get("leader"))),
    Column("HOLDERS", lambda row: [_node(holder) for holder in row.get("holders") or []]),
)
NAME = click.Argument(["name"], metavar="NAME", shell_complete=complete("chain"), help="The chain.")
REPLICAS = click.IntRange(1, 1000)


def _node(value: Any) -> Any:
    return value.get("node_name") if isinstance(value, dict) else value


def _path(name: str, tail: str = "") -> str:
    from net_sdk.client import quote

    return f"/v1/chains/{quote(name)}{tail}"


@group(
    "chain",
    examples=[
        "net chain create app/orders --operator alice",
        "echo '{\"id\":1}' | net chain append app/orders -",
        "net chain tail app/orders -f",
    ],
)
def chain() -> None:
    """Create, append to, read and verify event chains."""


@chain.command("ls", examples=["net chain ls", "net chain ls --json | jq '.[].name'"])
@pass_app
def ls(app: App) -> None:
    """List the chains, by name."""
    with app.attach() as client:
        app.out.rows(client.get("/v1/chains"), COLUMNS, "no chains")


@chain.command("show", examples=["net chain show app/orders --json | jq .holders"])
@decorate(NAME)
@pass_app
def show(app: App, name: str) -> None:
    """Show one chain: its head, its holders, its leader."""
    with app.attach() as client:
        app.out.record(client.get(_path(name)))


@chain.command("create", examples=["net chain create app/orders --replicas 2 --operator alice"])
@decorate(
    click.Argument(["name"], metavar="NAME", help="Its name: parts of a-z 0-9 . _ - with / between."),
    click.Option(["--replicas"], type=REPLICAS, default=1, show_default=True, help="Nodes that shall hold a copy."),
    REASON,
    PREVIEW,
)
@pass_app
def create(app: App, /, name: str, replicas: int, **values: Any) -> None:
    """Create a chain (signed)."""
    from net_cli.signing import command

    command(app, {"kind": "chain-create", "name": name, "replicas": replicas}, choices(values))


@chain.command(
    "append",
    examples=[
        "echo '{\"id\":1}' | net chain append app/orders -",
        "net chain append app/orders orders.ndjson",
        "net chain append app/orders --data '{\"id\":2}' --expect 41",
    ],
)
@decorate(
    NAME,
    click.Argument(["file"], metavar="[FILE]", required=False, help="NDJSON, one record a line; - is stdin."),
    click.Option(["--data"], metavar="JSON", help="One record, given here."),
    click.Option(["--text"], is_flag=True, help="Lines are plain text, not JSON."),
    click.Option(["--raw"], is_flag=True, help="The whole input is one record, as it is."),
    click.Option(["--expect"], type=click.IntRange(min=0), metavar="SEQ", help="Append only if this is the head."),
)
@pass_app
def append(app: App, name: str, file: str | None, data: str | None, text: bool, raw: bool, expect: int | None) -> None:
    """Append records: durable when it returns.

    Records go in batches, each all or nothing and never doubled by a retry. If one fails, the error's details say how
    many were appended before it. With --expect, a head that moved is a conflict (exit 4) holding the true head.
    """
    from net_cli.appending import append_all, batches, source

    if (file is None) == (data is None):
        raise click.UsageError("give either FILE (- is stdin) or --data")
    if text and raw:
        raise click.UsageError("--text and --raw exclude each other")
    app.refuse_if_read_only()
    with source(file, data) as stream, app.attach() as client:
        mode = "base64" if raw else "text"
        app.out.record(append_all(client, _path(name, "/records"), batches(stream, text, raw), mode, expect))


@chain.command(
    "inspect", examples=["net chain inspect app/orders -n 3", "net chain inspect app/orders --since 40 -n 10"]
)
@decorate(
    NAME,
    click.Option(["--since"], type=click.IntRange(min=0), metavar="SEQ", help="Records after this seq."),
    click.Option(["-n", "--limit"], type=click.IntRange(1, 10_000), default=20, show_default=True, help="At most."),
)
@pass_app
def inspect(app: App, name: str, since: int | None, limit: int) -> None:
    """List records with their hashes: the last ones, or those after --since."""
    query = {"tail": limit} if since is None else {"since": since, "limit": limit}
    columns = (
        Column("SEQ", "seq", right=True),
        Column("AT", lambda row: moment(row["at"])),
        Column("HASH", lambda row: row["hash"][:12]),
        Column("SIZE", lambda row: size(row["size_bytes"]), right=True),
        Column("PAYLOAD", _payload, flexible=True),
    )
    with app.attach() as client:
        app.out.rows(client.get(_path(name, "/records"), **query), columns, "no records")


def _payload(row: dict[str, Any]) -> str:
    from net_cli.output import dumps

    if row.get("text") is not None:
        return str(row["text"])
    return str(row["payload_base64"]) if row.get("payload_base64") is not None else dumps(row.get("payload"))


@chain.command("tail", examples=["net chain tail app/orders -f", "net chain tail app/orders --since 40 --json"])
@decorate(
    NAME,
    click.Option(["-f", "--follow"], is_flag=True, help="Go on with new records until interrupted."),
    click.Option(["--since"], type=click.IntRange(min=0), metavar="SEQ", help="Begin after this seq."),
    click.Option(["-n", "--last"], type=click.IntRange(1, 10_000), default=10, show_default=True, help="Begin with."),
)
@pass_app
def tail(app: App, name: str, follow: bool, since: int | None, last: int) -> None:
    """Print records, one line each; -f follows the chain."""
    query = {"tail": last} if since is None else {"since": since}
    with app.attach() as client:
        path = _path(name, "/records")
        if follow:
            rows = client.stream(path, follow=True, **query)
        else:
            rows = _page(client, path, since) if since is not None else iter(client.get(path, tail=last))
        app.out.stream(rows, lambda row: printable(f"{row['seq']} {row['at']} {_payload(row)}"))


def _page(client: Client, path: str, since: int) -> Iterator[dict[str, Any]]:
    while True:
        rows = client.get(path, since=since, limit=PAGE)
        yield from rows
        if len(rows) < PAGE:
            return
        since = rows[-1]["seq"]


@chain.command("verify", examples=["net chain verify app/orders"])
@decorate(NAME)
@pass_app
def verify(app: App, name: str) -> None:
    """Check every hash of a chain; damage is corrupt-store (exit 1) with the first bad seq."""
    with app.attach() as client:
        app.out.record(client.get(_path(name, "/verify")))


@chain.command("rm", examples=["net chain rm app/orders --operator alice"])
@decorate(NAME, REASON, PREVIEW, YES)
@pass_app
def rm(app: App, /, name: str, **values: Any) -> None:
    """Retire a chain (signed); asks on a terminal."""
    from net_cli.signing import command

    command(app, {"kind": "chain-remove", "chain": name}, choices(values), ask=True)


@chain.command("set-replicas", examples=["net chain set-replicas app/orders 3 --operator alice"])
@decorate(NAME, click.Argument(["replicas"], type=REPLICAS, metavar="N", help="Nodes that shall hold a copy."))
@decorate(REASON, PREVIEW)
@pass_app
def set_replicas(app: App, /, name: str, replicas: int, **values: Any) -> None:
    """Change how many nodes shall hold a copy (signed)."""
    from net_cli.signing import command

    command(app, {"kind": "chain-set-replicas", "chain": name, "replicas": replicas}, choices(values))
