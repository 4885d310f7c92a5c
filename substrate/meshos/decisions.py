"""The fold of the `control` chain: what the leaders decided (contract section 6).

A record counts only under the seal of the node that opened its term; a stale leader cannot append, for its expected head is gone.
Pure; each node runs it on every record.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

from substrate.identity.verify import verify_strict
from substrate.operator.ledger import CONTROL_CHAIN
from substrate.wire.control import Assigned, DrainEnded, Freed, Released, RestartEnded, TermOpened, decode_control
from substrate.wire.envelope import seal_payload
from substrate.wire.errors import NetError
from substrate.wire.postcard import PostcardError
from substrate.wire.records import EMPTY, Head, Record, check_follows

MAX_RESULTS: Final = 1024
"""Ended drains and restarts that are remembered; the chain itself keeps all."""

Key = tuple[int, int]
"""(daemon id, instance number)."""


class Assignment(msgspec.Struct):
    """Where an instance runs, or is being stopped. `epoch` is the seq of the record that assigned it."""

    node: int
    session: int
    epoch: int
    at_ms: int
    reason: str
    state: Literal["assigned", "released"] = "assigned"
    released_seq: int = 0
    release_reason: str = ""


class DrainResult(msgspec.Struct):
    """How a drain ended. `result` is drained, drain-failed or cancelled."""

    node: int
    result: str
    moved: int
    reasons: tuple[str, ...]
    at_ms: int


class ControlState(msgspec.Struct):
    """The decisions up to `head`."""

    head: Head = EMPTY
    at_ms: int = 0
    term: int = 0
    leader: int = 0
    assignments: dict[Key, Assignment] = {}
    moved: dict[int, int] = {}
    """node id -> instances a drain has moved off it so far."""
    drains: dict[int, DrainResult] = {}
    """seq of the drain in `admin` -> its result."""
    restarts: dict[int, str] = {}
    """seq of the restart-all in `admin` -> its result."""
    last_exit_reason: dict[Key, str] = {}
    """Why an instance that has no node now was freed."""


def fold_control(state: ControlState, record: Record, leader_key: bytes | None) -> Any:
    """Verify `record` as the next decision, apply it, return its event.

    `leader_key` is the public key of the node the record names as leader, None if the ledger does not know it. Raises `ledger-tampered`.
    """
    try:
        head = check_follows(CONTROL_CHAIN, state.head, [record])
        term, leader, event = decode_control(record.payload)
    except (NetError, PostcardError) as error:
        raise _tampered(record.seq, str(error)) from error
    if leader_key is None or not verify_strict(leader_key, seal_payload(record.hash), record.seal):
        raise _tampered(record.seq, f"the seal of leader {leader} does not verify")
    if isinstance(event, TermOpened):
        if term <= state.term:
            raise _tampered(record.seq, f"it opens term {term} after term {state.term}")
        state.term, state.leader = term, leader
    elif (term, leader) != (state.term, state.leader):
        raise _tampered(record.seq, f"it is of term {term}, the term is {state.term}")
    _apply(state, event, record)
    state.head, state.at_ms = head, max(state.at_ms, record.at_ms)
    return event


def leader_of(record: Record) -> int:
    """The node id a control record names as leader; 0 when it cannot be read."""
    try:
        return decode_control(record.payload)[1]
    except PostcardError:
        return 0


def _apply(state: ControlState, event: Any, record: Record) -> None:
    match event:
        case Assigned():
            key = (event.daemon, event.instance)
            state.assignments[key] = Assignment(event.node, event.session, record.seq, record.at_ms, event.reason)
            state.last_exit_reason.pop(key, None)
        case Released():
            assignment = state.assignments.get((event.daemon, event.instance))
            if assignment is not None and assignment.state == "assigned":
                assignment.state, assignment.released_seq = "released", record.seq
                assignment.release_reason = event.reason
        case Freed():
            key = (event.daemon, event.instance)
            freed = state.assignments.pop(key, None)
            if freed is not None:
                state.last_exit_reason[key] = event.reason
                if freed.release_reason == "drain":
                    state.moved[freed.node] = state.moved.get(freed.node, 0) + 1
        case DrainEnded():
            _limit(state.drains)
            state.drains[event.seq] = DrainResult(event.node, event.result, event.moved, event.reasons, record.at_ms)
            state.moved.pop(event.node, None)
        case RestartEnded():
            _limit(state.restarts)
            state.restarts[event.seq] = event.result


def _limit(results: dict[int, Any]) -> None:
    while len(results) >= MAX_RESULTS:
        del results[next(iter(results))]


def _tampered(seq: int, reason: str) -> NetError:
    return NetError(
        "ledger-tampered",
        f"record {seq} of the control chain is not genuine: {reason}",
        "stop this node, keep its files, and compare with another node: net audit verify",
        {"seq": seq, "chain": CONTROL_CHAIN, "reason": reason},
    )
