"""Log lines on the command line: the options and the view that `net logs` and `net daemon logs` share."""

from __future__ import annotations

from typing import Any, Final

import click

from net_cli.context import App
from net_cli.params import REF, complete
from net_cli.table import printable

FOLLOW: Final = click.Option(["-f", "--follow"], is_flag=True, help="Go on with new lines until interrupted.")
LAST: Final = click.Option(
    ["-n", "--limit"], type=click.IntRange(1, 10_000), default=50, show_default=True, help="Begin with the last ones."
)
LEVEL: Final = click.Option(
    ["--min-level"],
    type=click.Choice(["trace", "debug", "info", "warn", "error"]),
    default="trace",
    show_default=True,
    help="Only lines of this level and above.",
)
FILTERS: Final = (
    LEVEL,
    click.Option(
        ["--daemon"], metavar="DAEMON", type=REF, shell_complete=complete("daemon"), help="Only of this daemon."
    ),
    click.Option(["--node"], metavar="NODE", type=REF, shell_complete=complete("node"), help="Only of this node."),
    click.Option(["--contains"], metavar="TEXT", help="Only lines that contain this text."),
)


def query(values: dict[str, Any]) -> dict[str, Any]:
    """The options as query parameters."""
    return {key: value for key, value in values.items() if value is not None}


def line(row: dict[str, Any]) -> str:
    """A log line for people."""
    source = row.get("daemon")
    if source and row.get("instance") is not None:
        source = f"{source}/{row['instance']}"
    return printable(f"{row['at']} {row['node_name']} {source or row['stream']} {row['level']} {row['message']}")


def show_logs(app: App, *, follow: bool, **values: Any) -> None:
    """Stream log lines to stdout, oldest first."""
    with app.attach() as client:
        path, asked = "/v1/logs", query(values)
        rows = client.stream(path, follow=True, **asked) if follow else client.get(path, **asked)
        app.out.stream(rows, line)
