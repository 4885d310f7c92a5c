"""Damaged files: what is found when, what it is called, and which record is named."""

from __future__ import annotations

import random
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from substrate.redex import Store
from substrate.wire.errors import NetError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A closed store with 300 records of 200 bytes in chain a, 20 in chain b."""
    path = tmp_path / "s.db"
    noise = random.Random(7)
    with Store.open(path) as store:
        for n in range(300):
            store.append("a", [b"record %06d " % n + noise.randbytes(186)], create=True, at_ms=n)
        store.append("b", [b"other %04d" % n for n in range(20)], create=True)
    return path


def overwrite(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def flip(path: Path, offset: int, bit: int = 0) -> None:
    overwrite(path, offset, bytes([path.read_bytes()[offset] ^ 1 << bit]))


def refused(path: Path) -> NetError:
    with pytest.raises(NetError) as caught:
        Store.open(path).close()
    return caught.value


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"not a database at all, " * 1000),
        lambda path: path.write_bytes(path.read_bytes()[:50]),
        lambda path: overwrite(path, 0, bytes(100)),
        lambda path: overwrite(path, 100, b"\xff" * 200),
        lambda path: path.write_bytes(path.read_bytes()[:4096]),
    ],
    ids=["empty", "text", "torn header", "no header", "torn schema page", "one page"],
)
def test_what_is_no_store_is_refused_with_the_way_back(path: Path, damage: Callable[[Path], object]) -> None:
    damage(path)
    error = refused(path)
    assert error.kind == "corrupt-store"
    assert error.hint is not None
    assert "restore" in error.hint
    with pytest.raises(NetError) as caught:
        Store.open(path, read_only=True).close()
    assert caught.value.kind == "corrupt-store"


def test_a_refused_open_leaves_the_lock_free(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(b"")
    refused(path)
    path.write_bytes(content)
    Store.open(path).close()


def test_another_program_s_database_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE chains(id)")
    connection.close()
    before = path.read_bytes()
    assert "not a RedEX store" in refused(path).message
    assert path.read_bytes() == before


def test_a_newer_layout_is_refused(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version=99")
    connection.close()
    assert refused(path).kind == "not-yet-supported"


def test_a_flipped_bit_in_any_payload_is_found_and_named(path: Path) -> None:
    content = path.read_bytes()
    for n in (0, 1, 150, 298):
        path.write_bytes(content)
        for found in re.finditer(b"record %06d " % n, content):  # SQLite leaves stale copies in unused space
            flip(path, found.start() + 100, bit=n % 8)
        with Store.open(path) as store:
            with pytest.raises(NetError) as caught:
                store.verify("a")
            assert (caught.value.kind, caught.value.details) == ("corrupt-store", {"chain": "a", "seq": n + 1})
            assert store.verify("b").seq == 20
            assert store.verify("a", n + 2).seq == 300  # what comes after it is sound


def test_nothing_is_chained_to_a_damaged_head(path: Path) -> None:
    for found in re.finditer(b"record 000299 ", path.read_bytes()):
        flip(path, found.start() + 50)
    with Store.open(path) as store:
        with pytest.raises(NetError) as caught:
            store.append("a", [b"x"])
        assert (caught.value.kind, caught.value.details["seq"]) == ("corrupt-store", 300)
        store.append("b", [b"x"])
        assert store.failed is None


def test_every_flipped_byte_is_found_or_harmless(path: Path) -> None:
    """Bytes all over the file: whatever opens and verifies must still be exactly what was written."""
    with Store.open(path) as store:
        truth = {name: list(store.scan(name)) for name in ("a", "b")}
    content = path.read_bytes()
    noise = random.Random(11)
    found = 0
    for _ in range(600):
        offset = noise.randrange(len(content))
        path.write_bytes(content)
        flip(path, offset, noise.randrange(8))
        try:
            with Store.open(path) as store:
                store.check_file()
                for name, rows in truth.items():
                    store.verify(name)
                    assert [(r[0], r[1], r[2], r[3]) for r in store.scan(name)] == [tuple(r[:4]) for r in rows], offset
        except NetError as error:
            assert error.kind in ("corrupt-store", "chain-not-found", "not-yet-supported"), (offset, error.message)
            found += 1
    assert found > 300


@pytest.mark.parametrize(
    ("tamper", "first_bad"),
    [
        ("DELETE FROM records WHERE at_ms=100", 101),
        ("DELETE FROM records WHERE at_ms=0", 1),
        ("UPDATE records SET at_ms=at_ms+1 WHERE at_ms=299", 300),
        ("UPDATE records SET payload=zeroblob(5) WHERE at_ms BETWEEN 10 AND 20", 11),
        ("UPDATE records SET hash=(SELECT hash FROM records WHERE at_ms=7) WHERE at_ms=9", 10),
        ("UPDATE chains SET base_hash=randomblob(32) WHERE name='a'", 1),
    ],
)
def test_tampering_with_sqlite_is_found(path: Path, tamper: str, first_bad: int) -> None:
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(tamper)
    connection.close()
    with Store.open(path) as store:
        with pytest.raises(NetError) as caught:
            store.verify("a")
        assert (caught.value.kind, caught.value.details["seq"]) == ("corrupt-store", first_bad)


@pytest.mark.parametrize("moved_to", ["(7 << 44) + 1", "1 << 44", "-5", "(3 << 44)"])
def test_a_record_outside_of_every_chain_is_found(path: Path, moved_to: str) -> None:
    with Store.open(path) as store:
        store.check_file()
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(f"UPDATE records SET key={moved_to} WHERE key=(SELECT max(key) FROM records)")
    connection.close()
    with Store.open(path) as store:
        assert store.verify("b").seq == 19  # a cut tail: nothing in the chain itself tells
        with pytest.raises(NetError) as caught:
            store.check_file()
        assert caught.value.kind == "corrupt-store"


def test_a_damaged_page_in_the_middle_names_a_record(path: Path) -> None:
    content = path.read_bytes()
    page = content.index(b"record 000150 ") // 4096 * 4096
    overwrite(path, page, b"\xff" * 64)  # the page header
    with Store.open(path) as store:
        with pytest.raises(NetError) as caught:
            store.verify("a")
        assert caught.value.kind == "corrupt-store"
        assert 100 < caught.value.details["seq"] <= 151
        with pytest.raises(NetError) as caught:
            list(store.scan("a"))
        assert caught.value.kind == "corrupt-store"


LOCKER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.read()
"""


def test_a_foreign_lock_on_the_file_is_a_timeout(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from substrate.redex import database

    monkeypatch.setattr(database, "BUSY_MS", 50)
    with Store.open(path) as store:
        locker = subprocess.Popen(
            [sys.executable, "-c", LOCKER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert locker.stdout is not None
        assert locker.stdout.readline() == "locked\n"
        with pytest.raises(NetError) as caught:
            store.append("a", [b"x"])
        assert caught.value.kind == "timeout"
        locker.communicate("", timeout=20)
        assert store.append("a", [b"x"]).first_seq == 301
