"""The control server: listens, admits connections up to a limit, ticks their deadlines, closes gracefully."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import Final

import msgspec

from substrate.control.api import ControlApi
from substrate.control.connection import Connection, Phase
from substrate.control.dispatch import Dispatcher
from substrate.control.socketfile import SocketFile
from substrate.wire.errors import NetError

_TICKS: Final = 5
"""How often the shortest time limit is looked at: a limit is exceeded by at most a fifth."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What one client may cost the node. Sizes in bytes, times in seconds; contract section 8."""

    connections: int = 64
    refusals: int = 64
    """Connections over the limit that are still told why; beyond them the socket is simply closed."""
    header_bytes: int = 16 * 1024
    body_bytes: int = 1024 * 1024
    header_s: float = 10.0
    body_s: float = 30.0
    idle_s: float = 75.0
    stall_s: float = 30.0
    """How long a client may read nothing of what waits for it."""
    heartbeat_s: float = 15.0
    linger_s: float = 1.0


class ControlServer:
    """Serves one `ControlApi` on one Unix socket.

    `start` raises what `SocketFile` raises. `close` may be called twice.
    """

    def __init__(
        self,
        api: ControlApi,
        path: str | os.PathLike[str],
        *,
        limits: Limits | None = None,
        logger: logging.Logger | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self.path = os.path.abspath(os.fspath(path))
        self.dispatcher = Dispatcher(api, logger or logging.getLogger("net.control"))
        self._connections: set[Connection] = set()
        self._file: SocketFile | None = None
        self._server: asyncio.Server | None = None
        self._ticking: asyncio.TimerHandle | None = None
        self._empty = asyncio.Event()
        set_to = self.limits
        shortest_s = min(set_to.header_s, set_to.body_s, set_to.idle_s, set_to.stall_s, set_to.heartbeat_s)
        self._tick_s = min(set_to.linger_s, shortest_s / _TICKS)

    @property
    def connections(self) -> int:
        """Connections open now, lingering ones included."""
        return len(self._connections)

    async def start(self) -> None:
        """Take the path and serve."""
        assert self._file is None, "a server starts once"
        self._file = SocketFile(self.path)
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_unix_server(lambda: Connection(self), sock=self._file.listener)
        except BaseException:
            self._file.close()
            raise

    async def close(self, reason: str = "node-stopping", grace_s: float = 5.0) -> None:
        """Stop listening; streams end with `reason`, answers in work get `grace_s`, the rest is closed."""
        if self._server is None or self._file is None:
            return
        self._server.close()
        self._server = None
        for connection in list(self._connections):
            connection.stop(reason)
        try:
            async with asyncio.timeout(grace_s):
                while self._connections:
                    self._empty.clear()
                    await self._empty.wait()
        except TimeoutError:
            for connection in list(self._connections):
                connection.abort()
            await asyncio.sleep(0)
        finally:
            if self._ticking is not None:
                self._ticking.cancel()
                self._ticking = None
            self._file.close()

    # --- for connections

    def admit(self, connection: Connection) -> None:
        """Register a new connection; `overloaded` if there are too many. One far over the limit is aborted."""
        serving = sum(each.phase is not Phase.LINGER for each in self._connections)
        over = len(self._connections) - self.limits.connections
        self._connections.add(connection)
        if self._ticking is None:
            self._tick()
        if over >= self.limits.refusals:
            connection.abort()
        elif serving >= self.limits.connections:
            raise NetError(
                "overloaded",
                f"the node serves {self.limits.connections} connections already",
                "close one (a follow stream, perhaps) and try again",
                {"limit": self.limits.connections},
            )

    def forget(self, connection: Connection) -> None:
        """Unregister a connection that has ended."""
        self._connections.discard(connection)
        if not self._connections:
            self._empty.set()

    def _tick(self) -> None:
        """Run while there are connections; an idle node has no timer."""
        self._ticking = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        for connection in list(self._connections):
            connection.tick(now)
        if self._connections:
            self._ticking = loop.call_later(self._tick_s, self._tick)
