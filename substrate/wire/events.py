"""Admin events: everything an operator can command, numbered for ever.

0-15 carry the numbers of the reference (operator-plane.md 2.1), ours go on from 16 (contract section 5). docs/wire.md is
generated from this module. Signed payloads hold `postcard(event)`.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

from substrate.wire.postcard import DURATION, ID, STRING, U64, Codec, fixed, mapping, option, sequence
from substrate.wire.specs import DaemonSpec
from substrate.wire.structs import Union, Variant, WireStruct, struct

KEY: Final = fixed(32)
SIGNATURE: Final = fixed(64)


class Event(Variant, frozen=True):
    """Base of all admin events."""

    def to_document(self) -> dict[str, Any]:
        """`{"kind": ..., fields}` as shown and proposed."""
        return ADMIN_EVENTS.to_json(self)


class NodeEvent(Event, frozen=True):
    """An event about one node."""

    node: Annotated[int, ID]


class EnterMaintenance(NodeEvent, frozen=True):
    """Drain the node, then isolate it; without a deadline the policy's default holds."""

    number, kind = 0, "enter-maintenance"
    drain_for_ms: Annotated[int | None, option(DURATION)] = None


class ExitMaintenance(NodeEvent, frozen=True):
    """Take the node back; also cancels a drain in progress."""

    number, kind = 1, "exit-maintenance"


class Drain(NodeEvent, frozen=True):
    """Cordon the node and move what it holds elsewhere within the time."""

    number, kind = 2, "drain"
    drain_for_ms: Annotated[int, DURATION]


class Cordon(NodeEvent, frozen=True):
    """Nothing new is placed on the node."""

    number, kind = 3, "cordon"


class Uncordon(NodeEvent, frozen=True):
    """The node takes new work again."""

    number, kind = 4, "uncordon"


class RestartAllDaemons(NodeEvent, frozen=True):
    """Restart each daemon of the node gracefully, one by one."""

    number, kind = 5, "restart-all-daemons"


class ClearAvoidList(NodeEvent, frozen=True):
    """Empty the node's avoid list."""

    number, kind = 6, "clear-avoid-list"


class DropReplicas(NodeEvent, frozen=True):
    """The node gives up its copies of the chains."""

    number, kind = 7, "drop-replicas"
    chains: Annotated[tuple[int, ...], sequence(ID)]


class InvalidatePlacement(NodeEvent, frozen=True):
    """Score the node's placements anew and move what is badly placed."""

    number, kind = 8, "invalidate-placement"


class AvoidLocal(Variant, frozen=True):
    """The avoid list of one node."""

    number, kind = 0, "local"
    node: Annotated[int, ID]


class AvoidOnPeer(Variant, frozen=True):
    """Every entry about one peer, on all nodes."""

    number, kind = 1, "on-peer"
    peer: Annotated[int, ID]


class AvoidGlobal(Variant, frozen=True):
    """Every avoid list."""

    number, kind = 2, "global"


_SCOPES: Final = Union[Variant]("scope", AvoidLocal, AvoidOnPeer, AvoidGlobal)
SCOPE: Final = Codec("scope", _SCOPES.write, _SCOPES.read, _SCOPES.to_json, _SCOPES.from_json)


class DaemonRef(WireStruct, frozen=True):
    """A daemon by id and name."""

    id: Annotated[int, ID]
    name: Annotated[str, STRING]


class FreezeCluster(Event, frozen=True):
    """ICE: reconcile starts nothing until the time is over."""

    number, kind = 9, "freeze-cluster"
    ttl_ms: Annotated[int, DURATION]


class ThawCluster(Event, frozen=True):
    """ICE: end a freeze."""

    number, kind = 10, "thaw-cluster"


class FlushAvoidLists(Event, frozen=True):
    """ICE: empty avoid lists."""

    number, kind = 11, "flush-avoid-lists"
    scope: Annotated[Variant, SCOPE]


class ForceEvictReplica(Event, frozen=True):
    """ICE: take a chain's copy away from a node."""

    number, kind = 12, "force-evict-replica"
    chain: Annotated[int, ID]
    victim: Annotated[int, ID]


class ForceRestartDaemon(Event, frozen=True):
    """ICE: restart a daemon at once, back-off or not."""

    number, kind = 13, "force-restart-daemon"
    daemon: Annotated[DaemonRef, struct(DaemonRef)]


class ForceCutover(Event, frozen=True):
    """ICE: make a node a chain's holder and leader."""

    number, kind = 14, "force-cutover"
    chain: Annotated[int, ID]
    target: Annotated[int, ID]


class KillMigration(Event, frozen=True):
    """ICE: abort a migration."""

    number, kind = 15, "kill-migration"
    migration: Annotated[int, ID]


class ForceDrain(NodeEvent, frozen=True):
    """ICE: drain a node whatever it holds, killing at the deadline."""

    number, kind = 16, "force-drain"
    drain_for_ms: Annotated[int, DURATION]


