"""Offline verification of a cluster's ledger from the files alone (contract section 6).

Every copy (each node's and the engine's) is folded from the first record with all hashes, seals, signatures and verdicts
recomputed; copies must agree, and no checkpoint of any node may lie beyond or beside what is found.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, Final

import msgspec

from substrate.identity.verify import verify_strict
from substrate.operator.checkpoints import Checkpoint, read_checkpoints
from substrate.operator.fold import fold_record, tampered
from substrate.operator.ledger import ADMIN_CHAIN, CONTROL_CHAIN
from substrate.operator.state import LedgerState
from substrate.redex import Store
from substrate.wire.control import TermOpened, decode_control
from substrate.wire.envelope import seal_payload
from substrate.wire.errors import NetError
from substrate.wire.postcard import PostcardError
from substrate.wire.records import EMPTY, Head, check_follows

BATCH: Final = 1000
ENGINE: Final = "(engine)"
"""How the engine's own copy is called among the holders."""


class Copy(msgspec.Struct):
    """One verified copy of the ledger."""

    holder: str
    state: LedgerState
    heads: dict[int, bytes]
    control_seq: int = 0


def verify_files(state_dir: str | Path, node: str | None = None) -> dict[str, Any]:
    """Verify the ledger of the cluster whose state directory this is; `node` limits it to one node's copy.

    Returns `{ok, cluster, cluster_id, records, head_seq, head_hash, copies: [{holder, head_seq, control_seq, checkpoints}]}`.
    Raises `store-not-found`, or `ledger-tampered` with `details.seq` (the first bad one) and `details.holder`.
    """
    root = Path(state_dir)
    sources = {entry.name: entry / "ledger.db" for entry in sorted((root / "nodes").glob("*")) if entry.is_dir()}
    if node is not None:
        sources = {name: path for name, path in sources.items() if name == node}
    elif (root / "engine" / "engine.db").exists():
        sources[ENGINE] = root / "engine" / "engine.db"  # last: while a cluster runs it is never behind what was read
    sources = {holder: path for holder, path in sources.items() if path.exists()}
    if not sources:
        raise NetError(
            "store-not-found",
            f"there is no ledger under {root}",
            "name the cluster with --cluster, or its state directory with --path",
            {"path": str(root)},
        )
    checkpoints = {
        holder: read_checkpoints(path.parent) for holder, path in sources.items() if path.name == "ledger.db"
    }
    copies = [_verify_copy(holder, path) for holder, path in sources.items()]
    longest = max(copies, key=lambda copy: copy.state.head.seq)
    for copy in copies:
        _compare(copy, longest)
    for holder, marks in checkpoints.items():
        own = next(copy for copy in copies if copy.holder == holder)
        for mark in marks:
            _check_mark(mark, holder, own, longest)
    state = longest.state
    return {
        "ok": True,
        "cluster": state.cluster,
        "cluster_id": state.cluster_id.hex(),
        "records": state.head.seq,
        "head_seq": state.head.seq,
        "head_hash": state.head.hash.hex(),
        "copies": [
            {
                "holder": copy.holder,
                "head_seq": copy.state.head.seq,
                "control_seq": copy.control_seq,
                "checkpoints": len(checkpoints.get(copy.holder, [])),
            }
            for copy in copies
        ],
    }


def _verify_copy(holder: str, path: Path) -> Copy:
    copy = Copy(holder, LedgerState(), {})
    try:
        with Store.open(path, read_only=True, create=False) as store:
            names = {info.name for info in store.chains()}
            if ADMIN_CHAIN in names:
                _fold_all(store, copy)
            if CONTROL_CHAIN in names:
                copy.control_seq = _verify_control(store, copy.state).seq
            store.check_file()  # finds what a damaged page hides from the reads above
    except NetError as error:
        if error.kind not in ("ledger-tampered", "corrupt-store"):
            raise
        seq = error.details.get("seq", copy.state.head.seq + 1)
        details = {**error.details, "seq": seq, "holder": holder, "path": str(path)}
        raise NetError("ledger-tampered", f"{holder}: {error.message}", error.hint, details) from error
    return copy


