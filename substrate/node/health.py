"""The checks behind `net node health`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from substrate.node.runtime import Runtime

LOW_DISK_SHARE: Final = 0.05
_ORDER: Final = ("healthy", "degraded", "unhealthy")


def health_document(node: Runtime) -> dict[str, Any]:
    """`{status, checks: [{name, status, detail}]}`; the whole is as bad as its worst check."""
    checks = [
        _ledger(node),
        _engine(node),
        _lease(node),
        _guardian(node),
        _clock(node),
        _disk(node),
    ]
    worst = max(checks, key=lambda check: _ORDER.index(check["status"]))
    return {"status": worst["status"], "node_name": node.settings.name, "checks": checks}


def _check(name: str, status: str, detail: str) -> dict[str, Any]:
    return {"name": name, "status": status, "detail": detail}


def _ledger(node: Runtime) -> dict[str, Any]:
    failure = node.failure or node.ledger.failure or node.control.failure
    if failure is not None:
        return _check("ledger", "unhealthy", f"{failure.kind}: {failure.message}")
    return _check("ledger", "healthy", f"folded to {node.ledger.head.seq}, control to {node.control.head.seq}")


def _engine(node: Runtime) -> dict[str, Any]:
    document = node.engine_watch.document()
    if document["state"] != "ready":
        return _check("engine", "unhealthy", str(document["reason"]))
    return _check("engine", "healthy", f"{document['kind']}, process {document['pid']}")


def _lease(node: Runtime) -> dict[str, Any]:
    if not node.lease.held:
        return _check("lease", "unhealthy", "not held: no daemon may run here")
    # Health is about now: a loss in the past is told, but no alarm.
    return _check("lease", "healthy", f"held, lost {node.lease.losses} times")


def _guardian(node: Runtime) -> dict[str, Any]:
    if node.guardian is None or not node.guardian.running:
        return _check("guardian", "unhealthy", "gone: no daemon can be started")
    return _check("guardian", "healthy", f"process {node.guardian.pid}")


def _clock(node: Runtime) -> dict[str, Any]:
    skew = node.engine_watch.skew_ms
    status = "healthy" if abs(skew) < 5_000 else "degraded" if abs(skew) <= 30_000 else "unhealthy"
    return _check("clock", status, f"{skew} ms from the engine's")


def _disk(node: Runtime) -> dict[str, Any]:
    load = node.probes.latest
    used = load.disk_used_bytes.value if load else None
    total = load.disk_total_bytes.value if load else None
    if used is None or not total:
        return _check("disk", "degraded", "not measured")
    free = 1 - used / total
    return _check("disk", "healthy" if free > LOW_DISK_SHARE else "degraded", f"{free:.0%} free")
