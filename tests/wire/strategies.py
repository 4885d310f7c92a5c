"""Hypothesis strategies made from the wire classes themselves, so that a new variant is tested from its first day."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from substrate.wire import events
from substrate.wire.control import CONTROL_EVENTS
from substrate.wire.envelope import Envelope
from substrate.wire.specs import DaemonSpec
from substrate.wire.structs import WireStruct

U64 = st.integers(0, 2**64 - 1) | st.integers(0, 300)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
_STRUCTS: dict[str, type[WireStruct]] = {"DaemonSpec": DaemonSpec, "DaemonRef": events.DaemonRef}
_SCOPES = (events.AvoidLocal, events.AvoidOnPeer, events.AvoidGlobal)


def of_codec(name: str) -> st.SearchStrategy[Any]:
    """Values of the codec with this name."""
    if name in ("u64", "id (u64)") or name.startswith("duration"):
        return U64
    if name == "string":
        return TEXT
    if name == "bool":
        return st.booleans()
    if name == "bytes":
        return st.binary(max_size=40)
    if name.endswith(" bytes"):
        length = int(name.split()[0])
        return st.binary(min_size=length, max_size=length)
    if name == "scope":
        return st.one_of([of_class(cls) for cls in _SCOPES])
    if name in _STRUCTS:
        return of_class(_STRUCTS[name])
    outer, _, inner = name.removesuffix(">").partition("<")
    if outer == "option":
        return st.none() | of_codec(inner)
    if outer == "list":
        return st.lists(of_codec(inner), max_size=5).map(tuple)
    assert outer == "map" and inner.startswith("string, "), name
    return st.dictionaries(TEXT, of_codec(inner.removeprefix("string, ")), max_size=5)


def of_class(cls: type[WireStruct]) -> st.SearchStrategy[Any]:
    """Instances of a wire struct."""
    return st.builds(cls, **{name: of_codec(codec.name) for name, codec in cls.layout()})


EVENTS = st.one_of([of_class(cls) for cls in events.ADMIN_EVENTS.by_number.values()])
CONTROL = st.one_of([of_class(cls) for cls in CONTROL_EVENTS.by_number.values()])
BYTES16, BYTES32 = st.binary(min_size=16, max_size=16), st.binary(min_size=32, max_size=32)


@st.composite
def envelopes(draw: st.DrawFn) -> Envelope:
    """Envelopes with any event; ICE ones with a blast hash."""
    event = draw(EVENTS)
    blast_hash = draw(BYTES32) if event.kind in events.ICE_KINDS else None
    times = draw(U64), draw(U64)
    return Envelope(draw(BYTES16), *times, draw(BYTES16), event, draw(TEXT), blast_hash)
