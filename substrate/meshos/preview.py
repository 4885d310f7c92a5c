"""What a verb would do, computed by the production decisions on a copy (contract section 7, `--preview`).

The event is applied to a copy of the ledger and `decide` runs forward in virtual time: released instances are taken to stop
at once, assigned ones to start, until nothing changes or the drain's deadline has passed.
"""

from __future__ import annotations

import copy
from typing import Any, Final

import msgspec

from substrate.meshos.decide import Presence, World, decide, why_left
from substrate.meshos.decisions import Assignment, ControlState, Key
from substrate.operator.state import LedgerState
from substrate.wire import events
from substrate.wire.control import Assigned, DrainEnded, Freed, Released

MAX_STEPS: Final = 10_000


def preview(world: World, event: events.Event) -> dict[str, Any]:
    """The blast radius of an event: which nodes, daemons and moves it touches, and what stands in its way."""
    ledger: LedgerState = copy.deepcopy(world.ledger)
    control: ControlState = copy.deepcopy(world.control)
    seq = ledger.head.seq + 1
    ledger.apply(event, seq, world.now_ms, bytes(16), bytes(32))
    after = World(ledger, control, dict(world.members), world.now_ms)
    for key, assignment in control.assignments.items():
        if assignment.state == "released":
            _report(after, assignment.node, key, False)
    after = _run(after, event)
    return _document(world, after, event)


def _run(world: World, event: events.Event) -> World:
    deadline = world.now_ms + getattr(event, "drain_for_ms", 0)
    for _ in range(MAX_STEPS):
        decisions = decide(world)
        if not decisions:
            if world.now_ms > deadline:
                break
            world.now_ms = deadline + 1  # nothing more happens by itself; look once more when the time is over
            continue
        for decision in decisions:
            _take_effect(world, decision)
    return world


def _take_effect(world: World, decision: Any) -> None:
    control = world.control
    epoch = control.head.seq + 1
    control.head = msgspec.structs.replace(control.head, seq=epoch)
    key: Key = (getattr(decision, "daemon", 0), getattr(decision, "instance", 0))
    match decision:
        case Assigned():
            control.assignments[key] = Assignment(decision.node, decision.session, epoch, world.now_ms, decision.reason)
            _report(world, decision.node, key, True)
        case Released():
            assignment = control.assignments[key]
            assignment.state, assignment.released_seq = "released", epoch
            assignment.release_reason = decision.reason
            _report(world, assignment.node, key, False)
        case Freed():
            freed = control.assignments.pop(key)
            if freed.release_reason == "drain":
                control.moved[freed.node] = control.moved.get(freed.node, 0) + 1
        case DrainEnded():
            from substrate.meshos.decisions import DrainResult

            control.drains[decision.seq] = DrainResult(
                decision.node, decision.result, decision.moved, decision.reasons, world.now_ms
            )
        case _:
            control.restarts[decision.seq] = decision.result


def _report(world: World, node: int, key: Key, running: bool) -> None:
    """The node is taken to have done what was decided, and to have said so."""
    presence: Presence | None = world.members.get(node)
    if presence is not None:
        now = presence.running | {key} if running else presence.running - {key}
        said = msgspec.structs.replace(presence, running=now, control_seq=world.control.head.seq)
        world.members[node] = said  # type: ignore[index]


def _document(before: World, after: World, event: events.Event) -> dict[str, Any]:
    names = before.ledger.node_names()
    old, new = before.control.assignments, after.control.assignments
    touched: set[Key] = {key for key in old.keys() | new.keys() if _place(old.get(key)) != _place(new.get(key))}
    node = getattr(event, "node", None)
    if isinstance(event, events.RestartAllDaemons):
        touched |= {key for key, assignment in old.items() if assignment.node == node}
    if isinstance(event, events.DaemonEvent):
        touched |= {key for key in old if key[0] == event.daemon}
    moves = [
        _move(before, after, key, names) for key in sorted(touched) if _place(old.get(key)) != _place(new.get(key))
    ]
    nodes = {item for key in touched for item in (_place(old.get(key)), _place(new.get(key))) if item is not None}
    if node is not None:
        nodes.add(node)
    warnings = []
    drain = after.ledger.drains.get(node) if node is not None else None
    if drain is not None and drain.seq <= before.ledger.head.seq:
        drain = None  # an earlier one, which this event does not touch
    if drain is not None and node is not None:
        left = sorted(key for key, assignment in new.items() if assignment.node == node)
        warnings = [
            {"kind": "drain-blocked", "daemon": _title(before, key), "reason": why_left(after, key, node)}
            for key in left
        ]
    return {
        "affected_nodes": [
            {"node_id": str(item), "node_name": names.get(item)}
            for item in sorted(nodes, key=lambda item: (names.get(item) or "", item))
        ],
        "affected_replicas": [],
        "affected_daemons": [
            {
                "daemon_id": str(key[0]),
                "daemon_name": _name(before, after, key),
                "instance": key[1],
                "node_name": names.get(_place(old.get(key)) or 0),
            }
            for key in sorted(touched)
        ],
        "moves": moves,
        "hot_nodes": [],
        "drain_delay_ms": _drain_delay(before, touched) if drain is not None else None,
        "stability_delta": round(len(moves) / len(old), 4) if old else 0.0,
        "warnings": warnings,
    }


def _place(assignment: Assignment | None) -> int | None:
    return assignment.node if assignment else None


def _move(before: World, after: World, key: Key, names: dict[int, str]) -> dict[str, Any]:
    old, new = before.control.assignments.get(key), after.control.assignments.get(key)
    return {
        "daemon_id": str(key[0]),
        "daemon_name": _name(before, after, key),
        "instance": key[1],
        "from": names.get(old.node) if old else None,
        "to": names.get(new.node) if new else None,
    }


def _name(before: World, after: World, key: Key) -> str | None:
    daemon = before.ledger.daemons.get(key[0]) or after.ledger.daemons.get(key[0])
    return daemon.spec.name if daemon else None


def _title(world: World, key: Key) -> str:
    daemon = world.ledger.daemons.get(key[0])
    return f"{daemon.spec.name if daemon else key[0]}/{key[1]}"


def _drain_delay(world: World, touched: set[Key]) -> int:
    """The longest a graceful stop may take: the graces of the ordinary instances and of the essential ones after them."""
    graces: dict[bool, int] = {False: 0, True: 0}
    for key in touched:
        daemon = world.ledger.daemons.get(key[0])
        if daemon is not None:
            graces[daemon.spec.essential] = max(graces[daemon.spec.essential], daemon.spec.grace_ms)
    return graces[False] + graces[True]
