"""What follows from the accepted records of the ledger: the registry, the nodes, the policy, what operators want.

One `LedgerState` is the fold of all records up to `head`. It is a plain msgspec struct, so it can be stored and reopened.
"""

from __future__ import annotations

import heapq
from typing import Any

import msgspec

from substrate.identity import ids
from substrate.operator import policy
from substrate.wire import events
from substrate.wire.records import EMPTY, Head
from substrate.wire.specs import DaemonSpec


class Operator(msgspec.Struct):
    """A registered operator. A revoked one stays, inactive, so that old signatures can be explained."""

    name: str
    public_key: bytes
    added_seq: int
    added_at_ms: int
    active: bool = True


class Node(msgspec.Struct):
    """An admitted node."""

    name: str
    public_key: bytes
    joined_seq: int
    removed: bool = False


class Token(msgspec.Struct):
    """A key that may admit one node."""

    public_key: bytes
    expires_at_ms: int
    used: bool = False


class Drain(msgspec.Struct):
    """The wish that a node be emptied. Its outcome is on the control chain."""

    seq: int
    commit_id: bytes
    since_ms: int
    deadline_ms: int
    force: bool = False


class Daemon(msgspec.Struct):
    """A daemon that shall run (or is kept stopped). `spec` is its postcard form."""

    spec_bytes: bytes
    seq: int
    stopped: bool = False
    restart_seq: int = 0

    @property
    def spec(self) -> DaemonSpec:
        """The spec as applied."""
        cached = _specs.get(self.spec_bytes)
        if cached is None:
            if len(_specs) > 20_000:
                _specs.clear()
            cached = _specs[self.spec_bytes] = DaemonSpec.from_bytes(self.spec_bytes)
        return cached


_specs: dict[bytes, DaemonSpec] = {}


class DataChain(msgspec.Struct):
    """A data chain as created."""

    name: str
    replicas: int
    seq: int
    created_at_ms: int


class UsedNonce(msgspec.Struct, array_like=True):
    """A nonce that an accepted commit burned; kept until its envelope has expired in ledger time."""

    seq: int
    expires_at_ms: int


class LedgerState(msgspec.Struct):
    """The fold of the ledger up to `head`; `at_ms` is the time of that record."""

    head: Head = EMPTY
    at_ms: int = 0
    cluster: str = ""
    cluster_id: bytes = b""
    threshold: int = 1
    policy: dict[str, int] = msgspec.field(default_factory=policy.defaults)
    operators: dict[int, Operator] = {}
    tokens: dict[int, Token] = {}
    nodes: dict[int, Node] = {}
    cordoned: dict[int, int] = {}
    drains: dict[int, Drain] = {}
    restart_all: dict[int, int] = {}
    daemons: dict[int, Daemon] = {}
    chains: dict[int, DataChain] = {}
    former_names: dict[int, str] = {}
    """Names of daemons and chains that were removed, so that the audit can still name them."""
    nonces: dict[bytes, UsedNonce] = {}
    expiring: list[tuple[int, bytes]] = []

    def active_keys(self) -> dict[int, bytes]:
        """operator id -> public key of everybody who may sign now."""
        return {key: operator.public_key for key, operator in self.operators.items() if operator.active}

    def node_names(self) -> dict[int, str]:
        """node id -> name of the admitted nodes."""
        return {key: node.name for key, node in self.nodes.items() if not node.removed}

    def daemon_names(self) -> dict[int, str]:
        """daemon id -> name."""
        return {key: daemon.spec.name for key, daemon in self.daemons.items()}

    def chain_names(self) -> dict[int, str]:
        """chain id -> name of the created data chains."""
        return {key: chain.name for key, chain in self.chains.items()}

    def operator_names(self) -> dict[int, str]:
        """operator id -> name of the active operators."""
        return {key: operator.name for key, operator in self.operators.items() if operator.active}

    def window_ms(self, kind: str) -> int:
        """How long an envelope of this kind may be signed and committed."""
        several = kind in events.THRESHOLD_KINDS and self.threshold > 1
        return self.policy["cosign_window_ms" if several else "commit_window_ms"]

    def required(self, kind: str) -> int:
        """How many distinct operators must sign an event of this kind."""
        return self.threshold if kind in events.THRESHOLD_KINDS else 1

    def pass_time(self, at_ms: int) -> None:
        """Forget nonces whose envelopes have expired in ledger time."""
        self.at_ms = max(self.at_ms, at_ms)
        while self.expiring and self.expiring[0][0] < self.at_ms:
            _, nonce = heapq.heappop(self.expiring)
            self.nonces.pop(nonce, None)

    def burn(self, nonce: bytes, seq: int, expires_at_ms: int) -> None:
        """Remember a used nonce."""
        self.nonces[nonce] = UsedNonce(seq, expires_at_ms)
        heapq.heappush(self.expiring, (expires_at_ms, nonce))

    def daemon_id(self, name: str) -> int:
        """The id a daemon of this name has in this cluster."""
        return ids.named_id("daemon", self.cluster_id, name)

    def chain_id(self, name: str) -> int:
        """The id a chain of this name has in this cluster."""
        return ids.named_id("chain", self.cluster_id, name)

    def apply(self, event: Any, seq: int, at_ms: int, commit_id: bytes, record_hash: bytes) -> None:
        """Fold one accepted event. The caller has judged it."""
        _APPLY[type(event)](self, event, _Context(seq, at_ms, commit_id, record_hash))


