"""The one place that writes to stdout and stderr (contract section 2).

stdout is data: one JSON document, NDJSON lines, or tables and views for people. Everything else goes to stderr.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, TextIO

from net_cli.table import Column, fields, table

_UNSAFE_JSON: Final = re.compile("[\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class ClosedPipe(Exception):
    """The reader of our output went away; the process ends quietly."""


def dumps(value: Any) -> str:
    """One line of JSON: UTF-8 as it is, but nothing in it that a terminal would obey or that cannot be encoded."""
    import json

    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return _UNSAFE_JSON.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def wants_color(stream: TextIO, no_color: bool) -> bool:
    """Colour only on a terminal that did not decline it."""
    return stream.isatty() and not no_color and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def screen_width() -> int:
    """Columns to use: the terminal's, or 80 where there is none."""
    if not sys.stdout.isatty():
        return 80
    try:
        columns = os.get_terminal_size(sys.stdout.fileno()).columns
    except OSError:  # a terminal that does not tell
        return 80
    return max(columns, 40) if columns else 80


class Output:
    """Writes results in the chosen mode: `pretty` or `json`."""

    def __init__(self, mode: str, *, no_color: bool = False, quiet: bool = False, verbose: int = 0) -> None:
        self.mode = mode
        self.quiet = quiet
        self.verbose = verbose
        self.color = wants_color(sys.stdout, no_color)

    @property
    def json(self) -> bool:
        """Whether stdout carries JSON."""
        return self.mode == "json"

    def rows(self, rows: Sequence[dict[str, Any]], columns: Sequence[Column], empty: str) -> None:
        """A list: an array, or a table; `empty` is said on stderr where there is nothing to show."""
        if self.json:
            write(dumps(list(rows)))
        elif rows:
            write("\n".join(table(rows, columns, screen_width(), self.color)))
        else:
            self.say(empty)

    def record(self, document: dict[str, Any], view: Callable[[dict[str, Any]], Iterable[str]] | None = None) -> None:
        """One thing: an object, or `view` of it, or its fields one a line."""
        if self.json:
            write(dumps(document))
        else:
            write("\n".join(view(document) if view else fields(document, self.color)))

    def text(self, text: str) -> None:
        """Text that is the data itself (a script), the same in both modes."""
        write(text.rstrip("\n"))

    def stream(self, rows: Iterable[dict[str, Any]], line: Callable[[dict[str, Any]], str]) -> None:
        """Rows as they come, one line each, flushed; SIGINT ends the stream without an error."""
        try:
            for row in rows:
                if self.json:
                    write(dumps(row))
                elif "lagged" in row:
                    gap = row["lagged"]
                    self.say(f"warning: too slow, missed {gap['from']} to {gap['to']}")
                else:
                    write(line(row))
        except KeyboardInterrupt:
            return

    def say(self, text: str) -> None:
        """A remark for people on stderr, unless --quiet."""
        if not self.quiet:
            tell(text)

    def detail(self, text: str) -> None:
        """A remark only --verbose shows."""
        if self.verbose and not self.quiet:
            tell(text)


def write(text: str) -> None:
    """One line or block on stdout, flushed; raises `ClosedPipe`."""
    _put(sys.stdout, text + "\n")


def tell(text: str, end: str = "\n") -> None:
    """One line on stderr, whatever --quiet says; a closed stderr is nobody's business."""
    try:
        _put(sys.stderr, text + end)
    except ClosedPipe:
        return  # the process's exit code still tells


def _put(stream: TextIO, text: str) -> None:
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:
        raise ClosedPipe from None
    except UnicodeEncodeError:  # a terminal that is not UTF-8: show what it can, escape the rest
        encoding = stream.encoding or "ascii"
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()


def abandon_stdout() -> None:
    """Point stdout at nothing, so that the interpreter's last flush cannot complain."""
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, sys.stdout.fileno())
    except (OSError, ValueError):  # stdout is no file (a test's capture)
        return
    finally:
        os.close(sink)
