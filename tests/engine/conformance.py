"""What every engine must do: `substrate.engine.api`, rule by rule, against real servers, processes and files.

A test module derives from `EngineConformance` and provides the fixture `harness`, an `EngineHarness`.
"""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final, Protocol, TypeVar

import pytest

from substrate.engine import Engine, KvEvent, Lagged, Tail, Watch
from substrate.engine.api import MAX_REQUEST_BYTES, MAX_VALUE_BYTES
from substrate.wire.errors import NetError
from substrate.wire.records import EMPTY, MAX_ENTRY_RECORDS, MAX_PAYLOAD_BYTES, Head, Record, check_follows, next_record

S = TypeVar("S")
T = TypeVar("T")

LIMIT_S: Final = 60.0


class Loss(Protocol):
    """What a bad connection does to appends, from now on."""

    answers: float
    """So many answers are lost, and the connection with each; the append has happened."""
    requests: float
    """So many appends are lost on the way, and the connection with each; they have not happened."""
    mute: bool
    """Answers are lost and the connection stays."""


class EngineHarness(Protocol):
    """One engine, its server, and clients of it."""

    async def connect(self, *, call_timeout_ms: int = 15_000) -> Engine: ...

    def connected_badly(self, *, call_timeout_ms: int) -> AbstractAsyncContextManager[tuple[Engine, Loss]]: ...

    async def trimmed_chain(self, name: str, *, records: int, kept: int) -> None: ...

    def server_pid(self) -> int: ...

    def client(self, *arguments: str) -> subprocess.Popen[str]:
        """A process that runs `tests.engine.clients` against the engine; see there for its verbs."""
        ...

    def close(self) -> None: ...


def scenario(
    test: Callable[[S, EngineHarness], Coroutine[Any, Any, None]],
) -> Callable[[S, EngineHarness], None]:
    """Run an async test on a fresh loop, with a limit."""

    @functools.wraps(test)
    def run(self: S, harness: EngineHarness) -> None:
        asyncio.run(asyncio.wait_for(test(self, harness), LIMIT_S))

    return run


@asynccontextmanager
async def engines(harness: EngineHarness, count: int = 1) -> AsyncIterator[list[Engine]]:
    """So many connections to the engine, closed at the end."""
    opened = [await harness.connect() for _ in range(count)]
    try:
        yield opened
    finally:
        for engine in opened:
            await engine.close()


async def take(tail: Tail, until_seq: int, limit_s: float = 20.0) -> list[Record]:
    """Records of a tail until `until_seq` arrived; a `Lagged` fails the test."""
    records: list[Record] = []
    async with asyncio.timeout(limit_s):
        while not records or records[-1].seq < until_seq:
            item = await anext(tail)
            assert not isinstance(item, Lagged), item
            assert item
            records += item
    return records


async def event(watch: Watch, limit_s: float = 10.0) -> KvEvent:
    return await asyncio.wait_for(anext(watch), limit_s)


async def error_of(call: Awaitable[object]) -> NetError:
    with pytest.raises(NetError) as caught:
        await call
    return caught.value


async def read_all(engine: Engine, chain: str) -> list[Record]:
    """The whole chain, verified."""
    records: list[Record] = []
    while page := await engine.read(chain, len(records) + 1):
        records += page
    assert check_follows(chain, EMPTY, records) == await engine.head(chain)
    return records


def line(process: subprocess.Popen[str]) -> str:
    """The next line a client process prints."""
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


async def next_line(process: subprocess.Popen[str], limit_s: float = 20.0) -> str:
    return await asyncio.wait_for(asyncio.to_thread(line, process), limit_s)


async def until(condition: Callable[[], Awaitable[T | None]], what: str, limit_s: float = 20.0) -> T:
    """Wait for a condition, with a limit."""
    deadline = time.monotonic() + limit_s
    while True:
        value = await condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"waited {limit_s:g} s for {what}; last: {value!r}"
        await asyncio.sleep(0.02)


