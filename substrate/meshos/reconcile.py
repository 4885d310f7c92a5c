"""What a node does about its own assignments: the pure core of supervision on one node.

`reconcile` compares the assignments made to this node in its present session with what its supervisor reports, and returns the
actions that bring them together. Nothing that is under way already is asked for again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from substrate.meshos.decisions import ControlState, Key
from substrate.operator.state import LedgerState
from substrate.wire.specs import DaemonSpec

STOPPED: Final = "stopped"


class Actual(msgspec.Struct, frozen=True):
    """An instance as the supervisor has it. `generation` is the ledger seq of the spec or restart it was started for."""

    lifecycle: str
    epoch: int
    generation: int


class Start(msgspec.Struct, frozen=True):
    """Run an instance; one that runs otherwise is replaced."""

    key: Key
    spec: DaemonSpec
    epoch: int
    generation: int


class Stop(msgspec.Struct, frozen=True):
    """Stop an instance gracefully."""

    key: Key
    reason: str


class Restart(msgspec.Struct, frozen=True):
    """Stop an instance and start it again as it is."""

    key: Key
    generation: int


Action = Start | Stop | Restart


def generation_of(ledger: LedgerState, key: Key) -> int:
    """The ledger seq an instance must have been started for: of its spec, or of the latest restart asked for."""
    daemon = ledger.daemons[key[0]]
    return max(daemon.seq, daemon.restart_seq)


def reconcile(
    ledger: LedgerState,
    control: ControlState,
    actual: Mapping[Key, Actual],
    node: int,
    session: int,
) -> list[Action]:
    """The actions of one pass, stops first so that what they free can be used."""
    actions: list[Action] = []
    desired: dict[Key, int] = {
        key: assignment.epoch
        for key, assignment in control.assignments.items()
        if assignment.node == node
        and assignment.session == session
        and assignment.state == "assigned"
        and key[0] in ledger.daemons
        and not ledger.daemons[key[0]].stopped
    }
    for key, instance in sorted(actual.items()):
        if key not in desired and instance.lifecycle not in (STOPPED, "stopping"):
            assignment = control.assignments.get(key)
            reason = assignment.release_reason if assignment and assignment.node == node else ""
            actions.append(Stop(key, reason or "not assigned here"))
    for key, epoch in sorted(desired.items()):
        generation = generation_of(ledger, key)
        found = actual.get(key)
        spec = ledger.daemons[key[0]].spec
        if found is None or found.epoch != epoch:
            actions.append(Start(key, spec, epoch, generation))
        elif found.generation < generation:
            changed = found.generation < ledger.daemons[key[0]].seq
            actions.append(Start(key, spec, epoch, generation) if changed else Restart(key, generation))
    return actions
