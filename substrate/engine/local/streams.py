"""What a client keeps across connections: its tails, its watches, the subjects it serves."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final, Self

from substrate.engine.api import Handler, KvEvent, Lagged, TailItem
from substrate.engine.local import protocol as p
from substrate.engine.local.link import Link, LinkLostError, StreamMessage
from substrate.engine.local.router import check_payload
from substrate.wire.errors import NetError

MAX_HANDLERS: Final = 256
"""Requests of one subject in progress; further ones are answered `overloaded`."""
RETRY_S: Final = 0.25
"""Between attempts to get a subject another server has."""


class Stream:
    """What tails and watches have in common: a link that changes, a reader that waits, an end."""

    def __init__(self, streams: set[Stream]) -> None:
        self._streams = streams
        self._link: Link | None = None
        self._id = 0
        self._reader: asyncio.Future[None] | None = None
        self._error: NetError | None = None
        self._ended = False
        streams.add(self)

    def attach(self, link: Link) -> None:
        """A new connection: go on there."""
        self._link = link
        self._id = link.open_stream(self._opening(), self._received)

    def detach(self) -> None:
        """The connection is gone."""
        self._link = None

    def finish(self) -> None:
        """No further items; those received can still be read."""
        self._ended = True
        self._streams.discard(self)
        if self._link is not None:
            self._link.close_stream(self._id)
            self._link = None
        self._wake()

    async def aclose(self) -> None:
        """End it; safe to call twice."""
        self._drop_items()
        self.finish()

    def __aiter__(self) -> Self:
        return self

    def _opening(self) -> p.Message:
        raise NotImplementedError

    def _received(self, message: StreamMessage) -> None:
        raise NotImplementedError

    def _drop_items(self) -> None:
        raise NotImplementedError

    def _fail(self, message: p.Failure) -> None:
        self._error = p.error_of(message)
        self.finish()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def _wait(self) -> None:
        """Wait for items or the end; raises `StopAsyncIteration` or the broker's error at the end."""
        if self._ended:
            if self._error is not None:
                raise self._error
            raise StopAsyncIteration
        assert self._reader is None, "a stream has one reader at a time"
        self._reader = asyncio.get_running_loop().create_future()
        try:
            await self._reader
        finally:
            self._reader = None


class LocalTail(Stream):
    """`engine.api.Tail`. `next_seq` is where it goes on after a broken connection."""

    def __init__(self, streams: set[Stream], chain: str, from_seq: int, buffer: int) -> None:
        super().__init__(streams)
        self.chain = chain
        self.next_seq = from_seq
        self._buffer = buffer
        self._items: deque[TailItem] = deque()
        self._unacked = 0
        self._unacked_cost = 0

    async def __anext__(self) -> TailItem:
        """The next batch, or `Lagged`."""
        while not self._items:
            await self._wait()
        item = self._items.popleft()
        if not isinstance(item, Lagged):
            self._unacked += len(item)
            self._unacked_cost += sum(map(p.record_cost, item))
            if 2 * self._unacked >= self._buffer or 2 * self._unacked_cost >= p.TAIL_WINDOW_BYTES:
                self._unacked = self._unacked_cost = 0
                if self._link is not None:
                    self._link.send(p.TailAck(self._id, item[-1].seq))
        return item

    def _opening(self) -> p.Message:
        return p.TailOpen(0, self.chain, self.next_seq, self._buffer)

    def _received(self, message: StreamMessage) -> None:
        if isinstance(message, p.TailBatch):
            self.next_seq = message.records[-1].seq + 1
            self._items.append(message.records)
            self._wake()
        elif isinstance(message, p.TailLagged):
            self.next_seq = message.to_seq + 1
            self._items.append(Lagged(message.from_seq, message.to_seq))
            self._wake()
        elif isinstance(message, p.Failure):
            self._fail(message)

    def _drop_items(self) -> None:
        self._items.clear()


