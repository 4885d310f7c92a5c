"""`LocalEngine`: the engine of one machine, by way of its broker process."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self, TypeVar

from substrate.engine.api import (
    DEFAULT_TAIL_BUFFER,
    ENTRY_ID_BYTES,
    Appended,
    ChainInfo,
    EngineStatus,
    Handler,
    KvEntry,
)
from substrate.engine.local import protocol as p
from substrate.engine.local.directory import EngineDirectory
from substrate.engine.local.kv import check_key
from substrate.engine.local.launch import Starter
from substrate.engine.local.link import Link, LinkLostError, open_link, watch_over
from substrate.engine.local.router import check_payload
from substrate.engine.local.streams import LocalServing, LocalTail, LocalWatch, Stream
from substrate.wire.errors import NetError
from substrate.wire.records import Head, Record, check_chain_name, check_entry_size

CALL_TIMEOUT_MS: Final = 10_000
"""How long a call may take, restarts of the broker included."""
CONNECT_TIMEOUT_MS: Final = 5_000
MAX_CALLS: Final = 1000
"""Calls in progress; below the broker's limit, so that its own never stops reading this client's pings."""
_RETRY_S: Final = 0.02
_RETRY_LATER_S: Final = 0.5

AnyReply = TypeVar("AnyReply", bound=p.Message)


def new_entry_id() -> bytes:
    """16 bytes: 48 bits of milliseconds, then randomness; ids of one clock sort by time."""
    return (time.time_ns() // 1_000_000).to_bytes(6, "big") + os.urandom(10)


class LocalEngine:
    """An `Engine` on a broker (see `substrate.engine.api` for every rule). Use `connect`, and `close` at the end.

    Lives on the loop it was made on. The connection is watched and, when it breaks, made again, with a new broker if
    need be; tails, watches and served subjects go on by themselves.
    """

    def __init__(self, directory: EngineDirectory, *, start: bool, call_timeout_ms: int) -> None:
        self._directory = directory
        self._start = start
        self._call_timeout_s = call_timeout_ms / 1000
        self._loop = asyncio.get_running_loop()
        self._link: Link | None = None
        self._linked: asyncio.Future[None] = self._loop.create_future()
        self._failed: NetError | None = None
        self._closed = False
        self._slots = asyncio.Semaphore(MAX_CALLS)
        self._streams: set[Stream] = set()
        self._servings: dict[str, LocalServing] = {}
        self._keeper: asyncio.Task[None] | None = None

    @classmethod
    async def connect(
        cls,
        directory: Path,
        *,
        start: bool = True,
        timeout_ms: int = CONNECT_TIMEOUT_MS,
        call_timeout_ms: int = CALL_TIMEOUT_MS,
    ) -> Self:
        """Connect to the broker of an engine directory, starting one if there is none and `start`.

        Raises `engine-unavailable` if none answers within `timeout_ms` (what brokers had to say is in the
        directory's `broker.log`), `permissive-mode` if others may enter the directory.
        """
        place = EngineDirectory(directory.absolute())
        if start:
            place.create()
        engine = cls(place, start=start, call_timeout_ms=call_timeout_ms)
        engine._keeper = engine._loop.create_task(engine._keep())
        engine._keeper.add_done_callback(engine._keeper_ended)
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                await engine._connected()
        except TimeoutError:
            await engine.close()
            raise engine._unavailable() from None
        except BaseException:
            await engine.close()
            raise
        return engine

    async def close(self) -> None:
        """End everything; safe to call twice."""
        self._closed = True
        for stream in tuple(self._streams):
            stream.finish()
        for serving in tuple(self._servings.values()):
            await serving.abandon()
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait((self._keeper,))
        link, self._link = self._link, None
        if link is not None:
            await link.close()
        self._wake_waiting()  # whoever waits for a connection sees that it is over

    # chains ------------------------------------------------------------------------------------------------

    async def append(
        self,
        chain: str,
        payloads: Sequence[bytes],
        *,
        expect: Head | None = None,
        entry_id: bytes | None = None,
        create: bool = False,
    ) -> Appended:
        """See `Engine.append`."""
        check_chain_name(chain)
        check_entry_size(payloads)
        message = p.AppendCall(0, chain, list(payloads), expect, _entry_id(entry_id), create)
        return await self._append(message)

    async def append_records(
        self,
        chain: str,
        records: Sequence[Record],
        *,
        expect: Head,
        entry_id: bytes | None = None,
        create: bool = False,
    ) -> Appended:
        """See `Engine.append_records`."""
        check_chain_name(chain)
        check_entry_size([record.payload + record.seal for record in records])
        message = p.AppendRecordsCall(0, chain, list(records), expect, _entry_id(entry_id), create)
        return await self._append(message)

    async def read(self, chain: str, from_seq: int, *, limit: int = 1000) -> list[Record]:
        """See `Engine.read`."""
        check_chain_name(chain)
        records: list[Record] = []
        while True:
            page = await self._call(p.ReadCall(0, chain, from_seq, limit - len(records)), p.Page)
            if not records:
                records = page.records
            else:
                records += page.records
            if not page.more or len(records) >= limit:
                return records
            from_seq = records[-1].seq + 1

    async def head(self, chain: str) -> Head:
        """See `Engine.head`."""
        check_chain_name(chain)
        return (await self._call(p.HeadCall(0, chain), p.HeadIs)).head

    async def chains(self) -> list[ChainInfo]:
        """See `Engine.chains`."""
        chains: list[ChainInfo] = []
        while True:
            page = await self._call(p.ChainsCall(0, chains[-1].name if chains else ""), p.ChainsPage)
            chains += page.chains
            if not page.more:
                return chains

    def tail(self, chain: str, from_seq: int, *, buffer: int = DEFAULT_TAIL_BUFFER) -> LocalTail:
        """See `Engine.tail`."""
        self._check_open()
        tail = LocalTail(self._streams, check_chain_name(chain), from_seq, buffer)
        if self._link is not None:
            tail.attach(self._link)
        return tail

    # key-value ---------------------------------------------------------------------------------------------

    async def kv_put(self, key: str, value: bytes, *, ttl_ms: int | None = None, expect: int | None = None) -> int:
        """See `Engine.kv_put`."""
        check_key(key)
        message = p.PutCall(0, key, value, ttl_ms, expect)
        return (await self._call(message, p.Revision, repeat=expect is None)).revision

    async def kv_get(self, key: str) -> KvEntry | None:
        """See `Engine.kv_get`."""
        check_key(key)
        return (await self._call(p.GetCall(0, key), p.EntryIs)).entry

    async def kv_list(self, prefix: str) -> list[KvEntry]:
        """See `Engine.kv_list`."""
        entries: list[KvEntry] = []
        while True:
            page = await self._call(p.ListCall(0, prefix, entries[-1].key if entries else ""), p.EntriesPage)
            entries += page.entries
            if not page.more:
                return entries

    async def kv_delete(self, key: str, *, expect: int | None = None) -> bool:
        """See `Engine.kv_delete`."""
        check_key(key)
        return (await self._call(p.DeleteCall(0, key, expect), p.Done, repeat=expect is None)).value

    def kv_watch(self, prefix: str) -> LocalWatch:
        """See `Engine.kv_watch`."""
        self._check_open()
        watch = LocalWatch(self._streams, prefix)
        if self._link is not None:
            watch.attach(self._link)
        return watch

    # requests, time, status --------------------------------------------------------------------------------

    def serve(self, subject: str, handler: Handler) -> LocalServing:
        """See `Engine.serve`. Raises `conflict` if this very engine serves the subject already."""
        self._check_open()
        if check_key(subject) in self._servings:
            raise NetError("conflict", f"the subject {subject!r} is served here already", details={"subject": subject})
        serving = LocalServing(self._servings, subject, handler)
        if self._link is not None:
            serving.attach(self._link)
        return serving

    async def request(self, subject: str, payload: bytes, *, timeout_ms: int) -> bytes:
        """See `Engine.request`."""
        check_key(subject)
        check_payload(payload)
        link: Link | None = None
        try:
            async with asyncio.timeout(timeout_ms / 1000), self._slots:
                link = await self._connected()
                answer = await link.call(p.RequestCall(0, subject, payload, timeout_ms))
        except TimeoutError:
            if link is None:
                raise self._unavailable() from None
            raise NetError(
                "timeout", f"no answer from {subject!r} within {timeout_ms} ms", details={"subject": subject}
            ) from None
        except LinkLostError:
            raise NetError(
                "node-unreachable",
                f"the engine restarted before {subject!r} answered",
                "the request may have been carried out",
                {"subject": subject},
            ) from None
        assert isinstance(answer, p.RequestDone)
        return answer.payload

    async def now_ms(self) -> int:
        """See `Engine.now_ms`: reckoned from the broker's last sign of life, at most `PING_S` old."""
        if self._link is not None:
            return self._link.now_ms()
        try:
            async with asyncio.timeout(self._call_timeout_s):
                return (await self._connected()).now_ms()
        except TimeoutError:
            raise self._unavailable() from None

    async def status(self) -> EngineStatus:
        """See `Engine.status`."""
        return (await self._call(p.StatusCall(0), p.StatusIs)).status

    # the connection ----------------------------------------------------------------------------------------

    async def _append(self, message: p.AppendCall | p.AppendRecordsCall) -> Appended:
        try:
            return (await self._call(message, p.AppendDone)).appended
        except NetError as error:
            if error.kind == "unknown-outcome":
                error.details.update(chain=message.chain, entry_id=message.entry_id.hex())
            raise

    async def _call(self, message: p.Message, expected: type[AnyReply], *, repeat: bool = True) -> AnyReply:
        """Call until answered; over a new connection where one broke, if the call may be repeated."""
        changes = isinstance(message, p.AppendCall | p.AppendRecordsCall | p.PutCall | p.DeleteCall)
        sent = False
        try:
            async with asyncio.timeout(self._call_timeout_s), self._slots:
                while True:
                    link = await self._connected()
                    try:
                        sent = True
                        reply = await link.call(message)
                        break
                    except LinkLostError:
                        if not repeat:
                            raise _unknown("the connection broke before the engine answered") from None
        except TimeoutError:
            if sent and changes:
                raise _unknown(f"the engine did not answer within {self._call_timeout_s:g} s") from None
            raise self._unavailable() from None
        except NetError as error:
            if sent and changes and error.kind == "engine-unavailable":  # closed while it was on the way
                raise _unknown(error.message) from None
            raise
        assert isinstance(reply, expected)
        return reply

    async def _connected(self) -> Link:
        """The connection, once there is one. Raises `engine-unavailable` when closed, or why none can be."""
        while (link := self._link) is None or link.lost.done():  # the latter: the keeper has not noticed yet
            self._check_open()
            if self._failed is not None:
                raise self._failed
            await asyncio.shield(self._linked)
        return link

    def _check_open(self) -> None:
        if self._closed:
            raise NetError("engine-unavailable", "the engine was closed")

    def _unavailable(self) -> NetError:
        return NetError(
            "engine-unavailable",
            f"no broker answers in {self._directory.path}",
            f"see {self._directory.log}" if self._start else "start a node",
        )

    async def _keep(self) -> None:
        """Have a connection, for ever: make it, hand it out, watch over it, make the next."""
        starter = Starter(self._directory)
        while True:
            link = await self._make_link(starter)
            link.on_deliver = lambda message, link=link: self._deliver(message, link)
            self._link = link
            for stream in tuple(self._streams):
                stream.attach(link)
            for serving in tuple(self._servings.values()):
                serving.attach(link)
            self._wake_waiting()
            await watch_over(link, self._directory)
            self._link = None
            for stream in tuple(self._streams):
                stream.detach()
            for serving in tuple(self._servings.values()):
                serving.detach()

    async def _make_link(self, starter: Starter) -> Link:
        """Try until there is one; patiently after `CONNECT_TIMEOUT_MS`, when something must be wrong."""
        began = time.monotonic()
        while True:
            try:
                link = await open_link(self._directory)
                if link is None and self._start:
                    starter.attempt()
            except NetError as error:
                link, self._failed = None, error
            except OSError as error:
                link, self._failed = None, NetError("engine-unavailable", f"the engine's directory: {error}")
            if self._failed is not None:  # tell who waits; whoever comes later is told too, until it is mended
                self._wake_waiting()
            if link is not None:
                starter.settle(answered=True)
                self._failed = None
                return link
            late = time.monotonic() - began > CONNECT_TIMEOUT_MS / 1000
            if late or self._failed is not None:
                starter.settle(answered=False)
            await asyncio.sleep(_RETRY_LATER_S if late or self._failed is not None else _RETRY_S)

    def _wake_waiting(self) -> None:
        linked, self._linked = self._linked, self._loop.create_future()
        linked.set_result(None)

    def _keeper_ended(self, keeper: asyncio.Task[None]) -> None:
        if not keeper.cancelled() and (error := keeper.exception()) is not None:
            self._failed = NetError("internal", f"the engine's connection failed: {error!r}")
            self._wake_waiting()
            self._loop.call_exception_handler({"message": "the engine's keeper ended", "exception": error})

    def _deliver(self, message: p.Deliver, link: Link) -> None:
        serving = self._servings.get(message.subject)
        if serving is not None:
            serving.deliver(message, link)
        else:
            error = NetError("node-unreachable", f"{message.subject!r} is not served any more")
            link.send(p.AnswerFailure(message.id, error.kind, error.message, error.hint, error.details))


def _entry_id(given: bytes | None) -> bytes:
    if given is None:
        return new_entry_id()
    if len(given) != ENTRY_ID_BYTES:
        raise NetError("invalid-argument", f"an entry id has {ENTRY_ID_BYTES} bytes, not {len(given)}")
    return given


def _unknown(why: str) -> NetError:
    return NetError("unknown-outcome", why, "it may have happened: repeat it with the same entry id, or read")
