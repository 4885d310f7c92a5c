"""RedEX against the bare disk and bare SQLite: appends by one, by many and in batches, scans, opening, following.

Every comparison is measured in turns with ours, in the same directory.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import apsw

from bench.harness import Row, fdatasync_rate, interleaved, median, percentile, row, stopwatch
from substrate.redex import Store

PAYLOAD = os.urandom(100)
WRITERS = 16
BATCH = 1000
RUNS = 5


def rows(scale: float = 1.0, directory: Path | None = None) -> list[Row]:
    """All rows; `scale` 1.0 takes about half a minute. `directory`: where, if the temporary one is not on a disk."""
    root = Path(tempfile.mkdtemp(prefix="bench-redex-", dir=directory))
    try:
        with Store.open(root / "appends.db") as store:
            store.create_chain("bench")
            found = [*single(root, store, round(800 * scale)), many(root, store, round(600 * scale))]
            found += [batches(root, store, round(15 * scale)), *following(store, round(1500 * scale))]
        return found + history(root, round(1_000_000 * scale))
    finally:
        shutil.rmtree(root)


def rate(count: int, work: Callable[[], object]) -> float:
    """How often a second `work` runs, over `count` times."""
    with stopwatch() as seconds:
        for _ in range(count):
            work()
    return count / seconds()


def single(root: Path, store: Store, count: int) -> list[Row]:
    """One writer, one durable record at a time."""
    connection = sqlite3.connect(root / "plain.db", isolation_level=None)
    connection.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; CREATE TABLE r(payload BLOB)")
    try:
        results = interleaved(
            {
                "ours": lambda: rate(count, lambda: store.append("bench", [PAYLOAD])),
                "raw": lambda: fdatasync_rate(root, len(PAYLOAD), count),
                "sqlite3": lambda: rate(count, lambda: connection.execute("INSERT INTO r VALUES(?)", (PAYLOAD,))),
            },
            RUNS,
        )
    finally:
        connection.close()
    ours, raw, plain = (median(results[name]) for name in ("ours", "raw", "sqlite3"))
    name = "redex durable append, 1 writer"
    return [
        row(name, ours, "/s", compare=("write + fdatasync", raw), ratio_at_least=0.6),
        row(f"{name}, beside SQLite", ours, "/s", compare=("sqlite3 FULL, unhashed", plain)),
    ]


def many(root: Path, store: Store, count: int) -> Row:
    """Sixteen threads, each one durable record at a time."""

    def together() -> float:
        def write() -> None:
            for _ in range(count):
                store.append("bench", [PAYLOAD])

        threads = [threading.Thread(target=write) for _ in range(WRITERS)]
        with stopwatch() as seconds:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        return WRITERS * count / seconds()

    results = interleaved({"ours": together, "raw": lambda: fdatasync_rate(root, len(PAYLOAD), 300)}, RUNS)
    return row(
        f"redex durable append, {WRITERS} writers",
        median(results["ours"]),
        "/s",
        compare=("write + fdatasync", median(results["raw"])),
        at_least=20_000,
    )


def batches(root: Path, store: Store, count: int) -> Row:
    """Entries of a thousand records beside the same rows without hashes and checks."""
    connection = apsw.Connection(str(root / "unhashed.db"))
    connection.execute("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE r(seq INTEGER PRIMARY KEY, at_ms INTEGER, hash BLOB, payload BLOB)")
    insert = "INSERT INTO r(at_ms, hash, payload) VALUES(?, ?, ?)"
    plain_rows = [(1_700_000_000_000, bytes(32), PAYLOAD)] * BATCH

    def unhashed() -> None:
        with connection:
            connection.executemany(insert, plain_rows)

    try:
        results = interleaved(
            {
                "ours": lambda: BATCH * rate(count, lambda: store.append("bench", [PAYLOAD] * BATCH)),
                "unhashed": lambda: BATCH * rate(count, unhashed),
            },
            RUNS,
        )
    finally:
        connection.close()
    ours, plain = median(results["ours"]), median(results["unhashed"])
    return row(
        f"redex append, batches of {BATCH}", ours, "records/s", compare=("apsw, unhashed", plain), ratio_at_least=0.5
    )


def following(store: Store, count: int) -> list[Row]:
    """From the call of append to the follower's hands, the flush included; a pause between appends."""
    store.create_chain("followed")
    latencies: list[float] = []

    def follow() -> None:
        with store.tail("followed", 1) as tail:
            while len(latencies) < count:
                found = tail.next(10.0)
                now_ns = time.perf_counter_ns()
                assert isinstance(found, list), found
                latencies.extend((now_ns - int(record.payload)) / 1e6 for record in found)

    follower = threading.Thread(target=follow)
    follower.start()
    for _ in range(count):
        store.append("followed", [b"%d" % time.perf_counter_ns()])
        time.sleep(0.001)
    follower.join()
    name = "redex tail, append to subscriber"
    return [
        row(f"{name}, p50", percentile(latencies, 50), "ms", at_most=3),
        row(f"{name}, p99", percentile(latencies, 99), "ms", at_most=10),
    ]


