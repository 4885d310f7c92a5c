"""Payloads in and out: JSON keeps every digit, text and bytes stay what they were."""

from __future__ import annotations

import base64
import json
from typing import Any

import msgspec
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from substrate.control.dispatch import encode_line
from substrate.control.params import AppendBody
from substrate.control.payloads import payloads_of, record_row
from substrate.wire.errors import NetError
from substrate.wire.records import EMPTY, next_record


def body(text: str) -> AppendBody:
    return msgspec.json.decode(text, type=AppendBody)


def shown(payload: bytes) -> dict[str, Any]:
    line = encode_line(record_row(next_record("x", EMPTY, 1_769_860_800_000, payload)))
    assert line.count(b"\n") == 1
    row: dict[str, Any] = orjson.loads(line)
    assert row["at"] == "2026-01-31T12:00:00.000Z"
    assert row["size_bytes"] == len(payload)
    return row


def test_json_loses_space_and_nothing_else() -> None:
    sent = '{"records": [ {"b": 18446744073709551617, "a":[1.50, 1e400] } , "x" ]}'
    assert payloads_of(body(sent)) == [b'{"b":18446744073709551617,"a":[1.50,1e400]}', b'"x"']


def test_text_and_base64() -> None:
    assert payloads_of(body('{"records":["a\\n","ä"],"encoding":"text"}')) == [b"a\n", "ä".encode()]
    assert payloads_of(body('{"records":["AP8="],"encoding":"base64"}')) == [b"\x00\xff"]


@pytest.mark.parametrize(
    "sent",
    [
        '{"records":["a",1],"encoding":"text"}',
        '{"records":["a","A"],"encoding":"base64"}',
        '{"records":["YQ==","*"],"encoding":"base64"}',
    ],
)
def test_the_record_that_does_not_fit_its_encoding_is_named(sent: str) -> None:
    with pytest.raises(NetError) as caught:
        payloads_of(body(sent))
    assert caught.value.kind == "invalid-argument"
    assert caught.value.details["field"].startswith("records[")


@given(st.binary(max_size=60))
def test_any_bytes_come_back_from_their_row(payload: bytes) -> None:
    row = shown(payload)
    if row["payload_base64"] is not None:
        assert base64.b64decode(row["payload_base64"]) == payload
    elif row["text"] is not None:
        assert row["text"].encode() == payload
    else:
        assert row["payload"] == json.loads(payload)


def test_json_of_several_lines_and_very_deep_json_stay_one_line() -> None:
    assert shown(b'{\n "a": [1,\n 2]\n}')["payload"] == {"a": [1, 2]}
    deep = b"[" * 5000 + b"]" * 5000
    assert shown(deep)["text"].encode() == deep
