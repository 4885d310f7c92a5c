"""From the bytes a daemon writes to log lines with a level. Pure.

What was written is kept as it was, escape sequences included (only invalid UTF-8 is replaced);
`printable` makes a text safe for a terminal.
"""

from __future__ import annotations

import re
from typing import Any, Final, Literal

import msgspec

MAX_LINE_BYTES: Final = 16 * 1024
"""Longer lines are cut into pieces, each but the last flagged `continued`."""

Level = Literal["trace", "debug", "info", "warn", "error"]
Stream = Literal["stdout", "stderr", "node"]
LEVELS: Final[tuple[Level, ...]] = ("trace", "debug", "info", "warn", "error")
"""Lowest first."""


class LogSource(msgspec.Struct, frozen=True):
    """Whose lines these are: the daemon's id and name and the number of the instance."""

    daemon_id: int
    daemon: str
    instance: int


class LogLine(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line as stored. `at_ms` is when the node read it; lines of the node itself have no daemon.

    `stream` is `node` for what the node says about the daemon (a start that failed, lines dropped).
    """

    at_ms: int
    level: Level
    stream: Stream
    message: str
    daemon_id: int | None = None
    daemon: str | None = None
    instance: int | None = None
    continued: bool = False
    """The line goes on in the next record of the same stream."""


class LineSplitter:
    """Cuts a stream of bytes into texts of at most `max_bytes`; ends of line are `\\n` or `\\r\\n`."""

    def __init__(self, max_bytes: int = MAX_LINE_BYTES) -> None:
        assert max_bytes >= 4, "a piece must hold any UTF-8 character"
        self._max_bytes = max_bytes
        self._rest = b""

    def feed(self, data: bytes) -> list[tuple[str, bool]]:
        """The lines that `data` completes, as (text, continued)."""
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        texts: list[tuple[str, bool]] = []
        for line in lines:
            self._cut(line.removesuffix(b"\r"), texts, whole=True)
        # What is left has no end yet: give out full pieces, keep the rest (and a \r that may belong to the end).
        if len(self._rest) > self._max_bytes:
            self._rest = self._cut(self._rest, texts, whole=False)
        return texts

    def flush(self) -> list[tuple[str, bool]]:
        """The last line when it had no end."""
        texts: list[tuple[str, bool]] = []
        if self._rest:
            self._cut(self._rest, texts, whole=True)
            self._rest = b""
        return texts

    def _cut(self, line: bytes, texts: list[tuple[str, bool]], *, whole: bool) -> bytes:
        while len(line) > self._max_bytes:
            end = self._max_bytes
            # Not through the middle of a character: step back over at most three continuation bytes.
            for back in range(1, 4):
                if line[end] & 0xC0 != 0x80:
                    break
                if line[end - back] & 0xC0 == 0xC0:
                    end -= back
                    break
            texts.append((line[:end].decode("utf-8", "replace"), True))
            line = line[end:]
        if whole:
            texts.append((line.decode("utf-8", "replace"), False))
        return line


_WORDS: Final[dict[str, Level]] = {
    "trace": "trace",
    "debug": "debug",
    "info": "info",
    "notice": "info",
    "warn": "warn",
    "warning": "warn",
    "error": "error",
    "err": "error",
    "fatal": "error",
    "critical": "error",
    "crit": "error",
    "alert": "error",
    "emerg": "error",
    "panic": "error",
}
_WORD: Final = "|".join(sorted(_WORDS, key=len, reverse=True))
# A time stamp may come first. A bare word counts only in capitals, or before a colon: "error rates fell" is no error.
_LEADING: Final = re.compile(
    r"(?:[0-9T:.,/+Z \[\]-]{0,48}?)(?:"
    rf"[\[(<](?P<boxed>{_WORD})[\])>]|(?P<colon>{_WORD}):|(?-i:(?P<bare>{_WORD.upper()})\b)"
    r")",
    re.IGNORECASE | re.ASCII,
)
_LOGFMT: Final = re.compile(rf"""(?:^|\s)(?:level|lvl|severity)="?(?P<word>{_WORD})\b""", re.IGNORECASE | re.ASCII)
_HEAD_CHARS: Final = 256
# The numbers of the widespread JSON loggers: 10 trace, 20 debug, 30 info, 40 warn, 50 error, 60 fatal.
_NUMBERS: Final[dict[int, Level]] = {10: "trace", 20: "debug", 30: "info", 40: "warn", 50: "error", 60: "error"}


class _JsonLine(msgspec.Struct):
    level: Any = None
    severity: Any = None
    lvl: Any = None


_json_line: Final = msgspec.json.Decoder(_JsonLine)


def detect_level(message: str, stream: Stream) -> Level:
    """The level a line names at its beginning or in its JSON; else `info` for stdout and `warn` for stderr."""
    head = message[:_HEAD_CHARS].lstrip()
    if head.startswith("{"):
        found = _json_level(message)
    elif match := _LEADING.match(head) or _LOGFMT.search(head):
        found = _WORDS[match[match.lastgroup or 0].lower()]
    else:
        found = None
    return found or ("warn" if stream == "stderr" else "info")


def _json_level(message: str) -> Level | None:
    try:
        document = _json_line.decode(message)
    except (msgspec.DecodeError, UnicodeEncodeError):
        return None
    for value in (document.level, document.severity, document.lvl):
        if isinstance(value, str):
            return _WORDS.get(value.lower())
        if isinstance(value, int):
            return _NUMBERS.get(value)
    return None


_CONTROL: Final = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if code != 0x09}
# Characters that reorder or hide what stands beside them, and the line ends only Unicode knows.
_INVISIBLE: Final = {
    code: f"\\u{code:04x}" for code in (0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
}
_PRINTABLE: Final = {**_CONTROL, **_INVISIBLE}


def printable(text: str) -> str:
    """`text` with every character that could move the cursor, change colours or reorder a line written as an escape."""
    return text.translate(_PRINTABLE)
