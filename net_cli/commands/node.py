"""`net node`: the resident processes of the mesh."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import click

from net_cli.context import App, pass_app
from net_cli.core import group
from net_cli.options import PREVIEW, REASON, YES, argument, choices, decorate
from net_cli.params import LABEL, POSITIVE_DURATION, complete
from net_cli.table import Column, duration, fields, paint, size

COLUMNS = (
    Column("NAME", "name"),
    Column("NODE ID", "node_id"),
    Column("STATE", lambda row: _state(row)),
    Column("LEADER", "leader"),
    Column("DAEMONS", "daemons", right=True),
    Column("RTT", lambda row: f"{row['rtt_us'] / 1000:.1f}ms" if row.get("rtt_us") is not None else None, right=True),
    Column("CPU", lambda row: f"{row['cpu_percent']:.0f}%" if row.get("cpu_percent") is not None else None, right=True),
    Column("MEM", lambda row: size(row.get("mem_used_bytes")), right=True),
)
NODE = argument("name", "node", "The node.")


def _state(row: dict[str, Any]) -> Any:
    """The one word that matters most: dead or not, then maintenance, then the cordon."""
    if row["state"] != "alive":
        return row["state"]
    if row.get("maintenance") not in (None, "active"):
        return row["maintenance"]
    return "cordoned" if row.get("cordoned") else "alive"


@group("node", examples=["net node start --name a --operator alice --detach", "net node ls", "net node stop --all"])
def node() -> None:
    """Start, stop and look at nodes."""


@node.command(
    "start",
    examples=[
        "net node start --name a --operator alice --detach",
        "net node start --name b --label zone=1 --operator alice",
        "net node start --name c --token-file join.token --detach",
    ],
)
@decorate(
    click.Option(["--name"], required=True, metavar="NAME", help="The node's name, unique in the cluster."),
    click.Option(["--label", "labels"], multiple=True, type=LABEL, metavar="LABEL", help="A label; repeatable."),
    click.Option(["--detach"], is_flag=True, help="Return when it is ready and leave it running."),
    click.Option(["--token-file"], metavar="FILE", help="Join with the token in FILE (- is stdin), not an operator."),
)
@pass_app
def start(app: App, name: str, labels: tuple[str, ...], detach: bool, token_file: str | None) -> None:
    """Start a node, in the foreground or detached.

    The first start of a cluster installs --operator as its first operator. Later nodes join it: admitted by --operator,
    or by a join token. A node that was admitted before needs neither.
    """
    from net_cli.appending import source
    from substrate.node.start import start as start_node

    token = None
    if token_file is not None:
        with source(token_file, None) as stream:
            token = stream.read(4096).decode("ascii", "replace").strip()
    document = start_node(
        name=name,
        cluster=app.cluster,
        operator=app.setting("operator"),
        labels=list(labels),
        detach=detach,
        join_token=token,
    )
    if document is not None:
        app.out.record(document)


@node.command("stop", examples=["net node stop --name a", "net node stop --all"])
@decorate(
    click.Option(["--name"], metavar="NAME", shell_complete=complete("node"), help="The node to stop."),
    click.Option(["--all", "everything"], is_flag=True, help="Stop every node of the cluster on this machine."),
)
@pass_app
def stop(app: App, name: str | None, everything: bool) -> None:
    """Stop nodes of this machine gracefully and wait until they are gone.

    Prints the node stopped; with --all a list of them.
    """
    from net_cli.stopping import stop_node, stop_nodes

    if (name is not None) == everything:
        raise click.UsageError("give either --name NAME or --all")
    app.refuse_if_read_only()
    if name is not None:
        app.out.record(stop_node(app, name), lambda row: [f"stopped {row['node_name']}"])
    else:
        app.out.rows(stop_nodes(app), (Column("NODE", "node_name"), Column("STOPPED", "stopped")), "no nodes running")


@node.command("status", examples=["net node status", "net node status --via b --json | jq .state"])
@pass_app
def status(app: App) -> None:
    """Show the attached node, its cluster and its engine."""
    with app.attach() as client:
        app.out.record(client.get("/v1/status"))


@node.command("health", examples=["net node health", "net node health --json | jq -e '.status==\"healthy\"'"])
@pass_app
def health(app: App) -> None:
    """Check the attached node."""

    def view(document: dict[str, Any]) -> Iterator[str]:
        yield paint(str(document["status"]), str(document["status"]), app.out.color)
        for check in document.get("checks", []):
            yield from fields({check["name"]: f"{check['status']}  {check.get('detail') or ''}".rstrip()}, indent="  ")

    with app.attach() as client:
        app.out.record(client.get("/v1/health"), view)


@node.command("ls", examples=["net node ls", "net node ls --json | jq '.[] | select(.leader).name'"])
@pass_app
def ls(app: App) -> None:
    """List the nodes of the cluster, by name."""
    with app.attach() as client:
        app.out.rows(client.get("/v1/nodes"), COLUMNS, "no nodes")


@node.command("show", examples=["net node show b"])
@decorate(NODE)
@pass_app
def show(app: App, name: str) -> None:
    """Show one node."""
    from net_sdk.client import quote

    with app.attach() as client:
        app.out.record(client.get(f"/v1/nodes/{quote(name)}"))


@node.command("rm", examples=["net node rm b --operator alice --reason 'returned to vendor'"])
@decorate(NODE, REASON, PREVIEW, YES)
@pass_app
def rm(app: App, /, name: str, **values: Any) -> None:
    """Remove a node from the cluster for good (signed); asks on a terminal."""
    from net_cli.signing import command

    command(app, {"kind": "node-remove", "node": name}, choices(values), ask=True)


@node.command(
    "token",
    examples=["net node token --operator alice --out join.token", "net node token --ttl 10m --operator alice"],
)
@decorate(
    click.Option(
        ["--ttl", "ttl_ms"], type=POSITIVE_DURATION, default="1h", show_default=True, help="How long it may be used."
    ),
    click.Option(["--out"], metavar="FILE", help="Write the token to FILE (0600), and do not print it."),
    REASON,
)
@pass_app
def token(app: App, ttl_ms: int, out: str | None, reason: str) -> None:
    """Make a token that admits one node (signed). The token is a secret and is shown once."""
    from net_cli.signing import commit_event, write_secret
    from substrate.identity.keys import Keypair
    from substrate.wire.errors import NetError

    app.refuse_if_read_only()
    key, secret = app.key(), Keypair.generate()
    text = secret.seed().hex()
    event = {"kind": "join-token", "public_key": secret.public_key.hex(), "ttl_ms": ttl_ms}
    with app.attach() as client:
        if out is not None:  # before the commit: a token whose secret could not be kept would admit nobody
            write_secret(out, text + "\n")
        try:
            commit = commit_event(client, key, event, reason)
        except NetError as error:
            if out is not None and error.kind != "unknown-outcome":
                os.unlink(out)
            raise
    if out is None:
        app.out.record(commit | {"token": text}, lambda row: [str(row["token"])])
    else:
        app.out.record(commit | {"out": out}, lambda row: [f"wrote {row['out']}, good for {duration(ttl_ms)}"])
