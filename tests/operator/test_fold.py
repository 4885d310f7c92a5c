"""The fold believes nothing: each byte, each seal, each verdict of a record is checked before it counts."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from substrate.operator.fold import ATTESTED_KINDS, fold_record
from substrate.operator.ledger import ADMIN_CHAIN, LedgerBody, Refusal
from substrate.operator.state import LedgerState
from substrate.wire import events
from substrate.wire.errors import NetError
from substrate.wire.records import EMPTY, Head, Record, next_record, record_hash
from tests.operator.maker import REFUSAL, Ledger, key, long_ledger, seal, sign, snapshot, spec

A = key("node-a").node_id
replace = msgspec.structs.replace


@pytest.fixture(scope="module")
def thirty() -> Ledger:
    return long_ledger()


def first_bad(records: list[Record]) -> int | None:
    """The seq a fold from the beginning stops at, or None."""
    state = LedgerState()
    for record in records:
        before = snapshot(state)
        try:
            fold_record(state, record)
        except NetError as error:
            assert error.kind == "ledger-tampered"
            assert snapshot(state) == before, "what is not believed leaves no trace"
            return int(error.details["seq"])
    return None


def rehash(records: list[Record], sealed_by: str | None = None) -> list[Record]:
    """The records chained anew, with the old seals or with those of one node."""
    made: list[Record] = []
    head = EMPTY
    for record in records:
        fresh = replace(next_record(ADMIN_CHAIN, head, record.at_ms, record.payload), seal=record.seal)
        made.append(seal(fresh, sealed_by) if sealed_by else fresh)
        head = made[-1].head
    return made


def test_a_true_ledger_folds_to_the_same_state_everywhere(thirty: Ledger) -> None:
    state = LedgerState()
    for record in thirty.records:
        fold_record(state, record)
    assert snapshot(state) == snapshot(thirty.state)
    assert {entry.event.kind for entry in thirty.entries} >= {
        cls.kind for cls in events.ADMIN_EVENTS.by_number.values()
    } - {
        "enter-maintenance",
        "clear-avoid-list",
        "drop-replicas",
        "chain-set-replicas",
        "chain-remove",
    } - events.ICE_KINDS


def test_every_flipped_bit_is_reported_with_the_first_bad_seq(thirty: Ledger) -> None:
    state = LedgerState()
    flips = 0
    for record in thirty.records:
        before = snapshot(state)
        variants: list[Record] = []
        for field in ("prev_hash", "hash", "payload", "seal"):
            data = getattr(record, field)
            for position in range(len(data)):
                damaged = bytearray(data)
                damaged[position] ^= 1 << (position % 8)
                variants.append(replace(record, **{field: bytes(damaged)}))
        for bit in range(62):
            variants.append(replace(record, at_ms=record.at_ms ^ (1 << bit)))
            variants.append(replace(record, seq=record.seq ^ (1 << bit)))
        for field in ("payload", "seal"):
            variants.append(replace(record, **{field: getattr(record, field)[:-1]}))
            variants.append(replace(record, **{field: getattr(record, field) + b"\0"}))
        for variant in variants:
            with pytest.raises(NetError) as caught:
                fold_record(state, variant)
            assert caught.value.kind == "ledger-tampered"
            assert caught.value.details["seq"] == record.seq
        flips += len(variants)
        assert snapshot(state) == before
        fold_record(state, record)
    assert flips > 10_000


def test_removed_records_are_missed(thirty: Ledger) -> None:
    records = thirty.records
    for index in range(len(records) - 1):
        cut = records[:index] + records[index + 1 :]
        assert first_bad(cut) == index + 1
    assert first_bad(records[:-1]) is None, "a cut tail shows only against a checkpoint"


def test_swapped_and_doubled_records_are_noticed(thirty: Ledger) -> None:
    records = thirty.records
    for index in range(len(records) - 1):
        swapped = records.copy()
        swapped[index], swapped[index + 1] = swapped[index + 1], swapped[index]
        assert first_bad(swapped) == index + 1
        assert first_bad(records[: index + 1] + records[index:]) == index + 2


def test_rehashed_records_lack_their_seals(thirty: Ledger) -> None:
    """Whoever computes the hashes anew has not the nodes' keys."""
    for index in range(1, len(thirty.records)):
        without = rehash(thirty.records[:index] + thirty.records[index + 1 :])
        assert first_bad(without) == (index + 1 if index + 1 < len(thirty.records) else None)
        assert first_bad(rehash([*thirty.records[:index], thirty.records[0], *thirty.records[index:]])) == index + 1


