"""Appending and reading: one process, one store, real files."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from substrate.redex import Durability, Retention, Row, Store
from substrate.redex.database import check_library
from substrate.wire.errors import NetError
from substrate.wire.records import (
    EMPTY,
    MAX_ENTRY_RECORDS,
    MAX_PAYLOAD_BYTES,
    Head,
    check_follows,
    next_record,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "store.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with Store.open(path) as opened:
        yield opened


def kind_of(error: pytest.ExceptionInfo[NetError]) -> str:
    return error.value.kind


def test_a_record_is_sealed_stamped_and_chained(store: Store) -> None:
    store.create_chain("sensors/temp")
    first = store.append("sensors/temp", [b"a"], at_ms=5)
    second = store.append("sensors/temp", [b"b", b"c"], at_ms=6)
    assert (first.first_seq, first.head.seq, second.first_seq, second.head.seq) == (1, 1, 2, 3)
    records = store.read("sensors/temp", 1)
    assert [(r.seq, r.at_ms, r.payload, r.seal) for r in records] == [
        (1, 5, b"a", b""),
        (2, 6, b"b", b""),
        (3, 6, b"c", b""),
    ]
    assert check_follows("sensors/temp", EMPTY, records) == store.head("sensors/temp") == second.head
    assert store.verify("sensors/temp") == second.head
    assert store.verify("sensors/temp", 2) == second.head


def test_the_stamp_is_the_wall_clock_in_milliseconds(store: Store) -> None:
    before = time.time_ns() // 1_000_000
    store.append("a", [b"x"], create=True)
    (record,) = store.read("a", 1)
    assert before <= record.at_ms <= time.time_ns() // 1_000_000


def test_everything_is_there_after_a_reopen_and_goes_on(path: Path) -> None:
    with Store.open(path) as store:
        head = store.append("a", [b"1", b"2"], create=True).head
    with Store.open(path, create=False) as store:
        assert store.head("a") == head
        assert store.append("a", [b"3"], expect=head).head.seq == 3
        assert [r.payload for r in store.read("a", 2)] == [b"2", b"3"]


def test_compare_and_append(store: Store) -> None:
    store.create_chain("a")
    one = store.append("a", [b"1"], expect=EMPTY).head
    with pytest.raises(NetError) as caught:
        store.append("a", [b"x"], expect=EMPTY)
    assert kind_of(caught) == "conflict"
    assert caught.value.details == {
        "chain": "a",
        "expected": {"seq": 0, "hash": bytes(32).hex()},
        "head": {"seq": 1, "hash": one.hash.hex()},
    }
    with pytest.raises(NetError) as caught:
        store.append("a", [b"x"], expect=Head(1, bytes(32)))  # the right seq of another history
    assert kind_of(caught) == "conflict"
    assert store.head("a") == one
    assert store.append("a", [b"2"], expect=one).first_seq == 2


def test_chains_are_made_on_demand_only_when_asked(store: Store) -> None:
    for use in (
        lambda: store.append("a", [b"x"]),
        lambda: store.append("a", [b"x"], expect=Head(3, bytes(32))),
        lambda: store.head("a"),
        lambda: store.read("a", 1),
        lambda: store.verify("a"),
        lambda: store.tail("a"),
        lambda: store.sweep("a", 0),
        lambda: store.set_retention("a", Retention()),
        lambda: list(store.scan("a")),
    ):
        with pytest.raises(NetError) as caught:
            use()
        assert kind_of(caught) == "chain-not-found"
    with pytest.raises(NetError) as caught:
        store.append("a", [b"x"], create=True, expect=Head(3, bytes(32)))
    assert kind_of(caught) == "conflict"
    assert store.chains() == []
    assert store.append("a", [b"x"], create=True, expect=EMPTY).head.seq == 1
    with pytest.raises(NetError) as caught:
        store.create_chain("a")
    assert kind_of(caught) == "chain-exists"


def test_chain_information(store: Store) -> None:
    store.create_chain("b", Retention(max_records=2))
    store.append("b", [b"12", b"345", b"6"])
    store.create_chain("a")
    a, b = store.chains()
    assert (a.name, a.first_seq, a.head, a.records, a.bytes, a.retention) == ("a", 1, EMPTY, 0, 0, Retention())
    assert (b.name, b.first_seq, b.head.seq, b.records, b.bytes) == ("b", 1, 3, 3, 6)
    assert b.retention == Retention(max_records=2)
    store.set_retention("b", Retention(max_bytes=1))
    assert store.chains()[1].retention == Retention(max_bytes=1)


def test_records_sealed_elsewhere(store: Store) -> None:
    first = next_record("a", EMPTY, 7, b"x", seal=b"signature")
    second = next_record("a", first.head, 8, b"y")
    appended = store.append_records("a", [first, second], expect=EMPTY, create=True)
    assert (appended.first_seq, appended.head) == (1, second.head)
    assert store.read("a", 1) == [first, second]
    third = next_record("a", second.head, 9, b"z")
    assert store.submit("a", records=[third], expect=second.head).result(10).head == third.head
    assert store.chains()[0].bytes == len(b"xsignature" + b"y" + b"z")

    bad_hash = msgspec.structs.replace(next_record("a", third.head, 9, b"!"), payload=b"?")
    gap = msgspec.structs.replace(next_record("a", third.head, 9, b"!"), seq=9)
    for bad, seq in ((bad_hash, 4), (gap, 4)):
        with pytest.raises(NetError) as caught:
            store.append_records("a", [bad], expect=third.head)
        assert (kind_of(caught), caught.value.details["seq"]) == ("corrupt-store", seq)
    with pytest.raises(NetError) as caught:
        store.append_records("a", [third], expect=second.head)
    assert kind_of(caught) == "conflict"
    with pytest.raises(NetError) as caught:
        store.submit("a", records=[next_record("a", third.head, 9, b"!")])
    assert kind_of(caught) == "invalid-argument"
    assert store.head("a") == third.head


def test_an_entry_id_makes_an_append_idempotent(path: Path) -> None:
    key, other = bytes(16), bytes(15) + b"\1"
    with Store.open(path) as store:
        first = store.append("a", [b"1", b"2"], entry_id=key, create=True)
        again = store.append("a", [b"1", b"2"], entry_id=key, expect=EMPTY)  # before expect is looked at
        assert not first.duplicate
        assert again == msgspec.structs.replace(first, duplicate=True)
        store.append("a", [b"3"], entry_id=other)
        store.create_chain("b")
        with pytest.raises(NetError) as caught:
            store.append("b", [b"1"], entry_id=key)
        assert kind_of(caught) == "invalid-argument"
    with Store.open(path) as store:
        assert store.append("a", [b"1", b"2"], entry_id=key).head == first.head
        assert store.head("a").seq == 3
        store.set_retention("a", Retention(max_records=0))
        store.sweep("a", 0)
        assert store.append("a", [b"1", b"2"], entry_id=key).head == first.head  # also when the records are gone


def test_an_entry_id_is_not_burnt_by_a_refusal(store: Store) -> None:
    store.append("a", [b"1"], create=True)
    with pytest.raises(NetError):
        store.append("a", [b"2"], entry_id=bytes(16), expect=EMPTY)
    assert not store.append("a", [b"2"], entry_id=bytes(16)).duplicate


def test_old_entry_ids_are_forgotten_in_bounded_steps(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from substrate.redex import writer

    now = [1_000_000]
    monkeypatch.setattr(writer, "wall_ms", lambda: now[0])  # the clock is an input, not a part of ours
    with Store.open(path) as store:
        store.create_chain("a")
        for n in range(10):
            store.append("a", [b"x"], entry_id=n.to_bytes(16, "big"))
        now[0] += writer.ENTRY_TTL_MS + 1
    with Store.open(path) as store:  # the first use after an open prunes
        store.append("a", [b"x"], entry_id=bytes([9]) * 16)
        assert not store.append("a", [b"x"], entry_id=bytes(16)).duplicate
        assert store.append("a", [b"x"], entry_id=bytes([9]) * 16).duplicate


@pytest.mark.parametrize("name", ["", "/a", "a/", "a//b", "a/../b", ".", "a b", "a:b", "\xe4", "x" * 256])
def test_illegal_chain_names(store: Store, name: str) -> None:
    for use in (lambda: store.create_chain(name), lambda: store.append(name, [b"x"], create=True)):
        with pytest.raises(NetError) as caught:
            use()
        assert kind_of(caught) == "invalid-argument"


def test_limits(store: Store) -> None:
    store.create_chain("a")
    store.append("a", [bytes(MAX_PAYLOAD_BYTES)])
    store.append("a", [b""])
    store.append("a", [b""] * MAX_ENTRY_RECORDS)
    sealed = [next_record("a", store.head("a"), 1, b"", seal=bytes(600_000))]
    for use, kind in (
        (lambda: store.append("a", [bytes(MAX_PAYLOAD_BYTES + 1)]), "too-large"),
        (lambda: store.append("a", [bytes(MAX_PAYLOAD_BYTES)] * 2), "too-large"),
        (lambda: store.append("a", [b""] * (MAX_ENTRY_RECORDS + 1)), "too-large"),
        (lambda: store.append_records("a", sealed, expect=store.head("a")), "too-large"),
        (lambda: store.append("a", []), "invalid-argument"),
        (lambda: store.append_records("a", [], expect=EMPTY), "invalid-argument"),
        (lambda: store.append("a", [b"x"], entry_id=b"short"), "invalid-argument"),
        (lambda: store.append("a", [b"x"], at_ms=-1), "invalid-argument"),
        (lambda: store.append("a", [b"x"], at_ms=1 << 63), "invalid-argument"),
        (lambda: store.append("a", [b"x"], at_ms=1.5), "invalid-argument"),  # type: ignore[arg-type]
        (lambda: store.append("a", [b"x", "y"]), "invalid-argument"),  # type: ignore[list-item]
        (lambda: store.append("a", [b"x"], entry_id="0123456789abcdef"), "invalid-argument"),  # type: ignore[arg-type]
        (lambda: store.tail("a", buffer=0), "invalid-argument"),
        (lambda: store.tail("a", -1), "invalid-argument"),
        (lambda: Retention(max_records=-1), "invalid-argument"),
    ):
        with pytest.raises(NetError) as caught:
            use()
        assert kind_of(caught) == kind
    assert store.head("a").seq == 2 + MAX_ENTRY_RECORDS


def test_reading_ranges(store: Store) -> None:
    store.create_chain("z/other")
    store.append("a", [b"%d" % n for n in range(1, 101)], create=True)
    store.append("z/other", [b"no"])
    for start, limit, expected in (
        (1, 3, [1, 2, 3]),
        (0, 2, [1, 2]),
        (-5, 1, [1]),
        (99, 10, [99, 100]),
        (100, 1, [100]),
        (101, 5, []),
        (5, 0, []),
    ):
        assert [r.seq for r in store.read("a", start, limit=limit)] == expected
    assert store.read_one("a", 100) == store.read("a", 100)[0]
    assert store.read_one("a", 101) is None
    assert store.read_one("a", 0) is None
    scanned = [Row(*row) for row in store.scan("a", 98)]
    assert [(row.seq, row.payload, row.seal) for row in scanned] == [
        (98, b"98", b""),
        (99, b"99", b""),
        (100, b"100", b""),
    ]
    assert [row[0] for row in store.scan("a", 1, 3)] == [1, 2, 3]
    assert list(store.scan("a", 3, 2)) == []


def test_a_read_is_bounded_in_bytes_but_gives_one_record(store: Store) -> None:
    store.append("a", [bytes(1000)] * 10, create=True)
    assert [r.seq for r in store.read("a", 3, max_bytes=2500)] == [3, 4]
    assert [r.seq for r in store.read("a", 3, max_bytes=2000)] == [3, 4]
    assert [r.seq for r in store.read("a", 3, max_bytes=1)] == [3]
    assert len(store.read("a", 1, max_bytes=10_000)) == 10


def test_scans_and_verifies_longer_than_one_step(store: Store) -> None:
    store.create_chain("a")
    for _ in range(3):
        store.append("a", [b"x" * (n % 300) for n in range(1000)], at_ms=1)
    assert [row[0] for row in store.scan("a")] == list(range(1, 3001))
    assert [row[0] for row in store.scan("a", 1020, 2050)] == list(range(1020, 2051))
    assert [len(step) for step in store.scan_steps("a")] == [1024, 1024, 952]
    assert store.verify("a") == store.head("a")
    for _ in range(20):
        store.append("a", [bytes(250_000), bytes(200_000)])
    assert [row[0] for row in store.scan("a", 3001)] == list(range(3001, 3041))  # steps bounded in bytes


def test_files_are_private_and_nothing_else_is_left(path: Path) -> None:
    old = os.umask(0)
    try:
        with Store.open(path) as store:
            store.append("a", [b"x"], create=True)
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    finally:
        os.umask(old)
    assert modes == dict.fromkeys(("store.db", "store.db-wal", "store.db-shm", "store.db.lock"), 0o600)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert sorted(file.name for file in path.parent.iterdir()) == ["store.db", "store.db.lock"]


def test_one_owner_at_a_time(path: Path) -> None:
    with Store.open(path) as store:
        with pytest.raises(NetError) as caught:
            Store.open(path)
        assert kind_of(caught) == "conflict"
        store.append("a", [b"x"], create=True)
    Store.open(path).close()


def test_reading_beside_the_owner(path: Path) -> None:
    with Store.open(path) as owner:
        owner.append("a", [b"1"], create=True)
        with Store.open(path, read_only=True) as other:
            assert other.head("a") == owner.head("a")
            owner.append("a", [b"2"])
            assert [r.payload for r in other.read("a", 1)] == [b"1", b"2"]
            assert other.verify("a") == owner.head("a")
            for use in (
                lambda: other.append("a", [b"x"]),
                lambda: other.create_chain("b"),
                lambda: other.sweep("a", 0),
            ):
                with pytest.raises(NetError) as caught:
                    use()
                assert kind_of(caught) == "read-only"
    with Store.open(path, read_only=True) as other:
        assert other.head("a").seq == 2


READ_AS_NOBODY = """
import os, sys
from pathlib import Path
from substrate.redex import Store
if os.geteuid() == 0:
    os.setuid(65534)
