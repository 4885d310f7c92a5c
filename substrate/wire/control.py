"""Control events: what the leader decided, recorded on the `control` chain (contract section 6).

The payload of a control record is `postcard(term u64, leader u64, event)`; the record is sealed by the leader's node key.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

from substrate.wire.postcard import ID, STRING, U64, Reader, sequence, write_varint
from substrate.wire.structs import Union, Variant


class TermOpened(Variant, frozen=True):
    """A leader opens its term; records of older terms are void from here on. `session` is the leader's lease."""

    number, kind = 0, "term-opened"
    session: Annotated[int, ID]


class Assigned(Variant, frozen=True):
    """An instance of a daemon shall run on a node, for as long as the node keeps the session (its lease).

    The assignment's epoch is the seq of this record.
    """

    number, kind = 1, "assigned"
    daemon: Annotated[int, ID]
    instance: Annotated[int, U64]
    node: Annotated[int, ID]
    session: Annotated[int, ID]
    reason: Annotated[str, STRING]


class Released(Variant, frozen=True):
    """An instance shall stop where it runs; it may be assigned anew once it is known to have stopped."""

    number, kind = 2, "released"
    daemon: Annotated[int, ID]
    instance: Annotated[int, U64]
    reason: Annotated[str, STRING]


class Freed(Variant, frozen=True):
    """A released instance is known to have stopped, or its node's lease has run out: nothing of it is left."""

    number, kind = 3, "freed"
    daemon: Annotated[int, ID]
    instance: Annotated[int, U64]
    reason: Annotated[str, STRING]


class DrainEnded(Variant, frozen=True):
    """A drain is over: `drained`, `drain-failed` (with reasons) or `cancelled`. `seq` is the drain's record in `admin`."""

    number, kind = 4, "drain-ended"
    node: Annotated[int, ID]
    seq: Annotated[int, U64]
    result: Annotated[str, STRING]
    moved: Annotated[int, U64]
    reasons: Annotated[tuple[str, ...], sequence(STRING)] = ()


class RestartEnded(Variant, frozen=True):
    """A node finished restarting its daemons, as the record `seq` of `admin` asked."""

    number, kind = 5, "restart-ended"
    node: Annotated[int, ID]
    seq: Annotated[int, U64]
    result: Annotated[str, STRING]


CONTROL_EVENTS: Final = Union[Variant]("control event", TermOpened, Assigned, Released, Freed, DrainEnded, RestartEnded)


def encode_control(term: int, leader: int, event: Variant) -> bytes:
    """The payload of a control record."""
    out = bytearray()
    write_varint(out, term)
    write_varint(out, leader)
    CONTROL_EVENTS.write(out, event)
    return bytes(out)


def decode_control(payload: bytes) -> tuple[int, int, Any]:
    """(term, leader's node id, event); raises `PostcardError`."""
    reader = Reader(payload)
    term, leader = reader.varint(), reader.varint()
    event = CONTROL_EVENTS.read(reader)
    reader.done()
    return term, leader, event