class LocalWatch(Stream):
    """`engine.api.Watch`."""

    def __init__(self, streams: set[Stream], prefix: str) -> None:
        super().__init__(streams)
        self.prefix = prefix
        self._items: deque[KvEvent] = deque()
        self._unacked = False
        self._began = False

    def attach(self, link: Link) -> None:
        """A new connection: what was known before may be gone."""
        if self._began:
            self._items.clear()  # superseded by the present entries
            self._items.append(KvEvent("reset"))
            self._wake()
        self._began = True
        self._unacked = False
        super().attach(link)

    async def __anext__(self) -> KvEvent:
        """The next event."""
        while not self._items:
            if self._unacked and self._link is not None:
                self._unacked = False
                self._link.send(p.WatchAck(self._id))
            await self._wait()
        return self._items.popleft()

    def _opening(self) -> p.Message:
        return p.WatchOpen(0, self.prefix)

    def _received(self, message: StreamMessage) -> None:
        if isinstance(message, p.WatchBatch):
            self._items.extend(message.events)
            self._unacked = True
            self._wake()
        elif isinstance(message, p.Failure):
            self._fail(message)

    def _drop_items(self) -> None:
        self._items.clear()


class LocalServing:
    """`engine.api.Serving`: a subject, its handler, and the attempts to get the subject routed here."""

    def __init__(self, servings: dict[str, LocalServing], subject: str, handler: Handler) -> None:
        self._servings = servings
        self._subject = subject
        self._handler = handler
        self._link: Link | None = None
        self._outcome: asyncio.Future[NetError | None] = asyncio.get_running_loop().create_future()
        self._registration: asyncio.Task[None] | None = None
        self._running: set[asyncio.Task[None]] = set()
        servings[subject] = self

    async def ready(self) -> None:
        """Return once requests arrive here; raises `conflict` while another server has the subject."""
        error = await asyncio.shield(self._outcome)
        if error is not None:
            raise error

    async def aclose(self) -> None:
        """Stop serving; requests in progress are still answered."""
        link = self._link
        self._stop()
        if link is not None:
            try:
                await link.call(p.UnserveCall(0, self._subject))
            except LinkLostError:
                pass  # nothing is routed to a closed connection

    async def abandon(self) -> None:
        """The engine closes: drop the requests in progress, and leave the subject to the end of the connection."""
        self._stop()
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(self._running)

    def _stop(self) -> None:
        self._link = None
        if self._servings.get(self._subject) is self:
            del self._servings[self._subject]
        if self._registration is not None:
            self._registration.cancel()
        if not self._outcome.done():
            self._outcome.set_result(NetError("engine-unavailable", f"{self._subject!r} is not served any more"))

    def attach(self, link: Link) -> None:
        """A new connection: register there."""
        self._link = link
        self._registration = asyncio.get_running_loop().create_task(self._register(link))

    def detach(self) -> None:
        """The connection is gone."""
        self._link = None
        if self._outcome.done():
            self._outcome = asyncio.get_running_loop().create_future()

    def deliver(self, message: p.Deliver, link: Link) -> None:
        """Run the handler for a request and send its answer by the connection it came from."""
        if len(self._running) >= MAX_HANDLERS:
            error = NetError("overloaded", f"{self._subject!r} has {MAX_HANDLERS} requests in progress")
            link.send(_answer_failure(message.id, error))
            return
        task = asyncio.get_running_loop().create_task(self._answer(message, link))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _answer(self, message: p.Deliver, link: Link) -> None:
        try:
            payload = await self._handler(message.payload)
            check_payload(payload)
            link.send(p.Answer(message.id, payload))
        except NetError as error:
            link.send(_answer_failure(message.id, error))
        except Exception as error:
            link.send(_answer_failure(message.id, NetError("internal", f"the handler failed: {error!r}")))
            context = {"message": f"the handler of {self._subject!r} failed", "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)

    async def _register(self, link: Link) -> None:
        while self._link is link:
            try:
                await link.call(p.ServeCall(0, self._subject))
            except LinkLostError:
                return
            except NetError as error:
                self._settle(error)
                await asyncio.sleep(RETRY_S)  # the other server may end
                continue
            self._settle(None)
            return

    def _settle(self, outcome: NetError | None) -> None:
        if self._outcome.done():
            self._outcome = asyncio.get_running_loop().create_future()
        self._outcome.set_result(outcome)


def _answer_failure(id: int, error: NetError) -> p.AnswerFailure:
    return p.AnswerFailure(id, error.kind, error.message, error.hint, error.details)
