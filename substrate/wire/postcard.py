"""The postcard encoding, as far as signed payloads and records need it.

Unsigned integers and enum numbers are LEB128 varints; bool and u8 one byte; Option is 00 or 01 and the value; strings, byte
strings and sequences are a varint length and their content; structs are their fields in order.
Source: reference/operator-plane.md, "Encoding used everywhere"; vectors in tests/vectors.
A `Codec` says for one type how it is written, read, and shown in JSON, so that each field is described once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from substrate.wire.errors import NetError
from substrate.wire.ids import U64_MAX, parse_id


class PostcardError(ValueError):
    """The bytes do not hold what was expected."""


class Reader:
    """A cursor over bytes."""

    __slots__ = ("data", "position")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        end = self.position + count
        if end > len(self.data):
            raise PostcardError(f"{count} bytes wanted at {self.position}, the data ends at {len(self.data)}")
        piece = self.data[self.position : end]
        self.position = end
        return piece

    def varint(self) -> int:
        """The next unsigned LEB128 integer, in its shortest form and at most 64 bits."""
        value = shift = 0
        while True:
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                # One value has one encoding, or two byte strings could carry one meaning under two hashes.
                if (byte == 0 and shift) or value > U64_MAX:
                    raise PostcardError("an integer is not in its shortest form or over 64 bits")
                return value
            shift += 7
            if shift > 63:
                raise PostcardError("an integer is over 64 bits")

    def done(self) -> None:
        """Raise unless everything was read."""
        if self.position != len(self.data):
            raise PostcardError(f"{len(self.data) - self.position} bytes left over")


def write_varint(out: bytearray, value: int) -> None:
    """Append `value` (0 to 2^64-1) as LEB128."""
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


class Codec(NamedTuple):
    """One wire type: `write(out, value)`, `read(reader)`, and its JSON form both ways.

    `from_json` raises ValueError with a short reason when the JSON value is not of the type.
    """

    name: str
    write: Callable[[bytearray, Any], None]
    read: Callable[[Reader], Any]
    to_json: Callable[[Any], Any]
    from_json: Callable[[Any], Any]


def _same(value: Any) -> Any:
    return value


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= U64_MAX:
        raise ValueError("must be an integer from 0 to 2^64-1")
    return value


def _identifier(value: Any) -> int:
    parsed = parse_id(value) if isinstance(value, str) else None
    if parsed is None:
        raise ValueError("must be an id as a string of digits")
    return parsed


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("must be a string")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("must be valid unicode") from None
    return value


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def _write_bytes(out: bytearray, value: bytes) -> None:
    write_varint(out, len(value))
    out += value


def _read_str(reader: Reader) -> str:
    try:
        return reader.take(reader.varint()).decode()
    except UnicodeDecodeError as error:
        raise PostcardError("a string is not UTF-8") from error


def _read_bool(reader: Reader) -> bool:
    byte = reader.take(1)[0]
    if byte > 1:
        raise PostcardError("a bool is neither 0 nor 1")
    return bool(byte)


def _write_duration(out: bytearray, ms: int) -> None:
    write_varint(out, ms // 1000)
    write_varint(out, ms % 1000 * 1_000_000)


def _read_duration(reader: Reader) -> int:
    seconds, nanos = reader.varint(), reader.varint()
    if nanos >= 1_000_000_000 or nanos % 1_000_000:
        raise PostcardError("a duration is not in whole milliseconds")
    ms = seconds * 1000 + nanos // 1_000_000
    if ms > U64_MAX:
        raise PostcardError("a duration is over 64 bits of milliseconds")
    return ms


def _hex_of(length: int | None) -> Callable[[Any], bytes]:
    def parse(value: Any) -> bytes:
        try:
            raw = bytes.fromhex(value) if isinstance(value, str) else b""
            if raw.hex() != value:  # fromhex passes over blanks and takes capitals
                raise ValueError
        except ValueError:
            raise ValueError("must be lowercase hex") from None
        if length is not None and len(raw) != length:
            raise ValueError(f"must be {length} bytes in hex")
        return raw

    return parse


U64: Final = Codec("u64", write_varint, Reader.varint, _same, _integer)
"""A number that stays small enough for JSON numbers."""
ID: Final = Codec("id (u64)", write_varint, Reader.varint, str, _identifier)
"""A 64-bit id, a decimal string in JSON."""
STRING: Final = Codec("string", lambda out, v: _write_bytes(out, v.encode()), _read_str, _same, _string)
BYTES: Final = Codec("bytes", _write_bytes, lambda r: r.take(r.varint()), bytes.hex, _hex_of(None))
BOOL: Final = Codec("bool", lambda out, v: out.append(v), _read_bool, _same, _boolean)
DURATION: Final = Codec("duration {secs u64, nanos u32}", _write_duration, _read_duration, _same, _integer)
"""Milliseconds in Python and JSON, {secs, nanos} on the wire."""


def fixed(length: int) -> Codec:
    """Exactly `length` bytes without a prefix; lowercase hex in JSON."""

    def write(out: bytearray, value: bytes) -> None:
        assert len(value) == length
        out += value

    return Codec(f"{length} bytes", write, lambda r: r.take(length), bytes.hex, _hex_of(length))


def option(inner: Codec) -> Codec:
    """A value or None."""

    def write(out: bytearray, value: Any) -> None:
        out.append(value is not None)
        if value is not None:
            inner.write(out, value)

    return Codec(
        f"option<{inner.name}>",
        write,
        lambda r: inner.read(r) if _read_bool(r) else None,
        lambda v: None if v is None else inner.to_json(v),
        lambda v: None if v is None else inner.from_json(v),
    )


def sequence(inner: Codec, limit: int = 4096) -> Codec:
    """A tuple of at most `limit` values."""

    def write(out: bytearray, values: tuple[Any, ...]) -> None:
        write_varint(out, len(values))
        for value in values:
            inner.write(out, value)

    def read(reader: Reader) -> tuple[Any, ...]:
        count = reader.varint()
        if count > limit:
            raise PostcardError(f"a list of {count} is over the limit of {limit}")
        return tuple(inner.read(reader) for _ in range(count))

    def parse(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple) or len(value) > limit:
            raise ValueError(f"must be a list of at most {limit}")
        return tuple(inner.from_json(item) for item in value)

    return Codec(f"list<{inner.name}>", write, read, lambda v: [inner.to_json(i) for i in v], parse)


def mapping(inner: Codec, limit: int = 256) -> Codec:
    """A dict with string keys, written in ascending key order."""

    def write(out: bytearray, values: dict[str, Any]) -> None:
        write_varint(out, len(values))
        for key in sorted(values):
            STRING.write(out, key)
            inner.write(out, values[key])

    def read(reader: Reader) -> dict[str, Any]:
        count = reader.varint()
        if count > limit:
            raise PostcardError(f"a map of {count} is over the limit of {limit}")
        found: dict[str, Any] = {}
        last: str | None = None
        for _ in range(count):
            key = _read_str(reader)
            if last is not None and key <= last:
                raise PostcardError("the keys of a map are not ascending")
            last = key
            found[key] = inner.read(reader)
        return found

    def parse(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict) or len(value) > limit:
            raise ValueError(f"must be an object of at most {limit} keys")
        return {_string(key): inner.from_json(item) for key, item in value.items()}

    return Codec(
        f"map<string, {inner.name}>", write, read, lambda v: {k: inner.to_json(v[k]) for k in sorted(v)}, parse
    )


def decode(codec: Codec, data: bytes) -> Any:
    """Read one value that fills `data` exactly; raises `PostcardError`."""
    reader = Reader(data)
    value = codec.read(reader)
    reader.done()
    return value


def encode(codec: Codec, value: Any) -> bytes:
    """The bytes of one value."""
    out = bytearray()
    codec.write(out, value)
    return bytes(out)


def invalid_field(where: str, name: str, reason: str) -> NetError:
    """The error for a JSON field that does not fit its codec."""
    return NetError("invalid-argument", f"{where}: {name} {reason}", details={"field": name})
