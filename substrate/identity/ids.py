"""Ids derived from public keys (contract section 1; reference/operator-plane.md 1.1)."""

from __future__ import annotations

import hashlib


def _keyed(key: bytes, message: bytes) -> int:
    return int.from_bytes(hashlib.blake2s(message, key=key, digest_size=32).digest()[:8], "little")


def operator_id(public_key: bytes) -> int:
    """The u64 operator id (also called origin hash) of a 32-byte ed25519 public key."""
    return _keyed(b"net-origin-v1", public_key)


def node_id(public_key: bytes) -> int:
    """The u64 node id of a 32-byte ed25519 public key."""
    return _keyed(b"net-node-id-v1", public_key)


def named_id(noun: str, cluster_id: bytes, name: str) -> int:
    """The u64 id of a thing that has a name but no key (daemon, chain) in one cluster."""
    return _keyed(f"net-{noun}-id-v1".encode(), cluster_id + name.encode())


def fingerprint(public_key: bytes) -> str:
    """First 8 bytes of SHA-256 of the public key, as `AA:BB:...`."""
    return ":".join(f"{byte:02X}" for byte in hashlib.sha256(public_key).digest()[:8])
