"""A node's membership lease: what allows it to run daemons.

The lease is a key in the engine with a time-to-live, renewed every second. The guardian holds the same deadline, counted from
before each renewal was sent, so it always ends no later than the engine's. After a lost lease the node waits until everything it
ran is dead and comes back under a new session; work assigned to the old session is no longer its own (architecture, "Real effects").
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
from typing import Final

from substrate.engine.api import Engine
from substrate.mesh.membership import RENEW_EVERY_MS, TTL_MS, Member, decode_member, encode_member, member_key
from substrate.meshos.guardian_client import boottime_ns
from substrate.wire.errors import NetError

log = logging.getLogger("net.node")

ATTEMPT_S: Final = 2.0
RETRY_S: Final = 0.2
DEBOUNCE_S: Final = 0.03
_TRANSIENT: Final = frozenset(("engine-unavailable", "unknown-outcome", "timeout", "overloaded"))


class Lease:
    """The lease of one node.

    `describe(session)` gives what the node announces; `set_deadline(ns)` arms the guardian; `empty()` returns when no process of
    the node's daemons is left; `changed()` is called when the lease is won or lost.
    """

    def __init__(
        self,
        engine: Engine,
        node_id: int,
        public_key: bytes,
        describe: Callable[[int], Member],
        set_deadline: Callable[[int], None],
        empty: Callable[[], Awaitable[None]],
        changed: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._key = member_key(node_id)
        self._public_key = public_key
        self._describe = describe
        self._set_deadline = set_deadline
        self._empty = empty
        self._changed = changed
        self._poke = asyncio.Event()
        self._revision: int | None = None
        self._deadline_ns = 0
        self._unclean = False
        self.session = secrets.randbits(64)
        self.held = False
        self.losses = 0
        self.acquired = asyncio.Event()

    def poke(self) -> None:
        """Announce a change soon instead of at the next renewal."""
        self._poke.set()

    async def run(self) -> None:
        """Acquire, renew, lose and regain the lease until cancelled."""
        while True:
            if self._unclean:
                await self._empty()  # a new session says: nothing of the old one is left
                self.session = secrets.randbits(64)
                self._unclean = False
            pause = RENEW_EVERY_MS / 1000
            try:
                async with asyncio.timeout(ATTEMPT_S):
                    await (self._renew() if self.held else self._acquire())
            except TimeoutError:
                self._revision, pause = None, RETRY_S
            except NetError as error:
                if error.kind not in _TRANSIENT:
                    raise
                self._revision, pause = None, RETRY_S
            if self.held and boottime_ns() >= self._deadline_ns:
                self._lose("it could not be renewed in time")
            if self._unclean:
                continue
            await self._pause(pause)

    async def _pause(self, limit_s: float) -> None:
        try:
            async with asyncio.timeout(limit_s):
                await self._poke.wait()
                await asyncio.sleep(DEBOUNCE_S)  # several changes at once make one announcement
        except TimeoutError:
            pass  # nothing changed: time for the regular renewal
        self._poke.clear()

    async def _acquire(self) -> None:
        present = await self._engine.kv_get(self._key)
        if present is not None:
            member = decode_member(present.key, present.value)
            if member.public_key != self._public_key:
                raise NetError("node-running", f"node {member.name!r} is in the cluster with another key")
            # Left by an earlier run of this very node: its guardian is dead, for ours has taken its lock.
        await self._put(present.revision if present else 0)
        self.held = True
        self.acquired.set()
        log.info("lease acquired, session %d", self.session)
        self._changed()

    async def _renew(self) -> None:
        if self._revision is None:
            present = await self._engine.kv_get(self._key)
            if present is not None and decode_member(present.key, present.value).session != self.session:
                self._lose("another session holds it")
                return
            self._revision = present.revision if present else 0
        try:
            await self._put(self._revision)
        except NetError as error:
            if error.kind != "conflict":
                raise
            self._revision = None
            if int(error.details.get("revision", -1)) != 0:
                return  # an own renewal whose answer was lost; read it again at once
            # Gone: the engine restarted, or the lease ran out. Only a deadline not yet passed tells the former.
            if boottime_ns() < self._deadline_ns:
                await self._put(0)
            else:
                self._lose("it ran out")

    async def _put(self, expect: int) -> None:
        sent_ns = boottime_ns()
        value = encode_member(self._describe(self.session))
        self._revision = await self._engine.kv_put(self._key, value, ttl_ms=TTL_MS, expect=expect)
        self._deadline_ns = sent_ns + TTL_MS * 1_000_000
        self._set_deadline(self._deadline_ns)

    def _lose(self, why: str) -> None:
        log.warning("lease of session %d lost: %s", self.session, why)
        self.held = False
        self.acquired.clear()
        self.losses += 1
        self._set_deadline(boottime_ns())  # at the latest now
        self._unclean = True
        self._revision = None
        self._changed()

    async def release(self) -> None:
        """Say goodbye: the daemons are dead, others may take over at once."""
        self.held = False
        await self._engine.kv_delete(self._key)
