"""Group commit: whoever comes first commits for all who wait; the rest share its one flush.

One caller at a time *leads*. A synchronous caller that finds nobody leading leads at once, in its own thread. When a
leader has committed its group it hands the lead to the oldest request that came meanwhile and returns, so nobody
serves others for ever. Requests with a future have no thread of their own: a writer thread leads for them.
An `exclusive()` block is a turn in the same queue, for work that is not an append.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Final

from substrate.redex.types import Appended
from substrate.wire.errors import NetError
from substrate.wire.records import RECORD_OVERHEAD_BYTES, Head, Record

MAX_GROUP_BYTES: Final = 8 * 1024 * 1024
MAX_WAITING_BYTES: Final = 64 * 1024 * 1024
MAX_WAITING: Final = 65_536
GATHER_S: Final = 50e-6
"""How long to wait for each thread expected back: about what waking it takes."""
MAX_GATHERED: Final = 32


class Request:
    """One entry that waits to be committed, and then its outcome: `result` or `error`."""

    __slots__ = (
        "at_ms", "chain", "create", "done", "entry_id", "error", "exclusive", "expect",
        "future", "gate", "leads", "payloads", "records", "result", "size",
    )  # fmt: skip

    def __init__(
        self,
        chain: str,
        payloads: Sequence[bytes] = (),
        *,
        records: Sequence[Record] | None = None,
        expect: Head | None = None,
        at_ms: int | None = None,
        entry_id: bytes | None = None,
        create: bool = False,
        exclusive: bool = False,
    ) -> None:
        self.chain = chain
        self.payloads = payloads
        self.records = records
        self.expect = expect
        self.at_ms = at_ms
        self.entry_id = entry_id
        self.create = create
        self.exclusive = exclusive
        if records is None:
            self.size = sum(map(len, payloads)) + RECORD_OVERHEAD_BYTES * len(payloads)
        else:
            self.size = sum(len(r.payload) + len(r.seal) + RECORD_OVERHEAD_BYTES for r in records)
        self.result: Appended | None = None
        self.error: NetError | None = None
        self.done = False
        self.leads = False
        self.future: Future[Appended] | None = None
        self.gate: threading.Lock | None = None

    def outcome(self) -> Appended:
        """The result, or its error raised."""
        if self.error is not None:
            raise self.error
        assert self.result is not None
        return self.result


class GroupCommit:
    """The queue of requests and the lead. `commit` gets a non-empty group and must settle each request."""

    def __init__(self, commit: Callable[[list[Request]], None], after: Callable[[], None]) -> None:
        self._commit = commit
        self._after = after
        self._mutex = threading.Lock()
        self._waiting: deque[Request] = deque()
        self._waiting_bytes = 0
        self._led = False
        self._callers = (1, 1)
        """How many threads took part in each of the last two groups."""
        self._wanted = 0
        self._enough = threading.Lock()
        self._enough.acquire()
        self._closed = False
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()

    def run(self, request: Request) -> Appended:
        """Commit `request` and return its outcome; blocks."""
        if not self._join(request):
            self._await(request)
        if request.leads:
            self._lead()
        return request.outcome()

    def submit(self, request: Request) -> Future[Appended]:
        """Queue `request`; its future is settled by the committing thread.

        A caller cannot cancel it: the entry may be in a commit already. Raises `overloaded` when the queue is full.
        """
        future: Future[Appended] = Future()
        future.set_running_or_notify_cancel()
        request.future = future
        if self._join(request):
            self._lead_in_thread()
        return future

    @contextmanager
    def exclusive(self, *, last: bool = False) -> Iterator[None]:
        """A turn in which nobody commits. With `last` nothing is taken afterwards: what waits is refused."""
        request = Request("", exclusive=True)
        if not self._join(request):
            self._await(request)
        try:
            yield
        finally:
            if last:
                self._close()
            self._hand_over()

    def _join(self, request: Request) -> bool:
        """Enter the queue; True if the caller leads from now on."""
        with self._mutex:
            if self._closed:
                raise closed_error()
            if not self._led:
                self._led = request.leads = True
                if not request.exclusive:
                    self._push(request)
                return True
            if len(self._waiting) >= MAX_WAITING or self._waiting_bytes + request.size > MAX_WAITING_BYTES:
                raise NetError(
                    "overloaded",
                    f"{len(self._waiting)} appends wait already",
                    "wait for their outcome and try again",
                    {"waiting": len(self._waiting), "waiting_bytes": self._waiting_bytes},
                )
            if request.future is None:
                request.gate = threading.Lock()
                request.gate.acquire()
            self._push(request)
            if len(self._waiting) == self._wanted:
                self._enough.release()
            return False

    def _push(self, request: Request) -> None:
        self._waiting.append(request)
        self._waiting_bytes += request.size

    def _await(self, request: Request) -> None:
        assert request.gate is not None
        try:
            request.gate.acquire()
        except BaseException:  # an interrupt of the waiting thread: leave the queue, or pass the lead on
            with self._mutex:
                if request in self._waiting:
                    self._waiting.remove(request)
                    self._waiting_bytes -= request.size
            if request.leads:
                self._hand_over()
            raise
        if request.exclusive and request.error is not None:
            raise request.error

    def _lead(self) -> None:
        group: list[Request] = []
        try:
            wanted = max(self._callers)
            if wanted > 1:
                self._gather(wanted)
            self._take(group)
            if group:
                self._commit(group)
        finally:
            # An interrupt in mid-commit leaves requests without an outcome: say that nothing is known of them.
            for request in group:
                if request.result is None and request.error is None:
                    request.error = NetError("unknown-outcome", "the append was interrupted", "read the head")
                _settle(request)
            try:
                if group:
                    self._after()
            finally:
                self._hand_over()

    def _gather(self, wanted: int) -> None:
        """Wait a moment for the threads that shared the last flushes: woken by them, most are on their way back.

        Without it groups are half as large. A lone caller never waits, nor does anybody for futures; when callers have gone
        away, it costs two groups one short wait each.
        """
        with self._mutex:
            if len(self._waiting) >= wanted:
                return
            self._wanted = wanted
        self._enough.acquire(timeout=wanted * GATHER_S)
        with self._mutex:
            self._wanted = 0
            self._enough.acquire(blocking=False)  # it may have come after the time was up

    def _take(self, group: list[Request]) -> None:
        size = callers = 0
        with self._mutex:
            waiting = self._waiting
            while waiting and not waiting[0].exclusive and (not group or size + waiting[0].size <= MAX_GROUP_BYTES):
                request = waiting.popleft()
                size += request.size
                callers += request.future is None
                group.append(request)
            self._waiting_bytes -= size
        self._callers = (self._callers[1], min(callers, MAX_GATHERED))

    def _hand_over(self) -> None:
        with self._mutex:
            if not self._waiting:
                self._led = False
                return
            successor = self._waiting[0]
            successor.leads = True
            if successor.exclusive:
                self._waiting.popleft()
        if successor.gate is None:
            self._lead_in_thread()
        else:
            successor.gate.release()

    def _lead_in_thread(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="redex-writer", daemon=True)
            self._thread.start()
        self._wake.set()

    def _serve(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            with self._mutex:
                if self._closed:
                    return
            self._lead()

    def join_thread(self) -> None:
        """Wait for the writer thread after an `exclusive(last=True)`, unless this is it."""
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _close(self) -> None:
        with self._mutex:
            self._closed = True
            refused = list(self._waiting)
            self._waiting.clear()
            self._waiting_bytes = 0
        for request in refused:
            request.error = closed_error()
            _settle(request)
        self._wake.set()


def _settle(request: Request) -> None:
    request.done = True
    if request.future is not None:
        if request.error is not None:
            request.future.set_exception(request.error)
        else:
            request.future.set_result(request.outcome())
    elif request.gate is not None and not request.leads:
        request.gate.release()


def closed_error() -> NetError:
    """The error of using a store after `close()`."""
    return NetError("io-error", "the store is closed")
