"""`net identity registry`: the operators of the cluster, changed by signed and, where asked, co-signed commits."""

from __future__ import annotations

from typing import Any

import click

from net_cli.context import App, pass_app
from net_cli.core import group
from net_cli.options import OUT, PREVIEW, REASON, YES, choices, decorate
from net_cli.params import KEY_HEX, REF, SIGNATURE_HEX, complete
from net_cli.table import Column, moment

COLUMNS = (
    Column("NAME", "name"),
    Column("OPERATOR ID", "operator_id"),
    Column("ACTIVE", "active"),
    Column("ADDED", lambda row: moment(row["added_at"])),
    Column("SEQ", "seq", right=True),
)
FILE = click.Argument(["file"], metavar="FILE", help="A proposal written with --out.")


@group(
    "registry",
    examples=[
        "net identity registry ls",
        "net identity registry add bob --operator alice",
        "net identity registry add bob --operator alice --out bob.json",
        "net identity registry sign bob.json --operator carol --out carol.sig",
        "net identity registry commit bob.json --sig alice.sig --sig carol.sig",
    ],
)
def registry() -> None:
    """The operators the cluster knows.

    Where the threshold is above one, write the proposal with --out, let each operator sign it, then commit it.
    """


@registry.command("ls", examples=["net identity registry ls --json | jq '.[] | select(.active)'"])
@pass_app
def ls(app: App) -> None:
    """List the operators, active ones first."""
    with app.attach() as client:
        app.out.rows(client.get("/v1/registry")["operators"], COLUMNS, "no operators")


@registry.command(
    "add",
    examples=["net identity registry add bob --operator alice", "net identity registry add bob --out bob.json"],
)
@decorate(
    click.Argument(["name"], metavar="NAME", shell_complete=complete("identity"), help="The new operator's name."),
    click.Option(["--public-key"], type=KEY_HEX, metavar="HEX", help="Its key, if it is not on this machine."),
    click.Option(["--proof"], type=SIGNATURE_HEX, metavar="HEX", help="The proof that `identity generate` printed."),
    REASON,
    PREVIEW,
    OUT,
)
@pass_app
def add(app: App, /, name: str, public_key: str | None, proof: str | None, **values: Any) -> None:
    """Install an operator: a key on this machine, or one given by --public-key and --proof."""
    from net_cli.signing import command

    if (public_key is None) != (proof is None):
        raise click.UsageError("--public-key and --proof belong together")
    if public_key is None:
        from substrate.identity.keyfile import load
        from substrate.wire.envelope import key_proof_payload
        from substrate.wire.paths import operator_directory

        keypair = load(operator_directory(), name).keypair
        public_key = keypair.public_key.hex()
        proof = keypair.sign(key_proof_payload(keypair.public_key)).hex()
    event = {"kind": "registry-add", "name": name, "public_key": public_key, "proof": proof}
    command(app, event, choices(values))


@registry.command("remove", examples=["net identity registry remove bob --operator alice --reason 'left'"])
@decorate(
    click.Argument(["name"], metavar="OPERATOR", type=REF, shell_complete=complete("operator"), help="The operator."),
    REASON,
    PREVIEW,
    YES,
    OUT,
)
@pass_app
def remove(app: App, /, name: str, **values: Any) -> None:
    """Revoke an operator; asks on a terminal."""
    from net_cli.signing import command

    command(app, {"kind": "registry-remove", "operator": name}, choices(values), ask=True)


@registry.command(
    "threshold", examples=["net identity registry threshold", "net identity registry threshold 2 --operator alice"]
)
@decorate(
    click.Argument(
        ["count"],
        metavar="[N]",
        required=False,
        type=click.IntRange(1, 64),
        help="How many must sign; shown if unsaid.",
    ),
    REASON,
    PREVIEW,
    OUT,
)
@pass_app
def threshold(app: App, /, count: int | None, **values: Any) -> None:
    """Show or set how many operators must sign registry, policy and break-glass commits."""
    if count is None:
        with app.attach() as client:
            document = client.get("/v1/registry")
        active = sum(row["active"] for row in document["operators"])
        app.out.record({"threshold": document["threshold"], "active_operators": active})
        return
    from net_cli.signing import command

    command(app, {"kind": "registry-threshold", "threshold": count}, choices(values))


@registry.command(
    "sign",
    examples=[
        "net identity registry sign bob.json --operator carol --out carol.sig",
        "net identity registry sign bob.json --operator carol > carol.sig",
    ],
)
@decorate(FILE, click.Option(["--out"], metavar="FILE", help="Write the signature to FILE (stdout if unsaid)."), YES)
@pass_app
def sign(app: App, file: str, out: str | None, yes: bool) -> None:
    """Sign a proposal somebody wrote with --out; no node is needed.

    Shows what is signed and, on a terminal, asks.
    """
    from net_cli.confirm import confirm, interactive
    from net_cli.cosigning import describe, read_proposal, signature_document
    from net_cli.signing import write_new

    app.refuse_if_read_only()
    key, proposal = app.key(), read_proposal(file, app.cluster)
    if not yes and interactive():
        confirm(describe(proposal))
    else:
        for line in describe(proposal):
            app.out.say(line)
    document = signature_document(key, proposal)
    if out is not None:
        write_new(out, document)
    app.out.record(document)


@registry.command("commit", examples=["net identity registry commit bob.json --sig alice.sig --sig carol.sig"])
@decorate(
    FILE, click.Option(["--sig", "signatures"], multiple=True, required=True, metavar="FILE", help="A signature file.")
)
@pass_app
def commit(app: App, file: str, signatures: tuple[str, ...]) -> None:
    """Commit a proposal with the signatures collected for it."""
    from net_cli.cosigning import propose_again, read_proposal, read_signature
    from net_cli.signing import commit_view
    from net_sdk.commits import submit
    from substrate.wire.errors import NetError

    app.refuse_if_read_only()
    proposal = read_proposal(file, app.cluster)
    collected = [read_signature(path, proposal) for path in signatures]
    with app.attach() as client:
        try:
            document = submit(client, proposal, collected)
        except NetError as error:
            if error.kind == "envelope-expired":
                error.hint = propose_again(file, proposal)
            raise
    app.out.record(document, commit_view)
