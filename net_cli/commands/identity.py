"""`net identity`: operator keys on this machine (contract section 4)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, Final

import click

from net_cli.context import App, pass_app
from net_cli.core import group
from net_cli.options import REASON, decorate
from net_cli.params import complete
from net_cli.table import Column, moment

COLUMNS = (
    Column("NAME", "name"),
    Column("OPERATOR ID", "operator_id"),
    Column("FINGERPRINT", "fingerprint"),
    Column("CREATED", lambda row: moment(row["created_at"])),
    Column("NOTE", "note", flexible=True),
)
NEW_NAME = click.Argument(["name"], metavar="NAME", help="What to call the identity.")
NAME = click.Argument(["name"], metavar="NAME", shell_complete=complete("identity"), help="The identity.")
NOTE = click.Option(["--note"], metavar="TEXT", help="A remark kept in the key file.")
SEED_HEX_DIGITS: Final = 64


@group(
    "identity",
    examples=["net identity generate alice", "net identity ls", "net identity registry ls"],
    lazy={"registry": ("net_cli.commands.registry:registry", "The operators the cluster knows.")},
)
def identity() -> None:
    """Operator keys, and the registry of operators.

    Keys are files only you can read. The seed is never printed.
    """


def _directory() -> str:
    from substrate.wire.paths import operator_directory

    return operator_directory()


def _created(app: App, key: Any) -> None:
    from substrate.wire.envelope import key_proof_payload

    proof = key.keypair.sign(key_proof_payload(key.keypair.public_key)).hex()
    public_key = key.keypair.public_key.hex()
    command = f"net identity registry add {key.name} --public-key {public_key} --proof {proof} --operator NAME"
    app.out.record(key.document() | {"next": command}, _created_view)


def _created_view(document: dict[str, Any]) -> Iterator[str]:
    from net_cli.table import fields

    command = document.pop("next")
    yield from fields(document)
    yield ""
    yield "To install it in a cluster, an operator (NAME) of that cluster runs:"
    yield f"  {command}"
    yield "The first node of a new cluster installs it by itself:"
    yield f"  net node start --name a --operator {document['name']}"


@identity.command("generate", examples=["net identity generate alice --note 'laptop'"])
@decorate(NEW_NAME, NOTE)
@pass_app
def generate(app: App, name: str, note: str | None) -> None:
    """Create a new key; prints its public half and the command that installs it."""
    from substrate.identity.keyfile import generate as create

    _created(app, create(_directory(), name, note))


@identity.command("ls", examples=["net identity ls --json | jq '.[].operator_id'"])
@pass_app
def ls(app: App) -> None:
    """List the identities on this machine, by name."""
    from substrate.identity.keyfile import load, names

    directory = _directory()
    rows = [load(directory, name).document() for name in names(directory)]
    app.out.rows(rows, COLUMNS, f"no identities in {directory}; create one: net identity generate NAME")


@identity.command("show", examples=["net identity show alice --json | jq -r .operator_id"])
@decorate(NAME)
@pass_app
def show(app: App, name: str) -> None:
    """Show one identity (never its seed)."""
    from substrate.identity.keyfile import load

    app.out.record(load(_directory(), name).document())


@identity.command("fingerprint", examples=["net identity fingerprint alice"])
@decorate(NAME)
@pass_app
def fingerprint(app: App, name: str) -> None:
    """Show the fingerprint of a public key, to compare by eye or voice."""
    from substrate.identity.keyfile import load

    document = load(_directory(), name).document()
    wanted = ("name", "operator_id", "fingerprint")
    app.out.record({key: document[key] for key in wanted}, lambda row: [str(row["fingerprint"])])


@identity.command(
    "import", examples=["net identity import alice < seed.hex", "net identity import alice --from seed.hex"]
)
@decorate(
    NEW_NAME,
    click.Option(
        ["--from", "file"], metavar="FILE", default="-", help="A file with the seed in hex (stdin if unsaid)."
    ),
    NOTE,
)
@pass_app
def import_(app: App, name: str, file: str, note: str | None) -> None:
    """Create an identity from a 32-byte seed in hex, read from stdin or a file, never from the command line."""
    from substrate.identity.keyfile import import_seed

    _created(app, import_seed(_directory(), name, _read_seed(file), note))


def _read_seed(file: str) -> bytes:
    from substrate.wire.errors import NetError

    if file == "-" and sys.stdin.isatty():
        from getpass import getpass

        text = getpass("Seed in hex (not shown): ")
    else:
        from net_cli.appending import source

        with source(file, None) as stream:
            text = stream.read(1024).decode("ascii", "replace")
    text = text.strip()
    try:
        if len(text) == SEED_HEX_DIGITS:
            return bytes.fromhex(text)
    except ValueError:
        pass  # the refusal below must not quote what may be most of a secret
    raise NetError("invalid-argument", "the input is no seed: it must be 64 hex digits", "check the file")


@identity.command("rotate", examples=["net identity rotate alice", "net identity rotate alice --reason 'yearly'"])
@decorate(NAME, REASON)
@pass_app
def rotate(app: App, name: str, reason: str) -> None:
    """Replace a key by a new one, here and in the cluster, by a commit the old key signs.

    Interrupted half-way, the current key stays usable; run the command again to finish.
    """
    from net_cli.signing import commit_event
    from substrate.identity import keyfile
    from substrate.wire.envelope import key_proof_payload
    from substrate.wire.errors import NetError

    app.refuse_if_read_only()
    directory = _directory()
    keyfile.load(directory, name)  # refuses before anything is created
    with app.attach() as client:
        current, fresh = keyfile.begin_rotation(directory, name)
        event = {
            "kind": "registry-rotate",
            "operator": str(current.keypair.operator_id),
            "public_key": fresh.keypair.public_key.hex(),
            "proof": fresh.keypair.sign(key_proof_payload(fresh.keypair.public_key)).hex(),
        }
        commit: dict[str, Any] | None = None
        if not _is_active(client.get("/v1/registry"), fresh.keypair.public_key.hex()):
            try:
                commit = commit_event(client, current, event, reason)
            except NetError as error:
                if error.kind in ("operator-not-found", "not-authorized"):  # this cluster never knew the key
                    keyfile.abandon_rotation(directory, name)
                elif error.hint is None:
                    error.hint = f"{name} stays usable; finish with: net identity rotate {name}"
                raise
    app.out.record(keyfile.finish_rotation(directory, name).document() | {"commit": commit})


def _is_active(registry: dict[str, Any], public_key: str) -> bool:
    # True when an earlier rotation was committed but the file was not yet put in place.
    return any(row["active"] and row["public_key"] == public_key for row in registry["operators"])
