"""Streams on a real socket: rows, heartbeats, lag, ends; and the queue that feeds them."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from net_sdk.http1 import Response
from substrate.control import End, Lagged, Limits, Subscription
from tests.control.raw import Raw, get, post
from tests.control.sample import SampleApi, Serving
from tests.procs import wait_until

RECORDS = "/v1/chains/sensors%2Ftemp/records"


class Lines:
    """The NDJSON lines of one stream, taken from the socket as they come."""

    def __init__(self, raw: Raw, target: str) -> None:
        self.raw = raw
        self.response = Response()
        self.rest = b""
        raw.send(get(target))

    def next(self) -> Any:
        while b"\n" not in self.rest:
            piece = self.raw.socket.recv(65536)
            assert piece, "the stream was cut"
            self.rest += self.response.feed(piece)
        line, _, self.rest = self.rest.partition(b"\n")
        return json.loads(line)

    def all(self) -> list[Any]:
        """Every line up to the end of the response, which must be the last chunk."""
        while not self.response.done:
            piece = self.raw.socket.recv(65536)
            assert piece, "the stream was cut"
            self.rest += self.response.feed(piece)
        *lines, rest = self.rest.split(b"\n")
        assert rest == b""
        return [json.loads(line) for line in lines]


def append(path: str, *values: Any) -> None:
    with Raw(path) as raw:
        raw.send(post(RECORDS, json.dumps({"records": values}).encode()))
        assert raw.response()[0] == 200


def test_rows_lag_and_the_reason_of_the_end() -> None:
    with Serving() as serving, Raw(serving.path) as raw:
        lines = Lines(raw, "/v1/logs?follow=true").all()
        assert [line.get("seq") for line in lines] == [1, None, 10, None]
        assert lines[1] == {"lagged": {"from": 2, "to": 9}}
        assert lines[3] == {"end": "node-stopping"}
        raw.send(get("/v1/version"))  # the connection is as good as before
        assert raw.response()[0] == 200


def test_a_source_that_just_ends_is_complete() -> None:
    with Serving() as serving, Raw(serving.path) as raw:
        assert Lines(raw, "/v1/audit?follow=true").all()[-1] == {"end": "complete"}
        assert Lines(raw, "/v1/commits/" + "0a" * 16 + "/progress?follow=true").all()[-1] == {"end": "complete"}


def test_a_failing_source_says_so_in_its_last_line(caplog: pytest.LogCaptureFixture) -> None:
    with Serving(logger=logging.getLogger("test.streams")) as serving, Raw(serving.path) as raw:
        last = Lines(raw, "/v1/audit?follow=true&kind=fails").all()[-1]
        assert (last["end"], last["error"]["kind"], last["error"]["details"]) == ("error", "corrupt-store", {"seq": 4})
        last = Lines(raw, "/v1/audit?follow=true&kind=breaks").all()[-1]
        assert (last["end"], last["error"]["kind"]) == ("error", "internal")
        assert "secret" not in json.dumps(last)
    assert "KeyError: 'secret detail'" in caplog.text


def test_a_refused_stream_has_a_status() -> None:
    with Serving() as serving, Raw(serving.path) as raw:
        raw.send(get("/v1/chains/other/records?follow=true"))
        status, _, document = raw.response()
        assert (status, document["error"]["kind"]) == (404, "chain-not-found")


def test_rows_arrive_as_they_are_appended_and_since_resumes() -> None:
    with Serving() as serving, Raw(serving.path) as raw:
        append(serving.path, {"n": 1})
        stream = Lines(raw, RECORDS + "?follow=true")
        assert stream.next()["payload"] == {"n": 1}
        append(serving.path, {"n": 2}, {"n": 3})
        assert [stream.next()["seq"] for _ in range(2)] == [2, 3]
        with Raw(serving.path) as other:
            assert Lines(other, RECORDS + "?follow=true&since=2").next()["seq"] == 3


def test_heartbeats_come_while_nothing_else_does() -> None:
    with Serving(Limits(heartbeat_s=0.2)) as serving, Raw(serving.path) as raw:
        stream = Lines(raw, RECORDS + "?follow=true")
        started = time.monotonic()
        beats = [stream.next() for _ in range(3)]
        assert 0.35 <= time.monotonic() - started < 5
        assert all(beat["heartbeat"] is True and beat["at"].endswith("Z") for beat in beats)
        append(serving.path, "x")
        while "heartbeat" in (row := stream.next()):
            pass
        assert row["seq"] == 1


def test_the_end_of_the_node_ends_streams_with_that_reason() -> None:
    with Serving() as serving, Raw(serving.path) as raw:
        append(serving.path, "x")
        stream = Lines(raw, RECORDS + "?follow=true")
        assert stream.next()["seq"] == 1
        serving.stop()
        assert stream.all() == [{"end": "node-stopping"}]
        assert raw.rest() == b""
        assert serving.api.closed_streams == 1


def test_a_reader_that_leaves_is_unsubscribed() -> None:
    with Serving() as serving:
        with Raw(serving.path) as raw:
            append(serving.path, "x")
            assert Lines(raw, RECORDS + "?follow=true").next()["seq"] == 1
            assert len(serving.api.followers) == 1
        wait_until(lambda: serving.api.closed_streams == 1, 5, "the stream to be given up")
        assert len(serving.api.followers) == 0


def test_a_slow_reader_is_told_what_it_missed_and_memory_stays_bounded() -> None:
    total, payload = 4000, "y" * 1000
    with Serving(api=SlowReaderApi) as serving, Raw(serving.path) as raw:
        stream = Lines(raw, RECORDS + "?follow=true")
        wait_until(lambda: serving.api.followers, 5, "the stream to be there")
        for start in range(0, total, 200):
            append(serving.path, *[{"n": n, "p": payload} for n in range(start, start + 200)])
        assert serving.call(lambda: len(next(iter(serving.api.followers)))) <= SlowReaderApi.LIMIT
        expected, gaps = 1, 0
        while expected <= total:
            row = stream.next()
            if "lagged" in row:
                assert row["lagged"]["from"] == expected
                expected = row["lagged"]["to"] + 1
                gaps += 1
            else:
                assert row["seq"] == expected  # neither doubled, nor missing unseen, nor out of order
                expected += 1
        assert gaps >= 1
        append(serving.path, "after")
        assert stream.next()["seq"] == total + 1


class SlowReaderApi(SampleApi):
    LIMIT = 50

    def __init__(self) -> None:
        super().__init__(follow_limit=self.LIMIT)


def test_a_reader_that_never_reads_is_dropped_and_unsubscribed() -> None:
    with Serving(Limits(stall_s=0.4), api=SlowReaderApi) as serving, Raw(serving.path) as raw:
        raw.send(get(RECORDS + "?follow=true"))
        wait_until(lambda: serving.api.followers, 5, "the stream to be there")
        for _ in range(20):
            append(serving.path, *["y" * 20_000] * 20)
        wait_until(lambda: serving.api.closed_streams == 1, 10, "the reader to be dropped")


@given(
    limit=st.integers(1, 20),
    steps=st.lists(st.one_of(st.integers(1, 30).map(lambda n: ("push", n)), st.just(("take", 0))), max_size=60),
)
def test_a_subscription_accounts_for_every_row_in_order(limit: int, steps: list[tuple[str, int]]) -> None:
    async def run() -> None:
        left: list[bool] = []
        subscription: Subscription[int] = Subscription(limit, lambda: left.append(True))
        pushed, expected = 0, 1

        def account(items: list[int | Lagged] | End) -> int:
            assert isinstance(items, list)
            reached = expected
            for item in items:
                if isinstance(item, Lagged):
                    assert item.from_seq == reached <= item.to_seq
                    reached = item.to_seq + 1
                else:
                    assert item == reached
                    reached += 1
            return reached

        for step, count in steps:
            if step == "push":
                for _ in range(count):
                    pushed += 1
                    subscription.push(pushed, pushed)
                    assert len(subscription) <= limit + 1
            elif expected <= pushed:
                expected = account(await asyncio.wait_for(subscription.__anext__(), 5))
        subscription.finish("complete")
        subscription.finish("too late")
        subscription.push(pushed + 1, pushed + 1)
        while expected <= pushed:
            expected = account(await asyncio.wait_for(subscription.__anext__(), 5))
        assert await subscription.__anext__() == End("complete")
        with pytest.raises(StopAsyncIteration):
            await subscription.__anext__()
        assert left == [True]

    asyncio.run(run())


def test_a_waiting_reader_is_woken_by_a_row_a_gap_and_the_end() -> None:
    async def run() -> None:
        subscription: Subscription[str] = Subscription()
        loop = asyncio.get_running_loop()
        for wake, want in (
            (lambda: subscription.push(1, "x"), ["x"]),
            (lambda: subscription.push_lagged(2, 5), [Lagged(2, 5)]),
            (lambda: subscription.finish("over"), End("over")),
        ):
            loop.call_later(0.01, wake)
            assert await asyncio.wait_for(subscription.__anext__(), 5) == want

    asyncio.run(run())
