"""The client's HTTP without sockets: bytes in any cut, and bytes that are no response."""

from __future__ import annotations

import json
from urllib.parse import parse_qsl, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from net_sdk.http1 import Lines, Malformed, Response, document, quote, request_bytes, target
from substrate.wire.errors import NetError

LENGTH = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 7\r\n\r\n" + b'{"a":1}'
CHUNKED = (
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
    b'3;ext=1\r\n{"a\r\n4\r\n":1}\r\n00\r\nTrailer: x\r\n\r\n'
)
UNTIL_CLOSE = b'HTTP/1.0 200\r\n\r\n{"a":1}'


@given(st.sampled_from([LENGTH, CHUNKED]), st.lists(st.integers(1, 20), max_size=40))
def test_a_response_in_any_pieces(data: bytes, cuts: list[int]) -> None:
    response, body, at = Response(), b"", 0
    for cut in [*cuts, len(data)]:
        body += response.feed(data[at : at + cut])
        at += cut
    assert (response.status, body, response.done, response.reusable) == (200, b'{"a":1}', True, True)
    assert response.streaming is (data is CHUNKED)


def test_a_body_that_ends_with_the_connection() -> None:
    response = Response()
    assert response.feed(UNTIL_CLOSE) == b'{"a":1}'
    assert (response.done, response.reusable) == (False, False)
    assert response.eof()


@pytest.mark.parametrize("cut", range(len(CHUNKED)))
def test_an_end_anywhere_before_the_last_byte_is_no_end(cut: int) -> None:
    response = Response()
    response.feed(CHUNKED[:cut])
    assert not response.eof()


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1" * 2000,
        b"x" * 70_000,
    ],
)
def test_what_is_no_response_is_malformed(data: bytes) -> None:
    with pytest.raises(Malformed):
        Response().feed(data)


@given(st.binary(max_size=300), st.integers(0, 300))
def test_no_bytes_make_the_reader_fail_otherwise(data: bytes, cut: int) -> None:
    for prefix in (b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"):
        response = Response()
        try:
            response.feed(prefix + data[:cut])
            response.feed(data[cut:])
        except Malformed:
            pass


@given(st.dictionaries(st.text(min_size=1, max_size=8), st.text(max_size=12), min_size=1, max_size=4))
def test_queries_come_out_as_they_went_in(query: dict[str, str]) -> None:
    path, _, text = target("/v1/x", query).partition("?")
    assert path == "/v1/x"
    assert dict(parse_qsl(text, keep_blank_values=True, strict_parsing=True)) == query


def test_query_values() -> None:
    assert target("/p", {"a": None, "follow": True, "b": False, "n": 5}) == "/p?follow=true&b=false&n=5"
    assert target("/p", {"a": None}) == "/p"


@given(st.text(max_size=20))
def test_quote(text: str) -> None:
    assert unquote(quote(text), errors="strict") == text
    assert "/" not in quote(text)


def test_a_request() -> None:
    assert request_bytes("GET", "/x") == b"GET /x HTTP/1.1\r\nHost: net.local\r\n\r\n"
    head, _, body = request_bytes("POST", "/x", {"ä": 1}).partition(b"\r\n\r\n")
    assert json.loads(body) == {"ä": 1}
    assert f"Content-Length: {len(body)}".encode() in head


def test_documents() -> None:
    assert document(200, b"[1]") == [1]
    with pytest.raises(NetError) as caught:
        document(404, json.dumps(NetError("node-not-found", "m", "h", {"node": "x"}).document()).encode())
    assert (caught.value.kind, caught.value.message, caught.value.hint, caught.value.details) == (
        "node-not-found", "m", "h", {"node": "x"})  # fmt: skip
    for status, body in ((200, b"<html>"), (500, b"oops"), (500, b"[]"), (500, b'{"error":1}'), (500, b'{"error":{}}')):
        with pytest.raises(NetError) as caught:
            document(status, body)
        assert caught.value.kind == "internal"


def test_lines() -> None:
    lines = Lines()
    assert lines.feed(b'{"seq":1}\n{"heartbeat":true,"at":"x"}\n{"se') == [{"seq": 1}]
    assert lines.feed(b'q":2,"end":"a row may have such a field"}\n') == [
        {"seq": 2, "end": "a row may have such a field"}
    ]
    assert lines.feed(b'{"lagged":{"from":3,"to":4}}\n') == [{"lagged": {"from": 3, "to": 4}}]
    assert lines.feed(b'{"end":"complete"}\n') == []
    assert lines.ended == "complete"
    assert lines.failure is None
    for bad in (b"{\n", b"[1]\n", b"x" * (5 * 1024 * 1024)):
        with pytest.raises(Malformed):
            Lines().feed(bad)


def test_a_stream_that_ended_because_of_an_error() -> None:
    lines = Lines()
    ending = {"end": "error", **NetError("corrupt-store", "record 4 is damaged").document()}
    assert lines.feed(json.dumps(ending).encode() + b"\n") == []
    assert lines.failure is not None
    assert lines.failure.kind == "corrupt-store"
