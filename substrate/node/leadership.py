"""Leading the cluster: one node at a time decides (contract section 6).

The leader's lease is a key in the engine; its authority is the term it opened on the control chain. A stale leader cannot harm:
its appends expect a head that the new term has moved.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

import msgspec

from substrate.engine.api import Engine
from substrate.identity.keys import Keypair
from substrate.meshos.control_copy import ControlCopy
from substrate.meshos.decide import World, decide
from substrate.operator.ledger import CONTROL_CHAIN
from substrate.wire.control import TermOpened, encode_control
from substrate.wire.envelope import seal_payload
from substrate.wire.errors import NetError
from substrate.wire.records import Record, next_record
from substrate.wire.structs import Variant
from substrate.wire.times import now_ms

log = logging.getLogger("net.node")

KEY: Final = "leader"
TTL_MS: Final = 6000
EVERY_S: Final = 1.0
REST_S: Final = 0.01
"""Between two passes: many changes at once are looked at once."""
TICK_S: Final = 0.5
FOLD_WAIT_S: Final = 10.0
_TRANSIENT: Final = frozenset(
    ("engine-unavailable", "unknown-outcome", "timeout", "overloaded", "wait-timeout", "disk-full")
)


class Leadership:
    """This node's part in leading. `session()` is its lease's session or None without a lease; `world()` what it knows."""

    def __init__(
        self,
        engine: Engine,
        keypair: Keypair,
        control: ControlCopy,
        session: Callable[[], int | None],
        world: Callable[[], World],
    ) -> None:
        self._engine = engine
        self._keypair = keypair
        self._control = control
        self._session = session
        self._world = world
        self._revision: int | None = None
        self._term = 0
        self._wake = asyncio.Event()

    @property
    def leading(self) -> bool:
        """Whether this node holds the lease and its term is the open one."""
        state = self._control.state
        return self._revision is not None and state.leader == self._keypair.node_id and state.term == self._term

    def wake(self) -> None:
        """Something changed; decide again."""
        self._wake.set()

    async def campaign(self) -> None:
        """Take the lease when it is free and keep it, until cancelled."""
        while True:
            try:
                if self._session() is None:
                    self._revision = None  # without a lease of its own a node does not lead
                elif self.leading:
                    await self._keep()
                else:
                    # Perhaps the key is still ours, but while the engine was away another node opened a term after ours.
                    self._revision = None
                    await self._try_take()
            except NetError as error:
                if error.kind == "conflict":
                    self._step_down("another node leads")
                elif error.kind not in _TRANSIENT:
                    raise
                elif error.kind == "unknown-outcome":
                    self._revision = None  # read the key again before believing to lead
            await asyncio.sleep(EVERY_S)

    async def _keep(self) -> None:
        assert self._revision is not None
        try:
            self._revision = await self._put(self._revision)
        except NetError as error:
            if error.kind != "conflict" or int(error.details.get("revision", -1)) != 0:
                raise
            self._revision = await self._put(0)  # the engine restarted and forgot; nobody was faster

    async def _try_take(self) -> None:
        present = await self._engine.kv_get(KEY)
        if present is None:
            revision = await self._put(0)
        elif present.value == self._value():
            revision = await self._put(present.revision)  # ours, from before a lost answer
        else:
            return
        await self._open_term()
        self._revision = revision
        log.info("leading, term %d", self._term)
        self._wake.set()

    async def _put(self, expect: int) -> int:
        return await self._engine.kv_put(KEY, self._value(), ttl_ms=TTL_MS, expect=expect)

    def _value(self) -> bytes:
        return f"{self._keypair.node_id}/{self._session()}".encode()

    async def _open_term(self) -> None:
        for _ in range(20):
            term = self._control.state.term + 1
            try:
                await self._append(term, [TermOpened(self._session() or 0)])
            except NetError as error:
                if error.kind != "conflict":
                    raise
                await self._control.wait_for(int(error.details["head"]["seq"]), FOLD_WAIT_S)
                continue
            self._term = term
            return
        raise NetError("timeout", "control keeps changing under the election")

    async def decide(self) -> None:
        """While leading, turn what is wanted and known into decisions, until cancelled."""
        while True:
            try:
                async with asyncio.timeout(TICK_S):
                    await self._wake.wait()
            except TimeoutError:
                pass  # time itself can make something due
            self._wake.clear()
            try:
                while self.leading and (events := decide(self._world())):
                    await self._append(self._term, events)
            except NetError as error:
                if error.kind == "conflict":
                    self._step_down("its decisions lost the race")
                elif error.kind not in _TRANSIENT:
                    raise
            await asyncio.sleep(REST_S)

    async def _append(self, term: int, events: list[Variant]) -> None:
        head = self._control.head
        at_ms = max(now_ms(), self._control.state.at_ms)
        records: list[Record] = []
        for event in events:
            payload = encode_control(term, self._keypair.node_id, event)
            record = next_record(CONTROL_CHAIN, records[-1].head if records else head, at_ms, payload)
            seal = self._keypair.sign(seal_payload(record.hash))
            records.append(msgspec.structs.replace(record, seal=seal))
        appended = await self._engine.append_records(CONTROL_CHAIN, records, expect=head, create=True)
        await self._control.wait_for(appended.head.seq, FOLD_WAIT_S)

    def _step_down(self, why: str) -> None:
        if self._revision is not None:
            log.info("no longer leading: %s", why)
        self._revision = None

    async def resign(self) -> None:
        """Give the lease up, so that another node can lead at once. `campaign` has been cancelled before."""
        self._revision = None
        try:
            # A renewal whose answer the cancelled campaign did not wait for may have moved the revision: look.
            present = await self._engine.kv_get(KEY)
            if present is not None and present.value.startswith(f"{self._keypair.node_id}/".encode()):
                await self._engine.kv_delete(KEY, expect=present.revision)
        except NetError as error:
            if error.kind not in _TRANSIENT and error.kind != "conflict":
                raise
