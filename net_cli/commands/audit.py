"""`net audit`: the ledger of signed commands, read and verified."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from net_cli.context import App, pass_app
from net_cli.core import group
from net_cli.options import decorate
from net_cli.output import screen_width
from net_cli.params import MOMENT, REF, complete
from net_cli.table import Column, moment, printable, table

COLUMNS = (
    Column("SEQ", "seq", right=True),
    Column("AT", lambda row: moment(row["committed_at"])),
    Column("OPERATOR", "operator"),
    Column("KIND", "event_kind"),
    Column("TARGET", lambda row: _subject(row), flexible=True),
    Column("OUTCOME", "outcome"),
    Column("REASON", "reason", flexible=True),
)
COPIES = (
    Column("COPY OF", "holder"),
    Column("LEDGER TO", "head_seq", right=True),
    Column("CONTROL TO", "control_seq", right=True),
    Column("CHECKPOINTS", "checkpoints", right=True),
)
FILTERS = (
    click.Option(
        ["--by-operator", "operator"], metavar="NAME", type=REF, shell_complete=complete("operator"), help="Signed by."
    ),
    click.Option(["--since"], type=click.IntRange(min=0), metavar="SEQ", help="Only records after this seq."),
    click.Option(["--from", "from_"], type=MOMENT, metavar="TIME", help="Not before (ISO 8601, or 2h for ago)."),
    click.Option(["--to"], type=MOMENT, metavar="TIME", help="Not after (ISO 8601, or 2h for ago)."),
    click.Option(["--force-only"], is_flag=True, help="Only break-glass commands."),
    click.Option(["--kind"], metavar="KIND", help="Only this kind of event, like drain."),
    click.Option(["--node"], metavar="NODE", type=REF, shell_complete=complete("node"), help="Only about this node."),
    click.Option(["--outcome"], type=click.Choice(["accepted", "rejected"]), help="Only with this outcome."),
)


def _subject(row: dict[str, Any]) -> str:
    from net_cli.signing import subject

    return subject(row.get("target") or {})


def _query(values: dict[str, Any]) -> dict[str, Any]:
    values["from"] = values.pop("from_")
    values["force_only"] = values["force_only"] or None
    return {key: value for key, value in values.items() if value is not None}


@group("audit", examples=["net audit recent", "net audit verify"])
def audit() -> None:
    """Read and verify the ledger of signed commands."""


@audit.command(
    "recent",
    examples=[
        "net audit recent -n 5",
        "net audit recent --kind drain --node b --from 24h",
        "net audit recent --json | jq '.[0].event_kind'",
    ],
)
@decorate(
    click.Option(["-n", "--limit"], type=click.IntRange(1, 10_000), default=20, show_default=True, help="At most."),
    *FILTERS,
)
@pass_app
def recent(app: App, /, **values: Any) -> None:
    """List commits, newest first."""
    with app.attach() as client:
        app.out.rows(client.get("/v1/audit", **_query(values)), COLUMNS, "no such commits")


@audit.command("stream", examples=["net audit stream", "net audit stream --since 0 --json"])
@decorate(*FILTERS)
@pass_app
def stream(app: App, /, **values: Any) -> None:
    """Follow commits as they are made, oldest first, until interrupted.

    With --since it first sends the records after that seq.
    """
    with app.attach() as client:
        app.out.stream(client.stream("/v1/audit", follow=True, **_query(values)), _line)


def _line(row: dict[str, Any]) -> str:
    text = f"{row['committed_at']} {row['seq']} {row['operator']} {row['event_kind']} {_subject(row)} {row['outcome']}"
    return printable(text + (f" ({row['reason']})" if row.get("reason") else ""))


@audit.command("show", examples=["net audit show 5f0c6a2e9b7d41d8a3c2e1f00b9d8c7a"])
@decorate(click.Argument(["commit_id"], metavar="COMMIT_ID", help="The id of the commit, in hex."))
@pass_app
def show(app: App, commit_id: str) -> None:
    """Show what became of one commit."""
    from net_sdk.client import quote

    with app.attach() as client:
        app.out.record(client.get(f"/v1/commits/{quote(commit_id)}"))


@audit.command(
    "verify",
    examples=["net audit verify", "net audit verify --node b", "net audit verify --path ./evidence/default"],
)
@decorate(
    click.Option(["--path"], metavar="DIR", help="State directory of the cluster, if it is elsewhere."),
    click.Option(["--node"], metavar="NODE", shell_complete=complete("node"), help="Verify only this node's copy."),
    click.Option(["--online"], is_flag=True, help="Ask the attached node to verify its own copy instead."),
)
@pass_app
def verify(app: App, path: str | None, node: str | None, online: bool) -> None:
    """Check the whole ledger: hashes, operator and node signatures, checkpoints.

    Works on the files alone, on every copy of the ledger on this machine; no node needs to run. Damage is
    ledger-tampered (exit 1) with the first bad seq.
    """
    if online:
        if path or node:
            raise click.UsageError("--online excludes --path and --node")
        with app.attach() as client:
            app.out.record(client.get("/v1/audit/verify"))
        return
    from substrate.operator.verify import verify_files
    from substrate.wire.paths import cluster_dir

    app.out.record(verify_files(path or cluster_dir(app.cluster), node), _verified)


def _verified(document: dict[str, Any]) -> Iterator[str]:
    yield f"good: {document['records']} records of cluster {document['cluster']} ({document['cluster_id']})"
    yield f"  head {document['head_hash']}"
    yield ""
    yield from table(document["copies"], COPIES, screen_width(), False)