def _fold_all(store: Store, copy: Copy) -> None:
    expected = store.head(ADMIN_CHAIN).seq
    while copy.state.head.seq < expected:
        records = store.read(ADMIN_CHAIN, copy.state.head.seq + 1, limit=BATCH)
        if not records:
            raise tampered(copy.state.head.seq + 1, "it is missing")
        for record in records:
            fold_record(copy.state, record)
            copy.heads[record.seq] = record.hash


def _verify_control(store: Store, state: LedgerState) -> Head:
    """Hashes, terms and seals of the decisions; a leader must be a node the ledger admitted."""
    head, term, of_term = EMPTY, 0, 0
    expected = store.head(CONTROL_CHAIN).seq
    while head.seq < expected:
        records = store.read(CONTROL_CHAIN, head.seq + 1, limit=BATCH)
        if not records:
            raise _bad_control(head.seq + 1, "it is missing")
        for record in records:
            head = check_follows(CONTROL_CHAIN, head, [record])
            try:
                record_term, leader, event = decode_control(record.payload)
            except PostcardError as error:
                raise _bad_control(record.seq, f"it cannot be decoded: {error}") from error
            node = state.nodes.get(leader)
            if node is None or not verify_strict(node.public_key, seal_payload(record.hash), record.seal):
                raise _bad_control(record.seq, "its leader's signature does not verify")
            if isinstance(event, TermOpened) and record_term > term:
                term, of_term = record_term, leader
            elif isinstance(event, TermOpened) or (record_term, leader) != (term, of_term):
                raise _bad_control(record.seq, "its term is over, or another node's")
    return head


def _bad_control(seq: int, reason: str) -> NetError:
    return NetError(
        "ledger-tampered",
        f"record {seq} of the control chain is not genuine: {reason}",
        "compare with another node's copy",
        {"seq": seq, "chain": CONTROL_CHAIN, "reason": reason},
    )


def _compare(copy: Copy, longest: Copy) -> None:
    """Copies agree as far as both go; the engine's, which every record reached first, goes furthest."""
    common = min(copy.state.head.seq, longest.state.head.seq)
    if common and copy.heads[common] != longest.heads[common]:
        seq = next(seq for seq in range(1, common + 1) if copy.heads[seq] != longest.heads[seq])
        error = tampered(seq, f"the copies of {copy.holder} and {longest.holder} differ from here on")
    elif copy.holder == ENGINE and common < longest.state.head.seq:
        error = tampered(common + 1, f"the engine lacks it, but {longest.holder} had it from there")
    else:
        return
    error.details["holder"] = copy.holder
    raise error


def _check_mark(mark: Checkpoint, holder: str, own: Copy, longest: Copy) -> None:
    """A checkpoint must be genuine, and the record it speaks of must be there with that hash."""
    state = longest.state
    if mark.seq <= state.head.seq and not _is_genuine(mark, state):
        error = tampered(max(1, mark.seq), f"a checkpoint of {holder} about it carries no valid signature")
    elif mark.seq > own.state.head.seq:
        error = tampered(own.state.head.seq + 1, f"{holder} had records to {mark.seq}: its ledger was cut")
    elif own.heads[mark.seq].hex() != mark.hash:
        error = tampered(mark.seq, f"a checkpoint of {holder} has another hash for it")
    else:
        return
    error.details["holder"] = holder
    raise error


def _is_genuine(mark: Checkpoint, state: LedgerState) -> bool:
    try:
        node = state.nodes.get(int(mark.node_id))
        signature, signed = bytes.fromhex(mark.signature), mark.payload()
    except (ValueError, struct.error):
        return False  # no id, no hex, or a number out of range: nothing a node ever wrote
    return mark.seq > 0 and node is not None and verify_strict(node.public_key, signed, signature)
