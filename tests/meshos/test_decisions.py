"""The fold of control: terms, seals, and what each decision does."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from substrate.identity.keys import Keypair
from substrate.meshos.decisions import MAX_RESULTS, Assignment, ControlState, DrainResult, fold_control, leader_of
from substrate.operator.ledger import CONTROL_CHAIN
from substrate.wire.control import Assigned, DrainEnded, Freed, Released, RestartEnded, TermOpened
from substrate.wire.errors import NetError
from substrate.wire.records import EMPTY, Record, next_record
from substrate.wire.structs import Variant
from tests.meshos.worlds import sealed

L1, L2 = Keypair(b"1" * 32), Keypair(b"2" * 32)
KEYS = {keys.node_id: keys.public_key for keys in (L1, L2)}
replace = msgspec.structs.replace


class Control:
    """A control chain that grows by true records."""

    def __init__(self) -> None:
        self.state = ControlState()
        self.records: list[Record] = []

    def add(self, leader: Keypair, term: int, *events: Variant, at_ms: int = 1000) -> None:
        for record in sealed(leader, term, self.state.head, at_ms, events):
            fold_control(self.state, record, KEYS.get(leader_of(record)))
            self.records.append(record)

    def refused(self, record: Record, leader_key: bytes | None = None) -> str:
        before = msgspec.msgpack.encode(self.state)
        with pytest.raises(NetError) as caught:
            fold_control(self.state, record, leader_key or KEYS.get(leader_of(record)))
        assert caught.value.kind == "ledger-tampered"
        assert caught.value.details["seq"] == record.seq
        assert msgspec.msgpack.encode(self.state) == before, "what is not believed leaves no trace"
        return str(caught.value.details["reason"])

    def next(self, leader: Keypair, term: int, event: Variant) -> Record:
        return sealed(leader, term, self.state.head, 1000, [event])[0]


PLACED = Assigned(10, 0, 1, 101, "placed")


@pytest.fixture
def control() -> Control:
    made = Control()
    made.add(L1, 1, TermOpened(5))
    return made


def story(control: Control) -> None:
    """A bit of everything, over two terms."""
    control.add(L1, 1, PLACED, Assigned(11, 0, 1, 101, "placed"), Released(10, 0, "drain"))
    control.add(L2, 4, TermOpened(6), Freed(10, 0, "drain"), Assigned(10, 0, 2, 102, "drain"))
    control.add(L2, 4, Released(11, 0, "stopped"), Freed(11, 0, "stopped"), DrainEnded(1, 9, "drained", 1))
    control.add(L2, 4, RestartEnded(2, 12, "restarted"), at_ms=2000)


def test_a_story(control: Control) -> None:
    story(control)
    state = control.state
    assert (state.term, state.leader, state.at_ms, state.head.seq) == (4, L2.node_id, 2000, 11)
    assert state.assignments == {(10, 0): Assignment(2, 102, 7, 1000, "drain")}
    assert state.drains == {9: DrainResult(1, "drained", 1, (), 1000)}
    assert state.restarts == {12: "restarted"}
    assert state.last_exit_reason == {(11, 0): "stopped"}
    assert state.moved == {}, "counted until the drain has ended"


def test_moves_are_counted_for_drains_only(control: Control) -> None:
    control.add(L1, 1, PLACED, Released(10, 0, "drain"), Freed(10, 0, "drain"))
    control.add(L1, 1, PLACED, Released(10, 0, "scaled down"), Freed(10, 0, "scaled down"))
    control.add(L1, 1, PLACED, Freed(10, 0, "n1 is lost"))
    assert control.state.moved == {1: 1}


def test_what_is_not_there_is_not_released_or_freed(control: Control) -> None:
    control.add(L1, 1, Released(10, 0, "drain"), Freed(10, 0, "drain"))
    assert control.state.assignments == {} and control.state.moved == {}
    control.add(L1, 1, PLACED, Released(10, 0, "drain"), Released(10, 0, "stopped"))
    assert control.state.assignments[10, 0].release_reason == "drain", "the first release counts"


def test_every_flipped_bit_is_noticed(control: Control) -> None:
    story(control)
    again = Control()
    for record in control.records:
        for field in ("prev_hash", "hash", "payload", "seal"):
            data = getattr(record, field)
            for position in range(len(data)):
                damaged = bytearray(data)
                damaged[position] ^= 1 << (position % 8)
                again.refused(replace(record, **{field: bytes(damaged)}), L1.public_key)
        again.refused(replace(record, at_ms=record.at_ms + 1))
        fold_control(again.state, record, KEYS[leader_of(record)])
        again.records.append(record)
    assert again.state == control.state


def test_only_the_terms_leader_decides(control: Control) -> None:
    control.add(L1, 1, PLACED)
    control.add(L2, 3, TermOpened(6))
    for leader, term, reason in (
        (L1, 1, "it is of term 1, the term is 3"),
        (L1, 3, "it is of term 3"),
        (L2, 4, "it is of term 4"),
        (L2, 1, "it is of term 1"),
    ):
        assert reason in control.refused(control.next(leader, term, Freed(10, 0, "")))
    for term in (1, 3):
        assert "it opens term" in control.refused(control.next(L1, term, TermOpened(7)))
    control.add(L1, 4, TermOpened(7), Freed(10, 0, ""))


def test_nobody_seals_for_another(control: Control) -> None:
    record = control.next(L1, 1, PLACED)
    forged = control.next(L2, 1, PLACED)
    assert "seal" in control.refused(replace(record, seal=forged.seal))
    assert "seal" in control.refused(record, L2.public_key)
    stranger = Keypair(b"x" * 32)
    assert "seal" in control.refused(control.next(stranger, 1, PLACED))
    with pytest.raises(NetError):
        fold_control(control.state, control.next(stranger, 1, PLACED), None)


def test_gaps_and_doubles_are_noticed(control: Control) -> None:
    story(control)
    for index in range(len(control.records) - 1):
        again = Control()
        for record in control.records[: index + 1]:
            fold_control(again.state, record, KEYS[leader_of(record)])
        again.refused(control.records[index])
        for record in control.records[index + 2 :]:
            again.refused(record)


@given(st.binary(max_size=60))
def test_noise_is_refused(noise: bytes) -> None:
    control = Control()
    record = next_record(CONTROL_CHAIN, EMPTY, 1, noise)
    control.refused(record, L1.public_key)
    assert leader_of(record) >= 0


def test_ended_drains_and_restarts_are_remembered_up_to_a_limit() -> None:
    state = ControlState()
    events = [TermOpened(1)]
    for record in sealed(L1, 1, EMPTY, 1, events):
        fold_control(state, record, L1.public_key)
    for seq in range(MAX_RESULTS):
        state.drains[seq] = DrainResult(1, "drained", 0, (), 1)
        state.restarts[seq] = "restarted"
    ends: list[Variant] = [DrainEnded(1, 5000, "drained", 0), RestartEnded(1, 5001, "restarted")]
    for record in sealed(L1, 1, state.head, 1, ends):
        fold_control(state, record, L1.public_key)
    assert len(state.drains) == len(state.restarts) == MAX_RESULTS
    assert 0 not in state.drains and 5000 in state.drains and 5001 in state.restarts


def test_a_snapshot_goes_on_as_the_fold_would(control: Control) -> None:
    story(control)
    for cut in range(len(control.records) + 1):
        state = ControlState()
        for record in control.records[:cut]:
            fold_control(state, record, KEYS[leader_of(record)])
        state = msgspec.msgpack.decode(msgspec.msgpack.encode(state), type=ControlState)
        for record in control.records[cut:]:
            fold_control(state, record, KEYS[leader_of(record)])
        assert state == control.state
