"""64-bit ids and the other scalar values of contract section 1."""

from __future__ import annotations

import re
from typing import Final

from substrate.wire.errors import NetError

U64_MAX: Final = 2**64 - 1

_ID: Final = re.compile(r"(?:0[xX][0-9a-fA-F]{1,16}|[0-9]{1,20})\Z")
_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?\Z")


def parse_id(text: str) -> int | None:
    """The id that `text` spells in decimal or 0x hex, or None if it is not an id (then it may be a name)."""
    if not _ID.match(text):
        return None
    value = int(text, 16) if text[:2] in ("0x", "0X") else int(text)
    return value if value <= U64_MAX else None


def check_name(noun: str, name: str) -> str:
    """Return `name` if nodes, daemons, operators, clusters and profiles may be called so.

    1 to 64 of `a-z 0-9 . _ -`, beginning and ending with a letter or digit, and not readable as an id, so that
    a name and an id can never mean two things. Raises `invalid-argument`.
    """
    if not _NAME.match(name):
        raise NetError(
            "invalid-argument",
            f"{name!r} is no {noun} name: 1 to 64 of a-z 0-9 . _ - with a letter or digit at both ends",
            "choose a name like web-1",
        )
    if parse_id(name) is not None:
        raise NetError("invalid-argument", f"the {noun} name {name!r} reads as an id", "let it hold a letter")
    return name


def match_reference(noun: str, reference: str, known: dict[int, str]) -> int:
    """The id among `known` (id -> name) that `reference` means.

    A reference is a decimal or 0x id, an exact name, or a unique prefix of a name. Raises `NOUN-not-found`, or
    `ambiguous-name` listing the matches.
    """
    value = parse_id(reference)
    if value is not None and value in known:
        return value
    matches = sorted((name, key) for key, name in known.items() if name.startswith(reference)) if reference else []
    exact = [key for name, key in matches if name == reference]
    if len(exact) == 1:
        return exact[0]
    if not matches:
        shown = ", ".join(sorted(known.values())[:8]) or "none"
        raise NetError(
            f"{noun}-not-found",
            f"there is no {noun} {reference!r}",
            f"known: {shown}",
            {noun: reference},
        )
    if len(matches) > 1:
        names = [name for name, _ in matches]
        raise NetError(
            "ambiguous-name",
            f"{reference!r} is the beginning of {len(names)} {noun}s: {', '.join(names[:8])}",
            "give the whole name or the id",
            {"matches": names},
        )
    return matches[0][1]
