"""A signed command from the command line: propose, check, show, ask, sign, commit, wait (contract sections 5 and 7)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from net_cli.confirm import confirm, interactive
from net_cli.table import duration, plain, printable
from substrate.wire.errors import NetError

if TYPE_CHECKING:
    from net_cli.context import App
    from net_sdk.client import Client
    from substrate.identity.keyfile import KeyFile

WAIT_MARGIN_MS = 60_000
"""How much longer than the work's own deadline a wait goes on before it gives up."""

_MOVING = ("drain", "enter-maintenance", "invalidate-placement")
"""Events whose progress counts daemons that left a node; that of the others counts daemons that are as wanted."""


class Choices(NamedTuple):
    """What the options of a signed command said. `wait` is None where neither --wait nor --detach was given."""

    reason: str = ""
    preview: bool = False
    yes: bool = False
    wait: bool | None = None
    out: str | None = None


def command(
    app: App,
    event: dict[str, Any],
    choices: Choices,
    *,
    ask: bool = False,
    work_ms: int | None = None,
    waits: bool = False,
) -> None:
    """Carry out one signed command and print its document.

    `ask`: on a terminal, show the blast radius and ask first. `waits`: on a terminal in pretty mode, wait without being
    told to. `work_ms`: how long the work may take, which bounds the wait unless --timeout does.
    """
    from net_sdk.commits import propose

    if choices.preview:
        with app.attach() as client:
            app.out.record(preview_document(propose(client, event, choices.reason, preview=True)), preview_view)
        return
    app.refuse_if_read_only()
    key = app.key()
    with app.attach() as client:
        if choices.out is not None:
            _write_proposal(app, client, key, event, choices.reason, choices.out)
            return
        commit = commit_event(client, key, event, choices.reason, ask=ask and not choices.yes)
        wait = choices.wait if choices.wait is not None else waits and not app.out.json and interactive()
        if wait:
            commit |= wait_for(app, client, commit, work_ms)
    app.out.record(commit, commit_view)


def commit_event(
    client: Client, key: KeyFile, event: dict[str, Any], reason: str = "", *, ask: bool = False
) -> dict[str, Any]:
    """Propose, compare what came back, sign, commit; returns the document of an accepted commit.

    With `ask`, on a terminal, the blast radius is shown first and `YES` asked for. Raises what the cluster refused
    with, or `confirmation-refused`.
    """
    from net_sdk.commits import propose, run

    if ask and interactive():
        # Its own proposal: the human's thinking must not eat into the window of the one that is signed.
        shown = propose(client, event, reason, operator_id=str(key.keypair.operator_id), preview=True)
        confirm(preview_view(preview_document(shown)))
    try:
        return run(client, key.keypair, event, reason)
    except NetError as error:
        if error.kind == "not-authorized" and event["kind"] != "registry-rotate" and _is_being_rotated(key):
            error.hint = f"a rotation of {key.name} was not finished: net identity rotate {key.name}"
        raise


def _is_being_rotated(key: KeyFile) -> bool:
    from substrate.identity.keyfile import NEXT_SUFFIX

    return os.path.lexists(os.path.join(os.path.dirname(key.path), key.name + NEXT_SUFFIX))


def _write_proposal(app: App, client: Client, key: KeyFile, event: dict[str, Any], reason: str, out: str) -> None:
    from net_sdk.commits import propose, verify_proposal

    document = propose(client, event, reason, operator_id=str(key.keypair.operator_id))
    verify_proposal(event, reason, document, client.cluster_id)
    write_new(out, {"format": "net-proposal", "version": 1, "proposal": document})
    shown = {name: document[name] for name in ("commit_id", "expires_at", "threshold")}
    app.out.record({"out": out, "event_kind": event["kind"], **shown})
    app.out.say(f"each operator signs it with: net identity registry sign {out} --operator NAME")


def wait_for(app: App, client: Client, commit: dict[str, Any], work_ms: int | None) -> dict[str, Any]:
    """Wait until the commit's work is over, with progress on stderr; returns `result` and `elapsed_ms`.

    Raises the kind of a failed work (`drain-failed`), `wait-timeout`, or `interrupted`; the commit stands in each case.
    """
    from net_sdk.commits import progress_error, wait

    commit_id = commit["commit_id"]
    limit_ms = app.wait_timeout_ms or ((work_ms or 0) + WAIT_MARGIN_MS)
    shown = ""

    def on_progress(progress: dict[str, Any]) -> None:
        nonlocal shown
        line = progress_line(commit, progress)
        if line != shown:
            app.out.say(line)
            shown = line

    try:
        progress = wait(client, commit_id, limit_ms / 1000, on_progress)
    except KeyboardInterrupt:
        raise NetError(
            "interrupted",
            "stopped waiting; the command goes on",
            f"net audit show {commit_id}",
            {"commit_id": commit_id},
        ) from None
    failure = progress_error(progress)
    if failure is not None:
        failure.details["commit"] = commit
        failure.hint = failure.hint or f"net audit show {commit_id}"
        raise failure
    return {"result": progress.get("result"), "elapsed_ms": progress.get("elapsed_ms")}


