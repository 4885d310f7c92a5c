"""Times and durations as they cross the contract (section 1)."""

from __future__ import annotations

import re
import time
from typing import Final

from substrate.wire.errors import NetError

MAX_DURATION_MS: Final = 366 * 24 * 3600 * 1000
"""Longest duration anybody may name: a year and a day."""

_UNITS: Final = {
    "ms": 1,
    "s": 1000,
    "sec": 1000,
    "secs": 1000,
    "m": 60_000,
    "min": 60_000,
    "mins": 60_000,
    "h": 3_600_000,
    "hr": 3_600_000,
    "hrs": 3_600_000,
    "d": 86_400_000,
    "day": 86_400_000,
    "days": 86_400_000,
}
_COMPONENT: Final = re.compile(r"([0-9]{1,18})([a-z]+)\s*")
_ISO: Final = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[T ](\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?(Z|[+-]\d\d:?\d\d)?\Z", re.ASCII
)


def now_ms() -> int:
    """The wall clock of this machine in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def iso(at_ms: int) -> str:
    """ISO 8601 UTC with milliseconds and `Z`."""
    seconds, millis = divmod(at_ms, 1000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{millis:03d}Z"


def parse_iso(text: str) -> int:
    """Milliseconds since 1970 of an ISO 8601 time; without an offset it is UTC. Raises `invalid-argument`."""
    import calendar

    match = _ISO.match(text)
    if match:
        year, month, day, hour, minute = (int(part) for part in match.groups()[:5])
        second = int(match[6] or 0)
        leap_day = 29 if calendar.isleap(year) else 28
        days = (31, leap_day, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
        if (
            year >= 1970
            and 1 <= month <= 12
            and 1 <= day <= days[month - 1]
            and hour < 24
            and minute < 60
            and second < 60
        ):
            millis = int((match[7] or "0").ljust(3, "0")[:3])
            at = calendar.timegm((year, month, day, hour, minute, second)) * 1000 + millis
            zone = match[8]
            if zone and zone != "Z":
                digits = zone[1:].replace(":", "")
                offset = (int(digits[:2]) * 60 + int(digits[2:])) * 60_000
                at += -offset if zone[0] == "+" else offset
            return at
    raise NetError("invalid-argument", f"{text!r} is no time", "write it like 2026-01-31T12:00:00Z")


def parse_duration_ms(text: str) -> int:
    """Milliseconds of a human duration: `30s`, `5m`, `1h30m`, `250ms`; a bare integer is seconds.

    Components are summed; no signs, no fractions. Raises `invalid-argument`.
    """
    stripped = text.strip().lower()
    total: int | None = None
    if stripped.isascii() and stripped.isdigit() and len(stripped) <= 18:
        total = int(stripped) * 1000
    else:
        position = summed = 0
        while match := _COMPONENT.match(stripped, position):
            unit = _UNITS.get(match[2])
            if unit is None:
                break
            summed += int(match[1]) * unit
            position = match.end()
        if position and position == len(stripped):
            total = summed
    if total is None:
        raise NetError("invalid-argument", f"{text!r} is no duration", "write it like 30s, 5m, 1h30m or 250ms")
    if total > MAX_DURATION_MS:
        raise NetError("invalid-argument", f"the duration {text!r} is longer than a year", "choose a shorter one")
    return total


def format_duration(ms: int) -> str:
    """A duration a human reads and `parse_duration_ms` accepts: `1h30m`, `45s`, `250ms`."""
    if ms < 1000:
        return f"{ms}ms"
    parts, rest = [], ms // 1000
    for unit, seconds in (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)):
        count, rest = divmod(rest, seconds)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts[:2])
