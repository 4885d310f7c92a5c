"""`net demo`: a cluster to try things on, and a tour of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from net_cli.context import App, pass_app
from net_cli.core import group
from net_cli.options import decorate


def _on_demo(app: App) -> None:
    """Every verb here is about the cluster `demo`, whatever the settings name."""
    from net_cli.demo_cluster import CLUSTER

    if app.flags.get("cluster", CLUSTER) != CLUSTER:
        raise click.UsageError(f"the demo's cluster is always called {CLUSTER!r}")
    app.flags["cluster"] = CLUSTER


@group("demo", examples=["net demo tour", "net demo up --nodes 3", "net demo down"])
def demo() -> None:
    """A small cluster on this machine to try things on."""


@demo.command("up", examples=["net demo up", "net demo up --nodes 5 --json | jq '.nodes[].socket'"])
@decorate(
    click.Option(["--nodes"], type=click.IntRange(1, 9), default=3, show_default=True, help="Nodes to start."),
)
@pass_app
def up(app: App, nodes: int) -> None:
    """Start the cluster demo: nodes, six daemons, two chains, an operator.

    The operator's key is called demo too. With --cluster demo, or NET_CLUSTER=demo, every command works on it. If
    anything fails, nothing of it stays.
    """
    from net_cli.demo_cluster import up as put_up

    _on_demo(app)
    app.out.record(put_up(app, nodes), _up_view)
    app.out.say("try: net admin drain --node b --drain-for 30s --cluster demo --operator demo")


def _up_view(document: dict[str, Any]) -> Iterator[str]:
    from net_cli.table import duration

    nodes = ", ".join(node["node_name"] for node in document["nodes"])
    yield f"cluster demo is up after {duration(document['elapsed_ms'])}"
    yield f"  nodes:     {nodes}"
    yield f"  daemons:   {len(document['daemons'])}, as written in {document['spec_file']}"
    yield f"  chains:    {', '.join(document['chains'])}"
    yield f"  operator:  {document['operator']}"
    yield f"  directory: {document['directory']}"


@demo.command("status", examples=["net demo status", "net demo status --json | jq '.daemons | length'"])
@pass_app
def status(app: App) -> None:
    """Show the nodes, daemons and chains of the demo."""
    from net_cli.demo_cluster import status as look

    _on_demo(app)
    app.out.record(look(app), _status_view)


def _status_view(document: dict[str, Any]) -> Iterator[str]:
    from net_cli.commands import chain, daemon, node
    from net_cli.output import screen_width
    from net_cli.table import table

    shown = (("nodes", node.COLUMNS), ("daemons", daemon.columns_of(document["daemons"])), ("chains", chain.COLUMNS))
    for place, (name, columns) in enumerate(shown):
        if place:
            yield ""
        if document[name]:
            yield from table(document[name], columns, screen_width(), False)
        else:
            yield f"no {name}"


@demo.command("down", examples=["net demo down"])
@pass_app
def down(app: App) -> None:
    """Stop the cluster demo and remove its files and its key.

    Without a demo it does nothing.
    """
    from net_cli.demo_cluster import down as take_down

    _on_demo(app)
    app.out.record(take_down(app), _down_view)


def _down_view(document: dict[str, Any]) -> Iterator[str]:
    if not document["removed"]:
        yield "there is no demo cluster"
        return
    yield f"stopped {', '.join(document['stopped']) or 'nothing'}; removed"
    for path in document["removed"]:
        yield f"  {path}"


@demo.command("tour", examples=["net demo tour", "net demo tour --json | jq -r .command"])
@pass_app
def tour(app: App) -> None:
    """Show what a cluster does, command by command, in a home of its own.

    Every command is shown as you would type it, with what it really printed. Leaves nothing behind. With --json one
    object per command.
    """
    from net_cli.demo_tour import run

    _on_demo(app)
    run(app)
