"""A scripted session in which the n-th write or sync goes wrong, for every n and every way to go wrong.

Afterwards: everything acknowledged is there, an entry is there whole or not at all, the chain verifies, and what was refused
as `disk-full` is not there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from substrate.redex import Interval, Store
from substrate.redex.groupcommit import Request
from substrate.wire.errors import NetError
from tests.redex.faultvfs import Fault, FaultVFS

T = TypeVar("T")
SMALL = [b"one"]
SCRIPT: list[tuple[str, list[bytes]]] = [
    ("a", SMALL),
    ("a", [bytes([n]) * 40 for n in range(60)]),
    ("b", [b"x" * 9000, b"y"]),
    ("a", [b"two"]),
    ("c", [b"z" * 30_000]),
    ("b", [b"three"]),
]


class Session:
    """Runs SCRIPT against one store and knows what was acknowledged, and what may be there besides."""

    def __init__(self, path: Path, vfs: FaultVFS) -> None:
        self.path = path
        self.vfs = vfs
        self.acked: dict[str, list[bytes]] = {}
        self.uncertain: tuple[str, list[bytes]] | None = None
        self.refused: list[NetError] = []
        self.fatal = threading.Event()
        self.fatal_calls: list[NetError] = []

    def on_fatal(self, error: NetError) -> None:
        self.fatal_calls.append(error)
        self.fatal.set()

    def open(self) -> Store:
        return Store.open(self.path, vfs=self.vfs.name, on_fatal=self.on_fatal)

    def run(self, *, after_refusal: Callable[[], None] = lambda: None) -> None:
        """Open, append, sweep, close; stops at the first failure that is not a full disk."""
        store = self._patiently(self.open, after_refusal)
        if store is None:
            return
        try:
            for number, (chain, payloads) in enumerate(SCRIPT):
                entry_id = number.to_bytes(16, "big")
                self.uncertain = (chain, payloads)

                def append(chain: str = chain, payloads: list[bytes] = payloads, entry_id: bytes = entry_id) -> object:
                    return store.append(chain, payloads, create=True, entry_id=entry_id, at_ms=1000)

                if self._patiently(append, after_refusal) is None:
                    return
                self.uncertain = None
                self.acked.setdefault(chain, []).extend(payloads)
        finally:
            try:
                store.close()
            except NetError as error:
                self.refused.append(error)

    def _patiently(self, action: Callable[[], T], after_refusal: Callable[[], None]) -> T | None:
        """Do it, once more after a full disk; None if it failed for good."""
        for _ in range(2):
            try:
                return action()
            except NetError as error:
                self.refused.append(error)
                if error.kind != "disk-full":
                    return None
                after_refusal()
        raise AssertionError(f"still full after the release: {self.refused[-1].message}")

    def check(self, *, uncertain_allowed: bool) -> None:
        """Open with the real VFS: everything acknowledged is there, and nothing else but the uncertain entry."""
        with Store.open(self.path) as store:
            found = {info.name: [record.payload for record in store.read(info.name, 1)] for info in store.chains()}
            for name in found:
                assert store.verify(name) == store.head(name)
            expected = {name: list(payloads) for name, payloads in self.acked.items()}
            if uncertain_allowed and self.uncertain is not None and found != expected:
                chain, payloads = self.uncertain
                expected.setdefault(chain, []).extend(payloads)
            assert found == expected
            store.append("a", [b"after"], create=True)  # and it goes on


@contextmanager
def fault_vfs(fault: Fault | None = None, at: int = 0) -> Iterator[FaultVFS]:
    vfs = FaultVFS(fault, at)
    try:
        yield vfs
    finally:
        vfs.unregister()


def count_operations(path: Path) -> int:
    with fault_vfs() as vfs:
        session = Session(path / "count.db", vfs)
        session.run()
        assert session.refused == []
        session.check(uncertain_allowed=False)
        return vfs.operations


def test_every_write_and_sync_can_be_the_last(tmp_path: Path) -> None:
    total = count_operations(tmp_path)
    assert total > 60
    for fault in (Fault.CRASH, Fault.TORN):
        for at in range(1, total + 1):
            for cut in (False, True):
                with fault_vfs(fault, at) as vfs:
                    session = Session(tmp_path / f"{fault.name}-{at}-{cut}.db", vfs)
                    session.run()
                    assert vfs.struck, at
                    if cut:
                        vfs.power_cut()
                session.check(uncertain_allowed=True)


def test_an_io_error_at_any_write_or_sync_loses_nothing_acknowledged(tmp_path: Path) -> None:
    fatal = 0
    for at in range(1, count_operations(tmp_path) + 1):
        with fault_vfs(Fault.EIO, at) as vfs:
            session = Session(tmp_path / f"eio-{at}.db", vfs)
            session.run()
            assert vfs.struck
            assert {error.kind for error in session.refused} <= {"io-error"}
            vfs.power_cut()  # what a failed sync dropped may be gone for good
            if session.uncertain is not None:
                assert session.fatal.wait(5)
                assert session.refused[0].details["outcome"] == "unknown"
                fatal += 1
            assert len(session.fatal_calls) <= 1
        session.check(uncertain_allowed=True)
    assert fatal > 20


@pytest.mark.parametrize("fault", [Fault.ENOSPC, Fault.SHORT])
def test_a_full_disk_refuses_and_the_store_goes_on_when_there_is_space(tmp_path: Path, fault: Fault) -> None:
    refused = 0
    for at in range(1, count_operations(tmp_path) + 1):
        with fault_vfs(fault, at) as vfs:
            session = Session(tmp_path / f"{fault.name}-{at}.db", vfs)
            session.run(after_refusal=vfs.release)
            assert {error.kind for error in session.refused} <= {"disk-full"}
            assert session.fatal_calls == []
            refused += len(session.refused)
            vfs.power_cut()
        session.check(uncertain_allowed=False)
    assert refused > 20


def test_no_refusal_speaks_of_a_head_that_a_full_disk_kept_from_being(tmp_path: Path) -> None:
    """Of racing appends in one transaction the losers are told the winner's head, which must not happen if it failed."""
    with fault_vfs() as vfs:
        store = Store.open(tmp_path / "s.db", vfs=vfs.name)
        head = store.append("a", [b"1"], create=True).head
        vfs.fault, vfs.at = Fault.ENOSPC, vfs.operations + 1
        group = [Request("a", payloads=[b"2"], expect=head) for _ in range(3)]  # one transaction, for sure
        store._commit(group)
        assert [request.error.kind for request in group if request.error] == ["disk-full"] * 3
        assert store.head("a") == head
        vfs.release()
        assert store.append("a", [b"2"], expect=head).first_seq == 2
        store.close()


