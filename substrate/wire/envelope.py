"""Signed envelopes: the exact bytes an operator signs (contract section 5).

    domain | u8 version | cluster_id 16 | u64 issued_at_ms | u64 expires_at_ms | nonce 16
    | [ICE: blast_hash 32] | postcard(event) | u32 reason_len | reason UTF-8

Integers are little-endian. `commit_id` is the first 16 bytes of SHA-256 over them.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Final

import msgspec

from substrate.wire.errors import NetError
from substrate.wire.events import ADMIN_EVENTS, ICE_KINDS, Event
from substrate.wire.postcard import PostcardError, Reader

ICE_DOMAIN: Final = b"net-deck-ice:"
ADMIN_DOMAIN: Final = b"net-deck-admin:"
NODE_DOMAIN: Final = b"net-node:"
KEY_PROOF_DOMAIN: Final = b"net-deck-key:"
"""What a new operator key signs to prove possession: this and its public key."""
VERSION: Final = 1
MAX_REASON_BYTES: Final = 4096


class Envelope(msgspec.Struct, frozen=True):
    """One command as it is signed. `cluster_id` and `nonce` are 16 bytes, `blast_hash` 32 (ICE only)."""

    cluster_id: bytes
    issued_at_ms: int
    expires_at_ms: int
    nonce: bytes
    event: Event
    reason: str = ""
    blast_hash: bytes | None = None

    @property
    def domain(self) -> bytes:
        """The prefix that keeps ICE and admin signatures apart."""
        return ICE_DOMAIN if self.event.kind in ICE_KINDS else ADMIN_DOMAIN

    def payload(self) -> bytes:
        """The bytes to sign."""
        reason = self.reason.encode()
        if len(reason) > MAX_REASON_BYTES:
            raise NetError("too-large", f"the reason is longer than {MAX_REASON_BYTES} bytes", "shorten it")
        assert (self.blast_hash is not None) == (self.event.kind in ICE_KINDS), "ICE, and only ICE, signs a blast hash"
        return b"".join(
            (
                self.domain,
                bytes((VERSION,)),
                self.cluster_id,
                struct.pack("<QQ", self.issued_at_ms, self.expires_at_ms),
                self.nonce,
                self.blast_hash or b"",
                ADMIN_EVENTS.to_bytes(self.event),
                struct.pack("<I", len(reason)),
                reason,
            )
        )

    def commit_id(self) -> bytes:
        """16 bytes that name the commit before it is sent."""
        return commit_id_of(self.payload())

    @classmethod
    def parse(cls, payload: bytes) -> Envelope:
        """The envelope of signed bytes; raises `PostcardError` unless they are exactly one."""
        reader = Reader(payload)
        for domain in (ICE_DOMAIN, ADMIN_DOMAIN):
            if payload.startswith(domain):
                reader.take(len(domain))
                break
        else:
            raise PostcardError("the bytes carry no domain of ours")
        if reader.take(1)[0] != VERSION:
            raise PostcardError("the envelope's version is not known")
        cluster_id = reader.take(16)
        issued, expires = struct.unpack("<QQ", reader.take(16))
        nonce = reader.take(16)
        blast_hash = reader.take(32) if domain == ICE_DOMAIN else None
        event = ADMIN_EVENTS.read(reader)
        if (event.kind in ICE_KINDS) != (domain == ICE_DOMAIN):
            raise PostcardError("the event does not belong to the domain")
        (length,) = struct.unpack("<I", reader.take(4))
        if length > MAX_REASON_BYTES:
            raise PostcardError("the reason is too long")
        try:
            reason = reader.take(length).decode()
        except UnicodeDecodeError as error:
            raise PostcardError("the reason is not UTF-8") from error
        reader.done()
        return cls(cluster_id, issued, expires, nonce, event, reason, blast_hash)


def commit_id_of(payload: bytes) -> bytes:
    """First 16 bytes of SHA-256 of the signed bytes."""
    return hashlib.sha256(payload).digest()[:16]


def key_proof_payload(public_key: bytes) -> bytes:
    """What the owner of a new operator key signs to prove possession of it."""
    return KEY_PROOF_DOMAIN + public_key


def join_proof_payload(cluster_id: bytes, name: str, public_key: bytes) -> bytes:
    """What a node key signs to be admitted to a cluster under a name."""
    return NODE_DOMAIN + b"join" + cluster_id + public_key + name.encode()


def seal_payload(record_hash: bytes) -> bytes:
    """What a node key signs to stand for a record it appended."""
    return NODE_DOMAIN + b"seal" + record_hash
