"""Group commit under threads: order, atomicity, one winner per head, neighbours of losers, the end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from substrate.redex import Interval, Store
from substrate.redex.groupcommit import GroupCommit, Request
from substrate.redex.types import Appended
from substrate.wire.errors import NetError
from substrate.wire.records import EMPTY, MAX_PAYLOAD_BYTES, Head


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "s.db") as opened:
        yield opened


def in_threads(count: int, work: Callable[[int], object]) -> None:
    with ThreadPoolExecutor(count) as pool:
        for future in [pool.submit(work, number) for number in range(count)]:
            future.result(60)


def test_sixteen_writers_keep_their_own_order(store: Store) -> None:
    store.create_chain("a")

    def write(writer: int) -> None:
        last = 0
        for n in range(100):
            appended = store.append("a", [b"%d %d first" % (writer, n), b"%d %d second" % (writer, n)])
            assert appended.head.seq == appended.first_seq + 1 > last
            last = appended.head.seq

    in_threads(16, write)
    payloads = [row[3] for row in store.scan("a")]
    assert len(payloads) == 3200
    assert store.verify("a") == store.head("a")
    for writer in range(16):
        own = [p for p in payloads if p.startswith(b"%d " % writer)]
        assert own == [b"%d %d %s" % (writer, n, part) for n in range(100) for part in (b"first", b"second")]
    for first, second in zip(payloads[::2], payloads[1::2], strict=True):  # entries are not interleaved
        assert first.replace(b"first", b"second") == second


def test_of_racing_appends_exactly_one_wins_each_round(store: Store) -> None:
    store.create_chain("a")
    barrier = threading.Barrier(12, timeout=30)
    wins: list[tuple[int, int]] = []

    def race(racer: int) -> None:
        for round_number in range(25):
            head = store.head("a")
            assert head.seq == round_number
            barrier.wait()
            try:
                won = store.append("a", [b"%d" % racer], expect=head)
                wins.append((won.first_seq, racer))
            except NetError as error:
                assert error.kind == "conflict"
                true_head = store.read_one("a", round_number + 1)
                assert true_head is not None
                assert error.details["head"] == {"seq": round_number + 1, "hash": true_head.hash.hex()}
            barrier.wait()

    in_threads(12, race)
    assert sorted(seq for seq, _ in wins) == list(range(1, 26))
    assert [row[3] for row in store.scan("a")] == [b"%d" % racer for _, racer in sorted(wins)]


def test_submissions_are_committed_in_order_and_share_flushes(store: Store) -> None:
    store.create_chain("a")
    told: list[int] = []
    store.on_commit(lambda _, head: told.append(head.seq))
    futures = [store.submit("a", [b"%d" % n]) for n in range(2000)]
    assert [future.result(60).first_seq for future in futures] == list(range(1, 2001))
    store.close()
    assert told == sorted(told)
    assert told[-1] == 2000
    assert len(told) < 1000  # groups, not single commits


def test_losers_in_a_group_do_not_fail_their_neighbours(store: Store) -> None:
    store.create_chain("a")
    with store._group.exclusive():  # everything below waits, and so lands in one group
        futures = [
            store.submit("a", [b"1"], expect=EMPTY, entry_id=bytes(16)),
            store.submit("a", [b"2"], expect=EMPTY),
            store.submit("nowhere", [b"3"]),
            store.submit("b", [b"4"], create=True),
            store.submit("a", [b"1"], entry_id=bytes(16)),
            store.submit("b", [b"5"]),
            store.submit("b", [b"6"], expect=Head(9, bytes(32))),
            store.submit("a", [b"7"]),
        ]
    outcomes = []
    for future in futures:
        error = future.exception(30)
        outcomes.append(error.kind if isinstance(error, NetError) else future.result().first_seq)
    assert outcomes == [1, "conflict", "chain-not-found", 1, 1, 2, "conflict", 2]
    assert [future.result().duplicate for future in (futures[0], futures[4])] == [False, True]
    assert [row[3] for row in store.scan("a")] == [b"1", b"7"]
    assert [row[3] for row in store.scan("b")] == [b"4", b"5"]


def test_chains_made_meanwhile_and_sweeps_take_their_turn(store: Store) -> None:
    def work(number: int) -> None:
        if number % 2:
            for n in range(30):
                store.create_chain(f"made/{number}/{n}")
        else:
            for n in range(60):
                store.append("shared", [b"%d" % n], create=True)

    in_threads(8, work)
    assert len(store.chains()) == 4 * 30 + 1
    assert store.head("shared").seq == 240


def test_asyncio_callers(store: Store) -> None:
    store.create_chain("a")

    async def main() -> list[int]:
        appends = [asyncio.wrap_future(store.submit("a", [b"x"])) for _ in range(100)]
        return [appended.first_seq for appended in await asyncio.gather(*appends)]

    assert asyncio.run(main()) == list(range(1, 101))


def test_the_queue_is_bounded(store: Store) -> None:
    store.create_chain("a")
    big = bytes(MAX_PAYLOAD_BYTES)
    with store._group.exclusive():
        futures: list[Future[Appended]] = []
        with pytest.raises(NetError) as caught:
            while len(futures) < 300:
                futures.append(store.submit("a", [big]))
        assert caught.value.kind == "overloaded"
        assert len(futures) >= 200
    assert [future.result(60).first_seq for future in futures] == list(range(1, len(futures) + 1))


def test_close_finishes_what_runs_and_refuses_what_waits(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "s.db")
    store.create_chain("a")
    acked: list[int] = []
    ends: list[str] = []

    def write(_: int) -> None:
        try:
            while True:
                acked.append(store.append("a", [b"x"]).first_seq)
        except NetError as error:
            ends.append(error.message)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
    reached = threading.Event()
    store.on_commit(lambda _, head: reached.set() if head.seq > 50 else None)
    for thread in threads:
        thread.start()
    assert reached.wait(30)
    store.close()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert ends == ["the store is closed"] * 8
    with Store.open(tmp_path / "s.db") as again:
        assert sorted(acked) == list(range(1, again.head("a").seq + 1))


def test_an_interrupt_in_a_leader_passes_the_lead_on() -> None:
    """The group's state machine by itself: the interrupt is a KeyboardInterrupt out of the commit."""
    interrupts = ["first"]

    def commit(group: list[Request]) -> None:
        if interrupts:
            interrupts.clear()
            raise KeyboardInterrupt
        for request in group:
            request.result = Appended(1, EMPTY)

    groups = GroupCommit(commit, lambda: None)
    with pytest.raises(KeyboardInterrupt):
        groups.run(Request("a", [b"x"]))
    assert groups.run(Request("a", [b"x"])) == Appended(1, EMPTY)
    interrupted = Request("a", [b"x"])
    interrupts.append("second")
    with pytest.raises(KeyboardInterrupt):
        groups.run(interrupted)
    assert interrupted.error is not None
    assert interrupted.error.kind == "unknown-outcome"
    assert groups.submit(Request("a", [b"x"])).result(10) == Appended(1, EMPTY)


