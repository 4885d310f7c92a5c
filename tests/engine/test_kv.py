"""The broker's key-value store against a model, under a clock that only the test moves."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from substrate.engine import KvEvent
from substrate.engine.api import MAX_KEY_BYTES, MAX_KEYS, MAX_REVISION, MAX_TTL_MS, MAX_VALUE_BYTES
from substrate.engine.local.kv import EPOCH_SHIFT, KvStore
from substrate.wire.errors import NetError


class Bench:
    """A store with its clock and what it told."""

    def __init__(self, epoch: int = 1) -> None:
        self.now_ms = 1000
        self.events: list[KvEvent] = []
        self.store = KvStore(epoch, lambda: self.now_ms, self.events.append)

    def ops(self) -> list[tuple[str, str]]:
        return [(event.op, event.key) for event in self.events]


KEYS = st.sampled_from(["a", "a/1", "a/2", "b"])


class AgainstModel(RuleBasedStateMachine):
    """Every answer, every event and the next deadline equal those of a dict of (value, revision, due)."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench(epoch=3)
        self.model: dict[str, tuple[bytes, int, int | None]] = {}
        self.revision = 3 << EPOCH_SHIFT
        self.expected: list[KvEvent] = []

    def pass_deadlines(self) -> None:
        gone = [
            (due, rev, key) for key, (_, rev, due) in self.model.items() if due is not None and due <= self.bench.now_ms
        ]
        for _, _, key in sorted(gone):
            del self.model[key]
            self.revision += 1
            self.expected.append(KvEvent("expired", key, b"", self.revision))

    @rule(
        key=KEYS,
        value=st.binary(max_size=3),
        ttl=st.none() | st.integers(1, 50),
        expect=st.sampled_from(["any", "right", "wrong"]),
    )
    def put(self, key: str, value: bytes, ttl: int | None, expect: str) -> None:
        self.pass_deadlines()
        present = self.model[key][1] if key in self.model else 0
        if expect == "wrong":
            with pytest.raises(NetError) as error:
                self.bench.store.put(key, value, ttl_ms=ttl, expect=present + 1)
            assert error.value.kind == "conflict"
            assert error.value.details["revision"] == present
            return
        self.revision += 1
        self.expected.append(KvEvent("put", key, value, self.revision))
        got = self.bench.store.put(key, value, ttl_ms=ttl, expect=present if expect == "right" else None)
        assert got == self.revision
        self.model[key] = (value, got, None if ttl is None else self.bench.now_ms + ttl)

    @rule(key=KEYS)
    def delete(self, key: str) -> None:
        self.pass_deadlines()
        present = key in self.model
        if present:
            del self.model[key]
            self.revision += 1
            self.expected.append(KvEvent("delete", key, b"", self.revision))
        assert self.bench.store.delete(key) is present

    @rule(ms=st.integers(0, 60), call=st.booleans())
    def wait(self, ms: int, call: bool) -> None:
        self.bench.now_ms += ms
        if call:
            self.pass_deadlines()
            self.bench.store.expire()

    @rule(key=KEYS)
    def get(self, key: str) -> None:
        self.pass_deadlines()
        entry = self.bench.store.get(key)
        known = self.model.get(key)
        assert (entry is None) == (known is None)
        if entry is not None and known is not None:
            left = None if known[2] is None else known[2] - self.bench.now_ms
            assert (entry.value, entry.revision, entry.expires_in_ms) == (known[0], known[1], left)

    @rule(prefix=st.sampled_from(["", "a", "a/", "b", "c"]), after=KEYS | st.just(""), limit=st.integers(1, 80))
    def list_in_pages(self, prefix: str, after: str, limit: int) -> None:
        self.pass_deadlines()
        keys: list[str] = []
        more = True
        while more:
            page, more = self.bench.store.list(prefix, after=keys[-1] if keys else after, limit_bytes=limit)
            assert page or not more
            keys += [entry.key for entry in page]
        assert keys == sorted(key for key in self.model if key.startswith(prefix) and key > after)

    @invariant()
    def same(self) -> None:
        assert self.bench.events == self.expected
        dues = [due for _, _, due in self.model.values() if due is not None]
        assert self.bench.store.next_due_ms() == (min(dues) if dues else None)
        assert len(self.bench.store) == len(self.model)


TestAgainstModel = AgainstModel.TestCase
TestAgainstModel.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


def test_a_renewed_key_does_not_expire_at_its_first_deadline_and_renewals_do_not_pile_up() -> None:
    bench = Bench()
    for _ in range(5000):
        bench.store.put("member/1", b"x", ttl_ms=MAX_TTL_MS)
        bench.now_ms += 1
    assert len(bench.store._deadlines) < 2000
    bench.store.put("member/1", b"x", ttl_ms=10)
    bench.now_ms += 9
    assert bench.store.expire() == 0
    bench.now_ms += 1
    assert bench.store.expire() == 1
    assert bench.ops()[-1] == ("expired", "member/1")


def test_a_key_is_gone_at_its_deadline_before_anybody_expires_it() -> None:
    bench = Bench()
    bench.store.put("leader", b"1", ttl_ms=10, expect=0)
    bench.now_ms += 10
    assert bench.store.put("leader", b"2", ttl_ms=10, expect=0)
    assert bench.ops() == [("put", "leader"), ("expired", "leader"), ("put", "leader")]


def test_later_epochs_number_higher_and_stay_exact_in_json() -> None:
    early, late = Bench(epoch=7), Bench(epoch=8)
    assert early.store.put("k", b"") < late.store.put("k", b"")
    assert early.store.revisions_left == (1 << EPOCH_SHIFT) - 2
    last_epoch = (MAX_REVISION >> EPOCH_SHIFT) - 1
    assert Bench(epoch=last_epoch).store.put("k", b"") < MAX_REVISION


@pytest.mark.parametrize(
    ("key", "value", "ttl_ms", "kind"),
    [
        ("", b"", None, "invalid-argument"),
        ("k" * (MAX_KEY_BYTES + 1), b"", None, "invalid-argument"),
        ("\ud800", b"", None, "invalid-argument"),
        ("k", b"x" * (MAX_VALUE_BYTES + 1), None, "too-large"),
        ("k", b"", 0, "invalid-argument"),
        ("k", b"", MAX_TTL_MS + 1, "invalid-argument"),
    ],
)
def test_sizes_are_limited(key: str, value: bytes, ttl_ms: int | None, kind: str) -> None:
    bench = Bench()
    with pytest.raises(NetError) as error:
        bench.store.put(key, value, ttl_ms=ttl_ms)
    assert error.value.kind == kind
    assert bench.events == []


def test_a_full_store_refuses_new_keys_and_still_takes_known_ones() -> None:
    bench = Bench()
    for number in range(MAX_KEYS):
        bench.store.put(f"{number}", b"")
    with pytest.raises(NetError) as error:
        bench.store.put("one more", b"")
    assert error.value.kind == "overloaded"
    bench.store.put("0", b"again")
    bench.store.delete("1")
    bench.store.put("one more", b"")


def test_the_total_of_bytes_is_limited() -> None:
    bench = Bench()
    value = b"x" * MAX_VALUE_BYTES
    with pytest.raises(NetError) as error:
        for number in range(5000):
            bench.store.put(f"{number}", value)
    assert error.value.kind == "overloaded"
    assert bench.store.delete("0")
    bench.store.put("fits", b"")
