"""Offline verification: files alone tell whether a ledger is whole, and where it is not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest

from substrate.operator.checkpoints import FILE_NAME, MAX_LINES, Checkpoint, read_checkpoints, write_checkpoint
from substrate.operator.ledger import ADMIN_CHAIN, CONTROL_CHAIN
from substrate.operator.verify import verify_files
from substrate.redex import Store
from substrate.wire import events
from substrate.wire.control import Assigned, TermOpened, encode_control
from substrate.wire.errors import NetError
from substrate.wire.records import EMPTY, Head, Record, next_record
from substrate.wire.structs import Variant
from tests.operator.maker import Ledger, key, long_ledger, seal

A, B = key("node-a").node_id, key("node-b").node_id
LENGTH = 30


def put(path: Path, chain: str, records: list[Record]) -> None:
    """Append records to a store as a node would."""
    with Store.open(path) as store:
        names = {info.name for info in store.chains()}
        before = store.head(chain) if chain in names else EMPTY
        store.append_records(chain, records, expect=before, create=True)


def mark(root: Path, node: str, ledger: Ledger, seq: int) -> None:
    """A true checkpoint of one node."""
    record = ledger.records[seq - 1]
    write_checkpoint(root / "nodes" / node, key(f"node-{node}"), ledger.state.cluster_id, record.head, record.at_ms)


@pytest.fixture(scope="module")
def ledger() -> Ledger:
    return long_ledger()


@pytest.fixture
def root(tmp_path: Path, ledger: Ledger) -> Path:
    """A cluster's files: the engine and node a have everything, node b lags behind."""
    for holder, count in (("engine/engine.db", LENGTH), ("nodes/a/ledger.db", LENGTH), ("nodes/b/ledger.db", 20)):
        put(tmp_path / holder, ADMIN_CHAIN, ledger.records[:count])
    for seq in (10, 20):
        mark(tmp_path, "a", ledger, seq)
        mark(tmp_path, "b", ledger, seq)
    mark(tmp_path, "a", ledger, LENGTH)
    return tmp_path


def found(root: Path, node: str | None = None) -> dict[str, Any]:
    """The details of the tampering that must be found."""
    with pytest.raises(NetError) as caught:
        verify_files(root, node)
    assert caught.value.kind == "ledger-tampered"
    return caught.value.details


def test_whole_files_verify(root: Path, ledger: Ledger) -> None:
    result = verify_files(root)
    assert (result["ok"], result["records"], result["head_hash"]) == (True, LENGTH, ledger.state.head.hash.hex())
    copies = {copy["holder"]: (copy["head_seq"], copy["checkpoints"]) for copy in result["copies"]}
    assert copies == {"a": (LENGTH, 3), "b": (20, 2), "(engine)": (LENGTH, 0)}
    assert [copy["holder"] for copy in verify_files(root, "b")["copies"]] == ["b"]


def test_without_files_there_is_nothing_to_verify(tmp_path: Path, root: Path) -> None:
    for where, node in ((tmp_path / "nowhere", None), (root, "z")):
        with pytest.raises(NetError) as caught:
            verify_files(where, node)
        assert caught.value.kind == "store-not-found"


def edit(path: Path, statement: str, *arguments: Any) -> None:
    """Change a store behind its back."""
    connection = apsw.Connection(str(path))
    try:
        connection.execute(statement, arguments)
    finally:
        connection.close()


def keys_of(path: Path) -> list[int]:
    connection = apsw.Connection(str(path))
    try:
        return [int(key) for (key,) in connection.execute("SELECT key FROM records ORDER BY key")]
    finally:
        connection.close()


