"""`net logs`: the log lines of every node and daemon."""

from __future__ import annotations

from typing import Any

from net_cli.context import App, pass_app
from net_cli.core import group
from net_cli.logview import FILTERS, FOLLOW, LAST, query, show_logs
from net_cli.options import decorate
from net_cli.table import Column, moment

COLUMNS = (
    Column("AT", lambda row: moment(row["at"])),
    Column("NODE", "node_name"),
    Column("DAEMON", "daemon"),
    Column("LEVEL", "level"),
    Column("MESSAGE", "message", flexible=True),
)


@group("logs", examples=["net logs tail -f", "net logs show --daemon web --min-level warn"])
def logs() -> None:
    """Read and follow the log lines of the cluster."""


@logs.command("tail", examples=["net logs tail -f", "net logs tail -f --node b --contains timeout --json"])
@decorate(FOLLOW, LAST, *FILTERS)
@pass_app
def tail(app: App, /, **values: Any) -> None:
    """Print the last lines, one each, oldest first; -f follows new ones from every node."""
    show_logs(app, **values)


@logs.command("show", examples=["net logs show -n 100", "net logs show --daemon web --json | jq '.[].message'"])
@decorate(LAST, *FILTERS)
@pass_app
def show(app: App, /, **values: Any) -> None:
    """List the last lines, oldest first."""
    with app.attach() as client:
        app.out.rows(client.get("/v1/logs", **query(values)), COLUMNS, "no such lines")
