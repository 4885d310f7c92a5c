"""How far the other nodes are: measured round trips, never estimates."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

import msgspec

from substrate.wire.errors import NetError

SAMPLES: Final = 8
EVERY_S: Final = 1.0
JITTER: Final = 0.2
"""Share of the period by which rounds are shifted at random, so that nodes do not ping in step."""
PING_TIMEOUT_MS: Final = 2000
MAX_CONCURRENT: Final = 32
"""Pings under way at a time."""


class Rtt(msgspec.Struct, frozen=True):
    """The round trip to one node: median of the last samples, None while nothing was measured.

    `age_ms` is the time since the last answer; `unanswered` counts the pings since then.
    """

    rtt_ms: float | None = None
    age_ms: int | None = None
    samples: int = 0
    unanswered: int = 0


UNKNOWN: Final = Rtt()


class RttStats:
    """The last measurements of one node. Pure; times are monotonic milliseconds."""

    def __init__(self, samples: int = SAMPLES) -> None:
        self._samples: deque[float] = deque(maxlen=samples)
        self._answered_at_ms: int | None = None
        self._unanswered = 0

    def answered(self, rtt_ms: float, now_ms: int) -> None:
        """A ping came back after `rtt_ms`."""
        self._samples.append(rtt_ms)
        self._answered_at_ms = now_ms
        self._unanswered = 0

    def missed(self) -> None:
        """A ping did not come back. The median stays what it was, and ages."""
        self._unanswered += 1

    def rtt(self, now_ms: int) -> Rtt:
        """What is known at `now_ms`."""
        if self._answered_at_ms is None:
            return Rtt(unanswered=self._unanswered)
        return Rtt(
            round(statistics.median(self._samples), 3),
            max(0, now_ms - self._answered_at_ms),
            len(self._samples),
            self._unanswered,
        )


Ping = Callable[[int, int], Awaitable[float]]
"""`ping(node_id, timeout_ms)` -> milliseconds; raises `NetError` when there is no answer."""


def monotonic_ms() -> int:
    """Milliseconds of the clock that is never set."""
    return time.monotonic_ns() // 1_000_000


class Proximity:
    """Pings every live peer about once a second and keeps what came back.

    `targets()` gives the node ids to ping at present; what is known of a node that is no target any more is forgotten.
    """

    def __init__(self, ping: Ping, targets: Callable[[], Iterable[int]]) -> None:
        self._ping = ping
        self._targets = targets
        self._stats: dict[int, RttStats] = {}
        self._under_way: set[int] = set()
        self._slots = asyncio.Semaphore(MAX_CONCURRENT)
        self.failures: Counter[str] = Counter()
        """Unanswered pings by error kind."""

    def rtt(self, node_id: int) -> Rtt:
        """What is known about one node; all None for one that never answered."""
        stats = self._stats.get(node_id)
        return stats.rtt(monotonic_ms()) if stats else UNKNOWN

    def all(self) -> dict[int, Rtt]:
        """What is known about every target, by node id."""
        now = monotonic_ms()
        return {node_id: stats.rtt(now) for node_id, stats in self._stats.items()}

    async def run(self, every_s: float = EVERY_S) -> None:
        """Ping until cancelled. A peer that does not answer is not asked again before its ping has timed out, and delays no other."""
        async with asyncio.TaskGroup() as group:
            while True:
                self._round(group)
                await asyncio.sleep(every_s * random.uniform(1 - JITTER, 1 + JITTER))

    def _round(self, group: asyncio.TaskGroup) -> None:
        targets = set(self._targets())
        for gone in self._stats.keys() - targets:
            del self._stats[gone]
        for node_id in targets - self._under_way:
            self._under_way.add(node_id)
            group.create_task(self._measure(node_id))

    async def _measure(self, node_id: int) -> None:
        stats = self._stats.setdefault(node_id, RttStats())
        try:
            async with self._slots:
                rtt_ms = await self._ping(node_id, PING_TIMEOUT_MS)
        except NetError as error:
            stats.missed()
            self.failures[error.kind] += 1
        else:
            stats.answered(rtt_ms, monotonic_ms())
        finally:
            self._under_way.discard(node_id)
