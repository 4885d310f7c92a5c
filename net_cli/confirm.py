"""Confirmation on the terminal: only the exact word counts (contract sections 3 and 7)."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from net_cli.output import tell
from substrate.wire.errors import NetError


def interactive() -> bool:
    """Whether somebody can be asked: stdin and stderr are terminals."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()


def confirm(lines: Iterable[str], word: str = "YES") -> None:
    """Show `lines` on stderr and ask for `word`; anything else raises `confirmation-refused`."""
    for line in lines:
        tell(line)
    try:
        tell(f"Type {word} to confirm: ", end="")
        answer = sys.stdin.readline()
    except KeyboardInterrupt:
        answer = ""
        tell("")
    if answer.rstrip("\r\n") != word:
        raise NetError("confirmation-refused", "not confirmed; nothing was committed", f"type {word}, or give --yes")