class EngineConformance:
    """Derive and provide the fixture `harness`."""

    # chains ------------------------------------------------------------------------------------------------

    @scenario
    async def test_an_append_is_ordered_hashed_stamped_and_readable_elsewhere(self, harness: EngineHarness) -> None:
        async with engines(harness, 2) as (one, two):
            first = await one.append("sensors/temp", [b"a", b"b"], create=True)
            second = await two.append("sensors/temp", [b"c"])
            assert (first.first_seq, first.head.seq, first.duplicate) == (1, 2, False)
            assert second.first_seq == 3
            records = await read_all(two, "sensors/temp")
            assert [record.payload for record in records] == [b"a", b"b", b"c"]
            assert second.head == records[-1].head == await one.head("sensors/temp")
            stamps = [record.at_ms for record in records]
            assert stamps == sorted(stamps)
            assert abs(stamps[-1] - await one.now_ms()) < 10_000
            assert [(chain.name, chain.first_seq, chain.head) for chain in await one.chains()] == [
                ("sensors/temp", 1, second.head)
            ]

    @scenario
    async def test_a_chain_that_does_not_exist_reads_as_empty(self, harness: EngineHarness) -> None:
        async with engines(harness) as (engine,):
            assert await engine.head("none") == EMPTY
            assert await engine.read("none", 1) == []
            assert await engine.chains() == []
            assert (await error_of(engine.append("none", [b"x"]))).kind == "chain-not-found"
            assert await engine.head("none") == EMPTY
            created = await engine.append("none", [b"x"], expect=EMPTY, create=True)
            assert created.head.seq == 1

    @scenario
    async def test_one_of_fifty_racing_appends_wins_and_the_others_learn_the_head(self, harness: EngineHarness) -> None:
        async with engines(harness, 5) as clients:
            await clients[0].append("race", [b"start"], create=True)
            for _ in range(4):
                head = await clients[0].head("race")
                calls = [clients[n % 5].append("race", [b"%d" % n], expect=head) for n in range(50)]
                outcomes = await asyncio.gather(*calls, return_exceptions=True)
                won = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
                lost = [outcome for outcome in outcomes if isinstance(outcome, NetError)]
                assert (len(won), len(lost)) == (1, 49)
                assert won[0].head == await clients[0].head("race")
                for error in lost:
                    assert error.kind == "conflict"
                    assert error.details["head"] == {"seq": won[0].head.seq, "hash": won[0].head.hash.hex()}
            assert len(await read_all(clients[0], "race")) == 5

    @scenario
    async def test_an_entry_is_atomic_and_contiguous_among_others(self, harness: EngineHarness) -> None:
        async with engines(harness, 3) as clients:
            entries = [[b"%d.%d" % (entry, part) for part in range(entry % 7 + 1)] for entry in range(60)]
            calls = [clients[n % 3].append("mixed", entry, create=True) for n, entry in enumerate(entries)]
            outcomes = await asyncio.gather(*calls)
            records = await read_all(clients[0], "mixed")
            assert len(records) == sum(map(len, entries))
            for entry, outcome in zip(entries, outcomes, strict=True):
                got = records[outcome.first_seq - 1 : outcome.head.seq]
                assert [record.payload for record in got] == entry

    @scenario
    async def test_appends_sent_one_after_another_by_one_client_stay_in_order(self, harness: EngineHarness) -> None:
        async with engines(harness) as (engine,):
            outcomes = await asyncio.gather(*(engine.append("own", [b"%d" % n], create=True) for n in range(500)))
            assert [outcome.first_seq for outcome in outcomes] == list(range(1, 501))
            assert [record.payload for record in await read_all(engine, "own")] == [b"%d" % n for n in range(500)]

    @scenario
    async def test_sealed_records_are_taken_as_they_are_and_bad_ones_refused(self, harness: EngineHarness) -> None:
        async with engines(harness) as (engine,):
            one = next_record("control", EMPTY, 5, b"one", b"seal")
            two = next_record("control", one.head, 6, b"two")
            appended = await engine.append_records("control", [one, two], expect=EMPTY, create=True)
            assert appended.head == two.head
            assert await engine.read("control", 1) == [one, two]
            assert (await error_of(engine.append_records("control", [one], expect=EMPTY))).kind == "conflict"
            gap = next_record("control", Head(3, two.hash), 7, b"gap")
            forged = Record(3, 7, two.hash, bytes(32), b"forged")
            for bad in (gap, forged):
                error = await error_of(engine.append_records("control", [bad], expect=two.head))
                assert (error.kind, error.details["seq"]) == ("corrupt-store", 3)
            assert await engine.head("control") == two.head

    @scenario
    async def test_sizes_and_names_are_limited_and_nothing_is_appended(self, harness: EngineHarness) -> None:
        async with engines(harness) as (engine,):
            largest = bytes(MAX_PAYLOAD_BYTES)
            await engine.append("big", [largest], create=True)
            assert (await engine.read("big", 1))[0].payload == largest
            for payloads, kind in (
                ([], "invalid-argument"),
                ([largest + b"x"], "too-large"),
                ([largest, largest], "too-large"),
                ([b""] * (MAX_ENTRY_RECORDS + 1), "too-large"),
            ):
                assert (await error_of(engine.append("big", payloads))).kind == kind
            assert (await error_of(engine.append("no//name", [b"x"], create=True))).kind == "invalid-argument"
            assert (await error_of(engine.append("big", [b"x"], entry_id=b"short"))).kind == "invalid-argument"
            assert (await error_of(engine.read("big", 0))).kind == "invalid-argument"
            assert (await engine.head("big")).seq == 1

    @scenario
    async def test_reads_return_what_was_asked_for_over_many_pages(self, harness: EngineHarness) -> None:
        async with engines(harness) as (engine,):
            for n in range(6):
                await engine.append("long", [b"%d:%d" % (n, part) for part in range(1000)], create=True)
            for _ in range(5):
                await engine.append("long", [bytes(200_000)])
            assert [record.seq for record in await engine.read("long", 1, limit=6005)] == list(range(1, 6006))
            assert [record.seq for record in await engine.read("long", 2900, limit=1500)] == list(range(2900, 4400))
            assert [record.seq for record in await engine.read("long", 6004)] == [6004, 6005]
            assert await engine.read("long", 6006) == []

    # idempotence and unknown outcomes ----------------------------------------------------------------------

    @scenario
    async def test_a_repeated_entry_id_is_answered_with_the_first_outcome(self, harness: EngineHarness) -> None:
        async with engines(harness, 2) as (one, two):
            entry_id = os.urandom(16)
            first = await one.append("log", [b"once", b"twice"], entry_id=entry_id, create=True)
            await one.append("log", [b"later"])
            again = await two.append("log", [b"once", b"twice"], entry_id=entry_id, expect=EMPTY)
            assert (again.first_seq, again.duplicate) == (first.first_seq, True)
            os.kill(harness.server_pid(), signal.SIGKILL)
            restarted = await two.append("log", [b"once", b"twice"], entry_id=entry_id)
            assert (restarted.first_seq, restarted.duplicate) == (first.first_seq, True)
            assert [record.payload for record in await read_all(one, "log")] == [b"once", b"twice", b"later"]

    @scenario
    async def test_concurrent_repeats_of_one_entry_append_once(self, harness: EngineHarness) -> None:
        async with engines(harness, 4) as clients:
            entry_id = os.urandom(16)
            calls = [clients[n % 4].append("log", [b"x"], entry_id=entry_id, create=True) for n in range(40)]
            outcomes = await asyncio.gather(*calls)
            assert sorted(outcome.duplicate for outcome in outcomes) == [False] + [True] * 39
            assert {outcome.first_seq for outcome in outcomes} == {1}
            assert len(await read_all(clients[0], "log")) == 1

    @scenario
    async def test_lost_answers_and_lost_requests_are_repeated_until_the_outcome_is_known(
        self, harness: EngineHarness
    ) -> None:
        async with harness.connected_badly(call_timeout_ms=10_000) as (bad, loss):
            head = (await bad.append("log", [b"0"], create=True)).head
            loss.answers = 2
            appended = await bad.append("log", [b"1"], expect=head)
            assert (appended.first_seq, appended.duplicate) == (2, True)
            assert loss.answers == 0
            loss.requests = 2
            appended = await bad.append("log", [b"2"], expect=appended.head)
            assert (appended.first_seq, appended.duplicate) == (3, False)
            assert loss.requests == 0
            assert [record.payload for record in await read_all(bad, "log")] == [b"0", b"1", b"2"]

    @pytest.mark.parametrize("how", ["answers", "requests", "mute"])
    def test_an_outcome_that_cannot_be_learned_is_unknown_and_can_be_asked_again(
        self, harness: EngineHarness, how: str
    ) -> None:
        asyncio.run(asyncio.wait_for(self._unknown(harness, how), 60))

    async def _unknown(self, harness: EngineHarness, how: str) -> None:
        async with harness.connected_badly(call_timeout_ms=1000) as (bad, loss), engines(harness) as (good,):
            await bad.append("log", [b"before"], create=True)
            setattr(loss, how, True if how == "mute" else float("inf"))
            began = time.monotonic()
            error = await error_of(bad.append("log", [b"perhaps"]))
            assert 0.9 < time.monotonic() - began < 5
            assert (error.kind, int(error.exit_code)) == ("unknown-outcome", 7)
            happened = (await good.head("log")).seq == 2
            assert happened == (how != "requests")
            entry_id = bytes.fromhex(error.details["entry_id"])
            appended = await good.append("log", [b"perhaps"], entry_id=entry_id)
            assert (appended.first_seq, appended.duplicate) == (2, happened)
            assert [record.payload for record in await read_all(good, "log")] == [b"before", b"perhaps"]

    # crashes -----------------------------------------------------------------------------------------------

    def test_kill_9_of_the_server_under_eight_writers_loses_doubles_and_reorders_nothing(
        self, harness: EngineHarness
    ) -> None:
        asyncio.run(asyncio.wait_for(self._kill_under_writers(harness, kills=20, writers=8), 100))

    @pytest.mark.campaign
    @pytest.mark.timeout(3600)
    def test_campaign_of_kills_under_eight_writers(self, harness: EngineHarness) -> None:
        asyncio.run(asyncio.wait_for(self._kill_under_writers(harness, kills=1000, writers=8), 3500))

    async def _kill_under_writers(self, harness: EngineHarness, kills: int, writers: int) -> None:
        async with engines(harness) as (engine,):
            await engine.append("busy", [b"start"], create=True)
            clients = [harness.client("append", "busy", str(writer)) for writer in range(writers)]
            acknowledged: list[tuple[int, bytes]] = []
            try:
                readers = [asyncio.create_task(_collect(client, acknowledged)) for client in clients]
                for kill in range(1, kills + 1):
                    seen = len(acknowledged)

                    async def busy(seen: int = seen) -> bool:
                        return len(acknowledged) >= seen + 100

                    await until(busy, f"100 further acknowledged appends before kill {kill}", 30)
                    frozen = kill % 10 == 0  # the clients notice and kill it themselves
                    os.kill(harness.server_pid(), signal.SIGSTOP if frozen else signal.SIGKILL)
                for client in clients:
                    assert client.stdin is not None
                    client.stdin.close()  # finish what is in progress, then end
                await asyncio.gather(*readers)
                codes = [await asyncio.to_thread(client.wait, 20) for client in clients]
                assert codes == [0] * writers
            finally:
                for client in clients:
                    client.kill()
                    await asyncio.to_thread(client.wait)
            payloads = [record.payload for record in await read_all(engine, "busy")]
            assert len(set(payloads)) == len(payloads), "doubled"
            for seq, payload in acknowledged:
                assert payloads[seq - 1] == payload, "lost or moved"
            for writer in range(writers):
                own = [int(payload.split(b":")[1]) for payload in payloads if payload.startswith(b"%d:" % writer)]
                assert own == list(range(len(own))), "reordered"
            assert len(payloads) - 1 == len(acknowledged), "every append was answered in the end"

    @scenario
    async def test_a_frozen_server_is_noticed_and_replaced(self, harness: EngineHarness) -> None:
        async with engines(harness, 2) as (one, two):
            await one.append("log", [b"before"], create=True)
            tail = two.tail("log", 1)
            await take(tail, 1)
            epoch = (await one.status()).epoch
            os.kill(harness.server_pid(), signal.SIGSTOP)
            began = time.monotonic()
            appended = await one.append("log", [b"after"])
            took = time.monotonic() - began
            assert appended.first_seq == 2
            assert 1.0 < took < 8.0, took
            assert (await one.status()).epoch > epoch
            assert [record.payload for record in await take(tail, 2)] == [b"after"]

    # tails -------------------------------------------------------------------------------------------------

    @scenario
    async def test_a_tail_gives_the_past_and_then_what_comes(self, harness: EngineHarness) -> None:
        async with engines(harness, 2) as (one, two):
            await one.append("log", [b"%d" % n for n in range(10)], create=True)
            tail, later = two.tail("log", 4), two.tail("log", 13)
            assert [record.seq for record in await take(tail, 10)] == list(range(4, 11))
            await one.append("log", [b"x"] * 5)
            assert [record.seq for record in await take(tail, 15)] == list(range(11, 16))
            assert [record.seq for record in await take(later, 15)] == [13, 14, 15]
            await tail.aclose()
            await tail.aclose()
            with pytest.raises(StopAsyncIteration):
                await anext(tail)

    @scenario
    async def test_a_tail_from_nowhere_is_refused_when_it_is_read(self, harness: EngineHarness) -> None:
        async with engines(harness) as (engine,):
            for _ in range(2):
                assert (await error_of(anext(engine.tail("log", 0)))).kind == "invalid-argument"
            with pytest.raises(NetError):
                engine.tail("no//name", 1)

    @scenario
    async def test_a_tail_may_wait_for_its_chain(self, harness: EngineHarness) -> None:
        async with engines(harness, 2) as (one, two):
            tail = two.tail("unborn", 1)
            await two.head("unborn")  # the tail was opened before this was answered
            await one.append("unborn", [b"first"], create=True)
            assert [record.payload for record in await take(tail, 1)] == [b"first"]

    @scenario
    async def test_a_tail_sees_only_what_is_durable(self, harness: EngineHarness) -> None:
        """Whatever a tail showed before the server was killed is there afterwards."""
        async with engines(harness, 2) as (one, two):
            await one.append("log", [b"0"], create=True)
            tail = two.tail("log", 1)
            for round_number in range(5):
                calls = [asyncio.create_task(one.append("log", [b"%d" % n])) for n in range(40)]
                shown = await take(tail, round_number * 40 + 2)
                os.kill(harness.server_pid(), signal.SIGKILL)
                stored = {record.seq: record for record in await read_all(two, "log")}
                assert all(stored[record.seq] == record for record in shown)
                await asyncio.gather(*calls)
                if shown[-1].seq < round_number * 40 + 41:
                    await take(tail, round_number * 40 + 41)

    @scenario
    async def test_a_tail_resumes_after_restarts_without_gap_or_repeat(self, harness: EngineHarness) -> None:
        async with engines(harness, 2) as (one, two):
            tail = two.tail("log", 1)
            seqs: list[int] = []
            for round_number in range(3):
                for n in range(20):
                    await one.append("log", [b"%d" % n], create=True)
                seqs += [record.seq for record in await take(tail, 20 * (round_number + 1))]
                os.kill(harness.server_pid(), signal.SIGKILL)
            assert seqs == list(range(1, 61))

    @scenario
    async def test_a_slow_reader_gets_everything_and_delays_nobody(self, harness: EngineHarness) -> None:
        async with engines(harness, 3) as (writer, slow, fast):
            slow_tail, fast_tail = slow.tail("log", 1, buffer=8), fast.tail("log", 1)
            await writer.append("log", [b"0"], create=True)
            assert (await take(slow_tail, 1))[0].seq == 1
            for _ in range(20):
                await writer.append("log", [bytes(1000)] * 250)
            assert [record.seq for record in await take(fast_tail, 5001)] == list(range(1, 5002))
            records = await take(slow_tail, 5001)
            assert [record.seq for record in records] == list(range(2, 5002))
            check_follows("log", (await writer.read("log", 1, limit=1))[0].head, records)

    @scenario
    async def test_what_retention_removed_is_reported_once_and_the_rest_follows(self, harness: EngineHarness) -> None:
        await harness.trimmed_chain("short", records=50, kept=20)
        async with engines(harness) as (engine,):
            tail = engine.tail("short", 11)
            assert await asyncio.wait_for(anext(tail), 10) == Lagged(11, 30)
            assert [record.seq for record in await take(tail, 50)] == list(range(31, 51))
            assert [record.seq for record in await engine.read("short", 1)] == list(range(31, 51))

    @scenario
    async def test_a_frozen_reader_delays_nobody_and_misses_nothing(self, harness: EngineHarness) -> None:
        async with engines(harness) as (engine,):
            await engine.append("log", [b"0"], create=True)
            reader = harness.client("tail", "log", "3001")
            try:
                assert await next_line(reader) == "1"
                reader.send_signal(signal.SIGSTOP)
                other = engine.tail("log", 1)
                slowest = 0.0
                for _ in range(60):
                    began = time.monotonic()
                    await engine.append("log", [bytes(4000)] * 50)
                    slowest = max(slowest, time.monotonic() - began)
                assert (await take(other, 3001))[-1].seq == 3001
                assert slowest < 2.0
                reader.send_signal(signal.SIGCONT)
                seqs = [int(await next_line(reader)) for _ in range(3000)]
                assert seqs == list(range(2, 3002))
            finally:
                reader.kill()
                await asyncio.to_thread(reader.wait)

    # key-value ---------------------------------------------------------------------------------------------

    @scenario
    async def test_keys_are_set_read_listed_and_deleted(self, harness: EngineHarness) -> None:
        async with engines(harness, 2) as (one, two):
            assert await one.kv_get("a") is None
            first = await one.kv_put("a/1", b"one")
            second = await one.kv_put("a/2", b"two", ttl_ms=60_000)
            await one.kv_put("b", b"other")
            assert 0 < first < second
            entry = await two.kv_get("a/2")
            assert entry is not None
            assert (entry.value, entry.revision) == (b"two", second)
            assert entry.expires_in_ms is not None and 50_000 < entry.expires_in_ms <= 60_000
            listed = await two.kv_list("a/")
            assert [(item.key, item.value, item.revision) for item in listed] == [
                ("a/1", b"one", first),
                ("a/2", b"two", second),
            ]
            assert await two.kv_delete("a/1") is True
            assert await two.kv_delete("a/1") is False
            assert await one.kv_get("a/1") is None

    @scenario
    async def test_one_of_many_racing_claims_wins(self, harness: EngineHarness) -> None:
        async with engines(harness, 4) as clients:
            calls = [clients[n % 4].kv_put("leader", b"%d" % n, ttl_ms=60_000, expect=0) for n in range(40)]
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            won = [outcome for outcome in outcomes if isinstance(outcome, int)]
            assert len(won) == 1
            for error in outcomes:
                assert isinstance(error, int) or (isinstance(error, NetError) and error.kind == "conflict")
                assert isinstance(error, int) or error.details["revision"] == won[0]
            renewed = await clients[0].kv_put("leader", b"again", ttl_ms=60_000, expect=won[0])
            assert (await error_of(clients[1].kv_delete("leader", expect=won[0]))).details["revision"] == renewed
            assert await clients[1].kv_delete("leader", expect=renewed)
            assert (await error_of(clients[1].kv_put("leader", b"", expect=renewed))).details["revision"] == 0

    @scenario
    async def test_a_key_expires_on_time_and_its_watchers_hear_it(self, harness: EngineHarness) -> None:
        async with engines(harness, 2) as (one, two):
            watch = two.kv_watch("member/")
            began = time.monotonic()
            revision = await one.kv_put("member/1", b"here", ttl_ms=400)
            assert await event(watch) == KvEvent("put", "member/1", b"here", revision)
            gone = await event(watch)
            took = time.monotonic() - began
            assert (gone.op, gone.key, gone.value) == ("expired", "member/1", b"")
            assert gone.revision > revision
            assert 0.4 <= took < 5, took  # never early; late only as far as a busy machine is
            assert await one.kv_get("member/1") is None

    @scenario
    async def test_a_renewed_key_stays(self, harness: EngineHarness) -> None:
        async with engines(harness, 2) as (one, two):
            watch = two.kv_watch("member/")
            for n in range(10):
                await one.kv_put("member/1", b"%d" % n, ttl_ms=500)
                assert (await event(watch)).op == "put"
                await asyncio.sleep(0.1)
            assert (await event(watch)).op == "expired"

    @scenario
    async def test_a_watch_gives_the_present_entries_and_then_changes(self, harness: EngineHarness) -> None:
        async with engines(harness, 2) as (one, two):
            for n in range(300):
                await one.kv_put(f"many/{n:03}", bytes(4000))
            await one.kv_put("other", b"")
            watch = two.kv_watch("many/")
            present = [await event(watch) for _ in range(300)]
            assert [seen.key for seen in present] == [f"many/{n:03}" for n in range(300)]
            revision = await one.kv_put("many/000", b"new")
            assert await event(watch) == KvEvent("put", "many/000", b"new", revision)
            await one.kv_delete("many/001")
            seen = await event(watch)
            assert (seen.op, seen.key) == ("delete", "many/001")
            await watch.aclose()
            with pytest.raises(StopAsyncIteration):
                await anext(watch)

    @scenario
    async def test_a_watcher_that_falls_behind_ends_with_the_last_state(self, harness: EngineHarness) -> None:
        async with engines(harness, 2) as (one, two):
            watch = two.kv_watch("k/")
            await one.kv_put("k/0", b"begin")
            assert (await event(watch)).value == b"begin"
            for n in range(3000):
                await one.kv_put(f"k/{n % 10}", b"%d" % n)
            await one.kv_delete("k/3")
            last = await one.kv_put("k/end", b"")
            state: dict[str, bytes | None] = {}
            revision = 0
            while revision < last:
                seen = await event(watch)
                assert seen.revision > revision
                revision = seen.revision
                state[seen.key] = seen.value if seen.op == "put" else None
            assert {key: value for key, value in state.items() if value is not None} == {
                entry.key: entry.value for entry in await one.kv_list("k/")
            }

    @scenario
    async def test_a_restart_may_forget_keys_says_so_and_numbers_higher(self, harness: EngineHarness) -> None:
        async with engines(harness, 2) as (one, two):
            watch = two.kv_watch("")
            before = await one.kv_put("a", b"1")
            assert (await event(watch)).key == "a"
            os.kill(harness.server_pid(), signal.SIGKILL)
            assert await event(watch) == KvEvent("reset")
            after = await one.kv_put("b", b"2")
            assert before < after < 1 << 53
            seen = await event(watch)
            while seen.key != "b":
                seen = await event(watch)
            assert seen == KvEvent("put", "b", b"2", after)

    @scenario
    async def test_long_lists_are_whole_and_large_values_refused(self, harness: EngineHarness) -> None:
        async with engines(harness) as (engine,):
            await asyncio.gather(*(engine.kv_put(f"k/{n:04}", bytes(2000)) for n in range(800)))
            assert [entry.key for entry in await engine.kv_list("k/")] == [f"k/{n:04}" for n in range(800)]
            await engine.kv_put("max", bytes(MAX_VALUE_BYTES))
            assert (await error_of(engine.kv_put("max", bytes(MAX_VALUE_BYTES + 1)))).kind == "too-large"
            assert (await error_of(engine.kv_put("", b""))).kind == "invalid-argument"
            assert (await error_of(engine.kv_put("k", b"", ttl_ms=0))).kind == "invalid-argument"

    # requests ----------------------------------------------------------------------------------------------

    @scenario
    async def test_requests_are_answered_by_the_server_of_their_subject(self, harness: EngineHarness) -> None:
        async with engines(harness, 3) as (one, two, three):

            async def echo(payload: bytes) -> bytes:
                return b"one:" + payload

            async def refuse(payload: bytes) -> bytes:
                raise NetError("not-authorized", "no", "ask somebody else", {"payload": payload.decode()})

            await one.serve("node/1", echo).ready()
            await two.serve("node/2", refuse).ready()
            calls = [three.request("node/1", b"%d" % n, timeout_ms=5000) for n in range(200)]
            assert await asyncio.gather(*calls) == [b"one:%d" % n for n in range(200)]
            assert await one.request("node/1", b"self", timeout_ms=5000) == b"one:self"
            error = await error_of(one.request("node/2", b"x", timeout_ms=5000))
            assert (error.kind, error.hint, error.details) == ("not-authorized", "ask somebody else", {"payload": "x"})
            assert (await error_of(one.request("node/3", b"", timeout_ms=5000))).kind == "node-unreachable"
            big = bytes(MAX_REQUEST_BYTES - 4)
            assert await three.request("node/1", big, timeout_ms=5000) == b"one:" + big
            assert (await error_of(three.request("node/1", big + b"x" * 4, timeout_ms=5000))).kind == "too-large"
            too_long = bytes(MAX_REQUEST_BYTES + 1)
            assert (await error_of(three.request("node/1", too_long, timeout_ms=5000))).kind == "too-large"

    @scenario
    async def test_a_subject_has_one_server_and_passes_on(self, harness: EngineHarness) -> None:
        async with engines(harness, 3) as (one, two, three):

            async def first(payload: bytes) -> bytes:
                return b"first"

            async def second(payload: bytes) -> bytes:
                return b"second"

            serving = one.serve("leader", first)
            await serving.ready()
            waiting = two.serve("leader", second)
            assert (await error_of(waiting.ready())).kind == "conflict"
            assert await three.request("leader", b"", timeout_ms=5000) == b"first"
            await serving.aclose()

            async def ready() -> bool:
                try:
                    await waiting.ready()
                except NetError as error:
                    assert error.kind == "conflict"
                    return False
                return True

            await until(ready, "the second server to take over")
            assert await three.request("leader", b"", timeout_ms=5000) == b"second"

    @scenario
    async def test_no_answer_is_a_timeout_and_a_server_that_goes_away_is_unreachable(
        self, harness: EngineHarness
    ) -> None:
        async with engines(harness) as (engine,):
            server = harness.client("serve", "node/9")
            try:
                assert await next_line(server) == "ready"
                assert await engine.request("node/9", b"hello", timeout_ms=5000) == b"hello"
                server.send_signal(signal.SIGSTOP)
                began = time.monotonic()
                assert (await error_of(engine.request("node/9", b"frozen", timeout_ms=500))).kind == "timeout"
                assert 0.4 < time.monotonic() - began < 2.0
                asked = asyncio.create_task(engine.request("node/9", b"dying", timeout_ms=20_000))
                await engine.now_ms()
                server.kill()
                assert (await error_of(asked)).kind == "node-unreachable"
                assert (await error_of(engine.request("node/9", b"gone", timeout_ms=500))).kind == "node-unreachable"
            finally:
                server.kill()
                await asyncio.to_thread(server.wait)

    @scenario
    async def test_subjects_are_served_again_after_a_restart(self, harness: EngineHarness) -> None:
        async with engines(harness, 2) as (one, two):

            async def echo(payload: bytes) -> bytes:
                return payload

            await one.serve("node/1", echo).ready()
            os.kill(harness.server_pid(), signal.SIGKILL)

            async def answered() -> bool:
                try:
                    return await two.request("node/1", b"x", timeout_ms=2000) == b"x"
                except NetError as error:
                    assert error.kind in ("node-unreachable", "engine-unavailable", "timeout")
                    return False

            await until(answered, "an answer after the restart")

    # time, status, end -------------------------------------------------------------------------------------

    @scenario
    async def test_the_engine_tells_its_time_and_state(self, harness: EngineHarness) -> None:
        async with engines(harness, 2) as (one, two):
            await one.append("log", [b"x"], create=True)
            await one.kv_put("k", b"")
            tail, watch = one.tail("log", 1), two.kv_watch("")
            await take(tail, 1)
            await event(watch)
            status = await two.status()
            assert status.pid == harness.server_pid()
            assert (status.tails, status.watches, status.keys, status.appends) == (1, 1, 1, 1)
            assert status.connections == 2
            assert status.db_bytes > 0
            assert abs(status.now_ms - await one.now_ms()) < 2000

    @scenario
    async def test_closing_ends_what_is_open(self, harness: EngineHarness) -> None:
        engine = await harness.connect()
        tail, watch = engine.tail("log", 1), engine.kv_watch("")
        waiting = asyncio.create_task(take(tail, 1))
        await engine.head("log")
        await engine.close()
        await engine.close()
        with pytest.raises(StopAsyncIteration):
            await anext(watch)
        with pytest.raises(StopAsyncIteration):
            await waiting
        assert (await error_of(engine.head("log"))).kind == "engine-unavailable"
        assert (await error_of(engine.append("log", [b"x"], create=True))).kind == "engine-unavailable"
        assert (await error_of(engine.request("s", b"", timeout_ms=100))).kind == "engine-unavailable"


async def _collect(client: subprocess.Popen[str], acknowledged: list[tuple[int, bytes]]) -> None:
    """What an appending client reports: `seq payload` a line."""
    while text := await asyncio.to_thread(line, client):
        seq, _, payload = text.partition(" ")
        acknowledged.append((int(seq), payload.encode()))
