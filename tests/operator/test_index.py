"""The audit index against brute force, and starts from snapshots against full replays."""

from __future__ import annotations

import asyncio
import random
import tempfile
from pathlib import Path

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from substrate.identity.verify import OperatorSignature
from substrate.operator.copy import LedgerCopy
from substrate.operator.fold import Entry, fold_record
from substrate.operator.index import AuditFilter, LedgerIndex
from substrate.operator.ledger import ADMIN_CHAIN, LedgerBody, Refusal
from substrate.operator.state import LedgerState
from substrate.redex import Store
from substrate.wire import events
from substrate.wire.envelope import Envelope
from substrate.wire.errors import NetError
from substrate.wire.records import Record
from tests.operator.maker import Ledger, key, long_ledger, snapshot

NODES = (1, 2, 2**63, 2**64 - 1)
OPERATORS = (5, 2**63 + 1, 2**64 - 1)
EVENTS = st.one_of(
    st.sampled_from(NODES).map(events.Cordon),
    st.sampled_from(NODES).map(lambda node: events.Drain(node, 1000)),
    st.sampled_from(NODES).map(lambda node: events.ForceDrain(node, 1000)),
    st.just(events.ThawCluster()),
    st.just(events.DaemonStop(3)),
)


@st.composite
def ledgers(draw: st.DrawFn) -> list[Entry]:
    """Entries as the index sees them. Nothing is signed: it takes only what has been verified."""
    entries: list[Entry] = []
    at_ms = 1000
    for seq in range(1, draw(st.integers(0, 25)) + 1):
        at_ms += draw(st.integers(0, 3))
        event = draw(EVENTS)
        again = entries and draw(st.integers(0, 4)) == 0
        blast_hash = bytes(32) if event.kind in events.ICE_KINDS else None
        envelope = Envelope(bytes(16), 1, 2, seq.to_bytes(16, "big"), event, "", blast_hash)
        payload = entries[-1].body.payload if again else envelope.payload()
        signers = draw(st.lists(st.sampled_from(OPERATORS), max_size=3))
        signatures = tuple(OperatorSignature(operator, bytes(64)) for operator in signers)
        refusal = draw(st.none() | st.just(Refusal("replayed", "")))
        body = LedgerBody(1, 1, payload, signatures, (), refusal)
        record = Record(seq, at_ms, bytes(32), bytes(32), b"")
        entries.append(Entry(record, body, Envelope.parse(payload)))
    return entries


FILTERS = st.builds(
    AuditFilter,
    limit=st.integers(1, 30),
    since=st.integers(0, 27),
    operator=st.none() | st.sampled_from(OPERATORS),
    from_ms=st.none() | st.integers(995, 1080),
    to_ms=st.none() | st.integers(995, 1080),
    force_only=st.booleans(),
    kind=st.none() | st.sampled_from(["cordon", "drain", "force-drain", "daemon-stop", "policy"]),
    node=st.none() | st.sampled_from(NODES),
    outcome=st.none() | st.sampled_from(["accepted", "rejected"]),
)


def matches(entry: Entry, wanted: AuditFilter) -> bool:
    record, event = entry.record, entry.event
    return (
        record.seq > wanted.since
        and (wanted.operator is None or any(s.operator_id == wanted.operator for s in entry.body.signatures))
        and (wanted.from_ms is None or record.at_ms >= wanted.from_ms)
        and (wanted.to_ms is None or record.at_ms <= wanted.to_ms)
        and (not wanted.force_only or event.kind in events.ICE_KINDS)
        and (wanted.kind is None or event.kind == wanted.kind)
        and (wanted.node is None or getattr(event, "node", None) == wanted.node)
        and (wanted.outcome is None or (wanted.outcome == "accepted") == entry.accepted)
    )


