"""What the broker does with the messages of its clients.

Everything happens on one loop, except commits, which run in the store's thread and come back as one wake-up for all
entries of a group commit.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final

from substrate.engine.api import ENTRY_ID_BYTES, Appended, EngineStatus, KvEvent
from substrate.engine.local import protocol as p
from substrate.engine.local.connection import Connection
from substrate.engine.local.directory import BrokerIdentity, EngineDirectory
from substrate.engine.local.kv import KvStore
from substrate.engine.local.router import Router
from substrate.engine.local.tails import Tails
from substrate.engine.local.watches import Watches
from substrate.redex import Store
from substrate.wire.errors import NetError
from substrate.wire.records import EMPTY
from substrate.wire.times import iso, now_ms

MAX_CONNECTIONS: Final = 256
IDLE_EXIT_S: Final = 10.0
"""A broker without clients ends after so long."""
STUCK_DROP_S: Final = 10.0
"""A client that takes nothing for so long is disconnected."""
SILENT_DROP_S: Final = 30.0
"""So is one that says nothing, not even a ping, for so long."""
DRAIN_S: Final = 3.0
"""How long an ending broker waits for commits in progress and for its answers to be taken."""
_REVISIONS_KEPT: Final = 1 << 20


def say(text: str) -> None:
    """One line in the broker's log, which is its stderr."""
    sys.stderr.write(f"{iso(now_ms())} broker {os.getpid()}: {text}\n")
    sys.stderr.flush()


def _monotonic_ms() -> int:
    return time.monotonic_ns() // 1_000_000