def test_after_a_failed_sync_the_store_refuses_everything_and_says_why(tmp_path: Path) -> None:
    with fault_vfs() as vfs:
        fatal = threading.Event()
        store = Store.open(tmp_path / "s.db", vfs=vfs.name, on_fatal=lambda _: fatal.set())
        store.append("a", [b"1"], create=True)
        tail = store.tail("a")
        vfs.fault, vfs.at = Fault.EIO, vfs.operations + 3  # frame header, frame, sync
        with pytest.raises(NetError) as caught:
            store.append("a", [b"2"])
        assert (caught.value.kind, caught.value.details["outcome"]) == ("io-error", "unknown")
        assert fatal.wait(5)
        for use in (
            lambda: store.append("a", [b"3"]),
            lambda: store.submit("a", [b"3"]),
            lambda: store.create_chain("x"),
            lambda: store.read("a", 1),
            lambda: store.head("a"),
            lambda: store.sweep("a", 0),
        ):
            with pytest.raises(NetError, match="failed before") as later:
                use()
            assert (later.value.kind, later.value.details["outcome"]) == ("io-error", "refused")
        end = tail.next(1)
        assert getattr(end, "reason", None) == "store-failed"
        store.close()


def test_a_checkpoint_without_space_does_not_stop_appends(tmp_path: Path) -> None:
    big = [b"x" * 200_000, b"y" * 200_000]  # about a hundred pages of the log
    with fault_vfs() as vfs, Store.open(tmp_path / "s.db", vfs=vfs.name) as store:
        store.create_chain("a")
        vfs.full_for = lambda name: not name.endswith("-wal")
        vfs.full = True

        def append_until(troubled: bool) -> NetError | None:
            for _ in range(30):
                store.append("a", big)
                if (store.checkpoint_trouble is not None) == troubled:
                    return store.checkpoint_trouble
            raise AssertionError(f"still {store.checkpoint_trouble}")

        trouble = append_until(True)
        assert trouble is not None
        assert trouble.kind == "disk-full"
        store.append("a", big)
        vfs.release()
        append_until(False)
        assert store.verify("a") == store.head("a")


def test_the_power_cut_is_real(tmp_path: Path) -> None:
    """The control of the tests above: what no sync has covered is gone afterwards."""
    with fault_vfs() as vfs:
        store = Store.open(tmp_path / "s.db", vfs=vfs.name, durability=Interval(ms=1_000_000, max_bytes=1 << 40))
        store.create_chain("a")
        store.append("a", [b"1"])
        vfs.dead = True
        with pytest.raises(NetError):
            store.append("a", [b"2"])
        store.close()
        vfs.power_cut()
    with Store.open(tmp_path / "s.db") as store:
        assert [info.name for info in store.chains()] == []


def test_a_crash_in_creation_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "s.db.new").write_bytes(b"half")
    (tmp_path / "s.db.new-journal").write_bytes(b"half")
    with Store.open(tmp_path / "s.db") as store:
        store.append("a", [b"1"], create=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.db", "s.db.lock"]
