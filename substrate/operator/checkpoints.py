"""Signed checkpoints: a node's word that its ledger had a head (contract section 6).

One JSON line each in `checkpoints.jsonl`: seq, hash, at_ms, node_id, signature over
`"net-node:" | "checkpoint" | cluster_id 16 | u64 seq | hash 32 | u64 at_ms`. A ledger cut short is found against any later
checkpoint of any node.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Final

import msgspec

from substrate.identity.keys import Keypair
from substrate.wire.envelope import NODE_DOMAIN
from substrate.wire.records import Head

FILE_NAME: Final = "checkpoints.jsonl"
MAX_LINES: Final = 4096
"""The file is cut to its newer half when it grows beyond this."""


class Checkpoint(msgspec.Struct, frozen=True):
    """One checkpoint. `hash` and `signature` are hex, `node_id` and `cluster_id` as in all documents."""

    seq: int
    hash: str
    at_ms: int
    node_id: str
    cluster_id: str
    signature: str

    def payload(self) -> bytes:
        """The signed bytes."""
        return checkpoint_payload(bytes.fromhex(self.cluster_id), self.seq, bytes.fromhex(self.hash), self.at_ms)


def checkpoint_payload(cluster_id: bytes, seq: int, record_hash: bytes, at_ms: int) -> bytes:
    """What the node key signs."""
    return NODE_DOMAIN + b"checkpoint" + cluster_id + struct.pack("<Q", seq) + record_hash + struct.pack("<Q", at_ms)


def write_checkpoint(directory: Path, keypair: Keypair, cluster_id: bytes, head: Head, at_ms: int) -> Checkpoint:
    """Append a checkpoint durably."""
    signature = keypair.sign(checkpoint_payload(cluster_id, head.seq, head.hash, at_ms))
    checkpoint = Checkpoint(head.seq, head.hash.hex(), at_ms, str(keypair.node_id), cluster_id.hex(), signature.hex())
    path = directory / FILE_NAME
    line = msgspec.json.encode(checkpoint) + b"\n"
    existing = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    if len(existing) >= MAX_LINES:
        draft = path.with_suffix(".new")
        with open(draft, "wb", opener=_private) as file:
            file.writelines([*existing[len(existing) // 2 :], line])
            file.flush()
            os.fsync(file.fileno())
        os.rename(draft, path)
        return checkpoint
    with open(path, "ab", opener=_private) as file:
        if existing and not existing[-1].endswith(b"\n"):
            file.write(b"\n")  # a torn last line of a crash stays alone on its line
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
    return checkpoint


def read_checkpoints(directory: Path) -> list[Checkpoint]:
    """The readable checkpoints of a node; a torn line is passed over, for it was never acknowledged to anybody."""
    try:
        lines = (directory / FILE_NAME).read_bytes().splitlines()
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        try:
            found.append(msgspec.json.decode(line, type=Checkpoint))
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
    return found


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