class Genesis(Event, frozen=True):
    """The first record of a cluster: its name, its first operator, its first node, its policy."""

    number, kind = 17, "genesis"
    cluster: Annotated[str, STRING]
    operator_name: Annotated[str, STRING]
    operator_key: Annotated[bytes, KEY]
    node_name: Annotated[str, STRING]
    node_key: Annotated[bytes, KEY]
    policy: Annotated[dict[str, int], mapping(U64)]


class NodeJoin(Event, frozen=True):
    """Admit a node's key under a name. `proof` is the node key's signature over its own admission."""

    number, kind = 18, "node-join"
    name: Annotated[str, STRING]
    public_key: Annotated[bytes, KEY]
    proof: Annotated[bytes, SIGNATURE]


class NodeRemove(NodeEvent, frozen=True):
    """Withdraw a node's admission."""

    number, kind = 19, "node-remove"


class RegistryAdd(Event, frozen=True):
    """Install an operator. `proof` shows that the key's owner asked for it."""

    number, kind = 20, "registry-add"
    name: Annotated[str, STRING]
    public_key: Annotated[bytes, KEY]
    proof: Annotated[bytes, SIGNATURE]


class RegistryRemove(Event, frozen=True):
    """Revoke an operator."""

    number, kind = 21, "registry-remove"
    operator: Annotated[int, ID]


class RegistryRotate(Event, frozen=True):
    """Replace an operator's key by a new one; the old key signs."""

    number, kind = 22, "registry-rotate"
    operator: Annotated[int, ID]
    public_key: Annotated[bytes, KEY]
    proof: Annotated[bytes, SIGNATURE]


class RegistryThreshold(Event, frozen=True):
    """How many operators must sign registry, policy and ICE events."""

    number, kind = 23, "registry-threshold"
    threshold: Annotated[int, U64]


class Policy(Event, frozen=True):
    """Change settings of the cluster; only the named ones change."""

    number, kind = 24, "policy"
    changes: Annotated[dict[str, int], mapping(U64)]


class DaemonApply(Event, frozen=True):
    """Create a daemon or replace its spec."""

    number, kind = 25, "daemon-apply"
    spec: Annotated[DaemonSpec, struct(DaemonSpec)]


class DaemonEvent(Event, frozen=True):
    """An event about one daemon."""

    daemon: Annotated[int, ID]


class DaemonRemove(DaemonEvent, frozen=True):
    """Stop a daemon everywhere and forget its spec."""

    number, kind = 26, "daemon-remove"


class ChainCreate(Event, frozen=True):
    """Create a data chain and say how many nodes shall hold copies."""

    number, kind = 27, "chain-create"
    name: Annotated[str, STRING]
    replicas: Annotated[int, U64] = 1


class ChainSetReplicas(Event, frozen=True):
    """Change how many nodes shall hold copies of a chain."""

    number, kind = 28, "chain-set-replicas"
    chain: Annotated[int, ID]
    replicas: Annotated[int, U64]


class ChainRemove(Event, frozen=True):
    """Retire a data chain."""

    number, kind = 29, "chain-remove"
    chain: Annotated[int, ID]


class DaemonRestart(DaemonEvent, frozen=True):
    """Restart all instances of a daemon gracefully; starts a stopped one."""

    number, kind = 30, "daemon-restart"


class DaemonStop(DaemonEvent, frozen=True):
    """Stop a daemon but keep its spec."""

    number, kind = 31, "daemon-stop"


class JoinToken(Event, frozen=True):
    """A key that may sign one `node-join` until it expires."""

    number, kind = 32, "join-token"
    public_key: Annotated[bytes, KEY]
    ttl_ms: Annotated[int, DURATION]


ADMIN_EVENTS: Final = Union[Event](
    "event",
    EnterMaintenance,
    ExitMaintenance,
    Drain,
    Cordon,
    Uncordon,
    RestartAllDaemons,
    ClearAvoidList,
    DropReplicas,
    InvalidatePlacement,
    FreezeCluster,
    ThawCluster,
    FlushAvoidLists,
    ForceEvictReplica,
    ForceRestartDaemon,
    ForceCutover,
    KillMigration,
    ForceDrain,
    Genesis,
    NodeJoin,
    NodeRemove,
    RegistryAdd,
    RegistryRemove,
    RegistryRotate,
    RegistryThreshold,
    Policy,
    DaemonApply,
    DaemonRemove,
    ChainCreate,
    ChainSetReplicas,
    ChainRemove,
    DaemonRestart,
    DaemonStop,
    JoinToken,
)

ICE_KINDS: Final = frozenset(variant.kind for number, variant in ADMIN_EVENTS.by_number.items() if 9 <= number <= 16)
"""The break-glass verbs."""
ADMIN_KINDS: Final = tuple(ADMIN_EVENTS.by_number[number].kind for number in range(9))
"""The nine ordinary verbs."""
THRESHOLD_KINDS: Final = ICE_KINDS | {
    "registry-add",
    "registry-remove",
    "registry-rotate",
    "registry-threshold",
    "policy",
}
"""Events that need the ledger's threshold of signatures; all others need one."""


def decode_event(document: Any) -> Event:
    """The event of a JSON object `{"kind": ..., fields}` with resolved ids; raises `invalid-argument`."""
    event: Event = ADMIN_EVENTS.from_json(document)
    return event
