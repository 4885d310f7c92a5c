"""ed25519 key pairs for operators, nodes and join tokens."""

from __future__ import annotations

import os

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from substrate.identity import ids


class Keypair:
    """A private key made from a 32-byte seed. `public_key` is 32 bytes, signatures are 64."""

    def __init__(self, seed: bytes) -> None:
        if len(seed) != 32:
            raise ValueError("a seed is 32 bytes")
        self._private = Ed25519PrivateKey.from_private_bytes(seed)
        self.public_key = self._private.public_key().public_bytes_raw()

    @classmethod
    def generate(cls) -> Keypair:
        """A new random key."""
        return cls(os.urandom(32))

    @property
    def operator_id(self) -> int:
        """The id this key has as an operator."""
        return ids.operator_id(self.public_key)

    @property
    def node_id(self) -> int:
        """The id this key has as a node."""
        return ids.node_id(self.public_key)

    def seed(self) -> bytes:
        """The 32-byte secret, for writing a key file."""
        return self._private.private_bytes_raw()

    def sign(self, payload: bytes) -> bytes:
        """The 64-byte signature over `payload`."""
        return self._private.sign(payload)

    def __repr__(self) -> str:
        return f"Keypair(public_key={self.public_key.hex()})"  # never the seed
