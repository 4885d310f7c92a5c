"""What a node does about its own assignments."""

from __future__ import annotations

import copy

from hypothesis import given, settings
from hypothesis import strategies as st

from substrate.meshos.decisions import Assignment, ControlState, Key
from substrate.meshos.reconcile import Action, Actual, Restart, Start, Stop, generation_of, reconcile
from substrate.operator.state import LedgerState
from tests.meshos.worlds import assigned, daemon

ME, SESSION = 1, 101
KEYS = [(number, index) for number in (10, 11, 12) for index in (0, 1)]
LIFECYCLES = ("starting", "running", "backing-off", "crash-looping", "stopping", "stopped")


@st.composite
def scenes(draw: st.DrawFn) -> tuple[LedgerState, ControlState, dict[Key, Actual]]:
    ledger, control = LedgerState(), ControlState()
    for number in (10, 11):
        if draw(st.booleans()):
            entry = daemon(draw(st.integers(5, 9)), f"d{number}", draw(st.integers(0, 3)) == 0, replicas=2)
            entry.restart_seq = draw(st.sampled_from([0, 7, 12]))
            ledger.daemons[number] = entry
    actual: dict[Key, Actual] = {}
    for key in KEYS:
        if draw(st.booleans()):
            control.assignments[key] = assigned(
                draw(st.sampled_from([ME, ME, 2])),
                session=draw(st.sampled_from([SESSION, SESSION, 7])),
                epoch=draw(st.integers(20, 22)),
                state=draw(st.sampled_from(["assigned", "assigned", "released"])),
                release_reason=draw(st.sampled_from(["drain", ""])),
            )
        if draw(st.booleans()):
            generation = draw(st.sampled_from([5, 7, 9, 12]))
            actual[key] = Actual(draw(st.sampled_from(LIFECYCLES)), draw(st.integers(20, 22)), generation)
    return ledger, control, actual


def is_mine(ledger: LedgerState, control: ControlState, key: Key) -> Assignment | None:
    found = control.assignments.get(key)
    entry = ledger.daemons.get(key[0])
    mine = found is not None and (found.node, found.session, found.state) == (ME, SESSION, "assigned")
    return found if mine and entry is not None and not entry.stopped else None


@given(scenes())
@settings(max_examples=400, deadline=None)
def test_rules_of_every_pass(scene: tuple[LedgerState, ControlState, dict[Key, Actual]]) -> None:
    ledger, control, actual = scene
    before = copy.deepcopy(scene)
    actions = reconcile(ledger, control, actual, ME, SESSION)
    assert scene == before
    assert actions == reconcile(*before, ME, SESSION)
    keys = [action.key for action in actions]
    assert len(keys) == len(set(keys)), "one action an instance"
    assert actions == sorted(actions, key=lambda action: (not isinstance(action, Stop), action.key)), "stops come first"
    for key in {*control.assignments, *actual}:
        action = next((action for action in actions if action.key == key), None)
        mine, found = is_mine(ledger, control, key), actual.get(key)
        if mine is None:
            runs = found is not None and found.lifecycle not in ("stopped", "stopping")
            assert isinstance(action, Stop) == runs
            assert action is None or (isinstance(action, Stop) and action.reason)
        else:
            assert not isinstance(action, Stop)
            check_wanted(ledger, key, mine, found, action)


def check_wanted(ledger: LedgerState, key: Key, mine: Assignment, found: Actual | None, action: Action | None) -> None:
    wanted = generation_of(ledger, key)
    if isinstance(action, Start):
        assert (action.epoch, action.generation) == (mine.epoch, wanted)
        assert action.spec == ledger.daemons[key[0]].spec
        assert found is None or found.epoch != mine.epoch or found.generation < ledger.daemons[key[0]].seq
    elif isinstance(action, Restart):
        assert found is not None and found.epoch == mine.epoch
        assert ledger.daemons[key[0]].seq <= found.generation < wanted == action.generation
    else:
        assert found is not None and found.epoch == mine.epoch and found.generation >= wanted


@given(scenes())
@settings(max_examples=300, deadline=None)
def test_what_was_done_is_not_asked_for_again(scene: tuple[LedgerState, ControlState, dict[Key, Actual]]) -> None:
    ledger, control, actual = scene
    for action in reconcile(ledger, control, actual, ME, SESSION):
        match action:
            case Start():
                actual[action.key] = Actual("starting", action.epoch, action.generation)
            case Restart():
                actual[action.key] = Actual("stopping", actual[action.key].epoch, action.generation)
            case Stop():
                actual[action.key] = Actual("stopping", actual[action.key].epoch, actual[action.key].generation)
    assert reconcile(ledger, control, actual, ME, SESSION) == []
    ended = {
        key: Actual("stopped" if a.lifecycle == "stopping" else "running", a.epoch, a.generation)
        for key, a in actual.items()
    }
    assert not [
        a
        for a in reconcile(ledger, control, ended, ME, SESSION)
        if isinstance(a, Stop) and actual[a.key].lifecycle == "stopping"
    ]


def test_without_the_session_nothing_is_ones_own() -> None:
    """After a lost lease the old assignments start nothing, and what still runs of them is stopped."""
    ledger = LedgerState(daemons={10: daemon(5, "web")})
    control = ControlState(assignments={(10, 0): assigned(ME, session=SESSION, epoch=20)})
    assert isinstance(reconcile(ledger, control, {}, ME, SESSION)[0], Start)
    assert reconcile(ledger, control, {}, ME, SESSION + 1) == []
    running = {(10, 0): Actual("running", 20, 5)}
    assert reconcile(ledger, control, running, ME, SESSION + 1) == [Stop((10, 0), "not assigned here")]


def test_a_spec_applied_anew_replaces_and_a_restart_restarts() -> None:
    ledger = LedgerState(daemons={10: daemon(5, "web")})
    control = ControlState(assignments={(10, 0): assigned(ME, session=SESSION, epoch=20)})
    running = {(10, 0): Actual("running", 20, 5)}
    assert reconcile(ledger, control, running, ME, SESSION) == []
    ledger.daemons[10].restart_seq = 8
    assert reconcile(ledger, control, running, ME, SESSION) == [Restart((10, 0), 8)]
    ledger.daemons[10] = daemon(9, "web", grace_ms=5)
    (start,) = reconcile(ledger, control, running, ME, SESSION)
    assert isinstance(start, Start) and (start.generation, start.spec.grace_ms) == (9, 5)


def test_a_daemon_that_ended_by_itself_is_the_restart_rules_business() -> None:
    ledger = LedgerState(daemons={10: daemon(5, "job", restart="never")})
    control = ControlState(assignments={(10, 0): assigned(ME, session=SESSION, epoch=20)})
    assert reconcile(ledger, control, {(10, 0): Actual("stopped", 20, 5)}, ME, SESSION) == []


def test_the_reason_of_a_stop_is_the_leaders() -> None:
    ledger = LedgerState(daemons={10: daemon(5, "web")})
    released = assigned(ME, session=SESSION, epoch=20, state="released", release_reason="drain")
    control = ControlState(assignments={(10, 0): released})
    running = {(10, 0): Actual("running", 20, 5), (11, 0): Actual("backing-off", 19, 5)}
    assert reconcile(ledger, control, running, ME, SESSION) == [
        Stop((10, 0), "drain"),
        Stop((11, 0), "not assigned here"),
    ]
