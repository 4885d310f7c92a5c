"""A ledger that was touched is told by `net audit verify`, with the first bad seq, from the files alone (contract section 6).

A real cluster writes a ledger with every sort of record, stops, and its state directory is copied and bent in one place
at a time. The whole tables go through the verification in this process; one bend of each sort goes through the command.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import apsw
import pytest

from substrate.identity.keys import Keypair
from substrate.operator.verify import verify_files
from substrate.wire.envelope import seal_payload
from substrate.wire.errors import NetError
from substrate.wire.records import record_hash
from tests.contract.attacks import Attacker
from tests.contract.documents import check
from tests.harness import ClusterHarness

SEQ_BITS = 44
NODES = ("a", "b", "c")


class Evidence(NamedTuple):
    """A stopped cluster: its home, the harness, and how many records its ledger has."""

    cluster: ClusterHarness
    records: int


@pytest.fixture(scope="module")
def evidence() -> Iterator[Evidence]:
    with ClusterHarness() as cluster:
        cluster.up(NODES)
        for name in ("bob", "carol", "dave"):
            cluster.ok("identity", "generate", name)
        for name in ("bob", "dave"):
            cluster.ok("identity", "registry", "add", name, "--operator", "alice")
        cluster.ok("admin", "cordon", "--node", "b", "--operator", "alice", "--reason", "naïve ☂")
        cluster.run("daemon", "run", "--name", "web", "--operator", "alice", "--", "sleep", "9999", check=0)
        attacker = Attacker(cluster)
        part = attacker.part()
        refused = attacker.commit(attacker.signed(part | {"expires_at_ms": part["expires_at_ms"] + 1}))
        assert refused.kind == "envelope-expired"  # a rejection on record
        cluster.ok("identity", "registry", "threshold", "2", "--operator", "alice")
        two = attacker.part({"kind": "policy", "changes": {"crash_limit": 7}})
        assert attacker.commit(attacker.signed(two, attacker.alice, attacker.bob)).status == 200
        cluster.ok("admin", "uncordon", "--node", "b", "--operator", "bob")
        cluster.ok("node", "stop", "--all")
        yield Evidence(cluster, int(verify_files(cluster.state_dir)["head_seq"]))


@pytest.fixture
def copy(evidence: Evidence, tmp_path: Path) -> Path:
    """A copy of the state directory, to be bent."""
    return fresh(evidence, tmp_path / "copy")


def fresh(evidence: Evidence, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(
        evidence.cluster.state_dir, target, ignore=lambda _, names: [n for n in names if n.endswith(".sock")]
    )
    return target


class Ledger:
    """The rows of one copy of the ledger, changed behind everybody's back. Changes are undone when it is left."""

    def __init__(self, path: Path, chain: str = "admin", keep: bool = False) -> None:
        self._db = apsw.Connection(str(path))
        self._keep = keep
        self._db.execute("BEGIN")
        self.chain = int(self._one("SELECT id FROM chains WHERE name = ?", chain))

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.execute("COMMIT" if self._keep else "ROLLBACK")
        self._db.close()

    def _one(self, sql: str, *values: Any) -> Any:
        return next(iter(self._db.execute(sql, values)))[0]

    def key(self, seq: int) -> int:
        return self.chain << SEQ_BITS | seq

    def get(self, seq: int, column: str) -> Any:
        return self._one(f"SELECT {column} FROM records WHERE key = ?", self.key(seq))

    def put(self, seq: int, column: str, value: Any) -> None:
        self._db.execute(f"UPDATE records SET {column} = ? WHERE key = ?", (value, self.key(seq)))
        assert self._db.changes() == 1

    def delete(self, seq: int) -> None:
        self._db.execute("DELETE FROM records WHERE key = ?", (self.key(seq),))

    def move(self, seq: int, to: int) -> None:
        self._db.execute("UPDATE records SET key = ? WHERE key = ?", (self.key(to), self.key(seq)))

    def double(self, seq: int, last: int) -> None:
        """Insert a record a second time, right after itself."""
        for other in range(last, seq, -1):
            self.move(other, other + 1)
        self._db.execute(
            "INSERT INTO records SELECT ?, at_ms, end_bytes, hash, seal, payload FROM records WHERE key = ?",
            (self.key(seq + 1), self.key(seq)),
        )

    def rehash(self, seq: int, last: int, keypair: Keypair | None = None) -> None:
        """Make the hashes from `seq` on true again, and the seals those of `keypair`."""
        previous = self.get(seq - 1, "hash") if seq > 1 else bytes(32)
        for number in range(seq, last + 1):
            previous = record_hash("admin", previous, number, self.get(number, "at_ms"), self.get(number, "payload"))
            self.put(number, "hash", previous)
            if keypair is not None:
                self.put(number, "seal", keypair.sign(seal_payload(previous)))


