"""Operators' keys as a test needs them: read from the files that `net identity` wrote, without our own reader."""

from __future__ import annotations

import tomllib
from typing import Any

from nacl.signing import SigningKey

from tests.harness import ClusterHarness


def seed_of(cluster: ClusterHarness, name: str) -> str:
    """The seed in hex."""
    document: dict[str, Any] = tomllib.loads(cluster.key_file(name).read_text())
    return str(document["seed"])


class Key:
    """An ed25519 key and the operator id it has or claims."""

    def __init__(self, seed: bytes, operator_id: str) -> None:
        self._key = SigningKey(seed)
        self.operator_id = operator_id

    @classmethod
    def of(cls, cluster: ClusterHarness, name: str) -> Key:
        """The key of an identity in this home."""
        return cls(bytes.fromhex(seed_of(cluster, name)), cluster.ok("identity", "show", name)["operator_id"])

    @property
    def public_key(self) -> bytes:
        return bytes(self._key.verify_key)

    def sign(self, payload: bytes) -> dict[str, str]:
        """The signature document over `payload`."""
        return {"operator_id": self.operator_id, "signature": self.raw(payload).hex()}

    def raw(self, payload: bytes) -> bytes:
        """The 64 bytes."""
        return bytes(self._key.sign(payload).signature)
