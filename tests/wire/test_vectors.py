"""The pinned bytes. Whoever makes one of these fail has changed the wire: give the change a new number instead."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from substrate.identity import ids, keyfile
from substrate.identity.keys import Keypair
from substrate.identity.verify import verify_strict
from substrate.operator.checkpoints import checkpoint_payload
from substrate.operator.ledger import LedgerBody
from substrate.wire import events
from substrate.wire.control import CONTROL_EVENTS, decode_control, encode_control
from substrate.wire.envelope import Envelope, join_proof_payload, key_proof_payload, seal_payload
from substrate.wire.errors import NetError
from substrate.wire.events import ADMIN_EVENTS, decode_event
from substrate.wire.records import EMPTY, next_record
from substrate.wire.times import iso, parse_duration_ms, parse_iso

FOLDER = Path(__file__).resolve().parents[1] / "vectors"
WIRE = json.loads((FOLDER / "wire.json").read_text())
OPERATOR = json.loads((FOLDER / "operator.json").read_text())
CLUSTER_ID, NONCE, BLAST_HASH = bytes(range(16)), bytes(range(16, 32)), bytes(range(32, 64))


def keypair(byte: int) -> Keypair:
    return Keypair(bytes([byte]) * 32)


def names(vectors: list[dict[str, Any]]) -> list[str]:
    return [f"{index}-{vector['kind']}" for index, vector in enumerate(vectors)]


def test_every_variant_is_pinned_under_its_number() -> None:
    assert {v["number"]: v["kind"] for v in WIRE["envelopes"]} == {n: c.kind for n, c in ADMIN_EVENTS.by_number.items()}
    assert {v["number"]: v["kind"] for v in WIRE["control"]} == {n: c.kind for n, c in CONTROL_EVENTS.by_number.items()}


@pytest.mark.parametrize("vector", WIRE["envelopes"], ids=names(WIRE["envelopes"]))
def test_envelopes(vector: dict[str, Any]) -> None:
    cls = ADMIN_EVENTS.by_number[vector["number"]]
    assert [[name, codec.name] for name, codec in cls.layout()] == vector["layout"]
    event = decode_event(vector["event"])
    assert ADMIN_EVENTS.to_bytes(event).hex() == vector["postcard_hex"]
    blast_hash = BLAST_HASH if event.kind in events.ICE_KINDS else None
    envelope = Envelope(CLUSTER_ID, 1_700_000_000_000, 1_700_000_060_000, NONCE, event, vector["reason"], blast_hash)
    payload = bytes.fromhex(vector["payload_hex"])
    assert envelope.payload() == payload
    assert envelope.commit_id().hex() == vector["commit_id"]
    assert Envelope.parse(payload) == envelope
    assert event.to_document() == vector["event"]
    signature = keypair(1).sign(payload)
    assert signature.hex() == vector["signature_seed01_hex"]
    assert verify_strict(keypair(1).public_key, payload, signature)


@pytest.mark.parametrize("vector", WIRE["control"], ids=names(WIRE["control"]))
def test_control_payloads(vector: dict[str, Any]) -> None:
    cls = CONTROL_EVENTS.by_number[vector["number"]]
    assert [[name, codec.name] for name, codec in cls.layout()] == vector["layout"]
    event = CONTROL_EVENTS.from_json(vector["event"])
    payload = bytes.fromhex(vector["payload_hex"])
    assert encode_control(vector["term"], int(vector["leader"]), event) == payload
    assert decode_control(payload) == (vector["term"], int(vector["leader"]), event)


def test_record_hashes() -> None:
    head = EMPTY
    for vector in WIRE["records"]:
        record = next_record(vector["chain"], head, vector["at_ms"], bytes.fromhex(vector["payload_hex"]))
        assert (record.seq, record.prev_hash.hex(), record.hash.hex()) == (
            vector["seq"],
            vector["prev_hash"],
            vector["hash"],
        )
        head = record.head
    assert head.seq == 2


@pytest.mark.parametrize("vector", WIRE["ledger_bodies"], ids=["accepted", "rejected"])
def test_ledger_bodies(vector: dict[str, Any]) -> None:
    body = LedgerBody.from_json(vector["json"], "body")
    assert body.to_bytes().hex() == vector["postcard_hex"]
    assert LedgerBody.from_bytes(bytes.fromhex(vector["postcard_hex"])) == body
    assert body.commit_id().hex() == vector["commit_id"]


def test_bytes_that_keys_sign() -> None:
    proofs = WIRE["proofs"]
    assert key_proof_payload(keypair(4).public_key).hex() == proofs["key"]
    assert join_proof_payload(CLUSTER_ID, "b", keypair(3).public_key).hex() == proofs["join"]
    assert seal_payload(bytes(range(32))).hex() == proofs["seal"]
    assert checkpoint_payload(CLUSTER_ID, 9, bytes(range(32)), 1_700_000_000_000).hex() == proofs["checkpoint"]


def test_no_signed_text_begins_another() -> None:
    """Domains keep signatures apart only if none is a prefix of another."""
    texts = [bytes.fromhex(value) for value in WIRE["proofs"].values()]
    texts += [bytes.fromhex(vector["payload_hex"]) for vector in WIRE["envelopes"]]
    domains = {b"net-deck-key:", b"net-deck-ice:", b"net-deck-admin:", b"net-node:"}
    owners = [[domain for domain in domains if text.startswith(domain)] for text in texts]
    assert all(len(owner) == 1 for owner in owners)
    assert not [(a, b) for a in domains for b in domains if a != b and a.startswith(b)]


def test_ids_of_named_things() -> None:
    for vector in WIRE["named_ids"]:
        found = ids.named_id(vector["noun"], bytes.fromhex(vector["cluster_id"]), vector["name"])
        assert str(found) == vector["id"]


def test_key_file_of_the_first_version_still_loads(tmp_path: Path) -> None:
    vector = WIRE["key_file"]
    directory = tmp_path / "operator"
    directory.mkdir(mode=0o700)
    path = directory / "alice.key"
    path.touch(mode=0o600)
    path.write_text(vector["content"])
    loaded = keyfile.load(str(directory), "alice")
    assert loaded.keypair.seed().hex() == vector["seed"]
    shown = loaded.document()
    for name in ("operator_id", "public_key", "created_at", "note", "name"):
        assert shown[name] == vector[name]


@pytest.mark.parametrize("vector", OPERATOR["identities"], ids=lambda v: v["seed_hex"][:4])
def test_ids_and_fingerprints_of_the_reference(vector: dict[str, Any]) -> None:
    keys = Keypair(bytes.fromhex(vector["seed_hex"]))
    assert keys.public_key.hex() == vector["public_key_hex"]
    assert str(keys.operator_id) == vector["operator_id"]
    assert str(keys.node_id) == vector["node_id"]
    assert ids.fingerprint(keys.public_key) == vector["fingerprint"]


@pytest.mark.parametrize("vector", OPERATOR["admin"], ids=names([v["event"] for v in OPERATOR["admin"]]))
def test_event_bytes_of_the_reference(vector: dict[str, Any]) -> None:
    event = decode_event(vector["event"])
    assert ADMIN_EVENTS.to_bytes(event).hex() == vector["postcard_hex"]
    # The reference signs another frame around the same event bytes; the same key gives the same signature over it.
    frame = bytes.fromhex(vector["reference_payload_hex"])
    assert frame.endswith(ADMIN_EVENTS.to_bytes(event))
    assert keypair(0x42).sign(frame).hex() == vector["signature_seed42_hex"]
    assert verify_strict(keypair(0x42).public_key, frame, bytes.fromhex(vector["signature_seed42_hex"]))


@pytest.mark.parametrize("vector", OPERATOR["durations"], ids=lambda v: v["in"])
def test_durations_of_the_reference(vector: dict[str, Any]) -> None:
    if vector.get("error"):
        with pytest.raises(NetError) as caught:
            parse_duration_ms(vector["in"])
        assert caught.value.kind == "invalid-argument"
    else:
        assert parse_duration_ms(vector["in"]) == vector["ms"]


def test_times_of_the_reference() -> None:
    for vector in OPERATOR["iso8601"]:
        assert parse_iso(vector["iso"]) == vector["secs"] * 1000
        assert iso(vector["secs"] * 1000) == vector["iso"].removesuffix("Z") + ".000Z"
