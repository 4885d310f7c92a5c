"""From an operator's wish to its outcome: propose, compare, sign, commit, wait.

The steps that need care when answers get lost are written once, as generators that yield the requests they need (`Flow`); the
functions here run them on the sync client, `net_sdk.aclient.AsyncCommits` on the asynchronous one.
Source: contract sections 5 and 7.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from typing import Any, Final, NamedTuple, TypeVar

from net_sdk.client import Client, quote
from net_sdk.proposals import Signer, commit_body, sign, verify_proposal
from substrate.wire.errors import KINDS, NetError

__all__ = [
    "WAIT_THROUGH",
    "Call",
    "Flow",
    "Pause",
    "command_flow",
    "commit_flow",
    "drive",
    "progress_error",
    "propose",
    "run",
    "sign",
    "submit",
    "verify_proposal",
    "wait",
    "wait_timeout",
]

RESOLVE_S: Final = 15.0
"""How long a commit with an unclear outcome is inquired after."""
_UNCLEAR: Final = frozenset(("not-connected", "node-unreachable", "timeout", "unknown-outcome"))
"""Failures after which a commit may or may not have taken effect."""
_STALE: Final = frozenset(("proposal-not-found", "simulation-required"))
"""What a commit is refused with when its nonce is unknown."""
_BUSY: Final = frozenset(("engine-unavailable", "overloaded"))
_PASSING: Final = _UNCLEAR | _STALE | _BUSY | {"commit-not-found", "replayed"}
"""Answers that settle nothing while the outcome is unclear."""
WAIT_THROUGH: Final = _UNCLEAR | _BUSY
"""Failures of a progress stream after which it is taken up again."""

T = TypeVar("T")


class Call(NamedTuple):
    """A request the flow needs; it is sent the document or thrown the `NetError`."""

    method: str
    path: str
    body: Any = None


class Pause(NamedTuple):
    """Time the flow wants to pass, in seconds."""

    seconds: float


Flow = Generator[Call | Pause, Any, T]
"""A flow that ends with a T."""


def commit_flow(proposal: dict[str, Any], signatures: list[dict[str, str]]) -> Flow[dict[str, Any]]:
    """Commit a signed proposal; the commit document of an accepted one.

    When the answer is lost, the commit is looked up by its id and, while no node knows it, sent again: an envelope counts once at
    most. Raises what the cluster refused it with, or `unknown-outcome` (details: commit_id) if that stays unclear.
    """
    body = commit_body(proposal, signatures)
    commit_id: str = proposal["commit_id"]
    unclear: NetError | None = None
    deadline, pause_s = 0.0, 0.05
    while True:
        try:
            return _accepted((yield Call("POST", "/v1/commits", body)))
        except NetError as failure:
            if failure.kind == "not-connected" and failure.details.get("sent") is False:
                if unclear is None:
                    raise  # nobody listened: nothing was sent
            elif unclear is None and failure.kind not in _UNCLEAR:
                raise  # a verdict
            elif failure.kind not in _PASSING:
                raise
            if unclear is None:
                deadline = time.monotonic() + RESOLVE_S
            unclear = failure
        try:
            return _accepted((yield Call("GET", f"/v1/commits/{quote(commit_id)}")))
        except NetError as failure:
            if failure.kind not in _PASSING:
                raise
        if time.monotonic() >= deadline:
            raise NetError(
                "unknown-outcome",
                f"it is not known whether commit {commit_id} took effect: {unclear.message}",
                f"net audit show {commit_id}",
                {"commit_id": commit_id},
            )
        yield Pause(pause_s)
        pause_s = min(1.0, pause_s * 2)


def command_flow(
    signer: Signer,
    event: dict[str, Any],
    reason: str,
    cluster_id: str | None,
    preview: bool = False,
    approve: Callable[[dict[str, Any]], None] | None = None,
) -> Flow[dict[str, Any]]:
    """The whole way for one signature: propose, compare, `approve` (raises to refuse), sign, commit.

    A proposal that no node knows any more (its node or the engine restarted) is made and signed once again if nothing was
    committed meanwhile; it is not approved twice unless its target or blast radius changed.
    """
    approved: tuple[Any, Any] | None = None
    for attempt in (1, 2):
        body = {"event": event, "reason": reason, "operator_id": str(signer.operator_id), "preview": preview}
        proposal: dict[str, Any] = yield Call("POST", "/v1/proposals", body)
        payload = verify_proposal(event, reason, proposal, cluster_id)
        shown = (proposal.get("target"), proposal.get("blast_radius"))
        if approve is not None and shown != approved:
            approve(proposal)
            approved = shown
        try:
            return (yield from commit_flow(proposal, [sign(signer, payload)]))
        except NetError as failure:
            if attempt == 2 or failure.kind not in _STALE:
                raise
    raise AssertionError("the second attempt returns or raises")


def propose(
    client: Client, event: dict[str, Any], reason: str = "", *, operator_id: str | None = None, preview: bool = False
) -> dict[str, Any]:
    """The proposal document of an event; with `preview` its blast radius too. It still has to pass `verify_proposal`."""
    body = {"event": event, "reason": reason, "operator_id": operator_id, "preview": preview}
    document: dict[str, Any] = client.post("/v1/proposals", body)
    return document


def submit(client: Client, proposal: dict[str, Any], signatures: list[dict[str, str]]) -> dict[str, Any]:
    """Commit a proposal with signatures collected for it; see `commit_flow`."""
    return drive(client, commit_flow(proposal, signatures))


def run(
    client: Client,
    signer: Signer,
    event: dict[str, Any],
    reason: str = "",
    *,
    preview: bool = False,
    approve: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Carry out a command with one signature; the document of the accepted commit. See `command_flow`."""
    return drive(client, command_flow(signer, event, reason, client.cluster_id, preview, approve))