assert not os.access(Path(sys.argv[1]).parent, os.W_OK)
with Store.open(Path(sys.argv[1]), read_only=True) as store:
    print(store.verify("a").seq, store.read("a", 1)[0].payload)
"""


def test_reading_from_a_directory_that_is_not_ours_to_write() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:  # not under pytest's, which only its owner may enter
        path = Path(directory) / "with space" / "s.db"
        with Store.open(path) as owner:
            owner.append("a", [b"1"], create=True)
        path.chmod(0o444)
        path.parent.chmod(0o555)
        path.parent.parent.chmod(0o755)
        try:
            command = [sys.executable, "-c", READ_AS_NOBODY, str(path)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        finally:
            path.parent.chmod(0o755)
        assert (done.returncode, done.stdout, done.stderr) == (0, "1 b'1'\n", "")


def test_a_store_that_is_not_there(path: Path) -> None:
    path.parent.mkdir()
    for read_only in (False, True):
        with pytest.raises(NetError) as caught:
            Store.open(path, create=False, read_only=read_only)
        assert kind_of(caught) == "store-not-found"
    (path.parent / "file").write_bytes(b"")
    with pytest.raises(NetError) as caught:
        Store.open(path.parent / "file" / "store.db")
    assert kind_of(caught) == "io-error"


def test_a_closed_store_refuses_and_closes_twice(path: Path) -> None:
    store = Store.open(path)
    store.create_chain("a")
    store.close()
    store.close()
    for use in (lambda: store.append("a", [b"x"]), lambda: store.submit("a", [b"x"]), lambda: store.head("a")):
        with pytest.raises(NetError, match="closed") as caught:
            use()
        assert kind_of(caught) == "io-error"


def test_an_old_sqlite_is_refused() -> None:
    check_library("3.51.3")
    check_library("3.100.0")
    with pytest.raises(NetError) as caught:
        check_library("3.51.2")
    assert kind_of(caught) == "missing-feature"


def test_the_log_is_moved_into_the_file_and_used_again(path: Path) -> None:
    with Store.open(path) as store:
        store.create_chain("a")
        wal = path.with_name(path.name + "-wal")
        largest = 0
        for _ in range(40):
            store.append("a", [bytes(200_000), bytes(200_000)])  # 16 MB in all
            largest = max(largest, wal.stat().st_size)
        assert largest < 6_000_000
        assert path.stat().st_size > 10_000_000
        assert store.checkpoint_trouble is None


def test_durability_policies_are_told_apart() -> None:
    from substrate.redex import Interval

    assert Durability() == Durability.EVERY
    assert Interval(ms=1) != Durability.EVERY
    with pytest.raises(NetError):
        Interval(ms=0)