def history(root: Path, count: int) -> list[Row]:
    """A chain of a million records: scan it, open it, read its end."""
    path, short_path, plain_path = root / "long.db", root / "short.db", root / "plain-long.db"
    for store_path, records in ((path, count), (short_path, 1000)):
        with Store.open(store_path) as store:
            store.create_chain("bench")
            for start in range(0, records, BATCH):
                store.append("bench", [PAYLOAD] * min(BATCH, records - start))
    connection = sqlite3.connect(plain_path)
    connection.execute("CREATE TABLE r(seq INTEGER PRIMARY KEY, at_ms INTEGER, hash BLOB, payload BLOB, seal BLOB)")
    insert = "INSERT INTO r(at_ms, hash, payload, seal) VALUES(1700000000000, zeroblob(32), ?, x'')"
    with connection:
        connection.executemany(insert, ((PAYLOAD,) for _ in range(count)))

    def scan_plain() -> float:
        with stopwatch() as seconds:
            total = sum(1 for _ in connection.execute("SELECT seq, at_ms, hash, payload, seal FROM r"))
        assert total == count
        return count / seconds()

    def open_ms(store_path: Path) -> float:
        with stopwatch() as seconds:
            store = Store.open(store_path)
            store.head("bench")
        elapsed = seconds()
        store.close()
        return elapsed * 1000

    try:
        with Store.open(path) as store, Store.open(short_path) as short:

            def scan() -> float:
                with stopwatch() as seconds:
                    total = sum(1 for _ in store.scan("bench"))
                assert total == count
                return count / seconds()

            def read_all() -> float:
                with stopwatch() as seconds:
                    seq = 1
                    while found := store.read("bench", seq):
                        seq = found[-1].seq + 1
                return count / seconds()

            scans = interleaved({"scan": scan, "records": read_all, "plain": scan_plain}, 3)
            ends = interleaved(
                {
                    "long": lambda: 1e6 / rate(500, lambda: store.read("bench", count)),
                    "short": lambda: 1e6 / rate(500, lambda: short.read("bench", 1000)),
                },
                RUNS,
            )
            with stopwatch() as verified:
                store.verify("bench")
    finally:
        connection.close()
    opens = interleaved({"long": lambda: open_ms(path), "short": lambda: open_ms(short_path)}, RUNS)
    plain = ("plain sqlite3", median(scans["plain"]))
    return [
        row("redex scan", median(scans["scan"]), "rows/s", compare=plain, at_least=1.5e6),
        row("redex read all, as records", median(scans["records"]), "records/s", compare=plain),
        row("redex verify", count / verified(), "records/s"),
        row(
            f"redex open, {count} records",
            median(opens["long"]),
            "ms",
            compare=("1000 records", median(opens["short"])),
            at_most=20,
        ),
        row(
            f"redex read of the last of {count}",
            median(ends["long"]),
            "us",
            compare=("the last of 1000", median(ends["short"])),
        ),
    ]
