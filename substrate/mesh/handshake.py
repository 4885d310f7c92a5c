"""The mutual proof of node keys at the beginning of every link. Pure: messages in, messages out.

Both sides learn whom they talk to before the first request; a failure has a kind: `cluster-changed` for another cluster,
`not-admitted` for an unknown key, a wrong key or a signature that does not match. Source: contract section 6.

On a Unix socket nothing binds later frames to the handshake but the socket itself, which only this user and root can reach;
`tls:` endpoints will put the channel's binding under the signatures.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Protocol

import msgspec

from substrate.identity.verify import verify_strict
from substrate.mesh.protocol import (
    NONCE_BYTES,
    PROTOCOL_VERSION,
    Hello,
    Proof,
    Welcome,
    transcript,
    well_formed,
)
from substrate.wire.errors import NetError


class Signer(Protocol):
    """A node's key pair (`substrate.identity.keys.Keypair`)."""

    @property
    def public_key(self) -> bytes:
        """32 bytes."""
        ...

    def sign(self, payload: bytes) -> bytes:
        """64 bytes."""
        ...


class PeerInfo(msgspec.Struct, frozen=True):
    """A node that is admitted to the cluster."""

    node_id: int
    name: str
    public_key: bytes


Authorize = Callable[[bytes], PeerInfo | None]
"""Says which admitted node a public key belongs to, or None. Asked again for every call, so that a removal takes hold."""


def _not_admitted(message: str, key: bytes) -> NetError:
    return NetError("not-admitted", message, "admit the node to the cluster: net node start", {"public_key": key.hex()})


def _check_greeting(greeting: Hello | Welcome, cluster_id: bytes, own_key: bytes) -> None:
    """What both sides check before any signature."""
    if greeting.version != PROTOCOL_VERSION:
        raise NetError(
            "not-admitted",
            f"the peer speaks version {greeting.version} of the node protocol, this node {PROTOCOL_VERSION}",
            "run the same release on both nodes",
            {"version": greeting.version},
        )
    if not well_formed(greeting):
        raise NetError("not-admitted", "the peer's greeting has fields of a wrong size")
    if greeting.cluster_id != cluster_id:
        raise NetError(
            "cluster-changed",
            f"the peer belongs to cluster {greeting.cluster_id.hex()}, this node to {cluster_id.hex()}",
            details={"cluster_id": greeting.cluster_id.hex()},
        )
    if greeting.public_key == own_key:
        raise _not_admitted("the peer claims this node's own key", own_key)


class ServerHandshake:
    """The answering side: `welcome(hello)`, then `finish(proof)`."""

    def __init__(self, signer: Signer, cluster_id: bytes, authorize: Authorize) -> None:
        self._signer = signer
        self._cluster_id = cluster_id
        self._authorize = authorize
        self._nonce = os.urandom(NONCE_BYTES)
        self._hello: Hello | None = None

    def welcome(self, hello: Hello) -> Welcome:
        """The answer to the client's first message; an unknown key is refused before anything is signed for it."""
        own_key = self._signer.public_key
        _check_greeting(hello, self._cluster_id, own_key)
        if self._authorize(hello.public_key) is None:
            raise _not_admitted("this key belongs to no node of the cluster", hello.public_key)
        self._hello = hello
        signature = self._signer.sign(transcript("server", hello, own_key, self._nonce))
        return Welcome(PROTOCOL_VERSION, self._cluster_id, own_key, self._nonce, signature)

    def finish(self, proof: Proof) -> PeerInfo:
        """The peer, once its signature is found true."""
        assert self._hello is not None, "welcome() comes first"
        key = self._hello.public_key
        payload = transcript("client", self._hello, self._signer.public_key, self._nonce)
        if not verify_strict(key, payload, proof.signature):
            raise _not_admitted("the peer could not prove the key it claims", key)
        info = self._authorize(key)
        if info is None:
            raise _not_admitted("the node was removed from the cluster", key)
        return info


class ClientHandshake:
    """The calling side: sends `hello`, then `prove(welcome)`. `expected_key` is what membership says."""

    def __init__(self, signer: Signer, cluster_id: bytes, expected_key: bytes) -> None:
        self._signer = signer
        self._cluster_id = cluster_id
        self._expected_key = expected_key
        self.hello = Hello(PROTOCOL_VERSION, cluster_id, signer.public_key, os.urandom(NONCE_BYTES))

    def prove(self, welcome: Welcome) -> Proof:
        """The proof to send, once the server is found to be the node that was meant."""
        _check_greeting(welcome, self._cluster_id, self._signer.public_key)
        if welcome.public_key != self._expected_key:
            raise _not_admitted("another node answers at this endpoint", welcome.public_key)
        payload = transcript("server", self.hello, welcome.public_key, welcome.nonce)
        if not verify_strict(welcome.public_key, payload, welcome.signature):
            raise _not_admitted("the node could not prove its key", welcome.public_key)
        return Proof(self._signer.sign(transcript("client", self.hello, welcome.public_key, welcome.nonce)))