def test_a_dishonest_gateway_cannot_change_what_was_signed(thirty: Ledger) -> None:
    """A node that alters a record and seals it anew is caught by the operators' signatures and by the rules."""
    state = LedgerState()
    altered = 0
    for record, entry in zip(thirty.records, thirty.entries, strict=True):
        for position in range(0, len(record.payload), 3):
            payload = bytearray(record.payload)
            payload[position] ^= 1 << (position % 8)
            sealed_by = next(n for n in ("node-a", "node-b", "node-c") if key(n).node_id == entry.body.gateway)
            forged = seal(next_record(ADMIN_CHAIN, state.head, record.at_ms, bytes(payload)), sealed_by)
            trial = msgspec.msgpack.decode(msgspec.msgpack.encode(state), type=LedgerState)
            try:
                found = fold_record(trial, forged)
            except NetError as error:
                assert (error.kind, error.details["seq"]) == ("ledger-tampered", record.seq)
                altered += 1
                continue
            # What may differ is the gateway's own word: the wording of a refusal, warnings.
            assert (found.envelope, found.accepted, found.body.signatures) == (
                entry.envelope,
                entry.accepted,
                entry.body.signatures,
            ) or not (found.accepted or entry.accepted)
            if found.body.refusal is not None and entry.body.refusal is not None:
                assert found.body.refusal.kind == entry.body.refusal.kind
        fold_record(state, record)
    assert altered > 1500


def reason(ledger: Ledger, record: Record) -> str:
    before = snapshot(ledger.state)
    with pytest.raises(NetError) as caught:
        fold_record(ledger.state, record)
    assert caught.value.kind == "ledger-tampered"
    assert caught.value.details["seq"] == ledger.state.head.seq + 1
    assert snapshot(ledger.state) == before
    return str(caught.value.details["reason"])


def cordon(ledger: Ledger, *by: str, **changes: Any) -> LedgerBody:
    envelope = ledger.envelope(events.Cordon(A))
    return ledger.body(envelope, sign(envelope, *(by or ("alice",))), **changes)


def test_seals() -> None:
    ledger = Ledger()
    b = ledger.join("b")
    body = cordon(ledger)
    assert "signature does not verify" in reason(ledger, ledger.record(body, sealed_by="node-b"))
    assert "signature does not verify" in reason(ledger, replace(ledger.record(body), seal=b""))
    stranger = replace(body, gateway=key("node-x").node_id)
    assert "is no node of the cluster" in reason(ledger, ledger.record(stranger, sealed_by="node-x"))
    ledger.accept(events.NodeRemove(b))
    removed = cordon(ledger, gateway=b)
    assert "is no node of the cluster" in reason(ledger, ledger.record(removed, sealed_by="node-b"))
    fold_record(ledger.state, ledger.record(cordon(ledger)))


def test_a_node_seals_its_own_admission_and_nothing_before_it() -> None:
    ledger = Ledger()
    envelope = ledger.envelope(ledger.node_join("b"))
    body = ledger.body(envelope, sign(envelope, "alice"), gateway=key("node-b").node_id)
    assert "signature does not verify" in reason(ledger, ledger.record(body, sealed_by="node-c"))
    other = replace(body, gateway=key("node-c").node_id)
    assert "is no node of the cluster" in reason(ledger, ledger.record(other, sealed_by="node-c"))
    fold_record(ledger.state, ledger.record(body, sealed_by="node-b"))
    assert key("node-b").node_id in ledger.state.nodes


def test_a_verdict_the_rules_do_not_give_is_refused() -> None:
    ledger = Ledger()
    accepted = cordon(ledger)
    assert accepted.refusal is None
    assert "the rules say acceptance" in reason(ledger, ledger.record(replace(accepted, refusal=REFUSAL)))
    envelope = ledger.envelope(events.Cordon(9))
    rejected = ledger.body(envelope, sign(envelope, "alice"))
    assert rejected.refusal is not None
    assert "the rules say rejection" in reason(ledger, ledger.record(replace(rejected, refusal=None)))
    other = replace(rejected, refusal=Refusal("replayed", "no"))
    assert "rejected as replayed" in reason(ledger, ledger.record(other))


