"""Measures this machine's CPU, memory and disk and this process's memory; psutil and the kernel, nothing invented."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import Final

import psutil

from substrate.mesh.load import Load, Reading
from substrate.wire.times import now_ms

SAMPLE_EVERY_S: Final = 2.0
_MIN_CPU_WINDOW_S: Final = 0.2
"""CPU time is counted in ticks of 10 ms: over less than this a percentage says nothing."""


def _reading(measure: Callable[[], int | float]) -> Reading:
    """What `measure` says, or why it could not say."""
    at_ms = now_ms()
    try:
        return Reading(at_ms, measure())
    except (OSError, psutil.Error) as error:
        return Reading(at_ms, None, f"{type(error).__name__}: {error}")


def _pair(measure: Callable[[], tuple[int, int]]) -> tuple[Reading, Reading]:
    """Two values of one measurement."""
    at_ms = now_ms()
    try:
        first, second = measure()
    except (OSError, psutil.Error) as error:
        reason = f"{type(error).__name__}: {error}"
        return Reading(at_ms, None, reason), Reading(at_ms, None, reason)
    return Reading(at_ms, first), Reading(at_ms, second)


class CpuMeter:
    """Busy share of all processors between two calls."""

    def __init__(self) -> None:
        self._at: float | None = None
        self._busy = self._total = 0.0
        self._last = Reading(now_ms(), None, "not measured yet")

    def read(self) -> Reading:
        """Percent busy since the call before; None at the first call, the reading before if that was just now."""
        now = time.monotonic()
        if self._at is not None and now - self._at < _MIN_CPU_WINDOW_S:
            return self._last
        at_ms = now_ms()
        try:
            times = psutil.cpu_times()
        except (OSError, psutil.Error) as error:
            self._at = None
            self._last = Reading(at_ms, None, f"{type(error).__name__}: {error}")
            return self._last
        # Guest time is counted in user and nice already; waiting for a disk is not work.
        total = sum(times) - times.guest - times.guest_nice
        busy = total - times.idle - times.iowait
        if self._at is None:
            self._last = Reading(at_ms, None, "the first sample has nothing to compare with")
        elif total > self._total:
            share = (busy - self._busy) / (total - self._total)
            self._last = Reading(at_ms, round(100 * min(1.0, max(0.0, share)), 1))
        else:
            # The kernel's counters may stand still or step back, on virtual machines above all.
            self._last = Reading(at_ms, None, "the processor's counters did not advance")
        self._at, self._busy, self._total = now, busy, total
        return self._last


class Probes:
    """Samples the load of this machine; `directory` is where the node keeps its state.

    One sample takes well under a millisecond, but asks the file system for its size, which may hang on a broken disk: `run`
    measures in a thread.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._cpu = CpuMeter()
        self._process = psutil.Process()
        self.latest: Load | None = None
        """The last sample of `run`, None before the first."""

    def sample(self) -> Load:
        """Measure now. Blocks for as long as the file system takes; not for two threads at a time."""
        memory_used, memory_total = _pair(self._memory)
        disk_used, disk_total = _pair(self._disk)
        return Load(
            cpu_percent=self._cpu.read(),
            load1=_reading(lambda: round(os.getloadavg()[0], 2)),
            memory_used_bytes=memory_used,
            memory_total_bytes=memory_total,
            disk_used_bytes=disk_used,
            disk_total_bytes=disk_total,
            rss_bytes=_reading(lambda: int(self._process.memory_info().rss)),
        )

    @staticmethod
    def _memory() -> tuple[int, int]:
        memory = psutil.virtual_memory()
        return memory.total - memory.available, memory.total

    def _disk(self) -> tuple[int, int]:
        usage = psutil.disk_usage(self._directory)
        return usage.used, usage.total

    async def run(self, every_s: float = SAMPLE_EVERY_S) -> None:
        """Sample into `latest` until cancelled. The readings' times show when a disk does not answer any more."""
        while True:
            self.latest = await asyncio.to_thread(self.sample)
            await asyncio.sleep(every_s)
