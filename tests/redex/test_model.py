"""A store beside a list: random appends, batches, expectations, sweeps, reads and reopens must agree with it."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from substrate.redex import Appended, Lagged, Retention, Store
from substrate.wire.errors import NetError
from substrate.wire.records import EMPTY, Head, Record, next_record

NAMES = st.sampled_from(["a", "b/c"])
PAYLOADS = st.lists(st.binary(max_size=40), min_size=1, max_size=5)


class Model:
    """A chain as a list; `base` records are gone from its front."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.base = 0
        self.retention = Retention()

    @property
    def head(self) -> Head:
        return self.records[-1].head if self.records else EMPTY

    @property
    def kept(self) -> list[Record]:
        return self.records[self.base :]

    def sweep(self, now_ms: int) -> int:
        limits, before = self.retention, self.base
        while self.kept:
            over_count = limits.max_records is not None and len(self.kept) > limits.max_records
            over_bytes = limits.max_bytes is not None and sum(len(r.payload) for r in self.kept) > limits.max_bytes
            too_old = limits.max_age_ms is not None and self.kept[0].at_ms < now_ms - limits.max_age_ms
            if not (over_count or over_bytes or too_old):
                break
            self.base += 1
        return self.base - before


class StoreAgainstList(RuleBasedStateMachine):
    """The rules."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="redex-model-"))
        self.store = Store.open(self.directory / "s.db")
        self.chains: dict[str, Model] = {}
        self.entries: dict[bytes, tuple[str, Appended]] = {}

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.directory)

    def grow(self, name: str, payloads: list[bytes], at_ms: int) -> Appended:
        model = self.chains.setdefault(name, Model())
        first = model.head.seq + 1
        for payload in payloads:
            model.records.append(next_record(name, model.head, at_ms, payload))
        return Appended(first, model.head)

    @rule(name=NAMES, payloads=PAYLOADS, at_ms=st.integers(0, 50), future=st.booleans())
    def append(self, name: str, payloads: list[bytes], at_ms: int, future: bool) -> None:
        if future:
            got = self.store.submit(name, payloads, at_ms=at_ms, create=True).result(30)
        else:
            got = self.store.append(name, payloads, at_ms=at_ms, create=True)
        assert got == self.grow(name, payloads, at_ms)

    @rule(name=NAMES, payloads=PAYLOADS, seq=st.integers(0, 8))
    def append_expecting(self, name: str, payloads: list[bytes], seq: int) -> None:
        model = self.chains.get(name, Model())
        seq = min(seq, len(model.records)) if seq < 6 else len(model.records)
        expect = model.records[seq - 1].head if seq else EMPTY
        if expect == model.head:
            got = self.store.append(name, payloads, at_ms=1, create=True, expect=expect)
            assert got == self.grow(name, payloads, 1)
        else:
            with pytest.raises(NetError) as caught:
                self.store.append(name, payloads, at_ms=1, expect=expect)
            assert caught.value.kind == "conflict"
            assert caught.value.details["head"] == {"seq": model.head.seq, "hash": model.head.hash.hex()}

    @rule(name=NAMES, payloads=PAYLOADS)
    def append_sealed(self, name: str, payloads: list[bytes]) -> None:
        before = self.chains.get(name, Model()).head
        grown = self.grow(name, payloads, 3)
        records = self.chains[name].records[before.seq :]
        assert self.store.append_records(name, records, expect=before, create=True) == grown

    @rule(name=NAMES, payloads=PAYLOADS, number=st.integers(0, 3))
    def append_with_id(self, name: str, payloads: list[bytes], number: int) -> None:
        entry_id = number.to_bytes(16, "big")
        if entry_id in self.entries:
            chain, before = self.entries[entry_id]
            got = self.store.append(chain, payloads, entry_id=entry_id)
            assert got == Appended(before.first_seq, before.head, duplicate=True)
        else:
            got = self.store.append(name, payloads, entry_id=entry_id, create=True, at_ms=2)
            assert got == self.grow(name, payloads, 2)
            self.entries[entry_id] = (name, got)

    @precondition(lambda self: self.chains)
    @rule(data=st.data(), now_ms=st.integers(0, 60))
    def sweep(self, data: st.DataObject, now_ms: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.chains)))
        limit = st.none() | st.integers(0, 12)
        retention = Retention(data.draw(limit), data.draw(st.none() | st.integers(0, 200)), data.draw(limit))
        self.chains[name].retention = retention
        self.store.set_retention(name, retention)
        assert self.store.sweep(name, now_ms) == self.chains[name].sweep(now_ms)

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = Store.open(self.directory / "s.db")

    @precondition(lambda self: self.chains)
    @rule(data=st.data(), from_seq=st.integers(0, 30), limit=st.integers(1, 7), max_bytes=st.integers(1, 100))
    def read(self, data: st.DataObject, from_seq: int, limit: int, max_bytes: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.chains)))
        expected: list[Record] = []
        size = 0
        for record in self.chains[name].kept:
            if record.seq < from_seq or len(expected) == limit:
                continue
            size += len(record.payload)
            if expected and size > max_bytes:
                break
            expected.append(record)
        assert self.store.read(name, from_seq, limit=limit, max_bytes=max_bytes) == expected

    @precondition(lambda self: self.chains)
    @rule(data=st.data(), from_seq=st.integers(1, 30), buffer=st.integers(1, 4))
    def tail(self, data: st.DataObject, from_seq: int, buffer: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.chains)))
        model = self.chains[name]
        seen: list[Record] = []
        with self.store.tail(name, from_seq, buffer=buffer) as tail:
            while (found := tail.next(0)) is not None:
                if isinstance(found, Lagged):
                    assert found == Lagged(from_seq, model.base)
                else:
                    assert isinstance(found, list)
                    seen += found
        assert seen == [record for record in model.kept if record.seq >= from_seq]

    @invariant()
    def agree(self) -> None:
        infos = {info.name: info for info in self.store.chains()}
        assert sorted(infos) == list(infos) == sorted(self.chains)
        for name, model in self.chains.items():
            info = infos[name]
            assert (info.head, info.first_seq, info.records) == (model.head, model.base + 1, len(model.kept))
            assert info.bytes == sum(len(record.payload) for record in model.kept)
            assert self.store.head(name) == self.store.verify(name) == model.head
            assert self.store.read(name, 1) == model.kept


TestStoreAgainstList = StoreAgainstList.TestCase
TestStoreAgainstList.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
