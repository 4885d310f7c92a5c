"""How far the work of an accepted commit has come."""

from __future__ import annotations

from typing import Any

from substrate.meshos.decide import why_left
from substrate.node.view import ClusterView
from substrate.operator.fold import Entry
from substrate.wire import events
from substrate.wire.times import iso, now_ms


def progress_document(view: ClusterView, entry: Entry) -> dict[str, Any]:
    """`{commit_id, state: running|done|failed, result, remaining, moved, total, deadline_at, time_left_ms, elapsed_ms, reasons}`."""
    document: dict[str, Any] = {
        "commit_id": entry.body.commit_id().hex(),
        "event_kind": entry.event.kind,
        "state": "done",
        "result": None,
        "remaining": [],
        "moved": 0,
        "total": 0,
        "deadline_at": None,
        "time_left_ms": None,
        "elapsed_ms": max(0, now_ms() - entry.record.at_ms),
        "reasons": [],
    }
    if not entry.accepted:
        refusal = entry.body.refusal
        assert refusal is not None
        return document | {"state": "failed", "result": "rejected", "reasons": [refusal.message]}
    match entry.event:
        case events.Drain():
            return document | _drain(view, entry)
        case events.RestartAllDaemons():
            result = view.control.state.restarts.get(entry.record.seq)
            return document | {"state": "done" if result else "running", "result": result}
        case events.DaemonApply() | events.DaemonRestart():
            return document | _daemon_runs(view, entry)
        case events.DaemonRemove() | events.DaemonStop():
            return document | _daemon_ends(view, entry)
        case _:
            return document | {"result": _RESULTS.get(entry.event.kind, "committed")}


_RESULTS = {"cordon": "cordoned", "uncordon": "uncordoned", "exit-maintenance": "active"}


def _drain(view: ClusterView, entry: Entry) -> dict[str, Any]:
    node, seq = entry.event.node, entry.record.seq
    result = view.control.state.drains.get(seq)
    if result is not None:
        state = "done" if result.result == "drained" else "failed"
        moved = result.moved
        return {
            "state": state,
            "result": result.result,
            "moved": moved,
            "total": moved + len(result.reasons),
            "reasons": list(result.reasons),
            "elapsed_ms": max(0, result.at_ms - entry.record.at_ms),
        }
    current = view.ledger.state.drains.get(node)
    if current is None or current.seq != seq:
        why = "the node was taken back" if current is None else "a later drain replaced it"
        return {"state": "failed", "result": "cancelled", "reasons": [why]}
    world = view.world()
    remaining = []
    for key, assignment in sorted(world.control.assignments.items()):
        if assignment.node != node:
            continue
        daemon = world.ledger.daemons.get(key[0])
        why = why_left(world, key, node)
        remaining.append(
            {
                "daemon_id": str(key[0]),
                "daemon_name": daemon.spec.name if daemon else None,
                "instance": key[1],
                "essential": bool(daemon and daemon.spec.essential),
                "blocked_by": why if why.startswith("no other node") else None,
            }
        )
    moved = view.control.state.moved.get(node, 0)
    return {
        "state": "running",
        "remaining": remaining,
        "moved": moved,
        "total": moved + len(remaining),
        "deadline_at": iso(current.deadline_ms),
        "time_left_ms": max(0, current.deadline_ms - now_ms()),
    }


def _daemon_runs(view: ClusterView, entry: Entry) -> dict[str, Any]:
    event = entry.event
    daemon = view.ledger.state.daemon_id(event.spec.name) if isinstance(event, events.DaemonApply) else event.daemon
    known = view.ledger.state.daemons.get(daemon)
    if known is None or known.stopped:
        return {"state": "failed", "result": "cancelled", "reasons": ["the daemon was stopped or removed since"]}
    rows = view.instance_rows(daemon)
    left = [row for row in rows if not _is_up(view, row, entry)]
    return {
        "state": "running" if left else "done",
        "result": None if left else "running",
        "remaining": [_remaining(row) for row in left],
        "moved": len(rows) - len(left),
        "total": len(rows),
    }


def _is_up(view: ClusterView, row: dict[str, Any], entry: Entry) -> bool:
    if row["node_id"] is None:
        return False
    status = view.member(int(row["node_id"]))
    if status is None or status.member.admin_seq < entry.record.seq:
        return False
    done_once = row["lifecycle"] == "stopped" and row["last_exit"] is not None
    if isinstance(entry.event, events.DaemonRestart) and row["age_ms"] is not None:
        # The process must be younger than the commit that asked for it.
        return bool(row["lifecycle"] == "running" and row["age_ms"] <= now_ms() - entry.record.at_ms)
    return bool(row["lifecycle"] == "running" or done_once)


def _daemon_ends(view: ClusterView, entry: Entry) -> dict[str, Any]:
    daemon = entry.event.daemon
    known = view.ledger.state.daemons.get(daemon)
    if known is not None and not known.stopped:
        return {"state": "failed", "result": "cancelled", "reasons": ["the daemon was started again since"]}
    left = sorted(key for key in view.control.state.assignments if key[0] == daemon)
    name = known.spec.name if known else None
    return {
        "state": "running" if left else "done",
        "result": None if left else ("removed" if known is None else "stopped"),
        "remaining": [
            {"daemon_id": str(daemon), "daemon_name": name, "instance": key[1], "essential": False, "blocked_by": None}
            for key in left
        ],
        "total": len(left),
    }


def _remaining(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "daemon_id": row["daemon_id"],
        "daemon_name": row["name"],
        "instance": row["instance"],
        "essential": row["essential"],
        "blocked_by": row["reason"],
    }
