"""What an attacker on the control socket can send: envelopes, true and bent, with signatures, true and bent."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final

from substrate.wire.envelope import Envelope
from substrate.wire.events import decode_event
from tests.contract.keys import Key
from tests.contract.wire import Answer, get, request
from tests.harness import ClusterHarness

ORDER: Final = 2**252 + 27742317777372353535851937790883648493
"""Order of ed25519's main subgroup."""

Body = dict[str, Any]
CORDON: Final = {"kind": "cordon", "node": "b"}


def payload_of(part: dict[str, Any]) -> bytes:
    """The bytes to sign for a proposal as it stands in a commit body."""
    return Envelope(
        bytes.fromhex(part["cluster_id"]),
        part["issued_at_ms"],
        part["expires_at_ms"],
        bytes.fromhex(part["nonce"]),
        decode_event(part["event"]),
        part["reason"],
        bytes.fromhex(part["blast_hash"]) if part.get("blast_hash") else None,
    ).payload()


class Attacker:
    """Has the keys of alice and bob (operators), carol (never installed) and dave (removed)."""

    def __init__(self, cluster: ClusterHarness) -> None:
        self.cluster = cluster
        self.alice, self.bob, self.carol, self.dave = (
            Key.of(cluster, name) for name in ("alice", "bob", "carol", "dave")
        )

    def propose(self, event: dict[str, Any], reason: str = "", via: str = "a") -> Answer:
        """Ask a node for a proposal."""
        return request(self.cluster.socket(via), "POST", "/v1/proposals", {"event": event, "reason": reason})

    def part(self, event: dict[str, Any] | None = None, reason: str = "because", via: str = "a") -> dict[str, Any]:
        """The signed part of a fresh, good proposal."""
        answer = self.propose(event or CORDON, reason, via)
        assert answer.status == 200, answer
        fields = ("event", "reason", "issued_at_ms", "expires_at_ms", "nonce", "cluster_id")
        return {name: answer.document[name] for name in fields}

    def signed(self, part: dict[str, Any], *keys: Key) -> Body:
        """A commit body in which these keys truly signed exactly this part."""
        return {"proposal": part, "signatures": [key.sign(payload_of(part)) for key in keys or (self.alice,)]}

    def commit(self, body: Body, via: str = "a") -> Answer:
        """Send it."""
        return request(self.cluster.socket(via), "POST", "/v1/commits", body)

    def node_id(self, name: str) -> str:
        return str(get(self.cluster, f"/v1/nodes/{name}")["node_id"])


def moved(part: dict[str, Any], by_ms: int) -> dict[str, Any]:
    """The part with its window moved in time."""
    return part | {name: part[name] + by_ms for name in ("issued_at_ms", "expires_at_ms")}


def bent(change: Callable[[Attacker, dict[str, Any]], dict[str, Any]]) -> Callable[[Attacker], Body]:
    """An attack that changes a part after alice signed it."""

    def attack(attacker: Attacker) -> Body:
        part = attacker.part()
        return attacker.signed(part) | {"proposal": part | change(attacker, part)}

    return attack


def resigned(change: Callable[[Attacker, dict[str, Any]], dict[str, Any]]) -> Callable[[Attacker], Body]:
    """An attack in which alice signs what no node proposed."""

    def attack(attacker: Attacker) -> Body:
        part = attacker.part()
        return attacker.signed(part | change(attacker, part))

    return attack


def signatures(make: Callable[[Attacker, bytes], list[dict[str, str]]]) -> Callable[[Attacker], Body]:
    """An attack on the signatures of a good proposal."""

    def attack(attacker: Attacker) -> Body:
        part = attacker.part()
        return {"proposal": part, "signatures": make(attacker, payload_of(part))}

    return attack


def malleated(signature: dict[str, str]) -> dict[str, str]:
    """The same signature with S + L for S, which lax verifiers take for another valid one."""
    raw = bytes.fromhex(signature["signature"])
    scalar = int.from_bytes(raw[32:], "little") + ORDER
    return signature | {"signature": (raw[:32] + scalar.to_bytes(32, "little")).hex()}


def wrong_domain(payload: bytes) -> bytes:
    """The payload as a break-glass one."""
    return payload.replace(b"net-deck-admin:", b"net-deck-ice:", 1)


def random_hex(count: int) -> str:
    return os.urandom(count).hex()
