"""What the leader decides: rules that hold in every world, and the cases that matter one by one."""

from __future__ import annotations

import copy
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings

from substrate.meshos.decide import (
    MAX_EVENTS,
    Presence,
    World,
    active_drains,
    decide,
    hosts_of,
    wanted_instances,
    why_left,
)
from substrate.meshos.decisions import Key
from substrate.meshos.placement import Refusals, choose, why_not
from substrate.operator.state import Drain
from substrate.wire.control import Assigned, DrainEnded, Freed, Released, RestartEnded
from substrate.wire.structs import Variant
from tests.meshos.worlds import LONG_AGO_MS, NOW_MS, Cluster, alive, assigned, daemon, frozen, world, worlds

replace = msgspec.structs.replace


def key(event: Any) -> Key:
    return (event.daemon, event.instance)


def of(kind: type[Variant], events: list[Variant]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


# In every world


@given(worlds())
@settings(max_examples=300, deadline=None)
def test_deciding_is_deterministic_and_changes_nothing(world: World) -> None:
    before = frozen(world)
    first = decide(world)
    assert frozen(world) == before
    assert decide(copy.deepcopy(world)) == first
    assert len(first) <= MAX_EVENTS


@given(worlds())
@settings(max_examples=300, deadline=None)
def test_rules_of_every_pass(world: World) -> None:
    events = decide(world)
    old = world.control.assignments
    wanted = wanted_instances(world.ledger)
    freed, released, placed = ([key(e) for e in of(kind, events)] for kind in (Freed, Released, Assigned))
    for keys in (freed, released, placed):
        assert len(keys) == len(set(keys)), "nothing is decided twice"
    assert not set(freed) & set(released)
    assert set(freed) | set(released) <= set(old)

    for event in of(Assigned, events):
        presence = world.members[event.node]
        assert key(event) in wanted
        assert key(event) not in old or events.index(event) > next(
            index for index, other in enumerate(events) if isinstance(other, Freed) and key(other) == key(event)
        ), "nothing is placed while it may still run elsewhere"
        assert presence.state == "alive" and presence.accepting and presence.session == event.session
        assert event.node not in world.ledger.cordoned and event.node not in world.ledger.drains
        assert not world.ledger.nodes[event.node].removed
        assert set(wanted[key(event)].requires) <= presence.labels
    for event in of(Released, events):
        assert old[key(event)].state == "assigned"
    for event in of(Freed, events):
        check_proof(world, key(event))


def check_proof(world: World, freed: Key) -> None:
    """Freed means: nothing of it can run. Silence alone proves nothing."""
    assignment = world.control.assignments[freed]
    presence = world.members[assignment.node]
    stopped = (
        assignment.state == "released"
        and presence.control_seq >= assignment.released_seq
        and freed not in presence.running
    )
    same = presence.session == assignment.session
    ended = presence.state in ("lost", "stopped") if same else presence.state in ("alive", "lost", "stopped")
    assert stopped or ended
    if not stopped and not same:
        # Which of two sessions is the later one must be known, for the view may lag behind the decisions.
        assert presence.control_seq >= assignment.epoch or assignment.at_ms == LONG_AGO_MS


@given(worlds())
@settings(max_examples=300, deadline=None)
def test_anti_affinity_holds_for_what_is_placed(world: World) -> None:
    cluster = Cluster(world)
    events = decide(world)
    cluster.fold(events)
    specs = wanted_instances(world.ledger)
    for event in of(Assigned, events):
        mine = specs[key(event)]
        for other, assignment in cluster.world.control.assignments.items():
            if assignment.node == event.node and other != key(event) and other in specs:
                theirs = specs[other]
                assert not set(mine.anti_affinity) & set(theirs.labels)
                assert not set(theirs.anti_affinity) & set(mine.labels)


@given(worlds())
@settings(max_examples=300, deadline=None)
def test_rules_of_drains(world: World) -> None:
    events = decide(world)
    drains = active_drains(world)
    essential = {number for number, entry in world.ledger.daemons.items() if entry.spec.essential}
    held = {
        n: {k for k, a in world.control.assignments.items() if a.node == n} - {key(e) for e in of(Freed, events)}
        for n in drains
    }
    for event in of(Released, events):
        on = world.control.assignments[key(event)].node
        if event.reason == "drain":
            assert on in drains
            if event.daemon in essential:
                assert not {k for k in held[on] if k[0] not in essential}, "essential ones leave last"
            elsewhere = choose(world.ledger.daemons[event.daemon].spec, key(event), hosts_of(world).values(), {on})
            assert not isinstance(elsewhere, Refusals), "nothing is stopped that no other node takes"
    ended = of(DrainEnded, events)
    assert len({event.seq for event in ended}) == len(ended)
    for event in ended:
        assert drains[event.node].seq == event.seq
        if event.result == "drained":
            assert not held[event.node]
        else:
            assert event.result == "drain-failed" and held[event.node] and event.reasons
            assert world.now_ms >= drains[event.node].deadline_ms


@given(worlds())
@settings(max_examples=150, deadline=None)
def test_deciding_comes_to_an_end_with_everything_in_its_place(world: World) -> None:
    cluster = Cluster(world)
    cluster.settle()
    now = cluster.world
    assert decide(now) == []
    hosts = hosts_of(now)
    for instance, spec in wanted_instances(now.ledger).items():
        if instance not in now.control.assignments:
            assert isinstance(choose(spec, instance, hosts.values()), Refusals), "it is not placed, though it could be"
    for instance, assignment in now.control.assignments.items():
        answers = now.members[assignment.node].state == "alive"
        if instance not in wanted_instances(now.ledger):
            assert not answers, "it runs, though nobody wants it"
    for event in of(DrainEnded, cluster.decided):
        assert event.seq in now.control.drains
    assert len(of(DrainEnded, cluster.decided)) == len({e.seq for e in of(DrainEnded, cluster.decided)})
    cluster.world = World(now.ledger, now.control, now.members, now.now_ms + 120_000)
    cluster.settle()
    assert not active_drains(cluster.world), "at the latest at its deadline a drain ends"


@given(worlds(healthy=True))
@settings(max_examples=150, deadline=None)
def test_nothing_runs_twice_while_decisions_are_carried_out(world: World) -> None:
    """Each decision alone, in order, with what runs at that moment."""
    cluster = Cluster(world)
    cluster.report()
    for _ in range(60):
        events = decide(cluster.world)
        if not events:
            break
        for event in events:
            if isinstance(event, Assigned):
                runs = [n for n, p in cluster.world.members.items() if key(event) in p.running]
                assert not runs
            cluster.fold([event])
        cluster.report()


# One by one


def test_a_new_daemon_is_spread_over_the_nodes() -> None:
    made = world([alive(1), alive(2), alive(3)], daemons={10: daemon(5, "web", replicas=3)})
    assert [(e.node, e.session) for e in of(Assigned, decide(made))] == [(1, 101), (2, 102), (3, 103)]


def test_suspicion_frees_nothing() -> None:
    for session in (101, 7):
        made = world([alive(1, state="suspect", session=session), alive(2)], daemons={10: daemon(5, "web")})
        made.control.assignments[10, 0] = assigned(1)
        assert decide(made) == []


@pytest.mark.parametrize("state", ["lost", "stopped"])
def test_what_a_lost_node_ran_runs_elsewhere(state: str) -> None:
    made = world([replace(alive(1), state=state), alive(2)], daemons={10: daemon(5, "web")})
    made.control.assignments[10, 0] = assigned(1)
    freed, placed = decide(made)
    assert isinstance(freed, Freed) and freed.reason == f"n1 is {state}"
    assert isinstance(placed, Assigned) and placed.node == 2


def test_a_new_session_proves_the_end_of_the_old() -> None:
    made = world([replace(alive(1), session=7)], daemons={10: daemon(5, "web")})
    made.control.assignments[10, 0] = assigned(1, session=101)
    freed, placed = decide(made)
    assert isinstance(freed, Freed) and isinstance(placed, Assigned)
    assert (placed.node, placed.session) == (1, 7)


def test_a_node_nobody_has_seen_proves_nothing() -> None:
    made = world([alive(1), alive(2)], daemons={10: daemon(5, "web")})
    made.control.assignments[10, 0] = assigned(1)
    made.members = {2: made.members[2]}
    assert decide(made) == []


@pytest.mark.parametrize("state", ["alive", "lost", "stopped"])
def test_a_view_older_than_the_assignment_frees_nothing(state: str) -> None:
    """Another leader placed it on the node's later session; this one has only heard of the session before."""
    stale = replace(alive(1), state=state, session=7, control_seq=40)
    made = world([stale, alive(2)], daemons={10: daemon(5, "web")})
    made.control.assignments[10, 0] = assigned(1, session=8, epoch=45, at_ms=NOW_MS - 3000)
    assert decide(made) == []
    # A session that lives shows itself within its lease; after that the assignment's is known to be over.
    made.now_ms += 60_000
    assert isinstance(decide(made)[0], Freed)


def test_released_means_stopped_only_when_the_node_says_so() -> None:
    made = world([alive(1, running=frozenset({(10, 0)}), control_seq=40)], daemons={10: daemon(5, "web", True)})
    made.control.assignments[10, 0] = assigned(1, state="released", released_seq=45, release_reason="stopped")

    def heard(**change: Any) -> list[Variant]:
        presence = replace(made.members[1], **change)
        return decide(World(made.ledger, made.control, {1: presence}, NOW_MS))

    assert heard() == []
    assert heard(running=frozenset()) == [], "it may not have heard of the assignment yet"
    assert heard(control_seq=45) == [], "it is still stopping"
    assert heard(control_seq=45, running=frozenset()) == [Freed(10, 0, "stopped")]


@pytest.mark.parametrize(
    ("ledger", "reason"),
    [
        ({}, "removed"),
        ({"daemons": {10: daemon(5, "web", True)}}, "stopped"),
        ({"daemons": {10: daemon(5, "web")}}, "scaled down"),
    ],
)
def test_what_nobody_wants_is_released(ledger: dict[str, Any], reason: str) -> None:
    made = world([alive(1)], **ledger)
    instance = 1 if reason == "scaled down" else 0
    made.control.assignments[10, instance] = assigned(1)
    assert of(Released, decide(made)) == [Released(10, instance, reason)]


def test_what_a_removed_node_ran_is_released_and_freed_when_it_is_gone() -> None:
    made = world([alive(1, running=frozenset({(10, 0)})), alive(2)], daemons={10: daemon(5, "web")})
    made.ledger.nodes[1].removed = True
    made.control.assignments[10, 0] = assigned(1)
    assert decide(made) == [Released(10, 0, "node removed")]
    cluster = Cluster(made)
    cluster.fold(decide(made))
    cluster.world.members[1] = replace(made.members[1], state="stopped")  # type: ignore[index]
    cluster.settle()
    assert cluster.world.control.assignments[10, 0].node == 2


def test_a_misfit_moves_only_to_a_better_place() -> None:
    wants = {"daemons": {10: daemon(5, "web", requires=("x",))}}
    for other, moves in ((alive(2), False), (alive(2, labels=frozenset({"x"})), True)):
        made = world([alive(1), other], **wants)
        made.control.assignments[10, 0] = assigned(1)
        assert [e.reason for e in of(Released, decide(made))] == (["no longer fits: lacks x"] if moves else [])


def draining(deadline_ms: int, **ledger: Any) -> World:
    made = world(
        [alive(1), alive(2)],
        cordoned={1: 20},
        drains={1: Drain(20, bytes(16), NOW_MS - 1000, deadline_ms)},
        **ledger,
    )
    for number in made.ledger.daemons:
        made.control.assignments[number, 0] = assigned(1)
        made.members[1] = replace(made.members[1], running=made.members[1].running | {(number, 0)})  # type: ignore[index]
    return made


def test_a_drain_moves_ordinary_daemons_then_essential_ones_then_ends() -> None:
    cluster = Cluster(
        draining(
            NOW_MS + 60_000, daemons={10: daemon(5, "db", essential=True), 11: daemon(5, "web"), 12: daemon(5, "job")}
        )
    )
    cluster.settle()
    story = [(type(event).__name__, getattr(event, "daemon", None)) for event in cluster.decided]
    assert story == [
        ("Released", 11),
        ("Released", 12),
        ("Freed", 11),
        ("Freed", 12),
        ("Assigned", 11),
        ("Assigned", 12),
        ("Released", 10),
        ("Freed", 10),
        ("Assigned", 10),
        ("DrainEnded", None),
    ]
    assert cluster.decided[-1] == DrainEnded(1, 20, "drained", 3)
    assert {a.node for a in cluster.world.control.assignments.values()} == {2}


def test_a_blocked_drain_waits_names_the_reason_and_fails_at_its_deadline() -> None:
    made = draining(NOW_MS + 1, daemons={10: daemon(5, "gpu", requires=("x",)), 11: daemon(5, "db", essential=True)})
    assert decide(made) == [], "nothing is stopped that no other node takes, and the essential one waits for it"
    made.now_ms += 1
    (ended,) = decide(made)
    assert ended == DrainEnded(
        1,
        20,
        "drain-failed",
        0,
        ("gpu/0: no other node takes it (n2: lacks x)", "db/0: is essential and waits for the others"),
    )
    cluster = Cluster(made)
    cluster.settle()
    assert {a.node for a in cluster.world.control.assignments.values()} == {1}, "it keeps what it holds"
    assert isinstance(choose(made.ledger.daemons[11].spec, (99, 0), hosts_of(made).values(), {2}), Refusals)


def test_at_the_deadline_nothing_more_is_stopped() -> None:
    made = draining(NOW_MS, daemons={10: daemon(5, "web")})
    assert decide(made) == [DrainEnded(1, 20, "drain-failed", 0, ("web/0: had no time to move",))]


def test_a_drain_whose_last_instance_ends_at_the_deadline_is_no_failure() -> None:
    made = draining(NOW_MS, daemons={10: daemon(5, "web")})
    made.control.assignments[10, 0] = assigned(1, state="released", released_seq=45, release_reason="drain")
    made.members[1] = replace(made.members[1], running=frozenset())  # type: ignore[index]
    cluster = Cluster(made)
    cluster.settle()
    assert of(DrainEnded, cluster.decided) == [DrainEnded(1, 20, "drained", 1)]


def test_what_is_still_stopping_at_the_deadline_is_named() -> None:
    made = draining(NOW_MS, daemons={10: daemon(5, "web")})
    made.control.assignments[10, 0] = assigned(1, state="released", released_seq=45, release_reason="drain")
    assert decide(made) == [DrainEnded(1, 20, "drain-failed", 0, ("web/0: is still stopping",))]
    assert why_left(made, (10, 0), 1) == "is still stopping"


def test_anti_affine_daemons_do_not_flee_to_one_place_together() -> None:
    apart: dict[str, Any] = {"labels": ("x",), "anti_affinity": ("x",)}
    made = draining(NOW_MS + 60_000, daemons={10: daemon(5, "one", **apart), 11: daemon(5, "two", **apart)})
    assert [e.daemon for e in of(Released, decide(made))] == [10]


@pytest.mark.parametrize(
    ("presence", "result"),
    [
        (alive(1, restarted_seq=30), "restarted"),
        (alive(1, restarted_seq=29), None),
        (replace(alive(1), state="suspect", restarted_seq=30), None),
        (replace(alive(1), state="lost"), "node-lost"),
        (replace(alive(1), state="stopped"), "node-stopped"),
    ],
)
def test_restart_all_ends_when_the_node_says_so_or_is_gone(presence: Presence, result: str | None) -> None:
    made = world([presence], restart_all={1: 30})
    assert of(RestartEnded, decide(made)) == ([RestartEnded(1, 30, result)] if result else [])
    cluster = Cluster(made)
    cluster.fold(decide(made))
    assert of(RestartEnded, decide(cluster.world)) == []


def test_a_pass_is_limited_and_the_next_goes_on() -> None:
    made = world([alive(1)], daemons={n: daemon(5, f"d{n}", replicas=100) for n in range(10, 15)})
    first = decide(made)
    assert len(first) == MAX_EVENTS
    cluster = Cluster(made)
    cluster.settle()
    assert len(cluster.world.control.assignments) == 500


def test_a_placed_instance_fits_where_it_is_placed() -> None:
    made = world([alive(1), alive(2, labels=frozenset({"x"}))], daemons={10: daemon(5, "gpu", requires=("x",))})
    (event,) = of(Assigned, decide(made))
    assert event.node == 2
    assert why_not(made.ledger.daemons[10].spec, (10, 0), hosts_of(made)[2]) is None
