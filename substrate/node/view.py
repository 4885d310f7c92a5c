"""The cluster as one node knows it: ledger, decisions and membership brought together, for deciding and for showing."""

from __future__ import annotations

import time
from typing import Any

from substrate.mesh.load import Reading
from substrate.mesh.membership import MARGIN_MS, TTL_MS, Member, MembershipView, MemberStatus, Running
from substrate.mesh.proximity import Proximity
from substrate.meshos.control_copy import ControlCopy
from substrate.meshos.decide import Presence, World, hosts_of, wanted_instances
from substrate.meshos.decisions import Key
from substrate.meshos.placement import Refusals, choose
from substrate.operator.copy import LedgerCopy
from substrate.wire.specs import DaemonSpec
from substrate.wire.times import iso, now_ms


def monotonic_ms() -> int:
    """Milliseconds of a clock that is never set."""
    return time.monotonic_ns() // 1_000_000


class ClusterView:
    """Answers about nodes and daemons, each with its age."""

    def __init__(
        self, own_id: int, ledger: LedgerCopy, control: ControlCopy, members: MembershipView, proximity: Proximity
    ) -> None:
        self.own_id = own_id
        self.ledger = ledger
        self.control = control
        self.members = members
        self.proximity = proximity

    def world(self) -> World:
        """What the leader decides on. A node never seen counts as lost once it had time to show itself."""
        now = monotonic_ms()
        patient = self.members.watched_ms(now) >= TTL_MS + MARGIN_MS
        presences: dict[int, Presence] = {}
        # Removed nodes too: what was assigned to one is freed only when it is known to have ended there.
        for node, entry in self.ledger.state.nodes.items():
            status = self.members.status(node, now)
            presences[node] = (
                _presence(status) if status else Presence(node, entry.name, 0, "lost" if patient else "suspect")
            )
        return World(self.ledger.state, self.control.state, presences, now_ms())

    def member(self, node: int) -> MemberStatus | None:
        """A node's last announcement."""
        return self.members.status(node, monotonic_ms())

    # nodes

    def node_row(self, node: int) -> dict[str, Any]:
        """A node as `net node ls` shows it; what is unknown is null."""
        entry = self.ledger.state.nodes[node]
        status = self.member(node)
        member = status.member if status else None
        rtt = None if node == self.own_id else self.proximity.rtt(node)
        world = self.world()
        load = member.load if member else None
        clock = now_ms()
        return {
            "node_id": str(node),
            "name": entry.name,
            "node_name": entry.name,
            "state": self._state(node, status),
            "leader": self.control.state.leader == node and status is not None and status.state == "alive",
            "cordoned": node in self.ledger.state.cordoned,
            "maintenance": self.maintenance(node),
            "session": str(member.session) if member else None,
            "labels": list(member.labels) if member else [],
            "daemons": sum(1 for assignment in world.control.assignments.values() if assignment.node == node),
            "rtt_us": None if rtt is None or rtt.rtt_ms is None else round(rtt.rtt_ms * 1000),
            "rtt_age_ms": None if rtt is None else rtt.age_ms,
            "cpu_percent": _value(load.cpu_percent) if load else None,
            "load1": _value(load.load1) if load else None,
            "mem_used_bytes": _value(load.memory_used_bytes) if load else None,
            "mem_total_bytes": _value(load.memory_total_bytes) if load else None,
            "disk_used_bytes": _value(load.disk_used_bytes) if load else None,
            "disk_total_bytes": _value(load.disk_total_bytes) if load else None,
            "rss_bytes": _value(load.rss_bytes) if load else None,
            "load_age_ms": load.memory_used_bytes.age_ms(clock) if load else None,
            "last_seen_ms": status.last_seen_ms if status else None,
            "admin_seq": member.admin_seq if member else None,
            "control_seq": member.control_seq if member else None,
            "version": member.version if member else None,
            "endpoints": list(member.endpoints) if member else [],
            "started_at": iso(member.started_at_ms) if member else None,
            "public_key": entry.public_key.hex(),
        }

    def _state(self, node: int, status: MemberStatus | None) -> str:
        if self.ledger.state.nodes[node].removed:
            return "removed"
        if status is None:
            return "stopped" if self.world().members[node].state == "lost" else "unknown"
        if status.state == "alive" and status.member.state != "ready":
            return status.member.state
        return status.state

    def maintenance(self, node: int) -> str:
        """active, draining, drained or drain-failed."""
        drain = self.ledger.state.drains.get(node)
        if drain is None:
            return "active"
        result = self.control.state.drains.get(drain.seq)
        return "draining" if result is None else result.result

    def node_rows(self) -> list[dict[str, Any]]:
        """All admitted nodes, by name."""
        names = self.ledger.state.node_names()
        return [self.node_row(node) for node in sorted(names, key=lambda node: names[node])]

    def node_counts(self) -> dict[str, int]:
        """How many nodes are admitted, and how many of them are alive."""
        names = self.ledger.state.node_names()
        now = monotonic_ms()
        alive = sum(1 for s in self.members.members(now) if s.state == "alive" and s.member.node_id in names)
        return {"alive": alive, "total": len(names)}

    # daemons

    def daemon_counts(self) -> dict[str, int]:
        """How many instances shall run, and how many do, as their nodes report."""
        wanted = wanted_instances(self.ledger.state)
        running = {
            (r.daemon_id, r.instance)
            for status in self.members.members(monotonic_ms())
            if status.state == "alive"
            for r in status.member.running
            if r.lifecycle == "running"
        }
        return {"running": len(running & wanted.keys()), "total": len(wanted)}

    def daemon_rows(self) -> list[dict[str, Any]]:
        """One row per instance, by daemon name and instance."""
        world = self.world()
        rows = []
        daemons = self.ledger.state.daemons
        for daemon in sorted(daemons, key=lambda key: daemons[key].spec.name):
            rows.extend(self.instance_rows(daemon, world))
        return rows

    def instance_rows(self, daemon: int, world: World | None = None) -> list[dict[str, Any]]:
        """The rows of one daemon's instances, those beyond its replicas that still run included."""
        world = world or self.world()
        spec = self.ledger.state.daemons[daemon].spec
        numbers = set(range(spec.replicas))
        numbers.update(key[1] for key in world.control.assignments if key[0] == daemon)
        return [self._instance_row((daemon, number), spec, world) for number in sorted(numbers)]

    def _instance_row(self, key: Key, spec: DaemonSpec, world: World) -> dict[str, Any]:
        assignment = world.control.assignments.get(key)
        running = self._running(key, assignment.node) if assignment else None
        if assignment and running and running.epoch != assignment.epoch:
            running = None  # what the node still reports is an earlier placement
        node = self.ledger.state.nodes.get(assignment.node) if assignment else None
        status = self.member(assignment.node) if assignment else None
        row: dict[str, Any] = {
            "name": spec.name,
            "daemon_id": str(key[0]),
            "instance": key[1],
            "node_name": node.name if node else None,
            "node_id": str(assignment.node) if assignment else None,
            "lifecycle": "pending",
            "health": "unknown",
            "restarts": 0,
            "pid": None,
            "age_ms": None,
            "epoch": assignment.epoch if assignment else None,
            "essential": spec.essential,
            "labels": list(spec.labels),
            "reason": None,
            "last_exit": None,
            "next_start_ms": None,
            "report_age_ms": status.last_seen_ms if status else None,
        }
        clock = now_ms()
        if assignment is None:
            row["lifecycle"], row["reason"] = self._unplaced(key, spec, world)
        elif running is None:
            row["lifecycle"] = "starting" if assignment.state == "assigned" else "stopping"
            row["reason"] = assignment.release_reason or None
        else:
            row |= {
                "lifecycle": running.lifecycle,
                "health": running.health,
                "restarts": running.restarts,
                "pid": running.pid,
                "age_ms": max(0, clock - running.since_ms) if running.since_ms and running.pid else None,
                "reason": running.reason,
                "next_start_ms": max(0, running.next_start_ms - clock) if running.next_start_ms else None,
            }
            if running.last_exit is not None:
                last = running.last_exit
                row["last_exit"] = {"code": last.code, "signal": last.signal, "at": iso(last.at_ms)}
        if status is not None and status.state != "alive":
            row["lifecycle"], row["reason"] = "unknown", f"its node is {status.state}"
        return row

    def _unplaced(self, key: Key, spec: DaemonSpec, world: World) -> tuple[str, str | None]:
        if self.ledger.state.daemons[key[0]].stopped:
            return "stopped", "stopped by an operator"
        if key[1] >= spec.replicas:
            return "stopped", "scaled down"
        target = choose(spec, key, hosts_of(world).values())
        return ("blocked", target.text()) if isinstance(target, Refusals) else ("pending", None)

    def _running(self, key: Key, node: int) -> Running | None:
        status = self.member(node)
        if status is None:
            return None
        return next((r for r in status.member.running if (r.daemon_id, r.instance) == key), None)


def _presence(status: MemberStatus) -> Presence:
    member: Member = status.member
    return Presence(
        member.node_id,
        member.name,
        member.session,
        status.state,
        frozenset(member.labels),
        frozenset((r.daemon_id, r.instance) for r in member.running if r.lifecycle != "stopped"),
        member.control_seq,
        member.restarted_seq,
        member.state == "ready",
    )


def _value(reading: Reading) -> int | float | None:
    return reading.value