def test_a_raising_callback_is_logged_and_harms_nobody(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    told: list[int] = []

    def raising(chain: str, head: Head) -> None:
        raise ValueError("mine")

    store.on_commit(raising)
    store.on_commit(lambda _, head: told.append(head.seq))
    assert store.append("a", [b"1"], create=True).first_seq == 1
    assert store.submit("a", [b"2"]).result(10).first_seq == 2
    assert store.submit("a", [b"3"]).result(10).first_seq == 3
    store.close()
    assert told == [1, 2, 3]
    assert caplog.text.count("ValueError: mine") == 3


def test_an_unforeseen_failure_ends_the_store_and_leaves_nobody_waiting(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from substrate.redex import writer

    def broken_clock() -> int:
        raise RuntimeError("no clock")

    store.create_chain("a")
    monkeypatch.setattr(writer, "wall_ms", broken_clock)
    outcome = store.submit("a", [b"1"]).exception(10)
    assert isinstance(outcome, NetError)
    assert (outcome.kind, outcome.details["outcome"]) == ("internal", "unknown")
    with pytest.raises(NetError, match="failed before"):
        store.append("a", [b"3"])


def test_interval_durability_flushes_by_time_by_bytes_and_at_the_end(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s.db", durability=Interval(ms=20, max_bytes=1000)) as store:
        flusher = store._flusher
        assert flusher is not None
        store.create_chain("a")
        store.append("a", [bytes(10)])
        deadline = threading.Event()
        for _ in range(500):
            if flusher.unflushed_bytes == 0:
                break
            deadline.wait(0.01)
        assert flusher.unflushed_bytes == 0  # by the timer
        for _ in range(50):
            store.append("a", [bytes(400)])
            assert flusher.unflushed_bytes < 1000  # by bytes
    with Store.open(tmp_path / "s.db") as store:
        assert store.head("a").seq == 51