def wait(
    client: Client, commit_id: str, timeout_s: float, on_progress: Callable[[dict[str, Any]], None] | None = None
) -> dict[str, Any]:
    """Follow the commit's work to its end; the last progress document, whose `state` is `done` or `failed`.

    Survives the loss of the node asked, if the client knows another. Raises `wait-timeout` (details: commit_id and the last progress).
    """
    deadline = time.monotonic() + timeout_s
    path = f"/v1/commits/{quote(commit_id)}/progress"
    last: dict[str, Any] | None = None
    pause_s = 0.05
    while (left := deadline - time.monotonic()) > 0:
        try:
            for row in client.stream(path, timeout_s=left, follow=True):
                if "state" not in row:
                    continue
                last, pause_s = row, 0.05
                if on_progress is not None:
                    on_progress(row)
                if row["state"] != "running":
                    return row
        except NetError as failure:
            if failure.kind not in WAIT_THROUGH:
                raise
        time.sleep(max(0.0, min(pause_s, deadline - time.monotonic())))
        pause_s = min(1.0, pause_s * 2)
    raise wait_timeout(commit_id, last)


def progress_error(progress: dict[str, Any]) -> NetError | None:
    """The error of work that has failed (`drain-failed`, ...), or None."""
    if progress["state"] != "failed":
        return None
    result = progress.get("result")
    kind = result if result in KINDS else "drain-failed" if progress.get("event_kind") == "drain" else "rejected"
    reasons = "; ".join(str(reason) for reason in progress.get("reasons") or ()) or "no reason given"
    return NetError(kind, f"the commit's work ended {result or 'without success'}: {reasons}", details=dict(progress))


def wait_timeout(commit_id: str, progress: dict[str, Any] | None) -> NetError:
    """The error of a wait that took too long."""
    details = {**(progress or {}), "commit_id": commit_id}
    message = "the commit is accepted, but its work was not over in the time given"
    return NetError("wait-timeout", message, f"net audit show {commit_id}", details)


def drive(client: Client, flow: Flow[T]) -> T:
    """Run a flow on the sync client."""
    answer: Any = None
    failure: NetError | None = None
    try:
        while True:
            step = flow.send(answer) if failure is None else flow.throw(failure)
            answer, failure = None, None
            if isinstance(step, Pause):
                time.sleep(step.seconds)
                continue
            try:
                answer = client.get(step.path) if step.method == "GET" else client.post(step.path, step.body)
            except NetError as error:
                failure = error
    except StopIteration as end:
        result: T = end.value
        return result


def _accepted(document: dict[str, Any]) -> dict[str, Any]:
    """The commit document, or the error of a rejected commit: that is never reported as success."""
    if document["outcome"] == "accepted":
        return document
    error = document.get("error") or {}
    kind = error.get("kind")
    raise NetError(
        kind if kind in KINDS else "rejected",
        error.get("message") or "the cluster rejected the commit",
        error.get("hint") or f"net audit show {document['commit_id']}",
        {**(error.get("details") or {}), "commit": document},
    )
