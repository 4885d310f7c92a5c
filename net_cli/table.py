"""Tables and key-value views for people: at most as wide as the screen, with nothing in them a terminal would obey."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_GAP: Final = 2
_SHORTEST: Final = 6
_COLORS: Final = {
    "alive": "32", "healthy": "32", "running": "32", "accepted": "32", "active": "32", "drained": "33",
    "suspect": "33", "draining": "33", "starting": "33", "stopping": "33", "backing-off": "33", "degraded": "33",
    "cordoned": "33", "warn": "33", "lost": "31", "rejected": "31", "crash-looping": "31", "unhealthy": "31",
    "blocked": "31", "drain-failed": "31", "error": "31",
}  # fmt: skip


class Column(NamedTuple):
    """A column: its header, the key of its value (or a function of the row), whether it is flush right, and whether it
    gives way first where the screen is too narrow."""

    header: str
    get: str | Callable[[dict[str, Any]], Any]
    right: bool = False
    flexible: bool = False


def plain(value: Any) -> str:
    """A value as people read it; unknown is a dash, control characters are made visible."""
    if value is None or value in ("", [], {}):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(plain(item) for item in value)
    if isinstance(value, dict):
        return " ".join(f"{key}={plain(item)}" for key, item in value.items())
    return printable(str(value))


def printable(text: str) -> str:
    """`text` with control characters, bidirectional overrides and lone surrogates written as escapes."""
    return _CONTROL.sub(lambda match: repr(match[0])[1:-1], text)


def width_of(text: str) -> int:
    """Columns `text` takes on a terminal."""
    if text.isascii():
        return len(text)
    from unicodedata import category, east_asian_width

    return sum(
        0 if category(char) in ("Mn", "Me", "Cf") else 2 if east_asian_width(char) in "WF" else 1 for char in text
    )


def shorten(text: str, width: int) -> str:
    """`text` cut to `width` columns, with an ellipsis where something is missing."""
    if width_of(text) <= width:
        return text
    kept, used = [], 0
    for char in text:
        size = width_of(char)
        if used + size > width - 1:
            break
        kept.append(char)
        used += size
    return "".join(kept) + "…"


def paint(text: str, value: str, color: bool) -> str:
    """`text` in the colour of the state `value`, if it has one."""
    code = _COLORS.get(value) if color else None
    return f"\x1b[{code}m{text}\x1b[0m" if code else text


def table(rows: Sequence[dict[str, Any]], columns: Sequence[Column], width: int, color: bool) -> Iterator[str]:
    """The lines of a table with a header."""
    cells = [
        [plain(column.get(row) if callable(column.get) else row.get(column.get)) for column in columns] for row in rows
    ]
    widths = [
        max(width_of(column.header), *(width_of(line[place]) for line in cells)) for place, column in enumerate(columns)
    ]
    room = width - _GAP * (len(columns) - 1)
    _fit(widths, room, [place for place, column in enumerate(columns) if column.flexible])
    _fit(widths, room, list(range(len(columns))))
    header = [shorten(column.header, size) for column, size in zip(columns, widths, strict=True)]
    line = _line(header, header, widths, columns, False)
    yield f"\x1b[1m{line}\x1b[0m" if color else line
    for values in cells:
        cut = [shorten(value, size) for value, size in zip(values, widths, strict=True)]
        yield _line(cut, values, widths, columns, color)


def _fit(widths: list[int], room: int, places: list[int]) -> None:
    # The widest of the places gives way first, so that short values (names, states) stay whole.
    while sum(widths) > room and places:
        widest = max(places, key=widths.__getitem__)
        if widths[widest] <= _SHORTEST:
            return
        second = max((widths[place] for place in places if place != widest), default=0)
        widths[widest] = max(min(second, widths[widest] - 1), widths[widest] - (sum(widths) - room), _SHORTEST)


def _line(cut: list[str], values: list[str], widths: list[int], columns: Sequence[Column], color: bool) -> str:
    parts = []
    for place, text in enumerate(cut):
        pad = " " * (widths[place] - width_of(text))
        shown = paint(text, values[place], color)
        last = place == len(cut) - 1
        parts.append(pad + shown if columns[place].right else shown if last else shown + pad)
    return (" " * _GAP).join(parts).rstrip()


def fields(document: dict[str, Any], color: bool = False, indent: str = "") -> Iterator[str]:
    """`key: value` lines, keys padded; nested objects are indented."""
    longest = max((len(key) for key in document), default=0)
    for key, value in document.items():
        label = printable(key) + ":"
        if isinstance(value, dict) and value:
            yield f"{indent}{label}"
            yield from fields(value, color, indent + "  ")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            yield f"{indent}{label}"
            for item in value:
                first, *rest = fields(item, color, indent + "    ") if isinstance(item, dict) else [plain(item)]
                yield f"{indent}  - {first.strip()}"
                yield from rest
        else:
            shown = plain(value)
            yield f"{indent}{label:<{longest + 1}} {paint(shown, shown, color)}"


def size(count: int | None) -> str:
    """Bytes in a unit people read."""
    if count is None:
        return "-"
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if amount < 1024 or unit == "TiB":
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    raise AssertionError("the last unit takes everything")


def duration(ms: int | float | None) -> str:
    """Milliseconds in a unit people read."""
    if ms is None:
        return "-"
    from substrate.wire.times import format_duration

    return format_duration(int(ms))


def moment(at: str | None) -> str:
    """A time of a row, to the second."""
    return at[:19].replace("T", " ") if at else "-"
