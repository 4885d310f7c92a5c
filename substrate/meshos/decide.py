"""What the leader decides next: the pure core of placement and evacuation.

`decide` compares what operators want (the ledger) with what was decided (control) and who is there (members), and returns the
control events that bring them together. It is deterministic and idempotent: with its events folded, it returns nothing
until something changes. Absence is only acted on when it is proven (`lost`, `stopped` or a new session).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from substrate.mesh.membership import MARGIN_MS, TTL_MS
from substrate.meshos.decisions import Assignment, ControlState, Key
from substrate.meshos.placement import Host, Refusals, choose, why_not
from substrate.operator.state import Daemon, Drain, LedgerState
from substrate.wire.control import Assigned, DrainEnded, Freed, Released, RestartEnded
from substrate.wire.specs import DaemonSpec
from substrate.wire.structs import Variant

MAX_EVENTS: Final = 256
"""Decisions of one pass; the next pass goes on from there."""


class Presence(msgspec.Struct, frozen=True):
    """A node as its announcements and its silence show it.

    `state` is alive, suspect, lost or stopped. `running` are the instances it reports in any state but stopped, as of
    `control_seq` of the control chain. `restarted_seq` is the last restart-all it has carried out.
    """

    node: int
    name: str
    session: int
    state: str
    labels: frozenset[str] = frozenset()
    running: frozenset[Key] = frozenset()
    control_seq: int = 0
    restarted_seq: int = 0
    accepting: bool = True


class World(msgspec.Struct):
    """Everything a decision depends on. `now_ms` is the leader's clock."""

    ledger: LedgerState
    control: ControlState
    members: Mapping[int, Presence]
    now_ms: int


def decide(world: World) -> list[Variant]:
    """The next control events, at most `MAX_EVENTS`, in the order in which they must be recorded."""
    pass_ = _Pass(world)
    pass_.free_and_release()
    pass_.drain()
    pass_.place()
    pass_.finish_restarts()
    return pass_.events[:MAX_EVENTS]


def hosts_of(world: World) -> dict[int, Host]:
    """The nodes as placement sees them, with what is assigned to each."""
    ledger = world.ledger
    hosts: dict[int, Host] = {}
    for node, entry in ledger.nodes.items():
        if entry.removed:
            continue
        presence = world.members.get(node)
        blocked: str | None = None
        if presence is None or presence.state != "alive":
            blocked = f"is {presence.state if presence else 'not running'}"
        elif node in ledger.drains:
            blocked = "is being drained" if ledger.drains[node].seq not in world.control.drains else "is drained"
        elif node in ledger.cordoned:
            blocked = "is cordoned"
        elif not presence.accepting:
            blocked = "is stopping"
        labels = presence.labels if presence else frozenset[str]()
        hosts[node] = Host(node, entry.name, presence.session if presence else 0, labels, blocked, {})
    for key, assignment in world.control.assignments.items():
        daemon = ledger.daemons.get(key[0])
        if daemon is not None and assignment.node in hosts:
            hosts[assignment.node].instances[key] = daemon.spec
    return hosts


def wanted_instances(ledger: LedgerState) -> dict[Key, DaemonSpec]:
    """Every instance that shall run."""
    return {
        (daemon_id, index): daemon.spec
        for daemon_id, daemon in ledger.daemons.items()
        if not daemon.stopped
        for index in range(daemon.spec.replicas)
    }


def active_drains(world: World) -> dict[int, Drain]:
    """Drains that have not ended."""
    return {node: drain for node, drain in world.ledger.drains.items() if drain.seq not in world.control.drains}


