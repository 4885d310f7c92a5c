"""Events and envelopes: round trips of every variant, and bytes that are no envelope."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from substrate.operator.ledger import LedgerBody
from substrate.wire import events
from substrate.wire.control import CONTROL_EVENTS, decode_control, encode_control
from substrate.wire.envelope import MAX_REASON_BYTES, Envelope, commit_id_of
from substrate.wire.errors import NetError
from substrate.wire.events import ADMIN_EVENTS, decode_event
from substrate.wire.postcard import PostcardError
from substrate.wire.specs import DaemonSpec
from tests.wire.strategies import BYTES16, CONTROL, EVENTS, U64, envelopes
from tests.wire.test_postcard import JSON


@given(EVENTS)
def test_json_round_trip_of_every_event(event: events.Event) -> None:
    document = orjson.loads(orjson.dumps(event.to_document()))
    assert decode_event(document) == event


@given(CONTROL, U64, U64)
def test_control_round_trip(event: Any, term: int, leader: int) -> None:
    payload = encode_control(term, leader, event)
    assert decode_control(payload) == (term, leader, event)
    assert CONTROL_EVENTS.from_json(CONTROL_EVENTS.to_json(event)) == event
    with pytest.raises(PostcardError):
        decode_control(payload + b"\0")


@given(envelopes())
def test_an_envelope_is_read_back_as_it_was_signed(envelope: Envelope) -> None:
    payload = envelope.payload()
    assert Envelope.parse(payload) == envelope
    assert envelope.commit_id() == commit_id_of(payload)


@given(envelopes(), st.data())
def test_a_changed_byte_makes_another_commit_or_none(envelope: Envelope, data: st.DataObject) -> None:
    payload = bytearray(envelope.payload())
    payload[data.draw(st.integers(0, len(payload) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        other = Envelope.parse(bytes(payload))
    except PostcardError:
        return
    assert other.payload() == bytes(payload), "two byte strings must not carry one envelope"
    assert other != envelope
    assert other.commit_id() != envelope.commit_id()


@given(envelopes(), st.data())
def test_cut_and_lengthened_envelopes_are_refused(envelope: Envelope, data: st.DataObject) -> None:
    payload = envelope.payload()
    for wrong in (payload[: data.draw(st.integers(0, len(payload) - 1))], payload + b"\0"):
        with pytest.raises(PostcardError):
            Envelope.parse(wrong)


@given(st.binary(max_size=120), st.sampled_from([b"", b"net-deck-ice:\1", b"net-deck-admin:\1"]))
def test_noise_is_no_envelope_and_no_ledger_body(noise: bytes, begin: bytes) -> None:
    for reader in (Envelope.parse, LedgerBody.from_bytes):
        try:
            value = reader(begin + noise)
        except PostcardError:
            continue
        back = value.payload() if isinstance(value, Envelope) else value.to_bytes()
        assert back == begin + noise


def test_ice_and_admin_signatures_cannot_be_exchanged() -> None:
    """The same bytes under the other domain are refused: the event says where it belongs."""
    admin = Envelope(bytes(16), 1, 2, bytes(16), events.Cordon(7)).payload()
    ice = Envelope(bytes(16), 1, 2, bytes(16), events.ThawCluster(), "", bytes(32)).payload()
    for payload, swapped in (
        (admin, b"net-deck-ice:" + admin.removeprefix(b"net-deck-admin:")),
        (ice, b"net-deck-admin:" + ice.removeprefix(b"net-deck-ice:")),
    ):
        Envelope.parse(payload)
        with pytest.raises(PostcardError):
            Envelope.parse(swapped)


@given(BYTES16)
def test_an_unknown_version_is_refused(cluster_id: bytes) -> None:
    payload = bytearray(Envelope(cluster_id, 1, 2, bytes(16), events.Cordon(7)).payload())
    payload[len(b"net-deck-admin:")] = 2
    with pytest.raises(PostcardError, match="version"):
        Envelope.parse(bytes(payload))


def test_a_reason_has_a_limit_on_both_sides() -> None:
    def envelope(size: int) -> Envelope:
        return Envelope(bytes(16), 1, 2, bytes(16), events.Cordon(7), "é" * (size // 2))

    longest = envelope(MAX_REASON_BYTES).payload()
    assert Envelope.parse(longest).reason == "é" * (MAX_REASON_BYTES // 2)
    with pytest.raises(NetError) as caught:
        envelope(MAX_REASON_BYTES + 2).payload()
    assert caught.value.kind == "too-large"
    begin = longest[: -MAX_REASON_BYTES - 4]
    with pytest.raises(PostcardError, match="too long"):
        Envelope.parse(begin + (MAX_REASON_BYTES + 1).to_bytes(4, "little") + b"a" * (MAX_REASON_BYTES + 1))
    with pytest.raises(PostcardError, match="UTF-8"):
        Envelope.parse(begin + (1).to_bytes(4, "little") + b"\xff")


@given(JSON, st.sampled_from([*ADMIN_EVENTS.by_kind, "nonsense"]))
def test_any_json_is_an_event_or_an_invalid_argument(document: Any, kind: str) -> None:
    candidates = [document, {"kind": document}]
    if isinstance(document, dict):
        candidates.append({**document, "kind": kind})
    for candidate in candidates:
        try:
            event = decode_event(candidate)
        except NetError as error:
            assert error.kind == "invalid-argument"
            assert "field" in error.details
            continue
        assert decode_event(event.to_document()) == event


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ({}, "kind"),
        ({"kind": "cordon"}, "node"),
        ({"kind": "cordon", "node": 7}, "node"),  # ids are strings: numbers lose digits beyond 2^53
        ({"kind": "cordon", "node": "7", "deadline": 1}, "deadline"),
        ({"kind": "drain", "node": "7", "drain_for_ms": -1}, "drain_for_ms"),
        ({"kind": "drain", "node": "7", "drain_for_ms": 1.5}, "drain_for_ms"),
        ({"kind": "drain", "node": "7", "drain_for_ms": True}, "drain_for_ms"),
        ({"kind": "drop-replicas", "node": "7", "chains": "1"}, "chains"),
        ({"kind": "policy", "changes": {"crash_limit": "3"}}, "changes"),
        ({"kind": "flush-avoid-lists", "scope": {"kind": "everywhere"}}, "kind"),
        ({"kind": "join-token", "public_key": "00" * 31, "ttl_ms": 1}, "public_key"),
        ({"kind": "daemon-apply", "spec": {"name": "web"}}, "command"),
    ],
)
def test_a_wrong_field_is_named(document: dict[str, Any], field: str) -> None:
    with pytest.raises(NetError) as caught:
        decode_event(document)
    assert caught.value.kind == "invalid-argument"
    assert caught.value.details["field"] == field


SPEC = {"name": "web", "command": ["sleep", "1"]}


@pytest.mark.parametrize(
    "change",
    [
        {"name": "7"},
        {"name": "Web"},
        {"command": []},
        {"command": [""]},
        {"command": ["a\0b"]},
        {"env": {"": "x"}},
        {"env": {"A=B": "x"}},
        {"cwd": "relative"},
        {"labels": [""]},
        {"requires": ["x" * 129]},
        {"replicas": 0},
        {"replicas": 1001},
        {"grace_ms": 3_600_001},
        {"grace": "1h1ms"},
        {"grace": "soon"},
        {"restart": "sometimes"},
        {"env": {f"K{n}": "x" * 4096 for n in range(16)}},
        {"surprise": 1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_specs_that_cannot_run_are_refused(change: dict[str, Any]) -> None:
    assert DaemonSpec.parse(SPEC).command == ("sleep", "1")
    with pytest.raises(NetError) as caught:
        DaemonSpec.parse({**SPEC, **change})
    assert caught.value.kind == "invalid-argument"


def test_a_spec_takes_its_grace_in_human_form() -> None:
    assert DaemonSpec.parse({**SPEC, "grace": "1m30s"}).grace_ms == 90_000
    assert DaemonSpec.parse({**SPEC, "grace": 5}).grace_ms == 5_000
