"""Strict verification, and who counts as a signer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from substrate.identity.keys import Keypair
from substrate.identity.verify import OperatorSignature, check_public_key, check_signatures, verify_strict
from substrate.wire.errors import NetError

L = 2**252 + 27742317777372353535851937790883648493
"""The order of ed25519's main subgroup."""
P = 2**255 - 19
PAYLOAD = b"net-deck-admin:\1 something to sign"
KEYS = [Keypair(bytes([number]) * 32) for number in range(1, 7)]

SMALL_ORDER = [
    "0100000000000000000000000000000000000000000000000000000000000000",  # the neutral element
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",  # order 2
    "0000000000000000000000000000000000000000000000000000000000000000",  # order 4
    "0000000000000000000000000000000000000000000000000000000000000080",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",  # order 8
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
]
NOT_CANONICAL = [(P + y).to_bytes(32, "little").hex() for y in (0, 1, 3, 18)] + ["ff" * 32]


def test_a_true_signature_verifies() -> None:
    assert all(verify_strict(key.public_key, PAYLOAD, key.sign(PAYLOAD)) for key in KEYS)


@given(st.integers(0, 63), st.integers(1, 255))
def test_any_changed_byte_is_noticed(position: int, change: int) -> None:
    key = KEYS[0]
    signature = bytearray(key.sign(PAYLOAD))
    signature[position] ^= change
    assert not verify_strict(key.public_key, PAYLOAD, bytes(signature))
    payload = bytearray(PAYLOAD)
    payload[position % len(PAYLOAD)] ^= change
    assert not verify_strict(key.public_key, bytes(payload), key.sign(PAYLOAD))


@given(st.binary(max_size=64), st.integers(1, 15))
def test_a_malleated_signature_is_refused(payload: bytes, times: int) -> None:
    """S + k*L satisfies the equation as S does, so a lax verifier would take it for a second signature."""
    signature = KEYS[0].sign(payload)
    s = int.from_bytes(signature[32:], "little") + times * L
    if s < 2**256:
        assert not verify_strict(KEYS[0].public_key, payload, signature[:32] + s.to_bytes(32, "little"))
    assert verify_strict(KEYS[0].public_key, payload, signature)


@pytest.mark.parametrize("encoded", SMALL_ORDER)
def test_small_order_keys_sign_nothing(encoded: str) -> None:
    key = bytes.fromhex(encoded)
    with pytest.raises(NetError) as caught:
        check_public_key(key)
    assert caught.value.kind == "invalid-argument"
    # With such a key R = small order and S = 0 hold for (nearly) every message in a lax verifier.
    for r in SMALL_ORDER:
        for number in range(8):
            assert not verify_strict(key, b"message %d" % number, bytes.fromhex(r) + bytes(32))


@pytest.mark.parametrize("encoded", NOT_CANONICAL)
def test_other_spellings_of_points_are_no_keys(encoded: str) -> None:
    with pytest.raises(NetError):
        check_public_key(bytes.fromhex(encoded))


def test_a_key_with_a_small_order_part_is_no_key() -> None:
    """A point of the main subgroup plus one of order 8 lies on the curve but outside the subgroup."""
    from nacl import bindings as sodium

    mixed = sodium.crypto_core_ed25519_add(KEYS[0].public_key, bytes.fromhex(SMALL_ORDER[4]))
    assert mixed != KEYS[0].public_key
    check_public_key(KEYS[0].public_key)
    with pytest.raises(NetError):
        check_public_key(mixed)


@given(st.binary(max_size=70), st.binary(max_size=70))
def test_wrong_lengths_are_false_and_nothing_worse(key: bytes, signature: bytes) -> None:
    assert not verify_strict(key, PAYLOAD, signature)
    if len(key) != 32:
        with pytest.raises(NetError):
            check_public_key(key)


def signature_of(number: int, operator: int | None = None, payload: bytes = PAYLOAD) -> OperatorSignature:
    return OperatorSignature(operator if operator is not None else number, KEYS[number].sign(payload))


REGISTRY = {number: key.public_key for number, key in enumerate(KEYS)}


def refusal(signatures: list[OperatorSignature], keys: dict[int, bytes], threshold: int) -> NetError:
    with pytest.raises(NetError) as caught:
        check_signatures(PAYLOAD, signatures, keys, threshold)
    return caught.value


@given(st.lists(st.integers(0, 5), max_size=8), st.integers(0, 7))
def test_distinct_signers_are_counted_in_order(numbers: list[int], threshold: int) -> None:
    signatures = [signature_of(number) for number in numbers]
    distinct = list(dict.fromkeys(numbers))
    if len(distinct) >= max(1, threshold):
        assert check_signatures(PAYLOAD, signatures, REGISTRY, threshold) == distinct
    else:
        error = refusal(signatures, REGISTRY, threshold)
        assert error.kind == "insufficient-signatures"
        assert error.details == {"got": len(distinct), "required": max(1, threshold)}


def test_one_operator_signing_twice_counts_once() -> None:
    assert refusal([signature_of(0), signature_of(0)], REGISTRY, 2).kind == "insufficient-signatures"


def test_one_key_under_two_ids_counts_once() -> None:
    keys = {1: KEYS[0].public_key, 2: KEYS[0].public_key}
    error = refusal([signature_of(0, 1), signature_of(0, 2)], keys, 2)
    assert (error.kind, error.details["got"]) == ("insufficient-signatures", 1)


def test_nobody_signs_for_another() -> None:
    assert refusal([signature_of(0, 1)], REGISTRY, 1).kind == "signature-invalid"


def test_one_bad_signature_spoils_the_commit() -> None:
    """Even beside enough good ones: what is stored must be explainable signature by signature."""
    good = [signature_of(0), signature_of(1)]
    assert refusal([*good, signature_of(2, payload=b"something else")], REGISTRY, 2).kind == "signature-invalid"
    unknown = refusal([*good, signature_of(2, 99)], REGISTRY, 2)
    assert (unknown.kind, unknown.details) == ("not-authorized", {"operator_id": "99"})


def test_no_signature_is_never_enough() -> None:
    assert refusal([], REGISTRY, 0).kind == "insufficient-signatures"
