"""What a node knows of its engine: its state, its clock, and how old that knowledge is."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from substrate.engine.api import Engine
from substrate.node.view import monotonic_ms
from substrate.wire.errors import NetError
from substrate.wire.times import now_ms

EVERY_S: Final = 2.0
LIMIT_S: Final = 3.0


class EngineWatch:
    """Asks the engine every two seconds, so that showing its state never waits for it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._seen: dict[str, Any] = {"state": "unknown", "reason": "it was not asked yet"}
        self._seen_at_ms = monotonic_ms()
        self.skew_ms = 0
        """This machine's clock minus the engine's, as last measured."""

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(EVERY_S)

    async def look(self) -> None:
        """Ask the engine now."""
        before = now_ms()
        try:
            async with asyncio.timeout(LIMIT_S):
                status = await self._engine.status()
        except (NetError, TimeoutError) as error:
            self._seen = {"state": "unreachable", "reason": str(error) or "it does not answer"}
        else:
            self.skew_ms = (before + now_ms()) // 2 - status.now_ms
            self._seen = {
                "state": "ready",
                "kind": status.kind,
                "pid": status.pid,
                "epoch": str(status.epoch),
                "size_bytes": status.db_bytes,
                "skew_ms": self.skew_ms,
            }
        self._seen_at_ms = monotonic_ms()

    def document(self) -> dict[str, Any]:
        """What the engine last said about itself, or that it could not be reached, and how long ago that was."""
        return {**self._seen, "age_ms": monotonic_ms() - self._seen_at_ms}