@pytest.mark.parametrize("holder", ["nodes/a/ledger.db", "nodes/b/ledger.db", "engine/engine.db"])
@pytest.mark.parametrize("column", ["payload", "seal", "hash", "at_ms"])
def test_a_changed_byte_in_any_copy_is_found(root: Path, holder: str, column: str) -> None:
    path = root / holder
    for seq in (1, 7, 20):
        row = keys_of(path)[seq - 1]
        connection = apsw.Connection(str(path))
        value = connection.execute(f"SELECT {column} FROM records WHERE key = ?", (row,)).get
        connection.close()
        if isinstance(value, bytes):
            changed: Any = value[:5] + bytes([value[5] ^ 1]) + value[6:]
        else:
            changed = value + 1
        edit(path, f"UPDATE records SET {column} = ? WHERE key = ?", changed, row)
        details = found(root)
        assert details["seq"] == seq
        assert details["holder"] == {"nodes/a": "a", "nodes/b": "b", "engine": "(engine)"}[holder.rpartition("/")[0]]
        edit(path, f"UPDATE records SET {column} = ? WHERE key = ?", value, row)
        assert verify_files(root)["ok"]


def test_a_removed_record_is_found(root: Path) -> None:
    path = root / "nodes/a/ledger.db"
    edit(path, "DELETE FROM records WHERE key = ?", keys_of(path)[11])
    assert found(root)["seq"] == 12


def cut(path: Path, length: int) -> None:
    """Remove the tail of the ledger, leaving no trace in the store."""
    edit(path, "DELETE FROM records WHERE key > ?", keys_of(path)[length - 1])


def test_a_cut_tail_is_found_against_a_later_checkpoint(root: Path) -> None:
    cut(root / "nodes/a/ledger.db", 25)
    details = found(root)
    assert (details["seq"], details["holder"]) == (26, "a")


def test_a_tail_cut_everywhere_is_found_by_one_checkpoint_of_one_node(root: Path) -> None:
    for holder in ("engine/engine.db", "nodes/a/ledger.db", "nodes/b/ledger.db"):
        cut(root / holder, 19)
    for node in ("a", "b"):
        (root / "nodes" / node / FILE_NAME).unlink()
    assert verify_files(root)["records"] == 19, "without a later checkpoint nothing tells"
    mark(root, "b", long_ledger(), 20)
    details = found(root)
    assert (details["seq"], details["holder"]) == (20, "b")


def test_two_ledgers_that_are_each_whole_are_told_apart(tmp_path: Path, ledger: Ledger) -> None:
    other = ledger.fork()
    other.accept(events.Uncordon(A))
    ours = ledger.fork()
    ours.accept(events.Cordon(A))
    put(tmp_path / "nodes/a/ledger.db", ADMIN_CHAIN, ours.records)
    put(tmp_path / "nodes/b/ledger.db", ADMIN_CHAIN, other.records)
    assert found(tmp_path)["seq"] == LENGTH + 1
    assert verify_files(tmp_path, "a")["ok"] and verify_files(tmp_path, "b")["ok"]


def forgeries(ledger: Ledger) -> Iterator[tuple[str, Checkpoint]]:
    record = ledger.records[9]
    true = Checkpoint(10, record.hash.hex(), record.at_ms, str(A), ledger.state.cluster_id.hex(), "")

    def signed(mark: Checkpoint, by: str) -> Checkpoint:
        return msgspec.structs.replace(mark, signature=key(by).sign(mark.payload()).hex())

    replace = msgspec.structs.replace
    yield "another's signature", signed(true, "node-b")
    yield "an unknown node", signed(replace(true, node_id=str(key("node-x").node_id)), "node-x")
    yield "an operator's signature", signed(true, "alice")
    yield "a hash the ledger has not", signed(replace(true, hash="00" * 32), "node-a")
    yield "another cluster", replace(signed(true, "node-a"), cluster_id="00" * 16)
    yield "another time", replace(signed(true, "node-a"), at_ms=5)
    yield "no signature", true
    yield "no hex", replace(true, signature="what?")
    yield "no id", replace(true, node_id="a")
    yield "a negative seq", replace(true, seq=-1)
    yield "seq 0", signed(replace(true, seq=0), "node-a")
    yield "a time out of range", replace(true, at_ms=-1)


