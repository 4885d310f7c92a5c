"""Following chains: from a seq, live, lag and end told apart, resumption, other processes."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from substrate.redex import Lagged, Retention, Store, TailEnd
from substrate.wire.errors import NetError
from substrate.wire.records import Head, Record

SOON_S = 20.0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "s.db") as opened:
        opened.create_chain("a")
        yield opened


def payloads(found: object) -> list[bytes]:
    assert isinstance(found, list), found
    return [record.payload for record in found if isinstance(record, Record)]


def test_from_a_seq_it_gives_the_past_and_then_the_present(store: Store) -> None:
    store.append("a", [b"1", b"2", b"3"])
    with store.tail("a", 2) as tail:
        assert payloads(tail.next(0)) == [b"2", b"3"]
        assert tail.next(0) is None
        store.append("a", [b"4"])
        assert payloads(tail.next(SOON_S)) == [b"4"]
        assert tail.next_seq == 5


def test_live_only_gives_nothing_of_the_past(store: Store) -> None:
    store.append("a", [b"1"])
    with store.tail("a") as tail:
        assert tail.next(0) is None
        store.append("a", [b"2"])
        assert payloads(tail.next(SOON_S)) == [b"2"]


def test_a_wait_ends_with_a_commit_not_before(store: Store) -> None:
    with store.tail("a") as tail:
        found: list[object] = []
        waiter = threading.Thread(target=lambda: found.append(tail.next(SOON_S)))
        waiter.start()
        store.create_chain("b")
        store.append("b", [b"another chain"])
        waiter.join(0.05)
        assert waiter.is_alive()
        store.append("a", [b"x"])
        waiter.join(SOON_S)
        assert payloads(found[0]) == [b"x"]


def test_timeouts_are_kept(store: Store) -> None:
    with store.tail("a") as tail:
        began = time.monotonic()
        assert tail.next(0.05) is None
        assert 0.04 < time.monotonic() - began < SOON_S


def test_one_answer_is_bounded_by_the_buffer(store: Store) -> None:
    store.append("a", [b"%d" % n for n in range(10)])
    with store.tail("a", 1, buffer=4) as tail:
        assert [len(payloads(tail.next(0))) for _ in range(3)] == [4, 4, 2]
        assert tail.next(0) is None


def test_a_slow_tail_from_a_seq_loses_nothing(store: Store) -> None:
    with store.tail("a", 1, buffer=8) as tail:
        for n in range(100):
            store.append("a", [b"%d" % n])
        seen: list[bytes] = []
        while found := tail.next(0):
            seen += payloads(found)
        assert seen == [b"%d" % n for n in range(100)]


def test_a_slow_live_tail_hears_how_much_it_missed_and_goes_on(store: Store) -> None:
    with store.tail("a", buffer=8) as tail:
        store.append("a", [b"%d" % n for n in range(8)])
        assert len(payloads(tail.next(0))) == 8
        store.append("a", [b"%d" % n for n in range(20)])
        assert tail.next(0) == Lagged(9, 20)
        assert [record.seq for record in tail.next(0) or []] == list(range(21, 29))  # type: ignore[union-attr]
        assert tail.next(0) is None


def test_what_retention_removed_is_reported_as_lag(store: Store) -> None:
    store.append("a", [b"%d" % n for n in range(10)])
    store.set_retention("a", Retention(max_records=3))
    with store.tail("a", 2, buffer=2) as tail:
        assert len(payloads(tail.next(0))) == 2
        store.sweep("a", 0)
        assert tail.next(0) == Lagged(4, 7)
        assert payloads(tail.next(0)) == [b"7", b"8"]
    with store.tail("a", 1) as tail:
        assert tail.next(0) == Lagged(1, 7)
        assert payloads(tail.next(0)) == [b"7", b"8", b"9"]


def test_lag_when_everything_was_removed_while_it_slept(store: Store) -> None:
    with store.tail("a", 1) as tail:
        store.append("a", [b"1", b"2"])
        store.set_retention("a", Retention(max_records=0))
        store.sweep("a", 0)
        assert tail.next(0) == Lagged(1, 2)
        assert tail.next(0) is None
        store.append("a", [b"3"])
        assert payloads(tail.next(0)) == [b"3"]


def test_the_end_is_not_lag_and_says_where_to_resume(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "t.db")
    store.append("a", [b"1", b"2"], create=True)
    tail, closed = store.tail("a", 1), store.tail("a")
    assert len(payloads(tail.next(0))) == 2
    closed.close()
    assert closed.next(SOON_S) == closed.next(0) == TailEnd("closed", 3)
    found: list[object] = []
    waiter = threading.Thread(target=lambda: found.append(tail.next()))
    waiter.start()
    store.close()
    waiter.join(SOON_S)
    assert found == [TailEnd("store-closed", 3)]
    assert tail.next() == TailEnd("store-closed", 3)
    with Store.open(tmp_path / "t.db") as store:
        store.append("a", [b"3"])
        with store.tail("a", tail.next_seq) as resumed:
            assert payloads(resumed.next(0)) == [b"3"]


def test_iteration_ends_with_the_tail(store: Store) -> None:
    store.append("a", [b"1"])
    tail = store.tail("a", 1)
    seen: list[bytes] = []
    for found in tail:
        seen += payloads(found)
        if len(seen) == 1:
            store.append("a", [b"2"])
        else:
            tail.close()
    assert seen == [b"1", b"2"]


def test_many_tails_see_every_record_once_in_order_while_writers_write(store: Store) -> None:
    seen: list[list[int]] = [[] for _ in range(4)]

    def follow(mine: list[int]) -> None:
        with store.tail("a", 1, buffer=7) as tail:
            while len(mine) < 400:
                found = tail.next(SOON_S)
                assert isinstance(found, list), found
                mine += [record.seq for record in found]

    def write() -> None:
        for _ in range(100):
            store.append("a", [b"x"])

    threads = [threading.Thread(target=follow, args=(mine,)) for mine in seen]
    threads += [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert seen == [list(range(1, 401))] * 4


def test_on_commit_is_told_after_the_commit_and_can_be_stopped(store: Store) -> None:
    told: list[tuple[str, Head, bool]] = []

    def callback(chain: str, head: Head) -> None:
        with Store.open(store.path, read_only=True) as other:  # what another connection sees is committed
            told.append((chain, head, other.head(chain) == head))

    stop = store.on_commit(callback)
    stop_b = store.on_commit(lambda chain, head: told.append((chain, head, True)), "b")
    head_a = store.append("a", [b"1"]).head
    head_b = store.append("b", [b"1"], create=True).head
    assert told == [("a", head_a, True), ("b", head_b, True), ("b", head_b, True)]
    stop()
    stop_b()
    store.append("b", [b"2"])
    assert len(told) == 3


def test_a_tail_of_a_shared_store_sees_other_processes(tmp_path: Path) -> None:
    path = tmp_path / "shared.db"
    script = (
        "import sys; from pathlib import Path; from substrate.redex import Store\n"
        "with Store.open(Path(sys.argv[1]), mode='shared') as store:\n"
        "    store.append('a', [b'from elsewhere'])\n"
    )
    with Store.open(path, mode="shared") as store:
        store.create_chain("a")
        with store.tail("a") as tail:
            assert tail.next(0) is None
            subprocess.run([sys.executable, "-c", script, str(path)], check=True, timeout=30)
            assert payloads(tail.next(SOON_S)) == [b"from elsewhere"]


def test_a_damaged_record_reaches_the_follower(tmp_path: Path) -> None:
    with Store.open(tmp_path / "t.db") as store:
        store.append("a", [b"1", b"2", b"3"], create=True)
        tail = store.tail("a", 1, buffer=1)
        assert len(payloads(tail.next(0))) == 1
        writer = store._writer
        assert writer is not None
        with writer.transaction():
            writer.execute("DELETE FROM records WHERE payload = x'32'")
        with pytest.raises(NetError) as caught:
            tail.next(0)
        assert (caught.value.kind, caught.value.details["seq"]) == ("corrupt-store", 2)
