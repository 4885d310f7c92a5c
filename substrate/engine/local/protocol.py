"""Messages between the local broker and its clients. Pure: types and their encoding, no I/O.

One frame (`substrate.wire.frames`) carries one message: a msgpack array `[tag, id, ...]`. The client numbers its
requests and streams from 1 per connection; the broker answers with the same id, in any order. Requests routed
to a serving client carry ids of the broker's own numbering. The first message of a connection is `Hello`.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from substrate.engine.api import Appended, ChainInfo, EngineStatus, KvEntry, KvEvent
from substrate.wire.errors import KINDS, NetError
from substrate.wire.frames import MAX_FRAME_BYTES, encode_frame
from substrate.wire.records import RECORD_OVERHEAD_BYTES, Head, Record

VERSION: Final = 1
PAGE_BYTES: Final = 256 * 1024
"""Where pages and batches are cut; one record or entry more may fit in, so frames stay far below their limit."""
PAGE_RECORDS: Final = 1024
TAIL_WINDOW_BYTES: Final = 4 * 1024 * 1024
"""Bytes of records a tail may have on the way and unread, beside its limit in records."""


def record_cost(record: Record) -> int:
    """Bytes a record counts for in pages and windows."""
    return len(record.payload) + len(record.seal) + RECORD_OVERHEAD_BYTES


class Message(msgspec.Struct, array_like=True):
    """Base of all messages: what it is about, by number (0: the connection itself)."""

    id: int


# Client to broker ----------------------------------------------------------------------------------------------


class Hello(Message, tag=1):
    """Opens a connection."""

    version: int


class Ping(Message, tag=2):
    """Asks for a sign of life and the time."""


class AppendCall(Message, tag=3):
    """`Engine.append`."""

    chain: str
    payloads: list[bytes]
    expect: Head | None
    entry_id: bytes
    create: bool


class AppendRecordsCall(Message, tag=4):
    """`Engine.append_records`."""

    chain: str
    records: list[Record]
    expect: Head
    entry_id: bytes
    create: bool


class ReadCall(Message, tag=5):
    """One page of `Engine.read`."""

    chain: str
    from_seq: int
    limit: int


class HeadCall(Message, tag=6):
    """`Engine.head`."""

    chain: str


class ChainsCall(Message, tag=7):
    """One page of `Engine.chains`: names after `after`."""

    after: str


class PutCall(Message, tag=8):
    """`Engine.kv_put`."""

    key: str
    value: bytes
    ttl_ms: int | None
    expect: int | None


class GetCall(Message, tag=9):
    """`Engine.kv_get`."""

    key: str


class ListCall(Message, tag=10):
    """One page of `Engine.kv_list`: keys after `after`."""

    prefix: str
    after: str


class DeleteCall(Message, tag=11):
    """`Engine.kv_delete`."""

    key: str
    expect: int | None


class TailOpen(Message, tag=12):
    """Opens a tail; at most `buffer` records and `TAIL_WINDOW_BYTES` go out beyond the last `TailAck`."""

    chain: str
    from_seq: int
    buffer: int


class TailAck(Message, tag=13):
    """The reader has taken everything up to `seq`."""

    seq: int


class WatchOpen(Message, tag=14):
    """Opens a watch; the next batch goes out when the one before was acknowledged."""

    prefix: str


class WatchAck(Message, tag=15):
    """The reader has taken the last batch."""


class CloseStream(Message, tag=16):
    """Ends a tail or a watch."""


class ServeCall(Message, tag=17):
    """Routes a subject to this connection."""

    subject: str


class UnserveCall(Message, tag=18):
    """Ends that."""

    subject: str


class RequestCall(Message, tag=19):
    """`Engine.request`."""

    subject: str
    payload: bytes
    timeout_ms: int


class Answer(Message, tag=20):
    """A server's answer to a `Deliver`."""

    payload: bytes


class AnswerFailure(Message, tag=21):
    """A server's error."""

    kind: str
    message: str
    hint: str | None
    details: dict[str, Any]


class StatusCall(Message, tag=22):
    """`Engine.status`."""