@given(ledgers(), st.lists(FILTERS, min_size=1, max_size=12), st.integers(0, 25))
@settings(max_examples=60, deadline=None)
def test_queries_against_brute_force(entries: list[Entry], filters: list[AuditFilter], cut: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        index = LedgerIndex(Path(folder, "audit.db"))
        try:
            index.add(entries)
            index.add(entries[-2:])  # what a replay after a crash repeats
            for held in (entries, entries[:cut]):
                index.cut(len(held))
                assert index.head() == len(held)
                for wanted in filters:
                    found = [entry.record.seq for entry in held if matches(entry, wanted)]
                    assert index.seqs(wanted, newest_first=False) == found[: wanted.limit]
                    assert index.seqs(wanted) == found[::-1][: wanted.limit]
                for entry in held:
                    same = [e for e in held if e.body.commit_id() == entry.body.commit_id()]
                    accepted = [e.record.seq for e in same if e.accepted]
                    assert index.seq_of(entry.body.commit_id()) == max(accepted or [e.record.seq for e in same])
            assert index.seq_of(bytes(16)) is None
        finally:
            index.close()


def test_an_index_of_another_version_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    index = LedgerIndex(path)
    index.add(long_ledger().entries)
    index.close()
    connection = apsw.Connection(str(path))
    connection.pragma("user_version", 999)
    connection.close()
    index = LedgerIndex(path)
    assert index.head() == 0
    index.close()


@given(st.integers(0, 30))
@settings(max_examples=12, deadline=None)
def test_a_snapshot_goes_on_as_the_fold_would(at: int) -> None:
    ledger = long_ledger()
    state = LedgerState()
    for record in ledger.records[:at]:
        fold_record(state, record)
    with tempfile.TemporaryDirectory() as folder:
        index = LedgerIndex(Path(folder, "audit.db"))
        try:
            index.save("admin", state)
            loaded = index.load("admin", LedgerState)
        finally:
            index.close()
    assert loaded is not None and snapshot(loaded) == snapshot(state)
    for record in ledger.records[at:]:
        fold_record(loaded, record)
    assert snapshot(loaded) == snapshot(ledger.state)


# A node's copy over its restarts


async def copied(directory: Path, records: list[Record]) -> bytes:
    """Open the copy, give it records, close it; the state it had at the end."""
    with Store.open(directory / "ledger.db") as store:
        copy = LedgerCopy(directory, store, key("node-a"))
        try:
            await copy.advance(records)
            found = copy.query(AuditFilter(limit=1000))
            assert [entry.record.seq for entry in found] == list(range(copy.head.seq, 0, -1))
            return snapshot(copy.state)
        finally:
            copy.close()


def test_a_copy_over_many_restarts_equals_one_replay(tmp_path: Path) -> None:
    ledger = long_ledger()
    rng = random.Random(1)
    state = b""
    at = 0
    while at < len(ledger.records):
        step = rng.randint(1, 6)
        begin = max(0, at - rng.randint(0, 2))  # records it has already may come again
        state = asyncio.run(copied(tmp_path, ledger.records[begin : at + step]))
        at += step
    assert state == snapshot(ledger.state)


@pytest.mark.parametrize("damage", ["lost", "behind", "ahead", "foreign-snapshot"])
def test_an_index_that_does_not_fit_the_copy_is_mended(tmp_path: Path, damage: str) -> None:
    """The index is written without waiting for the disk, so after a crash it may have any age."""
    ledger = long_ledger()
    asyncio.run(copied(tmp_path, ledger.records[:20]))
    path = tmp_path / "audit.db"
    if damage == "lost":
        for file in tmp_path.glob("audit.db*"):
            file.unlink()
    else:
        index = LedgerIndex(path)
        if damage == "behind":
            index.cut(7)
        elif damage == "ahead":
            index.add(ledger.entries)
            index.save(ADMIN_CHAIN, ledger.state)
        else:
            other = Ledger("elsewhere")
            index.save(ADMIN_CHAIN, other.state)
        index.close()
    wanted = Ledger.__new__(Ledger)
    wanted.state = LedgerState()
    for record in ledger.records[:20]:
        fold_record(wanted.state, record)
    assert asyncio.run(copied(tmp_path, [])) == snapshot(wanted.state)
    index = LedgerIndex(path)
    try:
        everything = AuditFilter(limit=100)
        assert index.seqs(everything, newest_first=False) == list(range(1, 21))
        bob = AuditFilter(operator=key("bob").operator_id)
        assert index.seqs(bob) == [e.record.seq for e in ledger.entries[:20][::-1] if matches(e, bob)]
    finally:
        index.close()


def test_a_copy_compares_what_it_has_with_what_it_is_given(tmp_path: Path) -> None:
    ledger = long_ledger()
    other = ledger.fork()
    ours = ledger.accept(events.Cordon(key("node-a").node_id)).record
    theirs = other.accept(events.Drain(key("node-a").node_id, 5000)).record
    asyncio.run(copied(tmp_path, ledger.records))
    assert ours.seq == theirs.seq
    with pytest.raises(NetError) as caught:
        asyncio.run(copied(tmp_path, [theirs]))
    assert (caught.value.kind, caught.value.details["seq"]) == ("ledger-tampered", ours.seq)


def test_a_tampered_record_stops_a_copy_for_good(tmp_path: Path) -> None:
    async def scenario() -> None:
        ledger = long_ledger()
        bad = Record(*(getattr(ledger.records[5], name) for name in ("seq", "at_ms", "prev_hash", "hash", "payload")))
        with Store.open(tmp_path / "ledger.db") as store:
            copy = LedgerCopy(tmp_path, store, key("node-a"))
            await copy.advance(ledger.records[:5])
            for records in ([bad], ledger.records[5:]):
                with pytest.raises(NetError) as caught:
                    await copy.advance(records)
                assert (caught.value.kind, caught.value.details["seq"]) == ("ledger-tampered", 6)
            assert copy.head.seq == 5
            with pytest.raises(NetError) as caught:
                await copy.wait_for(6, 5.0)
            assert caught.value.kind == "ledger-tampered"
            copy.close()
            assert store.head(ADMIN_CHAIN).seq == 5, "what was verified is kept, the rest never reaches the disk"

    asyncio.run(scenario())
