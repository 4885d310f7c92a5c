"""Following the engine's two governing chains into the node's verified copies."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from substrate.engine.api import Engine, Lagged
from substrate.meshos.control_copy import ControlCopy
from substrate.operator.copy import LedgerCopy
from substrate.operator.ledger import ADMIN_CHAIN, CONTROL_CHAIN
from substrate.wire.errors import NetError
from substrate.wire.records import Head

log = logging.getLogger("net.node")

LEADER_WAIT_S: Final = 10.0
"""How long the ledger may lag behind a decision whose leader it has not admitted yet."""
REST_S: Final = 2.0


def check_not_behind(chain: str, own: Head, engine: Head) -> None:
    """A node that knows more than the engine must not fold on: the engine has lost or swapped records.

    Raises `ledger-behind`, or `ledger-tampered` when the heads have one seq and two hashes.
    """
    if own.seq > engine.seq:
        raise NetError(
            "ledger-behind",
            f"the engine's {chain} chain ends at {engine.seq}, this node has verified it to {own.seq}",
            "restore the engine's store from a backup; until then this node keeps to itself",
            {"chain": chain, "own_seq": own.seq, "engine_seq": engine.seq},
        )
    if own.seq == engine.seq and own.hash != engine.hash:
        raise NetError(
            "ledger-tampered",
            f"the engine's {chain} chain has another record {own.seq} than this node verified",
            "compare the copies: net audit verify",
            {"chain": chain, "seq": own.seq},
        )


async def follow_ledger(engine: Engine, ledger: LedgerCopy, changed: Callable[[], None]) -> None:
    """Fold `admin` for ever; a checkpoint is written whenever the ledger has rested for a while."""
    check_not_behind(ADMIN_CHAIN, ledger.head, await engine.head(ADMIN_CHAIN))
    tail = engine.tail(ADMIN_CHAIN, ledger.head.seq + 1)
    rest: asyncio.TimerHandle | None = None
    loop = asyncio.get_running_loop()
    try:
        async for batch in tail:
            if isinstance(batch, Lagged):
                raise NetError("ledger-tampered", "the engine has trimmed the ledger", details={"seq": batch.from_seq})
            await ledger.advance(batch)
            changed()
            if rest is not None:
                rest.cancel()
            rest = loop.call_later(REST_S, ledger.checkpoint)
    finally:
        if rest is not None:
            rest.cancel()
        await tail.aclose()


async def follow_control(engine: Engine, control: ControlCopy, ledger: LedgerCopy, changed: Callable[[], None]) -> None:
    """Fold `control` for ever. A decision may arrive before the admission of the leader who made it."""
    check_not_behind(CONTROL_CHAIN, control.head, await engine.head(CONTROL_CHAIN))
    tail = engine.tail(CONTROL_CHAIN, control.head.seq + 1)
    try:
        async for batch in tail:
            if isinstance(batch, Lagged):
                raise NetError("ledger-tampered", "the engine has trimmed control", details={"seq": batch.from_seq})
            deadline = asyncio.get_running_loop().time() + LEADER_WAIT_S
            while control.unknown_leader(batch) is not None and asyncio.get_running_loop().time() < deadline:
                try:
                    await ledger.wait_for(ledger.head.seq + 1, 1.0)
                except NetError as error:
                    if error.kind != "wait-timeout":
                        raise
            await control.advance(batch)
            changed()
    finally:
        await tail.aclose()