def ledger_of(copy: Path, node: str) -> Path:
    return copy / "nodes" / node / "ledger.db"


def flipped(value: bytes, place: int, bit: int = 0) -> bytes:
    return value[:place] + bytes((value[place] ^ (1 << bit),)) + value[place + 1 :]


def demand_tampered(copy: Path, seq: int, node: str | None = None) -> NetError:
    """Verification must fail and name this record as the first bad one."""
    with pytest.raises(NetError) as caught:
        verify_files(copy, node)
    assert (caught.value.kind, caught.value.details.get("seq")) == ("ledger-tampered", seq), caught.value
    return caught.value


def command(evidence: Evidence, copy: Path, seq: int | None, node: str | None = None) -> None:
    """The same through `net audit verify`: exit 1 and the seq, or exit 0."""
    args = ["audit", "verify", "--path", str(copy), *(["--node", node] if node else [])]
    if seq is None:
        check("audit-verification", evidence.cluster.ok(*args))
        return
    refused = evidence.cluster.refused("ledger-tampered", *args)
    assert refused.code == 1
    assert refused.error["details"]["seq"] == seq, refused


def test_untouched(evidence: Evidence, copy: Path) -> None:
    assert evidence.records >= 11
    command(evidence, copy, None)
    for node in NODES:
        command(evidence, copy, None, node)


def positions(evidence: Evidence, path: Path, every: bool) -> Iterator[tuple[int, str, int, int]]:
    """(seq, column, byte, bit) to flip: every byte, or of each column of each record a few."""
    generator = random.Random(7)
    with apsw.Connection(str(path)) as db:
        chain = next(iter(db.execute("SELECT id FROM chains WHERE name = 'admin'")))[0]
        for seq in range(1, evidence.records + 1):
            for column in ("payload", "hash", "seal"):
                key = chain << SEQ_BITS | seq
                length = next(iter(db.execute(f"SELECT length({column}) FROM records WHERE key = ?", (key,))))[0]
                places = range(length) if every else generator.sample(range(length), 4 if column == "payload" else 1)
                yield from ((seq, column, place, generator.randrange(8)) for place in places)


def flip_each(evidence: Evidence, copy: Path, every: bool) -> int:
    path, count = ledger_of(copy, "b"), 0
    for seq, column, place, bit in list(positions(evidence, path, every)):
        with Ledger(path, keep=True) as ledger:
            before = ledger.get(seq, column)
            ledger.put(seq, column, flipped(before, place, bit))
        demand_tampered(copy, seq, "b")
        with Ledger(path, keep=True) as ledger:
            ledger.put(seq, column, before)
        count += 1
    assert verify_files(copy)["ok"] is True, "the copy is whole again"
    return count


def test_one_flipped_byte(evidence: Evidence, copy: Path) -> None:
    assert flip_each(evidence, copy, every=False) == 6 * evidence.records


@pytest.mark.campaign
def test_every_flipped_byte(evidence: Evidence, copy: Path) -> None:
    assert flip_each(evidence, copy, every=True) > 300 * evidence.records