class _Context(msgspec.Struct, frozen=True):
    seq: int
    at_ms: int
    commit_id: bytes
    record_hash: bytes


def _genesis(state: LedgerState, event: events.Genesis, at: _Context) -> None:
    state.cluster = event.cluster
    state.cluster_id = at.record_hash[:16]
    state.policy.update(event.policy)
    operator = Operator(event.operator_name, event.operator_key, at.seq, at.at_ms)
    state.operators[ids.operator_id(event.operator_key)] = operator
    state.nodes[ids.node_id(event.node_key)] = Node(event.node_name, event.node_key, at.seq)


def _node_join(state: LedgerState, event: events.NodeJoin, at: _Context) -> None:
    state.nodes[ids.node_id(event.public_key)] = Node(event.name, event.public_key, at.seq)


def _node_remove(state: LedgerState, event: events.NodeRemove, at: _Context) -> None:
    state.nodes[event.node].removed = True
    state.cordoned.pop(event.node, None)
    state.drains.pop(event.node, None)
    state.restart_all.pop(event.node, None)


def _registry_add(state: LedgerState, event: events.RegistryAdd, at: _Context) -> None:
    operator = Operator(event.name, event.public_key, at.seq, at.at_ms)
    state.operators[ids.operator_id(event.public_key)] = operator


def _registry_remove(state: LedgerState, event: events.RegistryRemove, at: _Context) -> None:
    state.operators[event.operator].active = False


def _registry_rotate(state: LedgerState, event: events.RegistryRotate, at: _Context) -> None:
    old = state.operators[event.operator]
    old.active = False
    operator = Operator(old.name, event.public_key, at.seq, at.at_ms)
    state.operators[ids.operator_id(event.public_key)] = operator


def _registry_threshold(state: LedgerState, event: events.RegistryThreshold, at: _Context) -> None:
    state.threshold = event.threshold


def _policy(state: LedgerState, event: events.Policy, at: _Context) -> None:
    state.policy.update(event.changes)


def _drain(state: LedgerState, event: events.Drain, at: _Context) -> None:
    state.cordoned[event.node] = at.seq
    state.drains[event.node] = Drain(at.seq, at.commit_id, at.at_ms, at.at_ms + event.drain_for_ms)


def _cordon(state: LedgerState, event: events.Cordon, at: _Context) -> None:
    state.cordoned.setdefault(event.node, at.seq)


def _take_back(state: LedgerState, event: events.NodeEvent, at: _Context) -> None:
    # A drain holds only on a cordoned node, so lifting the cordon cancels it.
    state.cordoned.pop(event.node, None)
    state.drains.pop(event.node, None)


def _restart_all(state: LedgerState, event: events.RestartAllDaemons, at: _Context) -> None:
    state.restart_all[event.node] = at.seq


def _daemon_apply(state: LedgerState, event: events.DaemonApply, at: _Context) -> None:
    state.daemons[state.daemon_id(event.spec.name)] = Daemon(event.spec.to_bytes(), at.seq)


def _daemon_remove(state: LedgerState, event: events.DaemonRemove, at: _Context) -> None:
    state.former_names[event.daemon] = state.daemons.pop(event.daemon).spec.name


def _daemon_restart(state: LedgerState, event: events.DaemonRestart, at: _Context) -> None:
    state.daemons[event.daemon].restart_seq = at.seq
    state.daemons[event.daemon].stopped = False


def _daemon_stop(state: LedgerState, event: events.DaemonStop, at: _Context) -> None:
    state.daemons[event.daemon].stopped = True


def _chain_create(state: LedgerState, event: events.ChainCreate, at: _Context) -> None:
    state.chains[state.chain_id(event.name)] = DataChain(event.name, event.replicas, at.seq, at.at_ms)


def _join_token(state: LedgerState, event: events.JoinToken, at: _Context) -> None:
    state.tokens[ids.operator_id(event.public_key)] = Token(event.public_key, at.at_ms + event.ttl_ms)


_APPLY: dict[type[events.Event], Any] = {
    events.Genesis: _genesis,
    events.NodeJoin: _node_join,
    events.NodeRemove: _node_remove,
    events.RegistryAdd: _registry_add,
    events.RegistryRemove: _registry_remove,
    events.RegistryRotate: _registry_rotate,
    events.RegistryThreshold: _registry_threshold,
    events.Policy: _policy,
    events.Drain: _drain,
    events.Cordon: _cordon,
    events.Uncordon: _take_back,
    events.ExitMaintenance: _take_back,
    events.RestartAllDaemons: _restart_all,
    events.DaemonApply: _daemon_apply,
    events.DaemonRemove: _daemon_remove,
    events.DaemonRestart: _daemon_restart,
    events.DaemonStop: _daemon_stop,
    events.ChainCreate: _chain_create,
    events.JoinToken: _join_token,
}

SUPPORTED = frozenset(event.kind for event in _APPLY)
"""Events this version acts on; the others are refused with `not-yet-supported`."""