@pytest.mark.parametrize(
    ("forge", "kind"),
    [
        ({"nonce": (1).to_bytes(16, "big")}, "replayed"),
        ({"cluster_id": b"x" * 16}, "cluster-changed"),
        ({"expires_at_ms": 1}, "envelope-expired"),
        ({"issued_at_ms": 2**62, "expires_at_ms": 2**62}, "envelope-from-future"),
        ({}, "insufficient-signatures"),
    ],
)
def test_a_gateway_cannot_accept_what_the_rules_refuse(forge: dict[str, Any], kind: str) -> None:
    ledger = Ledger()
    envelope = ledger.envelope(events.Cordon(A), **forge)
    signatures = sign(envelope, "alice") if forge else ()
    body = ledger.body(envelope, signatures)
    assert body.refusal is not None and body.refusal.kind == kind
    assert f"rejection as {kind}" in reason(ledger, ledger.record(replace(body, refusal=None)))
    assert not fold_record(ledger.state, ledger.record(body)).accepted
    assert A not in ledger.state.cordoned


@pytest.mark.parametrize("kind", sorted(ATTESTED_KINDS))
def test_refusals_that_follow_from_live_state_are_the_gateways_word(kind: str) -> None:
    ledger = Ledger()
    body = replace(cordon(ledger), refusal=Refusal(kind, "as it was then"))
    entry = fold_record(ledger.state, ledger.record(body))
    assert not entry.accepted
    assert A not in ledger.state.cordoned and entry.envelope.nonce not in ledger.state.nonces


def test_time_does_not_go_back() -> None:
    ledger = Ledger()
    body = cordon(ledger)
    assert "time lies before" in reason(ledger, ledger.record(body, at_ms=ledger.state.at_ms - 1))
    fold_record(ledger.state, ledger.record(body, at_ms=ledger.state.at_ms))


@given(st.integers(0, 2**64 - 1).filter(lambda number: number != 1))
def test_rules_nobody_knows_are_not_guessed(version: int) -> None:
    ledger = Ledger()
    assert "too old" in reason(ledger, ledger.record(cordon(ledger, rules_version=version)))


@given(st.binary(max_size=200))
def test_a_sealed_record_of_noise_is_refused(noise: bytes) -> None:
    ledger = Ledger()
    record = seal(next_record(ADMIN_CHAIN, ledger.state.head, ledger.now_ms, noise), "node-a")
    assert reason(ledger, record)


def test_records_of_another_cluster_do_not_continue_this_one() -> None:
    """Not even with the hashes and seals put right: the operators signed for the other cluster."""
    ledger, other = Ledger(), Ledger("elsewhere")
    other.accept(events.Cordon(A))
    stolen = other.records[1]
    assert "hash does not continue" in reason(ledger, stolen)
    forged = seal(next_record(ADMIN_CHAIN, ledger.state.head, ledger.now_ms, stolen.payload), "node-a")
    assert "cluster-changed" in reason(ledger, forged)


def test_a_record_of_another_chain_is_none_of_the_ledger() -> None:
    ledger = Ledger()
    payload = cordon(ledger).to_bytes()
    head = ledger.state.head
    record = Record(
        head.seq + 1,
        ledger.now_ms,
        head.hash,
        record_hash("sensors/temp", head.hash, head.seq + 1, ledger.now_ms, payload),
        payload,
    )
    assert "hash does not continue" in reason(ledger, seal(record, "node-a"))


def test_genesis_comes_first_and_once() -> None:
    ledger = Ledger()
    empty = Ledger()
    empty.state = LedgerState()
    assert "is no node of the cluster" in reason(
        empty, seal(next_record(ADMIN_CHAIN, EMPTY, 5, cordon(ledger).to_bytes()), "node-a")
    )
    again = seal(next_record(ADMIN_CHAIN, ledger.state.head, ledger.now_ms, ledger.records[0].payload), "node-a")
    assert "cluster-changed" in reason(ledger, again)
    assert ledger.state.cluster_id == ledger.records[0].hash[:16]


def test_a_rejected_record_changes_nothing_but_head_and_time() -> None:
    ledger = Ledger()
    ledger.accept(events.DaemonApply(spec("web")))
    before = msgspec.to_builtins(ledger.state, builtin_types=(bytes,), str_keys=False)
    entry = ledger.commit(events.Cordon(9))
    after = msgspec.to_builtins(ledger.state, builtin_types=(bytes,), str_keys=False)
    assert not entry.accepted
    assert {name for name in after if after[name] != before[name]} == {"head", "at_ms"}
    assert ledger.state.head == Head(3, entry.record.hash)