@pytest.mark.parametrize("holder", ["a", "b", "c", "(engine)"])
def test_a_flip_in_any_copy_is_found_without_being_told_where(evidence: Evidence, copy: Path, holder: str) -> None:
    path = copy / "engine" / "engine.db" if holder == "(engine)" else ledger_of(copy, holder)
    with Ledger(path, keep=True) as ledger:
        ledger.put(5, "payload", flipped(ledger.get(5, "payload"), 40))
    assert demand_tampered(copy, 5).details["holder"] == holder
    command(evidence, copy, 5)


Bend = Callable[[Ledger, int], int]
"""Bends a ledger of so many records; returns the first bad seq."""


def _time(ledger: Ledger, last: int) -> int:
    ledger.put(6, "at_ms", ledger.get(6, "at_ms") + 1)
    return 6


def _removed(ledger: Ledger, last: int) -> int:
    ledger.delete(4)
    return 4


def _removed_and_closed_up(ledger: Ledger, last: int) -> int:
    ledger.delete(4)
    for seq in range(5, last + 1):
        ledger.move(seq, seq - 1)
    return 4


def _swapped(ledger: Ledger, last: int) -> int:
    for column in ("at_ms", "hash", "seal", "payload"):
        one, other = ledger.get(5, column), ledger.get(8, column)
        ledger.put(5, column, other)
        ledger.put(8, column, one)
    return 5


def _doubled(ledger: Ledger, last: int) -> int:
    ledger.double(6, last)
    return 7


def _first_removed(ledger: Ledger, last: int) -> int:
    ledger.delete(1)
    return 1


def _rehashed(ledger: Ledger, last: int) -> int:
    """Somebody without a node's key makes the chain whole again; the seals betray it."""
    ledger.put(6, "at_ms", ledger.get(6, "at_ms") + 1)
    ledger.rehash(6, last)
    return 6


def _resealed_by_a_stranger(ledger: Ledger, last: int) -> int:
    ledger.put(6, "at_ms", ledger.get(6, "at_ms") + 1)
    ledger.rehash(6, last, Keypair.generate())
    return 6


def _cut(ledger: Ledger, last: int) -> int:
    ledger.delete(last)
    ledger.delete(last - 1)
    return last - 1


BENDS = (
    _time, _removed, _removed_and_closed_up, _swapped, _doubled, _first_removed, _rehashed, _resealed_by_a_stranger, _cut,
)  # fmt: skip


@pytest.mark.parametrize("bend", BENDS, ids=lambda bend: bend.__name__[1:])
def test_bent_records(evidence: Evidence, copy: Path, bend: Bend) -> None:
    with Ledger(ledger_of(copy, "a"), keep=True) as ledger:
        seq = bend(ledger, evidence.records)
    demand_tampered(copy, seq, "a")  # alone, against its own checkpoints
    command(evidence, copy, seq)  # and among the others


def _node_key(copy: Path, node: str) -> Keypair:
    return Keypair(bytes.fromhex((copy / "nodes" / node / "node.key").read_text().strip()))


def _operator_record(ledger: Ledger, last: int) -> int:
    """A record signed by an operator that all later seals stand upon."""
    return next(seq for seq in range(4, last) if b"na\xc3\xafve" in ledger.get(seq, "payload"))


def test_a_node_cannot_change_what_an_operator_signed(evidence: Evidence, copy: Path) -> None:
    """With the node's own key hashes and seals are made true again; the operator's signature is not."""
    keypair = _node_key(copy, "a")
    with Ledger(ledger_of(copy, "a"), keep=True) as ledger:
        seq = _operator_record(ledger, evidence.records)
        payload: bytes = ledger.get(seq, "payload")
        ledger.put(seq, "payload", payload.replace(b"na\xc3\xafve", b"clever"))
        ledger.rehash(seq, evidence.records, keypair)
    (copy / "nodes" / "a" / "checkpoints.jsonl").unlink()  # a thief of the key would see to that too
    error = demand_tampered(copy, seq, "a")
    assert "seal" not in error.message
    command(evidence, copy, seq, "a")