class _Pass:
    def __init__(self, world: World) -> None:
        self.world = world
        self.events: list[Variant] = []
        self.hosts = hosts_of(world)
        self.wanted = wanted_instances(world.ledger)
        self.freed: set[Key] = set()
        self.released: set[Key] = set()

    def free_and_release(self) -> None:
        """Let go of what must not or need not run where it is."""
        for key, assignment in sorted(self.world.control.assignments.items()):
            gone = self._gone(key, assignment)
            if gone is not None:
                self._free(key, assignment, gone)
            elif assignment.state == "assigned":
                reason = self._why_release(key, assignment)
                if reason is not None:
                    self._release(key, reason)

    def _gone(self, key: Key, assignment: Assignment) -> str | None:
        """Why nothing of the instance can be left on its node, or None while something may."""
        presence = self.world.members.get(assignment.node)
        if presence is None:
            return None  # never seen by this leader: it proves nothing either way
        same = presence.session == assignment.session
        if presence.state in ("lost", "stopped") and (same or self._is_later(presence, assignment)):
            return f"{presence.name} is {presence.state}"
        if presence.state == "alive" and not same and self._is_later(presence, assignment):
            # A node takes a new session only when everything of the old one is dead.
            return f"{presence.name} lost its lease"
        reported = presence.control_seq >= assignment.released_seq and key not in presence.running
        if assignment.state == "released" and reported:
            return assignment.release_reason or "stopped"
        return None

    def _is_later(self, presence: Presence, assignment: Assignment) -> bool:
        """Whether the session in view came after the assignment's.

        It may have come before: another leader saw the node come back and gave it work, and this leader's view lags behind the
        decision. A session that has folded the assignment came after it; and one that lives shows itself within its lease.
        """
        waited_ms = self.world.now_ms - assignment.at_ms
        return presence.control_seq >= assignment.epoch or waited_ms >= TTL_MS + MARGIN_MS

    def _why_release(self, key: Key, assignment: Assignment) -> str | None:
        daemon: Daemon | None = self.world.ledger.daemons.get(key[0])
        if daemon is None:
            return "removed"
        if daemon.stopped:
            return "stopped"
        if key not in self.wanted:
            return "scaled down"
        host = self.hosts.get(assignment.node)
        if host is None:
            return "node removed"
        misfit = why_not(daemon.spec, key, host) if host.blocked is None else None
        # The spec or the node's labels changed under it; it moves only if there is a better place.
        if misfit and not isinstance(choose(daemon.spec, key, self.hosts.values(), {assignment.node}), Refusals):
            return f"no longer fits: {misfit}"
        return None

    def drain(self) -> None:
        """Move what a draining node holds, essential daemons last; end drains that are done or out of time."""
        for node, drain in sorted(active_drains(self.world).items()):
            held = {key: a for key, a in self.world.control.assignments.items() if a.node == node}
            left = sorted(key for key in held if key not in self.freed)
            staying = [key for key in left if held[key].state == "assigned"]
            moved = self.world.control.moved.get(node, 0)
            if not held:
                self.events.append(DrainEnded(node, drain.seq, "drained", moved))
                continue
            if left and self.world.now_ms >= drain.deadline_ms:
                reasons = [self._explain_left(key, node) for key in left]
                self.events.append(DrainEnded(node, drain.seq, "drain-failed", moved, tuple(reasons)[:64]))
                continue  # it keeps what it still holds
            ordinary = [key for key in staying if not self._essential(key)]
            left_before = [key for key in held if not self._essential(key)]
            for key in ordinary or ([] if left_before else staying):
                self._evacuate(key, node)

    def _essential(self, key: Key) -> bool:
        daemon = self.world.ledger.daemons.get(key[0])
        return daemon is not None and daemon.spec.essential

    def _evacuate(self, key: Key, node: int) -> None:
        """Release the instance if another node takes it; otherwise it stays, and the drain's progress says why."""
        spec = self.wanted.get(key)
        if spec is None or key in self.released:
            return  # being released for another reason already
        target = choose(spec, key, self.hosts.values(), {node})
        if not isinstance(target, Refusals):
            target.instances[key] = spec
            self._release(key, "drain")

    def _explain_left(self, key: Key, node: int) -> str:
        return f"{self._title(key)}: {why_left(self.world, key, node)}"

    def _title(self, key: Key) -> str:
        daemon = self.world.ledger.daemons.get(key[0])
        return f"{daemon.spec.name if daemon else key[0]}/{key[1]}"

    def place(self) -> None:
        """Give every wanted instance without a node one that fits."""
        for key, spec in sorted(self.wanted.items()):
            if key in self.world.control.assignments and key not in self.freed:
                continue
            if len(self.events) >= MAX_EVENTS:
                return
            target = choose(spec, key, self.hosts.values())
            if isinstance(target, Refusals):
                continue  # shown as pending, with these reasons, wherever daemons are listed
            target.instances[key] = spec
            why = self.world.control.last_exit_reason.get(key, "placed")
            self.events.append(Assigned(key[0], key[1], target.node, target.session, why))

    def finish_restarts(self) -> None:
        """Record that a restart-all is through."""
        for node, seq in sorted(self.world.ledger.restart_all.items()):
            if seq in self.world.control.restarts:
                continue
            presence = self.world.members.get(node)
            if presence is not None and presence.state == "alive" and presence.restarted_seq >= seq:
                self.events.append(RestartEnded(node, seq, "restarted"))
            elif presence is not None and presence.state in ("lost", "stopped"):
                self.events.append(RestartEnded(node, seq, "node-" + presence.state))

    def _free(self, key: Key, assignment: Assignment, reason: str) -> None:
        self.freed.add(key)
        host = self.hosts.get(assignment.node)
        if host is not None:
            host.instances.pop(key, None)
        self.events.append(Freed(key[0], key[1], reason))

    def _release(self, key: Key, reason: str) -> None:
        self.released.add(key)
        self.events.append(Released(key[0], key[1], reason))


def why_left(world: World, key: Key, node: int) -> str:
    """Why an instance is still on a draining node."""
    assignment = world.control.assignments.get(key)
    daemon = world.ledger.daemons.get(key[0])
    if assignment is not None and assignment.state == "released":
        return "is still stopping"
    if daemon is None:
        return "is being removed"
    target = choose(daemon.spec, key, hosts_of(world).values(), {node})
    if isinstance(target, Refusals):
        return f"no other node takes it ({target.text()})"
    if daemon.spec.essential:
        return "is essential and waits for the others"
    return "had no time to move"
