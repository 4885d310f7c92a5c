"""Verdicts: may this envelope, with these signatures, be committed on this state of the ledger?

Pure, and a function of the ledger alone, so that every node recomputes it under the record's rules_version (contract section 6).
What depends on live state (clock, liveness of a nonce) is checked by the gateway before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from substrate.identity import ids
from substrate.identity.verify import OperatorSignature, check_public_key, check_signatures, verify_strict
from substrate.operator import policy
from substrate.operator.ledger import RESERVED_CHAINS
from substrate.operator.state import SUPPORTED, LedgerState
from substrate.wire import events
from substrate.wire.envelope import Envelope, join_proof_payload, key_proof_payload
from substrate.wire.errors import NetError
from substrate.wire.ids import check_name
from substrate.wire.records import check_chain_name

MAX_SKEW_MS: Final = 30_000
MAX_DRAIN_MS: Final = 7 * 24 * 3_600_000
MAX_TOKEN_MS: Final = 30 * 24 * 3_600_000


def judge(
    state: LedgerState, envelope: Envelope, payload: bytes, signatures: Sequence[OperatorSignature], at_ms: int
) -> list[int]:
    """The operators whose signatures carry the commit; raises `NetError` with the reason of a refusal.

    `payload` are the signed bytes, `at_ms` the time the record would have. The window is checked before the nonce, so used
    nonces need keeping only until their envelopes expire.
    """
    check_cluster(state, envelope)
    check_window(state, envelope, at_ms)
    used = state.nonces.get(envelope.nonce)
    if used is not None:
        raise NetError(
            "replayed",
            "this envelope was committed already",
            "propose anew to do it again",
            {"seq": used.seq},
        )
    signers = check_authority(state, envelope, payload, signatures, at_ms)
    check_event(state, envelope.event)
    return signers


def check_cluster(state: LedgerState, envelope: Envelope) -> None:
    """The envelope must be for this cluster; genesis comes before there is an id."""
    expected = state.cluster_id or bytes(16)
    if envelope.cluster_id != expected:
        raise NetError(
            "cluster-changed",
            "the envelope was signed for another cluster",
            "propose on the cluster it is meant for",
            {"signed_for": envelope.cluster_id.hex(), "cluster_id": expected.hex()},
        )


def check_window(state: LedgerState, envelope: Envelope, at_ms: int) -> None:
    """Issued not in the future, not expired, and no longer a window than the policy grants."""
    if envelope.issued_at_ms > at_ms + MAX_SKEW_MS:
        raise NetError("envelope-from-future", "the envelope was issued in the future", "check the nodes' clocks")
    if at_ms > envelope.expires_at_ms:
        raise NetError(
            "envelope-expired",
            f"the envelope expired {(at_ms - envelope.expires_at_ms + 999) // 1000} s ago",
            "propose and sign anew",
            {"expires_at_ms": envelope.expires_at_ms, "at_ms": at_ms},
        )
    if envelope.expires_at_ms - envelope.issued_at_ms > state.window_ms(envelope.event.kind):
        raise NetError("envelope-expired", "the envelope's window is longer than the policy allows", "propose anew")


def check_authority(
    state: LedgerState, envelope: Envelope, payload: bytes, signatures: Sequence[OperatorSignature], at_ms: int
) -> list[int]:
    """The operators who may and did sign; for genesis the founder, for a node-join perhaps a join token."""
    event = envelope.event
    keys = state.active_keys()
    if isinstance(event, events.Genesis):
        keys = {ids.operator_id(event.operator_key): event.operator_key}
    elif isinstance(event, events.NodeJoin):
        keys.update(
            (key, token.public_key)
            for key, token in state.tokens.items()
            if not token.used and at_ms <= token.expires_at_ms
        )
    signers = check_signatures(payload, signatures, keys, state.required(event.kind))
    if isinstance(event, events.RegistryRotate) and event.operator not in signers:
        raise NetError(
            "not-authorized",
            "a rotation must be signed by the key that is replaced",
            "rotate with the old key, or remove the operator and add the new key",
        )
    return signers


def check_event(state: LedgerState, event: Any) -> None:
    """Whether the event makes sense on this state; raises the error a user would understand."""
    if event.kind not in SUPPORTED:
        raise NetError(
            "not-yet-supported",
            f"{event.kind} has nothing to act on yet in this version",
            "see `net version` for what this version can do",
            {"event_kind": event.kind},
        )
    if isinstance(event, events.Genesis):
        if state.head.seq:
            raise NetError("conflict", "the cluster exists already", "join it")
        check_name("cluster", event.cluster)
        check_name("operator", event.operator_name)
        check_name("node", event.node_name)
        check_public_key(event.operator_key)
        check_public_key(event.node_key)
        if event.policy:
            policy.check_changes(event.policy)
        return
    if not state.head.seq:
        raise NetError("not-admitted", "the cluster has no genesis yet", "net node start --operator NAME founds it")
    check = _CHECKS.get(type(event))
    if check is not None:
        check(state, event)
    elif isinstance(event, events.NodeEvent):
        _known_node(state, event.node)
    elif isinstance(event, events.DaemonEvent):
        _known_daemon(state, event.daemon)


def _known_node(state: LedgerState, node: int) -> None:
    entry = state.nodes.get(node)
    if entry is None or entry.removed:
        raise NetError("node-not-found", f"there is no node {node}", "net node ls", {"node": str(node)})


def _known_daemon(state: LedgerState, daemon: int) -> None:
    if daemon not in state.daemons:
        raise NetError("daemon-not-found", f"there is no daemon {daemon}", "net daemon ls", {"daemon": str(daemon)})


def _drain(state: LedgerState, event: events.Drain) -> None:
    _known_node(state, event.node)
    if not 0 < event.drain_for_ms <= MAX_DRAIN_MS:
        raise NetError("invalid-argument", "a drain takes more than nothing and at most 7 days", "--drain-for 5m")


def _node_join(state: LedgerState, event: events.NodeJoin) -> None:
    check_name("node", event.name)
    check_public_key(event.public_key)
    if not verify_strict(
        event.public_key, join_proof_payload(state.cluster_id, event.name, event.public_key), event.proof
    ):
        raise NetError("signature-invalid", "the node did not prove its key", "start the node itself to let it join")
    for node in state.nodes.values():
        if not node.removed and (node.name == event.name or node.public_key == event.public_key):
            raise NetError(
                "node-running",
                f"the cluster has a node {node.name!r} with another key or this key already",
                f"choose another --name, or remove it first: net node rm {node.name}",
                {"node": node.name},
            )
    removed = state.nodes.get(ids.node_id(event.public_key))
    if removed is not None:
        raise NetError("not-authorized", f"the key of node {removed.name!r} was removed", "start with a new key")


def _registry_add(state: LedgerState, event: events.RegistryAdd) -> None:
    check_name("operator", event.name)
    _new_key(state, event.public_key, event.proof)
    if event.name in state.operator_names().values():
        raise NetError(
            "operator-exists",
            f"there is an operator {event.name!r} already",
            "choose another name",
            {"operator": event.name},
        )


def _new_key(state: LedgerState, public_key: bytes, proof: bytes) -> None:
    check_public_key(public_key)
    if not verify_strict(public_key, key_proof_payload(public_key), proof):
        raise NetError(
            "signature-invalid",
            "the new key's proof of possession does not verify",
            "use the command that `net identity generate` or `net identity show` prints",
        )
    for operator in state.operators.values():
        if operator.public_key == public_key:
            raise NetError(
                "operator-exists",
                f"this key belongs to operator {operator.name!r}" + ("" if operator.active else ", who was removed"),
                "generate a new key",
                {"operator": operator.name},
            )


def _active_operator(state: LedgerState, operator: int) -> None:
    entry = state.operators.get(operator)
    if entry is None or not entry.active:
        raise NetError(
            "operator-not-found",
            f"there is no active operator {operator}",
            "net identity registry ls",
            {"operator": str(operator)},
        )


def _registry_remove(state: LedgerState, event: events.RegistryRemove) -> None:
    _active_operator(state, event.operator)
    left = len(state.active_keys()) - 1
    if left < max(1, state.threshold):
        raise NetError(
            "invalid-argument",
            f"{left} operators would be left and the threshold is {state.threshold}",
            "lower the threshold or add an operator first",
        )


def _registry_rotate(state: LedgerState, event: events.RegistryRotate) -> None:
    _active_operator(state, event.operator)
    _new_key(state, event.public_key, event.proof)


def _registry_threshold(state: LedgerState, event: events.RegistryThreshold) -> None:
    active = len(state.active_keys())
    if not 1 <= event.threshold <= active:
        raise NetError(
            "invalid-argument",
            f"the threshold must be 1 to {active}, the number of active operators",
            "add operators first: net identity registry add",
            {"active": active},
        )


def _policy(state: LedgerState, event: events.Policy) -> None:
    policy.check_changes(event.changes)


def _daemon_apply(state: LedgerState, event: events.DaemonApply) -> None:
    event.spec.check()


def _chain_create(state: LedgerState, event: events.ChainCreate) -> None:
    check_chain_name(event.name)
    if event.name in RESERVED_CHAINS or state.chain_id(event.name) in state.chains:
        raise NetError(
            "chain-exists", f"there is a chain {event.name!r} already", "net chain ls", {"chain": event.name}
        )
    if event.replicas != 1:
        raise NetError(
            "not-yet-supported",
            "this version keeps data chains in the engine only; copies on nodes come later",
            "leave out --replicas",
        )


def _join_token(state: LedgerState, event: events.JoinToken) -> None:
    check_public_key(event.public_key)
    if not 0 < event.ttl_ms <= MAX_TOKEN_MS:
        raise NetError("invalid-argument", "a join token lives at most 30 days", "--ttl 1h")
    key = ids.operator_id(event.public_key)
    if key in state.tokens or key in state.operators:
        raise NetError("operator-exists", "this token's key is known already", "make a new token")


_CHECKS: Final[dict[type, Any]] = {
    events.Drain: _drain,
    events.NodeJoin: _node_join,
    events.RegistryAdd: _registry_add,
    events.RegistryRemove: _registry_remove,
    events.RegistryRotate: _registry_rotate,
    events.RegistryThreshold: _registry_threshold,
    events.Policy: _policy,
    events.DaemonApply: _daemon_apply,
    events.ChainCreate: _chain_create,
    events.JoinToken: _join_token,
}
