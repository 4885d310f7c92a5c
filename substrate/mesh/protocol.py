"""What nodes say to each other: messages, limits, and the bytes that prove who speaks. No I/O.

Every message is one frame (`substrate.wire.frames`) of msgpack: an array whose first element is the tag. A link begins with
the handshake, in this order:

    client                              server
    Hello(cluster, key, nonce)  ->
                                <-      Welcome(cluster, key, nonce, signature)
    Proof(signature)            ->
                                <-      Ready()          or, instead of any answer, Refused(error) and the end

Each side signs `"net-node:" | "peer-v1" | role (6 bytes) | cluster_id 16 | client nonce | server nonce | client key | server key`
with its node key. Both fresh nonces are under both signatures, so a recorded handshake is worthless; the role is, so a
signature cannot be sent back to the one who made it. Source: contract section 6, "Node identity".
"""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

from substrate.wire.errors import NetError
from substrate.wire.frames import MAX_FRAME_BYTES, encode_frame

PROTOCOL_VERSION: Final = 1
DOMAIN: Final = b"net-node:peer-v1"
NONCE_BYTES: Final = 32
KEY_BYTES: Final = 32
CLUSTER_ID_BYTES: Final = 16

MAX_PAYLOAD_BYTES: Final = MAX_FRAME_BYTES - 4096
"""Largest payload of a request, a reply or a stream item; the rest of a frame is for the message around it."""
MAX_METHOD_BYTES: Final = 128
MAX_IN_FLIGHT: Final = 256
"""Requests and streams open on one link at a time."""
STREAM_WINDOW_BYTES: Final = 256 * 1024
"""Item bytes a sender may have under way before the reader grants more; one item may overshoot it."""
ITEM_OVERHEAD_BYTES: Final = 64
"""What an item costs of the window beside its payload, so that empty items are limited too."""

Role = Literal["client", "server"]


class ErrorBody(msgspec.Struct, frozen=True, array_like=True):
    """A `NetError` on its way."""

    kind: str
    message: str
    hint: str | None = None
    details: dict[str, Any] = {}

    @classmethod
    def of(cls, error: NetError) -> ErrorBody:
        """The body that carries `error`."""
        return cls(error.kind, error.message, error.hint, error.details)

    def error(self) -> NetError:
        """The error again; a kind this node does not know becomes `internal`."""
        return NetError.from_document(
            {"error": {"kind": self.kind, "message": self.message, "hint": self.hint, "details": self.details}}
        )


class Hello(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """The client's first message."""

    version: int
    cluster_id: bytes
    public_key: bytes
    nonce: bytes


class Welcome(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """The server's answer, which proves the server's key."""

    version: int
    cluster_id: bytes
    public_key: bytes
    nonce: bytes
    signature: bytes


class Proof(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """The client's proof of its key."""

    signature: bytes


class Ready(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """The server accepts; the link is open."""


class Refused(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """The server closes the link and says why."""

    error: ErrorBody


class Ping(msgspec.Struct, frozen=True, array_like=True, tag=10):
    """Are you there? Sent by clients."""

    id: int


class Pong(msgspec.Struct, frozen=True, array_like=True, tag=11):
    """Yes: the answer to the ping of that id."""

    id: int


class Request(msgspec.Struct, frozen=True, array_like=True, tag=12):
    """Call `method`; the server gives up after `timeout_ms`, when the client no longer listens."""

    id: int
    method: str
    payload: bytes
    timeout_ms: int


class Reply(msgspec.Struct, frozen=True, array_like=True, tag=13):
    """The answer to a request."""

    id: int
    payload: bytes


class Fail(msgspec.Struct, frozen=True, array_like=True, tag=14):
    """A request or a stream ended with an error."""

    id: int
    error: ErrorBody


class Open(msgspec.Struct, frozen=True, array_like=True, tag=15):
    """Begin a stream: the server may send `window_bytes` of items before it needs a `Credit`."""

    id: int
    method: str
    payload: bytes
    window_bytes: int


class Item(msgspec.Struct, frozen=True, array_like=True, tag=16):
    """One item of a stream."""

    id: int
    payload: bytes


class Credit(msgspec.Struct, frozen=True, array_like=True, tag=17):
    """The reader took `size_bytes` out; as much may follow."""

    id: int
    size_bytes: int


class End(msgspec.Struct, frozen=True, array_like=True, tag=18):
    """The stream is complete."""

    id: int


class Cancel(msgspec.Struct, frozen=True, array_like=True, tag=19):
    """The client no longer wants the answer or the rest of the stream."""

    id: int


Message = (
    Hello
    | Welcome
    | Proof
    | Ready
    | Refused
    | Ping
    | Pong
    | Request
    | Reply
    | Fail
    | Open
    | Item
    | Credit
    | End
    | Cancel
)

_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final[msgspec.msgpack.Decoder[Message]] = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    """The frame that carries `message`; raises `too-large`."""
    return encode_frame(_encoder.encode(message))


def decode(payload: bytes) -> Message:
    """The message in a frame's payload; raises `invalid-argument` for anything else."""
    try:
        return _decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise NetError("invalid-argument", f"a peer sent what is no message: {error}") from None


def transcript(role: Role, hello: Hello, key: bytes, nonce: bytes) -> bytes:
    """The bytes that the side in `role` signs; `key` and `nonce` are the server's."""
    return b"".join((DOMAIN, role.encode(), hello.cluster_id, hello.nonce, nonce, hello.public_key, key))


def well_formed(hello: Hello | Welcome) -> bool:
    """Whether the fixed-size fields have their sizes: without that the transcript could be cut in two ways."""
    return (
        len(hello.cluster_id) == CLUSTER_ID_BYTES
        and len(hello.public_key) == KEY_BYTES
        and len(hello.nonce) == NONCE_BYTES
    )


def check_call(method: str, payload: bytes) -> None:
    """Refuse a call over the limits: `too-large` for the payload, `invalid-argument` for the method's name."""
    if not 1 <= len(method.encode()) <= MAX_METHOD_BYTES:
        raise NetError("invalid-argument", f"a method name has 1 to {MAX_METHOD_BYTES} bytes: {method!r}")
    check_payload(payload)


def check_payload(payload: bytes) -> None:
    """Refuse a payload that does not fit into one frame with `too-large`."""
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise NetError(
            "too-large",
            f"{len(payload)} bytes are over the limit of {MAX_PAYLOAD_BYTES} for one message between nodes",
            "send it as a stream",
            {"size_bytes": len(payload), "limit_bytes": MAX_PAYLOAD_BYTES},
        )