@pytest.mark.parametrize("case", range(12))
def test_forged_checkpoints_are_found(root: Path, ledger: Ledger, case: int) -> None:
    name, forged = list(forgeries(ledger))[case]
    with open(root / "nodes/a" / FILE_NAME, "ab") as file:
        file.write(msgspec.json.encode(forged) + b"\n")
    assert found(root)["seq"] == (10 if forged.seq > 0 else 1), name


def test_there_are_no_more_forgeries_than_are_tried(ledger: Ledger) -> None:
    assert len(list(forgeries(ledger))) == 12


def test_a_torn_last_line_is_no_checkpoint_and_spoils_none(root: Path, ledger: Ledger) -> None:
    path = root / "nodes/a" / FILE_NAME
    whole = path.read_bytes()
    for size in range(len(whole) - 40, len(whole)):
        path.write_bytes(whole[:size])
        assert len(read_checkpoints(path.parent)) == 2 + (size == len(whole) - 1)
    mark(root, "a", ledger, LENGTH)
    assert [m.seq for m in read_checkpoints(path.parent)][-1] == LENGTH
    assert verify_files(root)["ok"]
    path.write_bytes(b"\xff\xfe noise\n" + whole)
    assert len(read_checkpoints(path.parent)) == 3


def test_the_checkpoint_file_does_not_grow_for_ever(root: Path, ledger: Ledger) -> None:
    path = root / "nodes/a" / FILE_NAME
    line = path.read_bytes().splitlines(keepends=True)[-1]
    path.write_bytes(line * MAX_LINES)
    mark(root, "a", ledger, LENGTH)
    assert len(read_checkpoints(path.parent)) == MAX_LINES // 2 + 1
    assert path.stat().st_mode & 0o777 == 0o600
    assert json.loads(path.read_bytes().splitlines()[-1])["seq"] == LENGTH


# Control


def decisions(*steps: tuple[int, str, Variant]) -> list[Record]:
    """Control records of (term, leader, event), each sealed by its leader."""
    records: list[Record] = []
    head: Head = EMPTY
    for term, leader, event in steps:
        payload = encode_control(term, key(leader).node_id, event)
        records.append(seal(next_record(CONTROL_CHAIN, head, 1000, payload), leader))
        head = records[-1].head
    return records


ASSIGNED = Assigned(1, 0, A, 7, "placed")


def test_true_decisions_verify(root: Path) -> None:
    steps = decisions(
        (1, "node-a", TermOpened(7)), (1, "node-a", ASSIGNED), (5, "node-b", TermOpened(8)), (5, "node-b", ASSIGNED)
    )
    put(root / "nodes/a/ledger.db", CONTROL_CHAIN, steps)
    assert next(c for c in verify_files(root)["copies"] if c["holder"] == "a")["control_seq"] == 4


@pytest.mark.parametrize(
    "last",
    [
        (1, "node-a", ASSIGNED),  # of a term that is over
        (2, "node-a", ASSIGNED),  # in another's term
        (3, "node-b", ASSIGNED),  # of a term nobody opened
        (2, "node-a", TermOpened(9)),  # opens a term that is open
        (3, "node-x", TermOpened(9)),  # by a stranger
    ],
)
def test_decisions_of_nobodys_term_are_found(root: Path, last: tuple[int, str, Variant]) -> None:
    before = ((1, "node-a", TermOpened(7)), (1, "node-a", ASSIGNED), (2, "node-b", TermOpened(8)))
    put(root / "nodes/b/ledger.db", CONTROL_CHAIN, decisions(*before, last))
    details = found(root)
    assert (details["seq"], details["chain"], details["holder"]) == (4, CONTROL_CHAIN, "b")


def test_a_decision_that_cannot_be_read_is_found(root: Path) -> None:
    record = seal(next_record(CONTROL_CHAIN, EMPTY, 1000, b"\xff"), "node-a")
    put(root / "nodes/b/ledger.db", CONTROL_CHAIN, [record])
    details = found(root)
    assert (details["seq"], details["chain"]) == (1, CONTROL_CHAIN)
