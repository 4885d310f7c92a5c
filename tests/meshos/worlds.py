"""Worlds for the leader's pure core: random ones, and a small cluster that carries decisions out at once."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from hypothesis import strategies as st

from substrate.identity.keys import Keypair
from substrate.meshos.decide import Presence, World, decide
from substrate.meshos.decisions import Assignment, ControlState, Key, fold_control
from substrate.operator.ledger import CONTROL_CHAIN
from substrate.operator.state import Daemon, Drain, LedgerState, Node
from substrate.wire.control import TermOpened, encode_control
from substrate.wire.envelope import seal_payload
from substrate.wire.records import Head, Record, next_record
from substrate.wire.specs import DaemonSpec
from substrate.wire.structs import Variant

NOW_MS = 1_700_000_000_000
LABELS = ("x", "y")
LEADER = Keypair(b"leader".ljust(32, b"."))
LONG_AGO_MS = NOW_MS - 3_600_000


def sealed(keys: Keypair, term: int, head: Head, at_ms: int, events: Sequence[Variant]) -> list[Record]:
    """Control records of these events by one leader, as the leader would append them."""
    records: list[Record] = []
    for event in events:
        payload = encode_control(term, keys.node_id, event)
        record = next_record(CONTROL_CHAIN, records[-1].head if records else head, at_ms, payload)
        records.append(msgspec.structs.replace(record, seal=keys.sign(seal_payload(record.hash))))
    return records


def spec(name: str, **fields: Any) -> DaemonSpec:
    """A small daemon."""
    return DaemonSpec(name, ("sleep", "1"), **fields)


def daemon(seq: int, name: str, stopped: bool = False, **fields: Any) -> Daemon:
    """A daemon of the ledger."""
    return Daemon(spec(name, **fields).to_bytes(), seq, stopped)


def node(name: str) -> Node:
    """A node of the ledger."""
    return Node(name, bytes(32), 1)


def alive(number: int, **fields: Any) -> Presence:
    """A node that is well and has folded everything."""
    usual = {"session": 100 + number, "state": "alive", "control_seq": 10_000}
    return Presence(number, f"n{number}", **{**usual, **fields})


def assigned(on: int, **fields: Any) -> Assignment:
    """An assignment to a node's first session."""
    return Assignment(
        **{"node": on, "session": 100 + on, "epoch": 5, "at_ms": LONG_AGO_MS, "reason": "placed", **fields}
    )


def world(nodes: Iterable[Presence], **ledger: Any) -> World:
    """A world of these nodes; every one of them is admitted."""
    members = {presence.node: presence for presence in nodes}
    state = LedgerState(head=Head(100, bytes(32)), nodes={n: node(p.name) for n, p in members.items()}, **ledger)
    return World(state, ControlState(head=Head(50, bytes(32)), term=1, leader=LEADER.node_id), members, NOW_MS)


def frozen(world: World) -> bytes:
    """All of a world, to compare."""
    return msgspec.msgpack.encode([world.ledger, world.control, list(world.members.values()), world.now_ms])


class Cluster:
    """Carries decisions out at once: what is assigned starts, what is released stops, everybody hears of it."""

    def __init__(self, world: World) -> None:
        self.world = World(copy.deepcopy(world.ledger), copy.deepcopy(world.control), dict(world.members), world.now_ms)
        self.decided: list[Variant] = []

    def fold(self, events: Sequence[Variant]) -> None:
        """Take decisions in through the production fold."""
        control = self.world.control
        for record in sealed(LEADER, control.term, control.head, self.world.now_ms, events):
            fold_control(control, record, LEADER.public_key)
        self.decided += events

    def report(self) -> None:
        """Nodes that can, do what is decided and say so."""
        control = self.world.control
        members: dict[int, Presence] = {}
        for number, presence in self.world.members.items():
            if presence.state == "alive":
                mine = {
                    key
                    for key, a in control.assignments.items()
                    if (a.node, a.session, a.state) == (number, presence.session, "assigned")
                }
                restart = self.world.ledger.restart_all.get(number, 0)
                presence = msgspec.structs.replace(
                    presence, running=frozenset(mine), control_seq=control.head.seq, restarted_seq=restart
                )
            members[number] = presence
        self.world = World(self.world.ledger, control, members, self.world.now_ms)

    def settle(self, passes: int = 60) -> None:
        """Decide until there is nothing left to decide."""
        for _ in range(passes):
            events = decide(self.world)
            if not events:
                return
            self.fold(events)
            self.report()
        raise AssertionError(f"decide does not come to an end: {decide(self.world)}")

    def open_term(self) -> None:
        """Begin with a term of this cluster's leader."""
        control = self.world.control
        (record,) = sealed(LEADER, control.term + 1, control.head, self.world.now_ms, [TermOpened(1)])
        fold_control(control, record, LEADER.public_key)


_LABELS = st.lists(st.sampled_from(LABELS), max_size=2, unique=True).map(tuple)
_APART = st.lists(st.sampled_from(LABELS), max_size=1).map(tuple)


@st.composite
def worlds(draw: st.DrawFn, healthy: bool = False) -> World:
    """Any world a leader may find itself in; `healthy` ones have only nodes that answer."""
    numbers = range(1, draw(st.integers(1, 4)) + 1)
    states = ["alive"] if healthy else ["alive", "alive", "alive", "suspect", "lost", "stopped"]
    made = world(
        Presence(
            n,
            f"n{n}",
            100 + n,
            draw(st.sampled_from(states)),
            frozenset(draw(_LABELS)),
            accepting=healthy or draw(st.integers(0, 5)) > 0,
            control_seq=draw(st.integers(0, 60)),
            restarted_seq=draw(st.sampled_from([0, 99])),
        )
        for n in numbers
    )
    ledger, control = made.ledger, made.control
    for number in range(draw(st.integers(0, 4))):
        made_spec = spec(
            f"d{number}",
            replicas=draw(st.integers(1, 3)),
            labels=draw(_LABELS),
            requires=draw(_APART),
            anti_affinity=draw(_APART),
            essential=draw(st.booleans()),
        )
        ledger.daemons[number + 10] = Daemon(made_spec.to_bytes(), 5, draw(st.integers(0, 4)) == 0)
    for n in numbers:
        choice = draw(st.integers(0, 6))
        if choice in (0, 1):
            ledger.cordoned[n] = 6
        if choice == 1:
            ledger.drains[n] = Drain(7 + n, bytes(16), LONG_AGO_MS, NOW_MS + draw(st.sampled_from([-1, 0, 1, 60_000])))
        if choice == 2:
            ledger.restart_all[n] = 50
        if choice == 3 and not healthy and len(numbers) > 1:
            ledger.nodes[n].removed = True
    running: dict[int, set[Key]] = {n: set() for n in numbers}
    for number in range(10, 15):
        for index in range(draw(st.integers(0, 3))):
            on = draw(st.sampled_from(numbers))
            old = not healthy and draw(st.integers(0, 4)) == 0
            control.assignments[number, index] = assigned(
                on,
                session=1 if old else 100 + on,
                epoch=draw(st.integers(1, 50)),
                at_ms=draw(st.sampled_from([LONG_AGO_MS, NOW_MS - 1000])),
                state=draw(st.sampled_from(["assigned", "assigned", "released"])),
                released_seq=draw(st.integers(1, 50)),
                release_reason=draw(st.sampled_from(["drain", "stopped", ""])),
            )
            if draw(st.booleans()):
                running[on].add((number, index))
    for n in numbers:
        made.members[n] = msgspec.structs.replace(made.members[n], running=frozenset(running[n]))  # type: ignore[index]
    return made
