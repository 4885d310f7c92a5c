"""Shared mode: many short processes on one file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from substrate.redex import Store
from substrate.wire.errors import NetError

APPENDER = """
import sys
from pathlib import Path
from substrate.redex import Store
name, count = sys.argv[2], int(sys.argv[3])
with Store.open(Path(sys.argv[1]), mode="shared") as store:
    for n in range(count):
        print(store.append("a", [f"{name} {n}".encode()], create=True).first_seq)
"""
HOLDER = """
import sys
from pathlib import Path
from substrate.redex.lock import FileLock
lock = FileLock(Path(sys.argv[1]))
lock.acquire(10)
print("held", flush=True)
sys.stdin.read()
"""


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_processes_racing_from_the_creation_on_get_distinct_seqs(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    processes = [start(APPENDER, path, f"p{n}", 15) for n in range(8)]
    seqs: list[list[int]] = []
    for process in processes:
        out, _ = process.communicate(timeout=90)
        assert process.returncode == 0
        seqs.append([int(line) for line in out.split()])
    assert sorted(seq for own in seqs for seq in own) == list(range(1, 121))
    assert all(own == sorted(own) for own in seqs)
    with Store.open(path, mode="shared") as store:
        assert store.verify("a").seq == 120
        rows = list(store.scan("a"))
        for n, own in enumerate(seqs):
            assert [rows[seq - 1][3] for seq in own] == [f"p{n} {k}".encode() for k in range(15)]


def test_two_stores_of_one_file_see_each_other_at_once(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    with Store.open(path, mode="shared") as one, Store.open(path, mode="shared") as two:
        head = one.append("a", [b"1"], create=True).head
        assert two.head("a") == head
        head = two.append("a", [b"2"], expect=head).head
        assert one.head("a") == head
        with pytest.raises(NetError) as caught:
            one.append("a", [b"3"], expect=one.read("a", 1)[0].head)
        assert caught.value.kind == "conflict"
        assert caught.value.details["head"]["seq"] == 2
        assert one.append("a", [b"3"]).first_seq == 3
        assert [r.payload for r in two.read("a", 1)] == [b"1", b"2", b"3"]
        two.create_chain("b")
        with pytest.raises(NetError):
            one.create_chain("b")


def test_an_owner_and_sharers_exclude_each_other(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    with Store.open(path), pytest.raises(NetError) as caught:
        Store.open(path, mode="shared", lock_timeout_s=0.05)
    assert caught.value.kind == "timeout"


def test_a_held_lock_delays_and_then_times_out(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    with Store.open(path, mode="shared", lock_timeout_s=0.2) as store:
        store.create_chain("a")
        holder = start(HOLDER, path.with_name("s.db.lock"))
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        began = time.monotonic()
        with pytest.raises(NetError) as caught:
            store.append("a", [b"x"])
        assert caught.value.kind == "timeout"
        assert time.monotonic() - began >= 0.2
        assert [r.payload for r in store.read("a", 1)] == []  # reading needs no lock
        os.kill(holder.pid, signal.SIGKILL)  # the kernel gives the lock back
        holder.communicate(timeout=10)
        assert store.append("a", [b"x"]).first_seq == 1
        assert store.failed is None


def test_a_wait_for_the_lock_ends_when_it_is_given_back(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    with Store.open(path, mode="shared") as store:
        store.create_chain("a")
        holder = start(HOLDER, path.with_name("s.db.lock"))
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        future = store.submit("a", [b"x"])
        assert not future.done()
        holder.communicate("", timeout=10)
        assert future.result(20).first_seq == 1
        assert store.append("a", [b"y"]).first_seq == 2
