"""What a node says about its own load. Pure; measured by `substrate.mesh.probes`."""

from __future__ import annotations

import msgspec


class Reading(msgspec.Struct, frozen=True, omit_defaults=True):
    """One measured value and when it was measured (milliseconds since 1970).

    A value that could not be measured is None and `error` says why: nothing is ever made up (architecture, "Real effects").
    """

    at_ms: int
    value: int | float | None = None
    error: str | None = None

    def age_ms(self, now_ms: int) -> int:
        """How old the reading is; 0 if the clock was set back meanwhile."""
        return max(0, now_ms - self.at_ms)


class Load(msgspec.Struct, frozen=True):
    """One sample. `cpu_percent` is of the whole machine, 0 to 100 over all processors; disk is the one of the state directory."""

    cpu_percent: Reading
    load1: Reading
    memory_used_bytes: Reading
    memory_total_bytes: Reading
    disk_used_bytes: Reading
    disk_total_bytes: Reading
    rss_bytes: Reading
    """Resident memory of the node's own process."""
