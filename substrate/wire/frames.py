"""Length-prefixed frames: how byte streams between processes carry messages. No I/O.

    u32 length (little-endian) | payload

Used by the engine's broker socket and by the node-to-node sockets; each puts its own meaning into the
payload. An empty payload is a legal frame. Limits: architecture, "limits on everything".
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from substrate.wire.errors import NetError

MAX_FRAME_BYTES: Final = 1024 * 1024
"""Largest payload of one frame unless a decoder is given another limit."""
HEADER_BYTES: Final = 4

_LENGTH: Final = Struct("<I")


def _too_large(size_bytes: int, limit_bytes: int) -> NetError:
    return NetError(
        "too-large",
        f"a frame of {size_bytes} bytes is over the limit of {limit_bytes}",
        details={"size_bytes": size_bytes, "limit_bytes": limit_bytes},
    )


def encode_frame(payload: bytes, limit_bytes: int = MAX_FRAME_BYTES) -> bytes:
    """The frame that carries `payload`; raises `too-large` over `limit_bytes`."""
    size = len(payload)
    if size > limit_bytes:
        raise _too_large(size, limit_bytes)
    return _LENGTH.pack(size) + payload


class FrameDecoder:
    """Turns pieces of a byte stream, cut anywhere, back into payloads.

    Holds at most one unfinished frame. After an over-long frame was announced the stream cannot be
    resynchronised: `feed` raises `too-large` then and on every later call, and the connection must be closed.
    """

    __slots__ = ("_broken", "_held", "limit_bytes")

    def __init__(self, limit_bytes: int = MAX_FRAME_BYTES) -> None:
        assert 0 < limit_bytes < 1 << 32
        self.limit_bytes = limit_bytes
        self._held = bytearray()
        self._broken: int | None = None

    def feed(self, data: bytes) -> list[bytes]:
        """Take the next piece of the stream; return the payloads it completes, in order (often none or one).

        A frame over the limit is refused on its header, before its bytes are held. Payloads completed by the same piece
        before it are lost with the connection.
        """
        if self._broken is not None:
            raise _too_large(self._broken, self.limit_bytes)
        held = self._held
        source: bytes | bytearray
        if held:
            held += data
            source = held
        else:
            source = data  # the common case: whole frames, cut straight out of what was read
        payloads: list[bytes] = []
        at, end, limit = 0, len(source), self.limit_bytes
        while end - at >= HEADER_BYTES:
            (size,) = _LENGTH.unpack_from(source, at)
            if size > limit:
                self._broken = size
                held.clear()
                raise _too_large(size, limit)
            start = at + HEADER_BYTES
            if end - start < size:
                break
            at = start + size
            payloads.append(bytes(source[start:at]))
        if source is held:
            del held[:at]
        elif at < end:
            held += data[at:]
        return payloads

    @property
    def pending_bytes(self) -> int:
        """Bytes held of a frame that is not complete; not 0 at the end of a stream means it was cut."""
        return len(self._held)
