"""Write the tables of docs/wire.md from the classes that define the wire.

`python -m tools.gen_wire` rewrites what stands between the markers; `--check` changes nothing and exits 1 when the page is not
current. The prose around the tables is written by hand.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from substrate.operator.ledger import LedgerBody, Refusal
from substrate.operator.state import SUPPORTED
from substrate.wire import events
from substrate.wire.control import CONTROL_EVENTS
from substrate.wire.specs import DaemonSpec
from substrate.wire.structs import Variant, WireStruct

PAGE = Path(__file__).resolve().parent.parent / "docs" / "wire.md"
MARKED = re.compile(r"<!-- begin (\S+) -->\n.*?<!-- end \1 -->", re.DOTALL)
"""A generated part: from its begin marker to its end marker."""


def fields(cls: type[WireStruct]) -> str:
    """The fields of a struct in wire order, each with the name of its codec."""
    return ", ".join(f"`{name}` {codec.name}" for name, codec in cls.layout()) or "none"


def meaning(cls: type) -> str:
    """The first sentence or line of a class's docstring."""
    return (cls.__doc__ or "").strip().splitlines()[0]


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    columns = list(head)
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    lines += [f"| {' | '.join(cell.replace('<', '&lt;').replace('>', '&gt;') for cell in row)} |" for row in rows]
    return "\n".join(lines)


def signed_by(kind: str) -> str:
    """Who must sign an event of this kind."""
    if kind in events.ICE_KINDS:
        return "threshold, ICE domain"
    if kind in events.THRESHOLD_KINDS:
        return "threshold"
    return {"genesis": "its founder", "node-join": "one, or a join token"}.get(kind, "one")


def admin_table() -> str:
    """Every admin event."""
    rows = (
        (str(number), f"`{cls.kind}`", fields(cls), signed_by(cls.kind), meaning(cls) + refused(cls.kind))
        for number, cls in sorted(events.ADMIN_EVENTS.by_number.items())
    )
    return table(("number", "kind", "fields", "signatures", "meaning"), rows)


def refused(kind: str) -> str:
    """A remark on events that this version only knows by number."""
    return "" if kind in SUPPORTED else " Refused as `not-yet-supported`."


def control_table() -> str:
    """Every control event."""
    rows = (
        (str(number), f"`{cls.kind}`", fields(cls), meaning(cls))
        for number, cls in sorted(CONTROL_EVENTS.by_number.items())
    )
    return table(("number", "kind", "fields", "meaning"), rows)


def scope_table() -> str:
    """The scopes of flush-avoid-lists."""
    scopes: tuple[type[Variant], ...] = (events.AvoidLocal, events.AvoidOnPeer, events.AvoidGlobal)
    return table(
        ("number", "kind", "fields", "meaning"),
        ((str(cls.number), f"`{cls.kind}`", fields(cls), meaning(cls)) for cls in scopes),
    )


def struct_table(*classes: type[WireStruct]) -> str:
    """Structs, one row a field."""
    rows = ((cls.__name__, f"`{name}`", codec.name) for cls in classes for name, codec in cls.layout())
    return table(("struct", "field", "codec"), rows)


PARTS: dict[str, Callable[[], str]] = {
    "admin-events": admin_table,
    "scopes": scope_table,
    "event-structs": lambda: struct_table(DaemonSpec, events.DaemonRef),
    "control-events": control_table,
    "ledger-body": lambda: struct_table(LedgerBody, Refusal),
}
"""Marker name -> what stands there."""


def render(page: str) -> str:
    """The page with its generated parts made anew; raises ValueError unless each part occurs exactly once."""
    found = [match[1] for match in MARKED.finditer(page)]
    if sorted(found) != sorted(PARTS):
        raise ValueError(f"the page must hold each of {sorted(PARTS)} once, it holds {sorted(found)}")
    return MARKED.sub(lambda m: f"<!-- begin {m[1]} -->\n{PARTS[m[1]]()}\n<!-- end {m[1]} -->", page)


def main(arguments: list[str]) -> int:
    """Rewrite the page, or with `--check` only compare."""
    present = PAGE.read_text()
    wanted = render(present)
    if "--check" not in arguments:
        PAGE.write_text(wanted)
    elif present != wanted:
        sys.stderr.write("docs/wire.md is not current: python -m tools.gen_wire\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
