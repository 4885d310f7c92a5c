"""`net daemon`: processes the cluster keeps running."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import click

from net_cli.context import App, pass_app
from net_cli.core import group
from net_cli.logview import FOLLOW, LAST, LEVEL, show_logs
from net_cli.options import PREVIEW, REASON, argument, choices, decorate, wait_option
from net_cli.params import DURATION, LABEL
from net_cli.table import Column, duration, fields, table

COLUMNS = (
    Column("NAME", "name"),
    Column("INST", "instance", right=True),
    Column("NODE", "node_name"),
    Column("LIFECYCLE", "lifecycle"),
    Column("HEALTH", "health"),
    Column("RESTARTS", "restarts", right=True),
    Column("PID", "pid", right=True),
    Column("AGE", lambda row: duration(row.get("age_ms")), right=True),
)
REASON_COLUMN = Column("REASON", "reason", flexible=True)
"""Shown where an instance has one: why it is blocked, or does not start."""
NAME = argument("name", "daemon", "The daemon.")
WAIT = wait_option("returns at once")
EXAMPLE = """net daemon apply web.toml --operator alice"""


@group(
    "daemon",
    examples=[EXAMPLE, "net daemon run --name clock --operator alice -- sh -c 'while date; do sleep 1; done'"],
)
def daemon() -> None:
    """Apply, list, restart, stop and remove daemons."""


@daemon.command(
    "apply", examples=[EXAMPLE, "net daemon apply web.toml --wait", "net daemon apply - --operator alice < web.toml"]
)
@decorate(click.Argument(["file"], metavar="FILE", help="TOML with [[daemon]] tables; - is stdin."), REASON, WAIT)
@pass_app
def apply(app: App, file: str, reason: str, wait: bool | None) -> None:
    """Create daemons or replace their specs, from a file (signed).

    All specs are checked before the first one is committed. Prints one commit per daemon, in the file's order. With --wait it
    returns when all instances run.
    """
    from net_cli.specfile import read_specs

    _apply(app, read_specs(file), reason, wait)


def _apply(app: App, specs: list[dict[str, Any]], reason: str, wait: bool | None) -> None:
    from net_cli.signing import commit_event, wait_for
    from substrate.wire.errors import NetError

    app.refuse_if_read_only()
    key = app.key()
    commits: list[dict[str, Any]] = []
    with app.attach() as client:
        for spec in specs:
            try:
                commits.append(commit_event(client, key, {"kind": "daemon-apply", "spec": spec}, reason))
            except NetError as error:
                error.details["committed"] = [commit["commit_id"] for commit in commits]
                raise
        for commit in commits if wait else []:
            commit |= wait_for(app, client, commit, None)
    columns = (
        Column("DAEMON", lambda row: row["target"].get("daemon_name")),
        Column("OUTCOME", "outcome"),
        Column("SEQ", "seq", right=True),
        Column("COMMIT", "commit_id"),
    )
    app.out.rows(commits, columns, "nothing to apply")


@daemon.command(
    "run",
    context_settings={"allow_interspersed_args": False},
    examples=[
        "net daemon run --name clock --operator alice -- sh -c 'while date; do sleep 1; done'",
        "net daemon run --replicas 2 --require gpu --operator alice -- /usr/bin/worker --fast",
    ],
)
@decorate(
    click.Option(["--name"], metavar="NAME", help="Its name (the program's, if unsaid)."),
    click.Option(["--replicas"], type=click.IntRange(1, 1000), default=1, show_default=True, help="Instances."),
    click.Option(["--env"], multiple=True, metavar="KEY=VALUE", help="An environment variable; repeatable."),
    click.Option(["--cwd"], metavar="DIR", help="Directory to run in (absolute)."),
    click.Option(["--label", "labels"], multiple=True, type=LABEL, metavar="LABEL", help="A label; repeatable."),
    click.Option(
        ["--require", "requires"],
        multiple=True,
        type=LABEL,
        metavar="LABEL",
        help="Label a node must have; repeatable.",
    ),
    click.Option(
        ["--apart-from", "anti_affinity"],
        multiple=True,
        type=LABEL,
        metavar="LABEL",
        help="Not beside daemons with this label; repeatable.",
    ),
    click.Option(["--essential"], is_flag=True, help="Leaves a draining node last."),
    click.Option(["--grace", "grace_ms"], type=DURATION, default="30s", show_default=True, help="SIGTERM to SIGKILL."),
    click.Option(
        ["--restart"],
        type=click.Choice(["always", "on-failure", "never"]),
        default="always",
        show_default=True,
        help="When to start it again.",
    ),
    REASON,
    WAIT,
    click.Argument(["command"], nargs=-1, required=True, metavar="-- CMD...", help="The command and its arguments."),
)
@pass_app
def run(app: App, /, command: tuple[str, ...], name: str | None, reason: str, wait: bool | None, **values: Any) -> None:
    """Run a command as a daemon (signed)."""
    from substrate.wire.specs import DaemonSpec

    env = {}
    for item in values.pop("env"):
        key, separator, value = item.partition("=")
        if not key or not separator:
            raise click.UsageError(f"--env {item!r} is not KEY=VALUE")
        env[key] = value
    table = {"name": name or os.path.basename(command[0]).lower(), "command": list(command), "env": env}
    table |= {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
    _apply(app, [DaemonSpec.parse(table).to_json()], reason, wait)


@daemon.command("ls", examples=["net daemon ls", "net daemon ls --json | jq 'map(select(.node_name==\"b\"))'"])
@pass_app
def ls(app: App) -> None:
    """List daemon instances, by name and instance."""
    with app.attach() as client:
        rows = client.get("/v1/daemons")
        app.out.rows(rows, columns_of(rows), "no daemons")


def columns_of(rows: list[dict[str, Any]]) -> tuple[Column, ...]:
    """The columns of a table of instances: the reasons too, if there are any."""
    return (*COLUMNS, REASON_COLUMN) if any(row.get("reason") for row in rows) else COLUMNS


@daemon.command("show", examples=["net daemon show web", "net daemon show web --json | jq .instances"])
@decorate(NAME)
@pass_app
def show(app: App, name: str) -> None:
    """Show one daemon: its spec and its instances."""
    from net_sdk.client import quote

    with app.attach() as client:
        app.out.record(client.get(f"/v1/daemons/{quote(name)}"), _view)


def _view(document: dict[str, Any]) -> Iterator[str]:
    from net_cli.output import screen_width

    yield from fields({key: value for key, value in document.items() if key != "instances"})
    if document["instances"]:
        yield ""
        yield from table(document["instances"], columns_of(document["instances"])[1:], screen_width(), False)


@daemon.command("logs", examples=["net daemon logs web -f", "net daemon logs web --min-level warn -n 100"])
@decorate(NAME, FOLLOW, LAST, LEVEL)
@pass_app
def logs(app: App, /, name: str, **values: Any) -> None:
    """Print a daemon's log lines, whichever nodes it runs on; -f follows them."""
    show_logs(app, daemon=name, **values)


def _signed(name: str, help: str, example: str, *, ask: bool = False) -> None:
    # restart, stop and rm differ in nothing but their kind.
    @pass_app
    def run(app: App, /, **values: Any) -> None:
        from net_cli.signing import command

        event = {"kind": f"daemon-{'remove' if name == 'rm' else name}", "daemon": values.pop("name")}
        command(app, event, choices(values), ask=ask)

    params = [NAME, REASON, PREVIEW, WAIT]
    daemon.command(name, help=help, examples=[example], params=params)(run)


_signed("restart", "Restart all instances of a daemon gracefully (signed).", "net daemon restart web --operator alice")
_signed("stop", "Stop a daemon but keep its spec (signed).", "net daemon stop web --operator alice")
_signed("rm", "Stop a daemon and forget its spec (signed).", "net daemon rm web --operator alice")
