"""How a node comes to belong to its cluster: it founds it, joins it, or was admitted before (contract sections 5 and 6)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from substrate.identity import keyfile
from substrate.identity.keys import Keypair
from substrate.identity.verify import OperatorSignature
from substrate.operator.ledger import ADMIN_CHAIN
from substrate.wire import paths
from substrate.wire.envelope import join_proof_payload
from substrate.wire.errors import NetError
from substrate.wire.events import Event, Genesis, NodeJoin

if TYPE_CHECKING:
    from substrate.node.runtime import Runtime

log = logging.getLogger("net.node")

CATCH_UP_S = 60.0


async def admit(node: Runtime) -> None:
    """Return once the ledger knows this node's key under its name.

    Raises `no-operator-key`, `not-authorized`, `node-running` (the name is taken), or what the commit was refused for.
    """
    await _catch_up(node)
    if not node.ledger.head.seq:
        await _found(node)
    entry = node.ledger.state.nodes.get(node.node_id)
    if entry is None:
        await _join(node)
    elif entry.removed:
        raise NetError(
            "not-authorized",
            f"node {entry.name!r} was removed from cluster {node.ledger.state.cluster!r}",
            "start a node under another name",
            {"node": entry.name},
        )
    elif entry.name != node.settings.name:
        raise NetError("invalid-config", f"this node's key was admitted as {entry.name!r}", f"--name {entry.name}")


async def _catch_up(node: Runtime) -> None:
    head = await node.engine.head(ADMIN_CHAIN)
    await node.ledger.wait_for(head.seq, CATCH_UP_S)


async def _found(node: Runtime) -> None:
    """Genesis: exactly one node's append at the empty chain wins; the others find a cluster to join."""
    if node.settings.operator is None:
        raise NetError(
            "no-operator-key",
            f"cluster {node.settings.cluster!r} does not exist yet, and founding it needs its first operator",
            "net identity generate NAME, then net node start --name N --operator NAME",
        )
    operator = keyfile.load(paths.operator_directory(), node.settings.operator)
    event = Genesis(
        node.settings.cluster,
        operator.name,
        operator.keypair.public_key,
        node.settings.name,
        node.keypair.public_key,
        {},
    )
    try:
        await _commit(node, event, operator.keypair, "the cluster is founded")
        log.info("founded cluster %s", node.settings.cluster)
    except NetError as error:
        await _catch_up(node)
        if not node.ledger.head.seq:
            raise
        log.info("another node founded the cluster first (%s); joining it", error.kind)


async def _join(node: Runtime) -> None:
    state, settings = node.ledger.state, node.settings
    proof = node.keypair.sign(join_proof_payload(state.cluster_id, settings.name, node.keypair.public_key))
    event = NodeJoin(settings.name, node.keypair.public_key, proof)
    if settings.join_token is not None:
        try:
            signer = Keypair(bytes.fromhex(settings.join_token))
        except ValueError:
            raise NetError("invalid-argument", "this is no join token", "make one with: net node token") from None
        if signer.operator_id not in state.tokens or state.tokens[signer.operator_id].used:
            raise NetError(
                "not-authorized", "the join token is unknown or was used", "make a new one with: net node token"
            )
    elif settings.operator is not None:
        signer = keyfile.load(paths.operator_directory(), settings.operator).keypair
    else:
        raise NetError(
            "no-operator-key",
            f"node {settings.name!r} is not a member of cluster {state.cluster!r} yet",
            "admit it: --operator NAME, or --token-file with a token of `net node token`",
        )
    await _commit(node, event, signer, "the node joins")
    log.info("joined cluster %s as %s", state.cluster, settings.name)


async def _commit(node: Runtime, event: Event, signer: Keypair, reason: str) -> None:
    envelope = await node.gateway.propose(event, reason)
    signature = OperatorSignature(signer.operator_id, signer.sign(envelope.payload()))
    await node.gateway.commit(envelope, [signature])