def test_a_node_that_rewrites_its_own_words_is_found_by_the_others(evidence: Evidence, copy: Path) -> None:
    """A stolen node key can make a consistent ledger with other times; no operator signed those. The other copies tell."""
    with Ledger(ledger_of(copy, "a"), keep=True) as ledger:
        last = evidence.records
        ledger.put(last, "at_ms", ledger.get(last, "at_ms") + 1)
        ledger.rehash(last, last, _node_key(copy, "a"))
    (copy / "nodes" / "a" / "checkpoints.jsonl").unlink()
    assert verify_files(copy, "a")["ok"] is True  # by itself it cannot be told, which is why there are copies
    demand_tampered(copy, last)
    command(evidence, copy, last)


def _cut_at(path: Path, last: int, keep: int) -> None:
    with Ledger(path, keep=True) as ledger:
        for seq in range(keep + 1, last + 1):
            ledger.delete(seq)


def test_a_tail_cut_everywhere_is_found_by_another_node_s_checkpoint(evidence: Evidence, copy: Path) -> None:
    keep = evidence.records - 3
    for path in (*(ledger_of(copy, node) for node in NODES), copy / "engine" / "engine.db"):
        _cut_at(path, evidence.records, keep)
    for node in ("a", "b"):
        (copy / "nodes" / node / "checkpoints.jsonl").unlink()
    demand_tampered(copy, keep + 1)
    command(evidence, copy, keep + 1)


def test_an_engine_that_lost_its_tail_is_found(evidence: Evidence, copy: Path) -> None:
    """What a node holds the engine held first, so it cannot be behind."""
    keep = evidence.records - 2
    _cut_at(copy / "engine" / "engine.db", evidence.records, keep)
    error = demand_tampered(copy, keep + 1)
    assert error.details["holder"] == "(engine)"
    command(evidence, copy, keep + 1)


def test_a_node_that_was_away_is_not_accused(evidence: Evidence, copy: Path) -> None:
    """A shorter copy without a later checkpoint of its own is a node that has not caught up."""
    _cut_at(ledger_of(copy, "c"), evidence.records, evidence.records - 2)
    (copy / "nodes" / "c" / "checkpoints.jsonl").unlink()
    command(evidence, copy, None)


def test_flipped_pages(evidence: Evidence, tmp_path: Path) -> None:
    """Anywhere in the file, below SQLite: either it is told, or it was a byte that carries nothing."""
    generator = random.Random(11)
    whole = verify_files(evidence.cluster.state_dir, "b")
    told = 0
    for _ in range(40):
        copy = fresh(evidence, tmp_path / "page")
        path = ledger_of(copy, "b")
        content = bytearray(path.read_bytes())
        place = generator.randrange(len(content))
        content[place] ^= 1 << generator.randrange(8)
        path.write_bytes(content)
        try:
            assert verify_files(copy, "b") == whole
        except NetError as error:
            assert error.kind in ("ledger-tampered", "not-yet-supported"), error
            told += 1
    assert told >= 3


def test_the_control_chain_is_checked_too(evidence: Evidence, copy: Path) -> None:
    with Ledger(ledger_of(copy, "c"), "control", keep=True) as ledger:
        ledger.put(2, "payload", flipped(ledger.get(2, "payload"), 3))
    error = demand_tampered(copy, 2, "c")
    assert error.details["chain"] == "control"


def test_a_node_refuses_to_start_on_a_bent_ledger(evidence: Evidence) -> None:
    """Its own copy: it says which record, and does not run."""
    cluster = evidence.cluster
    path = ledger_of(cluster.state_dir, "b")
    with Ledger(path, keep=True) as ledger:
        payload = ledger.get(5, "payload")
        ledger.put(5, "payload", flipped(payload, 40))
    (cluster.node_dir("b") / "audit.db").unlink()  # the index and its snapshot are only a cache
    try:
        refused = cluster.run("node", "start", "--name", "b", "--operator", "alice", "--detach", "--json")
        assert refused.code == 1, refused
        assert refused.error["kind"] == "ledger-tampered", refused
        assert refused.error["details"]["seq"] == 5
    finally:
        with Ledger(path, keep=True) as ledger:
            ledger.put(5, "payload", payload)