ClientMessage = (
    Hello
    | Ping
    | AppendCall
    | AppendRecordsCall
    | ReadCall
    | HeadCall
    | ChainsCall
    | PutCall
    | GetCall
    | ListCall
    | DeleteCall
    | TailOpen
    | TailAck
    | WatchOpen
    | WatchAck
    | CloseStream
    | ServeCall
    | UnserveCall
    | RequestCall
    | Answer
    | AnswerFailure
    | StatusCall
)

# Broker to client ----------------------------------------------------------------------------------------------


class Welcome(Message, tag=64):
    """Answers `Hello`; pid and start time name the process for good."""

    version: int
    epoch: int
    pid: int
    start_time: int
    now_ms: int


class Failure(Message, tag=65):
    """A request failed; with id 0 the connection is refused and will be closed."""

    kind: str
    message: str
    hint: str | None
    details: dict[str, Any]


class Pong(Message, tag=66):
    """Answers `Ping` with the engine's wall clock."""

    now_ms: int


class AppendDone(Message, tag=67):
    """Answers an append, after its commit."""

    appended: Appended


class Page(Message, tag=68):
    """Answers `ReadCall`; `more`: the chain goes on."""

    records: list[Record]
    more: bool


class HeadIs(Message, tag=69):
    """Answers `HeadCall`."""

    head: Head


class ChainsPage(Message, tag=70):
    """Answers `ChainsCall`."""

    chains: list[ChainInfo]
    more: bool


class Revision(Message, tag=71):
    """Answers `PutCall`."""

    revision: int


class EntryIs(Message, tag=72):
    """Answers `GetCall`."""

    entry: KvEntry | None


class EntriesPage(Message, tag=73):
    """Answers `ListCall`."""

    entries: list[KvEntry]
    more: bool


class Done(Message, tag=74):
    """Answers what has no more to say than yes or no."""

    value: bool


class TailBatch(Message, tag=75):
    """The next records of a tail."""

    records: list[Record]


class TailLagged(Message, tag=76):
    """The tail skips what retention removed."""

    from_seq: int
    to_seq: int


class WatchBatch(Message, tag=77):
    """The next events of a watch."""

    events: list[KvEvent]


class Deliver(Message, tag=78):
    """A request for a subject this connection serves; the id is the broker's."""

    subject: str
    payload: bytes


class RequestDone(Message, tag=79):
    """Answers `RequestCall`."""

    payload: bytes


class StatusIs(Message, tag=80):
    """Answers `StatusCall`."""

    status: EngineStatus


class RawTailBatch(Message, tag=75):
    """A `TailBatch` whose records were encoded once for many tails; encode only."""

    records: msgspec.Raw


BrokerMessage = (
    Welcome
    | Failure
    | Pong
    | AppendDone
    | Page
    | HeadIs
    | ChainsPage
    | Revision
    | EntryIs
    | EntriesPage
    | Done
    | TailBatch
    | TailLagged
    | WatchBatch
    | Deliver
    | RequestDone
    | StatusIs
)

_encoder: Final = msgspec.msgpack.Encoder()
_client_decoder: Final = msgspec.msgpack.Decoder(ClientMessage)
_broker_decoder: Final = msgspec.msgpack.Decoder(BrokerMessage)


def encode(message: Message) -> bytes:
    """The frame of a message; raises `too-large`."""
    return encode_frame(_encoder.encode(message), MAX_FRAME_BYTES)


def encode_records(records: list[Record]) -> msgspec.Raw:
    """Records in the form `RawTailBatch` carries."""
    return msgspec.Raw(_encoder.encode(records))


def decode_client(payload: bytes) -> ClientMessage:
    """A message from a client; raises `msgspec.DecodeError` or its subclass `ValidationError`."""
    message: ClientMessage = _client_decoder.decode(payload)
    return message


def decode_broker(payload: bytes) -> BrokerMessage:
    """A message from the broker; raises as `decode_client`."""
    message: BrokerMessage = _broker_decoder.decode(payload)
    return message


def failure(id: int, error: NetError) -> Failure:
    """The message that carries an error."""
    return Failure(id, error.kind, error.message, error.hint, error.details)


def error_of(message: Failure | AnswerFailure) -> NetError:
    """The error a message carries; a kind this version does not know becomes `internal`."""
    kind = message.kind if message.kind in KINDS else "internal"
    return NetError(kind, message.message, message.hint, message.details)
