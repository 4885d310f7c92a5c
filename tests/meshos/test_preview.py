"""The preview shows what the decisions really do."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from substrate.meshos.decide import World
from substrate.meshos.decisions import Key
from substrate.meshos.preview import preview
from substrate.wire import events
from substrate.wire.control import DrainEnded
from tests.meshos.worlds import Cluster, alive, assigned, daemon, frozen, spec, world, worlds


def places(world: World) -> dict[Key, int]:
    return {key: assignment.node for key, assignment in world.control.assignments.items()}


@st.composite
def commands(draw: st.DrawFn, made: World) -> events.Event:
    """An event that would be accepted in this world."""
    present = [n for n, entry in made.ledger.nodes.items() if not entry.removed]
    assume(present)  # an event about a removed node is refused before anybody previews it
    node = draw(st.sampled_from(present))
    number = draw(st.sampled_from(sorted(made.ledger.daemons) or [0]))
    choices: list[events.Event] = [
        events.Cordon(node),
        events.Uncordon(node),
        events.Drain(node, 30_000),
        events.ExitMaintenance(node),
        events.RestartAllDaemons(node),
        events.NodeRemove(node),
        events.DaemonApply(spec("new", replicas=2, labels=("x",))),
    ]
    if number:
        choices += [events.DaemonStop(number), events.DaemonRestart(number), events.DaemonRemove(number)]
    return draw(st.sampled_from(choices))


def carried_out(world: World, event: events.Event) -> Cluster:
    """The same event in a cluster that obeys at once, to the deadline of a drain and past it."""
    cluster = Cluster(world)
    ledger = cluster.world.ledger
    ledger.apply(event, ledger.head.seq + 1, world.now_ms, bytes(16), bytes(32))
    cluster.report()
    cluster.settle()
    later = world.now_ms + getattr(event, "drain_for_ms", 0) + 1
    cluster.world = World(cluster.world.ledger, cluster.world.control, cluster.world.members, later)
    cluster.settle()
    return cluster


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_moves_are_those_that_happen(data: st.DataObject) -> None:
    before = data.draw(worlds(healthy=True))
    event = data.draw(commands(before))
    seen = frozen(before)
    document = preview(before, event)
    assert frozen(before) == seen, "a preview changes nothing"
    assert preview(before, event) == document

    cluster = carried_out(before, event)
    old, new = places(before), places(cluster.world)
    names = before.ledger.node_names()
    really = {
        key: (names.get(old.get(key, 0)), names.get(new.get(key, 0)))
        for key in old | new
        if old.get(key) != new.get(key)
    }
    shown = {(int(move["daemon_id"]), move["instance"]): (move["from"], move["to"]) for move in document["moves"]}
    assert shown == really
    check_document(document, before, event, set(really))
    blocked = [warning["daemon"] for warning in document["warnings"]]
    ends = [end for end in cluster.decided if isinstance(end, DrainEnded)]
    if isinstance(event, events.Drain) and any(end.seq == before.ledger.head.seq + 1 for end in ends):
        end = next(end for end in ends if end.seq == before.ledger.head.seq + 1)
        assert (end.result == "drained") == (not blocked)
        assert {reason.partition(":")[0] for reason in end.reasons} == set(blocked)


def check_document(document: dict[str, Any], before: World, event: events.Event, moved: set[Key]) -> None:
    touched = {(int(row["daemon_id"]), row["instance"]) for row in document["affected_daemons"]}
    nodes = {int(row["node_id"]) for row in document["affected_nodes"]}
    assert moved <= touched
    assert {before.control.assignments[key].node for key in touched if key in before.control.assignments} <= nodes
    if isinstance(event, events.NodeEvent):
        assert event.node in nodes
    if isinstance(event, events.RestartAllDaemons):
        assert {k for k, a in before.control.assignments.items() if a.node == event.node} <= touched
    if isinstance(event, events.DaemonEvent):
        assert {k for k in before.control.assignments if k[0] == event.daemon} <= touched
    assert (document["drain_delay_ms"] is not None) == isinstance(event, events.Drain)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_any_world_can_be_previewed(data: st.DataObject) -> None:
    before = data.draw(worlds())
    event = data.draw(commands(before))
    document = preview(before, event)
    check_document(document, before, event, set())
    assert preview(before, event) == document


def test_a_drain_names_moves_delay_and_what_blocks_it() -> None:
    made = world(
        [alive(1), alive(2)],
        daemons={
            10: daemon(5, "web", grace_ms=2000),
            11: daemon(5, "gpu", requires=("x",)),
            12: daemon(5, "db", essential=True, grace_ms=700),
        },
    )
    for number in (10, 11, 12):
        made.control.assignments[number, 0] = assigned(1)
    document = preview(made, events.Drain(1, 30_000))
    assert document["moves"] == [{"daemon_id": "10", "daemon_name": "web", "instance": 0, "from": "n1", "to": "n2"}]
    assert document["warnings"] == [
        {"kind": "drain-blocked", "daemon": "gpu/0", "reason": "no other node takes it (n2: lacks x)"},
        {"kind": "drain-blocked", "daemon": "db/0", "reason": "is essential and waits for the others"},
    ]
    assert document["affected_nodes"] == [{"node_id": "1", "node_name": "n1"}, {"node_id": "2", "node_name": "n2"}]
    assert document["drain_delay_ms"] == 2000
    assert document["stability_delta"] == round(1 / 3, 4)


def test_what_is_stopping_already_is_taken_to_stop() -> None:
    made = world([alive(1, running=frozenset({(10, 0)}), control_seq=0), alive(2)], daemons={10: daemon(5, "web")})
    made.control.assignments[10, 0] = assigned(1, state="released", released_seq=40, release_reason="drain")
    document = preview(made, events.Drain(1, 30_000))
    assert document["warnings"] == []
    assert [(move["from"], move["to"]) for move in document["moves"]] == [("n1", "n2")]


@pytest.mark.parametrize("event", [events.Cordon(1), events.Uncordon(1)])
def test_a_cordon_moves_nothing(event: events.Event) -> None:
    made = world([alive(1), alive(2)], daemons={10: daemon(5, "web")})
    made.control.assignments[10, 0] = assigned(1)
    document = preview(made, event)
    assert document["moves"] == document["affected_daemons"] == document["warnings"] == []
    assert [row["node_name"] for row in document["affected_nodes"]] == ["n1"]