def progress_line(commit: dict[str, Any], progress: dict[str, Any]) -> str:
    """One line about work under way."""
    line = f"{_title(commit)}: {progress['state']}"
    if progress.get("total"):
        verb = "moved" if commit["event_kind"] in _MOVING else "done"
        line += f", {progress.get('moved', 0)} of {progress['total']} {verb}"
    names = [f"{item.get('daemon_name')}/{item.get('instance')}" for item in progress.get("remaining", [])]
    if names:
        line += f", waiting for {', '.join(names[:4])}" + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return printable(line)


def _title(commit: dict[str, Any]) -> str:
    """What was done to what; some events have no target."""
    return f"{commit['event_kind']} {subject(commit.get('target') or {})}".rstrip()


def subject(target: dict[str, Any]) -> str:
    """The name a command was about."""
    for key in ("node_name", "daemon_name", "operator", "chain_name", "cluster", "node_id", "daemon_id", "operator_id"):
        if target.get(key):
            return plain(target[key])
    return plain(target) if target else ""


def preview_document(proposal: dict[str, Any]) -> dict[str, Any]:
    """The document of --preview (contract section 10) out of a proposal."""
    outer = ("cluster_id", "nonce", "signing_payload", "issued_at", "expires_at")
    hidden = {*outer, "blast_radius", "blast_hash", "issued_at_ms", "expires_at_ms"}
    return {
        "proposal": {key: value for key, value in proposal.items() if key not in hidden},
        "blast_radius": proposal.get("blast_radius"),
        "blast_hash": proposal.get("blast_hash"),
        **{key: proposal.get(key) for key in outer},
    }


def preview_view(document: dict[str, Any]) -> Iterator[str]:
    """What a command would do, for people: exactly what the node computed."""
    proposal, radius = document["proposal"], document["blast_radius"] or {}
    yield printable(f"{proposal['event']['kind']} {subject(proposal.get('target') or {})}".rstrip())
    for title, names in (
        ("nodes", [item.get("node_name") for item in radius.get("affected_nodes", [])]),
        ("daemons", [_instance(item) for item in radius.get("affected_daemons", [])]),
        ("copies", [plain(item) for item in radius.get("affected_replicas", [])]),
    ):
        yield f"  {title}: {len(names)}" + (f"  {printable(', '.join(map(str, names)))}" if names else "")
    for move in radius.get("moves", []):
        yield printable(f"  move: {_instance(move)} {_place(move.get('from'))} -> {_place(move.get('to'))}")
    if radius.get("drain_delay_ms") is not None:
        yield f"  takes up to: {duration(radius['drain_delay_ms'])}"
    for warning in radius.get("warnings", []):
        yield f"  warning: {plain(warning)}"


def _instance(item: dict[str, Any]) -> str:
    instance = item.get("instance")
    return f"{item.get('daemon_name')}" + (f"/{instance}" if instance is not None else "")


def _place(value: Any) -> str:
    return plain(value.get("node_name") if isinstance(value, dict) else value) if value else "nowhere"


def commit_view(document: dict[str, Any]) -> Iterator[str]:
    """A commit in a few lines."""
    line = f"{_title(document)}: {document['outcome']}"
    if document.get("result"):
        line += f", {document['result']} after {duration(document.get('elapsed_ms'))}"
    yield printable(line)
    signers = ", ".join(str(item["name"]) for item in document.get("operators") or []) or document.get("operator")
    yield printable(f"  commit {document['commit_id']}, seq {document['seq']}, signed by {signers}")
    for warning in document.get("warnings") or []:
        yield f"  warning: {plain(warning)}"


def write_new(path: str, document: dict[str, Any]) -> None:
    """Write a JSON file that must not exist yet; raises `out-exists`, `io-error`."""
    from net_cli.output import dumps

    write_secret(path, dumps(document) + "\n")


def write_secret(path: str, text: str) -> None:
    """Write a text file that must not exist yet, 0600 from its first byte; raises `out-exists`, `io-error`."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        raise NetError("out-exists", f"{path} exists already", "choose another --out", {"path": path}) from None
    except OSError as error:
        raise NetError("io-error", f"cannot write {path}: {error.strerror}", "check the directory") from error
