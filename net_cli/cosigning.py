"""Proposal and signature files: how several operators sign one commit (contract section 6)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from shlex import quote
from typing import TYPE_CHECKING, Any, Final

from net_cli.signing import subject
from net_cli.table import fields, printable
from substrate.wire.errors import NetError

if TYPE_CHECKING:
    from substrate.identity.keyfile import KeyFile

MAX_FILE_BYTES: Final = 1024 * 1024


def _read(path: str, wanted: str) -> dict[str, Any]:
    import json

    try:
        with open(path, "rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise NetError("file-not-found", f"there is no file {path}", "check the path", {"path": path}) from None
    except OSError as error:
        raise NetError("io-error", f"cannot read {path}: {error.strerror}", "check the file") from error
    try:
        document = json.loads(content) if len(content) <= MAX_FILE_BYTES else None
    except ValueError:
        document = None
    if not isinstance(document, dict) or document.get("format") != wanted or document.get("version") != 1:
        raise NetError(
            "invalid-argument",
            f"{path} is no {wanted.removeprefix('net-')} file",
            "write one with --out",
            {"path": path},
        )
    return document


def read_proposal(path: str, cluster: str) -> dict[str, Any]:
    """The proposal of a file, after rebuilding the bytes to sign from what it says and comparing them.

    Raises `file-not-found`, `invalid-argument`, `signature-invalid` if the file does not say what would be signed, and
    `cluster-changed` if it is for another cluster than the one this user knows under the name.
    """
    from net_sdk.commits import verify_proposal
    from net_sdk.discovery import pinned

    proposal = _read(path, "net-proposal").get("proposal")
    if not isinstance(proposal, dict) or not isinstance(proposal.get("event"), dict) or "reason" not in proposal:
        raise NetError("invalid-argument", f"{path} is no proposal file", "write it again with --out", {"path": path})
    verify_proposal(proposal["event"], proposal["reason"], proposal, pinned(cluster))
    return proposal


def describe(proposal: dict[str, Any]) -> Iterator[str]:
    """What a signature would agree to, from the bytes' own fields."""
    yield printable(f"{proposal['event']['kind']} {subject(proposal.get('target') or {})}".rstrip())
    yield from fields({key: value for key, value in proposal["event"].items() if key != "kind"}, indent="  ")
    if proposal["reason"]:
        yield printable(f"  reason: {proposal['reason']}")
    yield f"  cluster {proposal['cluster_id']}, expires {printable(str(proposal.get('expires_at')))}"
    yield f"  commit {proposal['commit_id']}"


def signature_document(key: KeyFile, proposal: dict[str, Any]) -> dict[str, Any]:
    """The document of a signature file."""
    return {
        "format": "net-signature",
        "version": 1,
        "commit_id": proposal["commit_id"],
        "operator": key.name,
        "operator_id": str(key.keypair.operator_id),
        "signature": key.keypair.sign(bytes.fromhex(proposal["signing_payload"])).hex(),
    }


def read_signature(path: str, proposal: dict[str, Any]) -> dict[str, str]:
    """`{operator_id, signature}` of a file; raises `invalid-argument` if it signs something else."""
    document = _read(path, "net-signature")
    if document.get("commit_id") != proposal["commit_id"]:
        raise NetError(
            "invalid-argument",
            f"{path} signs another proposal",
            "sign this one: net identity registry sign",
            {"path": path},
        )
    signature = {key: document.get(key) for key in ("operator_id", "signature")}
    if not all(isinstance(value, str) for value in signature.values()):
        raise NetError("invalid-argument", f"{path} lacks a field", "sign again: net identity registry sign")
    return {key: str(value) for key, value in signature.items()}


def propose_again(file: str, proposal: dict[str, Any]) -> str:
    """The command that writes the same proposal afresh, for one whose time is over."""
    event, name = proposal["event"], subject(proposal.get("target") or {})
    match event["kind"]:
        case "registry-add":
            words = f"identity registry add {event['name']} --public-key {event['public_key']} --proof {event['proof']}"
        case "registry-remove":
            words = f"identity registry remove {name}"
        case "registry-threshold":
            words = f"identity registry threshold {event['threshold']}"
        case "policy":
            units = {True: "ms", False: ""}
            changes = (f"{key}={value}{units[key.endswith('_ms')]}" for key, value in event["changes"].items())
            words = "admin policy set " + " ".join(changes)
        case kind:  # written by a newer version
            words = f"(the command for {kind})"
    reason = f" --reason {quote(proposal['reason'])}" if proposal["reason"] else ""
    return f"net {words}{reason} --operator NAME --out NEW-{quote(os.path.basename(file))}"