class Broker:
    """What the connections speak for (`connection.Service`). Lives on one loop; only commits run elsewhere."""

    def __init__(self, store: Store, directory: EngineDirectory, identity: BrokerIdentity) -> None:
        self.exit_code: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._loop = asyncio.get_running_loop()
        self._store = store
        self._directory = directory
        self._identity = identity
        self._started_at = self._loop.time()
        self._idle_since: float | None = self._started_at
        self._connections: set[Connection] = set()
        self._touched: set[Connection] = set()
        self._watches = Watches()
        self._kv = KvStore(identity.epoch, _monotonic_ms, self._changed)
        self._watches.bind(self._kv)
        self._tails = Tails(store, self.fail)
        self._router = Router(self._touch)
        self._expiry: asyncio.TimerHandle | None = None
        self._expiry_due_ms = 0
        self._appends = 0
        self._in_flight = 0
        self._woken = False
        self._calm = asyncio.Event()
        self._committed: deque[tuple[Connection, p.AppendCall | p.AppendRecordsCall, Future[Appended]]] = deque()
        self._handlers: dict[type[p.Message], Callable[[Connection, Any], None]] = {
            p.Ping: lambda c, m: c.send(p.Pong(m.id, now_ms())),
            p.AppendCall: self._append,
            p.AppendRecordsCall: self._append,
            p.ReadCall: self._read,
            p.HeadCall: self._head,
            p.ChainsCall: self._chains,
            p.PutCall: self._put,
            p.GetCall: lambda c, m: c.send(p.EntryIs(m.id, self._kv.get(m.key))),
            p.ListCall: self._list,
            p.DeleteCall: self._delete,
            p.TailOpen: lambda c, m: self._tails.open(c, m.id, m.chain, m.from_seq, m.buffer),
            p.TailAck: lambda c, m: self._tails.ack(c, m.id, m.seq),
            p.WatchOpen: lambda c, m: self._watches.open(c, m.id, m.prefix),
            p.WatchAck: lambda c, m: self._watches.ack(c, m.id),
            p.CloseStream: self._close_stream,
            p.ServeCall: self._serve,
            p.UnserveCall: lambda c, m: c.send(p.Done(m.id, self._router.unserve(c, m.subject))),
            p.RequestCall: lambda c, m: self._router.request(c, m.id, m.subject, m.payload, m.timeout_ms),
            p.Answer: self._router.answer,
            p.AnswerFailure: self._router.answer,
            p.StatusCall: self._status,
        }

    # connection.Service ------------------------------------------------------------------------------------

    def opened(self, connection: Connection) -> None:
        """Count a client in."""
        if len(self._connections) >= MAX_CONNECTIONS:
            raise NetError("overloaded", f"the broker has {MAX_CONNECTIONS} clients already")
        self._connections.add(connection)
        self._idle_since = None

    def closed(self, connection: Connection) -> None:
        """Count it out, with all it had."""
        self._connections.discard(connection)
        self._touched.discard(connection)
        self._tails.drop(connection)
        self._watches.drop(connection)
        self._router.drop(connection)
        self._calm.set()
        if not self._connections:
            self._idle_since = self._loop.time()

    def handle(self, connection: Connection, message: p.ClientMessage) -> None:
        """Act on one message."""
        if connection.greeted:
            handler = self._handlers.get(type(message))
            if handler is None:
                raise NetError("invalid-argument", "one hello is enough")
            handler(connection, message)
        elif isinstance(message, p.Hello) and message.version == p.VERSION:
            connection.greeted = True
            who = self._identity
            connection.send(p.Welcome(message.id, p.VERSION, who.epoch, who.pid, who.start_time, now_ms()))
        else:
            connection.refuse(NetError("invalid-argument", f"the broker speaks version {p.VERSION} of its protocol"))

    def writable(self, connection: Connection) -> None:
        """Go on with what had to wait."""
        self._tails.writable(connection)
        self._watches.writable(connection)

    def log(self, text: str) -> None:
        """One line in the log."""
        say(text)

    # chains ------------------------------------------------------------------------------------------------

    def _append(self, connection: Connection, message: p.AppendCall | p.AppendRecordsCall) -> None:
        if len(message.entry_id) != ENTRY_ID_BYTES:
            raise NetError("invalid-argument", f"an entry id has {ENTRY_ID_BYTES} bytes")
        options: dict[str, Any] = {"expect": message.expect, "entry_id": message.entry_id, "create": message.create}
        if isinstance(message, p.AppendCall):
            future = self._store.submit(message.chain, message.payloads, **options)
        else:
            future = self._store.submit(message.chain, records=message.records, **options)
        connection.append_began()
        self._in_flight += 1
        future.add_done_callback(lambda done: self._on_commit(connection, message, done))

    def _on_commit(
        self, connection: Connection, message: p.AppendCall | p.AppendRecordsCall, done: Future[Appended]
    ) -> None:
        """Runs in the committing thread: one wake-up of the loop for all entries of a group commit."""
        self._committed.append((connection, message, done))
        if not self._woken:
            self._woken = True
            self._loop.call_soon_threadsafe(self._acknowledge)

    def _acknowledge(self) -> None:
        """Answer what was committed, then push it to the tails."""
        self._woken = False  # before the queue is read: what is queued after that wakes again
        touched: set[Connection] = set()
        while self._committed:
            connection, message, done = self._committed.popleft()
            self._in_flight -= 1
            error = done.exception()
            if error is None:
                appended = done.result()
                self._appends += not appended.duplicate
                connection.send(p.AppendDone(message.id, appended))
                self._tails.committed(message.chain, appended.head.seq)
            elif isinstance(error, NetError):
                if error.kind == "io-error":  # it may be on disk or not: the next broker will know
                    self.fail(error)
                    return
                connection.send(p.failure(message.id, error))
            else:
                self.fail(NetError("internal", f"an append failed unexpectedly: {error!r}"))
                return
            connection.append_ended()
            touched.add(connection)
        for connection in touched:
            connection.flush()
        self._calm.set()

    def _read(self, connection: Connection, message: p.ReadCall) -> None:
        if message.from_seq < 1 or message.limit < 1:
            raise NetError("invalid-argument", "a read begins at seq 1 or later and has a limit of at least 1")
        limit = min(message.limit, p.PAGE_RECORDS)
        try:
            records = self._store.read(message.chain, message.from_seq, limit=limit, max_bytes=p.PAGE_BYTES)
            more = bool(records) and records[-1].seq < self._store.head(message.chain).seq
        except NetError as error:
            if error.kind != "chain-not-found":
                raise
            records, more = [], False
        connection.send(p.Page(message.id, records, more))

    def _head(self, connection: Connection, message: p.HeadCall) -> None:
        try:
            head = self._store.head(message.chain)
        except NetError as error:
            if error.kind != "chain-not-found":
                raise
            head = EMPTY
        connection.send(p.HeadIs(message.id, head))

    def _chains(self, connection: Connection, message: p.ChainsCall) -> None:
        chains = [chain for chain in self._store.chains() if chain.name > message.after]
        connection.send(p.ChainsPage(message.id, chains[: p.PAGE_RECORDS], len(chains) > p.PAGE_RECORDS))

    # key-value ---------------------------------------------------------------------------------------------

    def _put(self, connection: Connection, message: p.PutCall) -> None:
        revision = self._kv.put(message.key, message.value, ttl_ms=message.ttl_ms, expect=message.expect)
        if message.ttl_ms is not None:
            self._arm_expiry()
        connection.send(p.Revision(message.id, revision))

    def _list(self, connection: Connection, message: p.ListCall) -> None:
        entries, more = self._kv.list(message.prefix, after=message.after, limit_bytes=p.PAGE_BYTES)
        connection.send(p.EntriesPage(message.id, entries, more))

    def _delete(self, connection: Connection, message: p.DeleteCall) -> None:
        connection.send(p.Done(message.id, self._kv.delete(message.key, expect=message.expect)))

    def _changed(self, event: KvEvent) -> None:
        self._watches.changed(event)

    def _arm_expiry(self) -> None:
        """Set the one timer to the next deadline; a timer that is early enough stays (renewals only move away)."""
        due_ms = self._kv.next_due_ms()
        if due_ms is None or (self._expiry is not None and self._expiry_due_ms <= due_ms):
            return
        if self._expiry is not None:
            self._expiry.cancel()
        self._expiry_due_ms = due_ms
        self._expiry = self._loop.call_later(max(0, due_ms - _monotonic_ms()) / 1000 + 0.001, self._expire)

    def _expire(self) -> None:
        self._expiry = None
        self._kv.expire()
        self._arm_expiry()

    # requests and status -----------------------------------------------------------------------------------

    def _close_stream(self, connection: Connection, message: p.CloseStream) -> None:
        if not self._tails.close(connection, message.id):
            self._watches.close(connection, message.id)

    def _serve(self, connection: Connection, message: p.ServeCall) -> None:
        self._router.serve(connection, message.subject)
        connection.send(p.Done(message.id, True))

    def _status(self, connection: Connection, message: p.StatusCall) -> None:
        status = EngineStatus(
            kind="local",
            pid=self._identity.pid,
            epoch=self._identity.epoch,
            uptime_ms=int((self._loop.time() - self._started_at) * 1000),
            now_ms=now_ms(),
            db_bytes=sum(file.stat().st_size for file in self._directory.path.glob("engine.db*")),
            connections=len(self._connections),
            tails=len(self._tails),
            watches=len(self._watches),
            subjects=len(self._router),
            keys=len(self._kv),
            appends=self._appends,
        )
        connection.send(p.StatusIs(message.id, status))

    def _touch(self, connection: Connection) -> None:
        if not self._touched:
            self._loop.call_soon(self._flush_touched)
        self._touched.add(connection)

    def _flush_touched(self) -> None:
        touched, self._touched = self._touched, set()
        for connection in touched:
            connection.flush()

    # life --------------------------------------------------------------------------------------------------

    def keep_house(self) -> None:
        """Once a second: clients that are stuck or silent go, and so does an idle broker."""
        now = self._loop.time()
        for connection in list(self._connections):
            if connection.stuck_since is not None and now - connection.stuck_since > STUCK_DROP_S:
                say(f"dropping a client that took nothing for {STUCK_DROP_S:.0f} s")
                connection.abort()
            elif now - connection.heard_at > SILENT_DROP_S:
                say(f"dropping a client that was silent for {SILENT_DROP_S:.0f} s")
                connection.abort()
        if self._idle_since is not None and now - self._idle_since > IDLE_EXIT_S:
            self.end(0)
        elif self._kv.revisions_left < _REVISIONS_KEPT:
            say("ending: the revisions of this epoch are used up")
            self.end(0)
        else:
            self._loop.call_later(1.0, self.keep_house)

    def fail(self, error: NetError) -> None:
        """The store failed: end without another word to anybody, the next broker tells what became of the appends."""
        say(f"ending: {error.kind}: {error.message}")
        self.end(1)

    def end(self, code: int) -> None:
        """Make `run` return."""
        if not self.exit_code.done():
            self.exit_code.set_result(code)

    async def drain(self) -> None:
        """Take nothing new, answer what is in progress, close the connections."""
        for connection in list(self._connections):
            connection.stop_reading()
        try:
            async with asyncio.timeout(DRAIN_S):
                while self._in_flight:
                    await self._next_calm()
                for connection in list(self._connections):
                    connection.close()
                while self._connections:
                    await self._next_calm()
        except TimeoutError:
            say(f"dropping {len(self._connections)} clients that do not take their answers")
            for connection in list(self._connections):
                connection.abort()

    async def _next_calm(self) -> None:
        """Wait for the next commit or the next closed connection."""
        self._calm.clear()
        await self._calm.wait()
