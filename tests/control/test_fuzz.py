"""Malformed HTTP and JSON, truncated, oversized, byte by byte: no crash, no hang, no growth (budgets, Reliability)."""

from __future__ import annotations

import gc
import json
import os
import socket
import time
from collections.abc import Iterator

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from substrate.control import Limits
from tests.control.raw import Raw, get, post
from tests.control.sample import Serving
from tests.procs import wait_until

CASES = 300
CAMPAIGN_CASES = 20_000
LIMITS = Limits(connections=16, header_s=1.0, body_s=1.0, idle_s=1.0, linger_s=0.2)

PATHS = ["/v1/status", "/v1/nodes/a", "/v1/logs?follow=true&limit=3", "/v1/proposals", "/v1/commits",
         "/v1/chains/sensors%2Ftemp/records", "/v1/node/stop", "/v1/names?kind=node", "/%00", "//", "/v1/nodes/%zz"]  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.sampled_from(
    ["event", "reason", "proposal", "signatures", "records", "encoding", "kind", "operator_id", "x"]
)
BODIES = (
    st.binary(max_size=200)
    | JSON.map(lambda value: json.dumps(value).encode())
    | st.dictionaries(FIELDS, JSON, max_size=5).map(lambda value: json.dumps(value).encode())
    | st.integers(1, 5000).map(lambda depth: b"[" * depth)
)
HEADERS = st.lists(
    st.sampled_from([b"Host: net.local", b"Host: x", b"Connection: close", b"Content-Length: 5", b"Content-Length: -1",
                     b"Transfer-Encoding: chunked", b"Expect: 100-continue", b"Upgrade: h2c", b"Origin: null", b": x"])
    | st.binary(max_size=40),
    max_size=5,
)  # fmt: skip
METHODS = st.sampled_from([b"GET", b"POST", b"HEAD", b"PUT", b"OPTIONS", b"get"])
WHOLE = st.builds(
    lambda method, path, body: (
        b"%s %s HTTP/1.1\r\nHost: net.local\r\nContent-Length: %d\r\n\r\n%s" % (method, path.encode(), len(body), body)
    ),
    METHODS,
    st.sampled_from(PATHS),
    BODIES,
)
LOOSE = st.builds(
    lambda method, path, headers, body: b"%s %s HTTP/1.1\r\n%s\r\n\r\n%s" % (method, path, b"\r\n".join(headers), body),
    st.sampled_from([b"GET", b"POST", b"CONNECT", b"\xff"]) | st.binary(max_size=5),
    st.sampled_from([path.encode() for path in PATHS]) | st.binary(max_size=30), HEADERS, BODIES,
)  # fmt: skip
MUTATED = st.builds(
    lambda data, at, byte: data[: at % len(data)] + bytes((byte,)) + data[at % len(data) + 1 :],
    WHOLE, st.integers(0, 10_000), st.integers(0, 255),
)  # fmt: skip
CUT = st.builds(lambda data, at: data[: at % len(data)], WHOLE, st.integers(0, 10_000))
TRAFFIC = st.lists(st.one_of(WHOLE, LOOSE, MUTATED, CUT, st.binary(max_size=300)), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def serving() -> Iterator[Serving]:
    with Serving(LIMITS) as running:
        yield running
        wait_until(lambda: running.server.connections == 0, 10, "every connection to end")


def throw(path: str, pieces: list[bytes], one_by_one: bool, half_close: bool) -> bytes:
    """Send the pieces however the server takes them, and read what it says within a bound."""
    with Raw(path, limit_s=5.0) as raw:
        try:
            for piece in pieces:
                if one_by_one and len(piece) < 400:
                    for byte in piece:
                        raw.send(bytes((byte,)))
                else:
                    raw.send(piece)
            if half_close:
                raw.socket.shutdown(socket.SHUT_WR)
                return raw.rest()
        except (BrokenPipeError, ConnectionResetError):
            return raw.rest()
        return b""


def attack(path: str, pieces: list[bytes], one_by_one: bool, half_close: bool) -> None:
    answer = throw(path, pieces, one_by_one, half_close)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 ")
    with Raw(path, limit_s=5.0) as raw:
        raw.send(get("/v1/version"))
        assert raw.response()[0] == 200


@settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck))
@given(pieces=TRAFFIC, one_by_one=st.booleans(), half_close=st.booleans())
def test_no_bytes_disturb_the_server(serving: Serving, pieces: list[bytes], one_by_one: bool, half_close: bool) -> None:
    attack(serving.path, pieces, one_by_one, half_close)


@pytest.mark.campaign
@settings(max_examples=CAMPAIGN_CASES, deadline=None, suppress_health_check=list(HealthCheck))
@given(pieces=TRAFFIC, one_by_one=st.booleans(), half_close=st.booleans())
def test_no_bytes_disturb_the_server_campaign(
    serving: Serving, pieces: list[bytes], one_by_one: bool, half_close: bool
) -> None:
    attack(serving.path, pieces, one_by_one, half_close)


def test_memory_does_not_grow_with_abuse(serving: Serving) -> None:
    """The same abuse many times over: after a warm-up the process holds no more than before."""
    abuse = [
        [b"GET /v1/status HTTP/1.1\r\nHost: net.local\r\nX: " + b"y" * 15_000],
        [b"POST /v1/proposals HTTP/1.1\r\nHost: net.local\r\nContent-Length: 1000000\r\n\r\n" + b"z" * 100_000],
        [post("/v1/proposals", b"[" * 50_000)],
        [b"\0" * 5000],
        [get("/v1/logs?follow=true")],
        [get("/v1/nodes/broken")],
    ]

    def round_of_abuse(count: int) -> None:
        for turn in range(count):
            throw(serving.path, abuse[turn % len(abuse)], False, turn % 2 == 0)

    process = psutil.Process(os.getpid())
    round_of_abuse(300)
    gc.collect()
    before = process.memory_info().rss
    round_of_abuse(1500)
    gc.collect()
    assert process.memory_info().rss - before < 20 * 1024 * 1024
    wait_until(lambda: serving.server.connections == 0, 10, "every connection to end")


def test_the_slowest_clients_do_not_slow_the_others(serving: Serving) -> None:
    slow = [Raw(serving.path) for _ in range(10)]
    try:
        for raw in slow:
            raw.send(b"GET /v1/status HTTP/1.1\r\nHo")
        with Raw(serving.path) as raw:
            started = time.monotonic()
            for _ in range(50):
                raw.send(get("/v1/version"))
                assert raw.response()[0] == 200
            assert time.monotonic() - started < 5
    finally:
        for raw in slow:
            raw.socket.close()
