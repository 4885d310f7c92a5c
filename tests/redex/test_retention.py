"""What sweeps remove and keep, and that the hash chain survives them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from substrate.redex import Retention, Store
from substrate.redex.retention import STEP_RECORDS
from substrate.wire.errors import NetError
from substrate.wire.records import Head


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "s.db") as opened:
        yield opened


def fill(store: Store, retention: Retention, count: int = 10) -> Head:
    store.create_chain("a", retention)
    for n in range(1, count + 1):
        head = store.append("a", [b"x" * n], at_ms=1000 + n).head
    return head


def kept(store: Store) -> list[int]:
    return [row[0] for row in store.scan("a")]


@pytest.mark.parametrize(
    ("retention", "now_ms", "expected"),
    [
        (Retention(), 10**9, range(1, 11)),
        (Retention(max_records=3), 0, range(8, 11)),
        (Retention(max_records=10), 0, range(1, 11)),
        (Retention(max_records=0), 0, range(0)),
        (Retention(max_bytes=55), 0, range(1, 11)),
        (Retention(max_bytes=54), 0, range(2, 11)),
        (Retention(max_bytes=19), 0, range(9, 11)),  # 9 + 10 bytes fit exactly
        (Retention(max_bytes=18), 0, range(10, 11)),
        (Retention(max_bytes=9), 0, range(0)),
        (Retention(max_age_ms=5), 1010, range(5, 11)),  # exactly 5 ms old stays
        (Retention(max_age_ms=5), 1011, range(6, 11)),
        (Retention(max_age_ms=5), 0, range(1, 11)),
        (Retention(max_age_ms=5), 10**9, range(0)),
        (Retention(max_records=8, max_bytes=26, max_age_ms=100), 1010, range(9, 11)),  # the strictest limit wins
    ],
)
def test_what_a_sweep_keeps(store: Store, retention: Retention, now_ms: int, expected: range) -> None:
    head = fill(store, retention)
    assert store.sweep("a", now_ms) == 10 - len(expected)
    assert store.sweep("a", now_ms) == 0
    assert kept(store) == list(expected)
    assert store.head("a") == store.verify("a") == head
    (info,) = store.chains()
    assert (info.first_seq, info.records) == (11 - len(expected), len(expected))
    assert info.bytes == sum(expected)


def test_a_chain_goes_on_after_everything_was_removed(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s.db") as store:
        head = fill(store, Retention(max_records=0))
        store.sweep("a", 0)
        assert store.append("a", [b"next"], expect=head).first_seq == 11
        (record,) = store.read("a", 1)
        assert (record.seq, record.prev_hash) == (11, head.hash)
    with Store.open(tmp_path / "s.db") as store:
        assert store.verify("a").seq == 11
        store.sweep("a", 0)
    with Store.open(tmp_path / "s.db") as store:
        assert store.head("a") == record.head
        assert store.read("a", 1) == []
        assert store.read_one("a", 11) is None


def test_reads_start_at_the_oldest_retained_with_its_previous_hash(store: Store) -> None:
    fill(store, Retention(max_records=4))
    seventh = store.read_one("a", 7)
    before = store.read_one("a", 6)
    assert seventh is not None
    assert before is not None
    store.sweep("a", 0)
    assert store.read("a", 1)[0] == seventh
    assert seventh.prev_hash == before.hash
    assert store.read_one("a", 6) is None


def test_long_sweeps_go_in_steps_and_appends_go_on_between_them(store: Store) -> None:
    store.create_chain("a", Retention(max_records=5))
    for _ in range(4):
        store.append("a", [b"x"] * (STEP_RECORDS // 2 + 100))
    total = store.head("a").seq
    commits: list[int] = []
    store.on_commit(lambda _, head: commits.append(head.seq))
    assert store.sweep("a", 0) == total - 5
    assert len(commits) == -(-(total - 5) // STEP_RECORDS)  # one transaction per step
    assert store.verify("a").seq == total
    assert len(kept(store)) == 5


def test_space_is_used_again(store: Store) -> None:
    store.create_chain("a", Retention(max_bytes=400_000))
    sizes = []
    for _ in range(60):
        store.append("a", [bytes(100_000)] * 4)
        store.sweep("a", 0)
        sizes.append(store.path.stat().st_size)
    assert sizes[-1] < 4_000_000  # of 24 MB written
    assert store.verify("a") == store.head("a")


def test_a_sweep_of_a_damaged_chain_says_so(store: Store) -> None:
    fill(store, Retention(max_records=4))
    writer = store._writer
    assert writer is not None
    with writer.transaction():
        writer.execute("DELETE FROM records WHERE length(payload) = 6")
    with pytest.raises(NetError) as caught:
        store.sweep("a", 0)
    assert (caught.value.kind, caught.value.details["seq"]) == ("corrupt-store", 6)
