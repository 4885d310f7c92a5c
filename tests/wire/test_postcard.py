"""The postcard codecs: one value has one encoding, and nothing else is read."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from substrate.wire.postcard import (
    BOOL,
    BYTES,
    DURATION,
    ID,
    STRING,
    U64,
    Codec,
    PostcardError,
    decode,
    encode,
    fixed,
    mapping,
    option,
    sequence,
)
from tests.wire.strategies import of_codec

CODECS = [
    U64,
    ID,
    STRING,
    BYTES,
    BOOL,
    DURATION,
    fixed(3),
    option(STRING),
    option(option(U64)),
    sequence(DURATION),
    mapping(sequence(U64)),
    mapping(mapping(BOOL)),
]


@st.composite
def values(draw: st.DrawFn) -> tuple[Codec, Any]:
    codec = draw(st.sampled_from(CODECS[:-3] + CODECS[-1:] + CODECS[-3:-1]))
    name = codec.name
    if name == "option<option<u64>>":
        return codec, draw(st.none() | st.integers(0, 2**64 - 1))  # Some(None) has no Python form
    return codec, draw(of_codec(name))


@given(values())
def test_round_trip_in_bytes_and_json(case: tuple[Codec, Any]) -> None:
    codec, value = case
    assert decode(codec, encode(codec, value)) == value
    assert codec.from_json(codec.to_json(value)) == value


@given(values(), st.data())
def test_truncated_and_overlong_inputs_are_refused(case: tuple[Codec, Any], data: st.DataObject) -> None:
    codec, value = case
    encoded = encode(codec, value)
    cut = data.draw(st.integers(0, len(encoded) - 1))
    for wrong in (encoded[:cut], encoded + b"\0", encoded + encoded):
        with pytest.raises(PostcardError):
            decode(codec, wrong)


def unambiguous(codec: Codec, data: bytes) -> None:
    """Either refused, or the very bytes the value is written with: no second encoding of anything."""
    try:
        value = decode(codec, data)
    except PostcardError:
        return
    if codec.name != "option<option<u64>>":
        assert encode(codec, value) == data


@given(st.sampled_from(CODECS), st.binary(max_size=24))
def test_any_bytes_are_refused_or_canonical(codec: Codec, data: bytes) -> None:
    unambiguous(codec, data)


@given(values(), st.data())
def test_any_changed_byte_is_refused_or_canonical(case: tuple[Codec, Any], data: st.DataObject) -> None:
    codec, value = case
    encoded = bytearray(encode(codec, value))
    encoded[data.draw(st.integers(0, len(encoded) - 1))] ^= data.draw(st.integers(1, 255))
    unambiguous(codec, bytes(encoded))


@pytest.mark.parametrize(
    ("codec", "wrong"),
    [
        (U64, "8000"),  # zero in two bytes
        (U64, "ff00"),
        (U64, "ffffffffffffffffff02"),  # 2^64 and more
        (U64, "ffffffffffffffffffff01"),
        (BOOL, "02"),
        (option(U64), "0201"),
        (STRING, "01ff"),
        (STRING, "03eda080"),  # a surrogate
        (DURATION, "0080 94ebdc03"),  # a whole second of nanoseconds
        (DURATION, "0001"),  # half a millisecond is no time of ours
        (DURATION, "ffffffffffffffffff0100"),  # more milliseconds than 64 bits hold
        (mapping(U64), "02 0162 01 0161 01"),  # keys out of order
        (mapping(U64), "02 0161 01 0161 01"),  # a key twice
        (sequence(U64, 2), "03 01 01 01"),
        (mapping(U64, 1), "02 0161 01 0162 01"),
        (sequence(U64), "ffffffffffffffffff01"),  # a count that could fill the memory
    ],
)
def test_what_has_no_business_on_the_wire(codec: Codec, wrong: str) -> None:
    with pytest.raises(PostcardError):
        decode(codec, bytes.fromhex(wrong))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**65), 2**65)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.sampled_from(["1", "0x10", "00", "0A", "ab cd ef", "abcdef", "\ud800"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(CODECS), JSON)
def test_json_input_is_taken_or_refused_with_a_reason(codec: Codec, document: Any) -> None:
    try:
        value = codec.from_json(document)
    except ValueError as error:
        assert str(error).startswith("must be ")
        return
    if codec.name != "option<option<u64>>":
        assert decode(codec, encode(codec, value)) == value
    if codec in (BYTES, fixed(3)):
        assert codec.to_json(value) == document, "hex has one spelling"


@pytest.mark.parametrize("text", ["AB", "a", "ab ", " ab", "a b", "0xab", "zz"])
def test_hex_has_one_spelling(text: str) -> None:
    with pytest.raises(ValueError, match="must be lowercase hex"):
        BYTES.from_json(text)
