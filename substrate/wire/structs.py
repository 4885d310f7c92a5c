"""Structs and numbered variants whose fields name their codec once: `node: Annotated[int, ID]`.

From that one line come the postcard bytes, the JSON form, the validation of input and the table in docs/wire.md.
"""

from __future__ import annotations

import typing
from typing import Any, ClassVar, Self, TypeVar

import msgspec

from substrate.wire.postcard import Codec, PostcardError, Reader, invalid_field, write_varint

_layouts: dict[type, tuple[tuple[str, Codec], ...]] = {}


class WireStruct(msgspec.Struct, frozen=True):
    """A struct that is its fields in order."""

    @classmethod
    def layout(cls) -> tuple[tuple[str, Codec], ...]:
        """(field name, codec) in wire order."""
        known = _layouts.get(cls)
        if known is None:
            hints = typing.get_type_hints(cls, include_extras=True)
            known = _layouts[cls] = tuple(
                (name, next(m for m in hints[name].__metadata__ if isinstance(m, Codec)))
                for name in cls.__struct_fields__
            )
        return known

    def write(self, out: bytearray) -> None:
        """Append the postcard bytes."""
        for name, codec in self.layout():
            codec.write(out, getattr(self, name))

    def to_bytes(self) -> bytes:
        """The postcard bytes."""
        out = bytearray()
        self.write(out)
        return bytes(out)

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """Read one from `reader`; raises `PostcardError`."""
        return cls(*[codec.read(reader) for _, codec in cls.layout()])

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read one that fills `data` exactly; raises `PostcardError`."""
        reader = Reader(data)
        value = cls.read(reader)
        reader.done()
        return value

    def to_json(self) -> dict[str, Any]:
        """The JSON object: ids as strings of digits, bytes as hex, durations in ms."""
        return {name: codec.to_json(getattr(self, name)) for name, codec in self.layout()}

    @classmethod
    def from_json(cls, document: Any, where: str) -> Self:
        """Build one from a JSON object; raises `invalid-argument` naming the field that is unknown, missing or wrong."""
        if not isinstance(document, dict):
            raise invalid_field(where, "value", "must be an object")
        layout = cls.layout()
        values: dict[str, Any] = {}
        for name, codec in layout:
            if name in document:
                try:
                    values[name] = codec.from_json(document[name])
                except ValueError as error:
                    raise invalid_field(where, name, str(error)) from None
        unknown = set(document) - {name for name, _ in layout}
        if unknown:
            raise invalid_field(where, min(unknown), "is no field here")
        try:
            return cls(**values)
        except TypeError:
            missing = next(name for name, _ in layout if name not in values)
            raise invalid_field(where, missing, "is missing") from None


S = TypeVar("S", bound=WireStruct)


def struct(cls: type[WireStruct]) -> Codec:
    """The codec of a nested struct."""

    def parse(document: Any) -> WireStruct:
        return cls.from_json(document, cls.__name__)

    return Codec(cls.__name__, lambda out, v: v.write(out), cls.read, lambda v: v.to_json(), parse)


class Variant(WireStruct, frozen=True):
    """One numbered alternative of a union. Numbers are never reused."""

    number: ClassVar[int]
    kind: ClassVar[str]


class Union(typing.Generic[S]):
    """A closed set of variants, told apart by number on the wire and by `kind` in JSON."""

    def __init__(self, name: str, *variants: type[Variant]) -> None:
        self.name = name
        self.by_number = {variant.number: variant for variant in variants}
        self.by_kind = {variant.kind: variant for variant in variants}
        assert len(self.by_number) == len(self.by_kind) == len(variants), "a number or kind is used twice"

    def write(self, out: bytearray, value: Any) -> None:
        """Append the variant's number and fields."""
        write_varint(out, value.number)
        value.write(out)

    def to_bytes(self, value: Any) -> bytes:
        """The postcard bytes of one value."""
        out = bytearray()
        self.write(out, value)
        return bytes(out)

    def read(self, reader: Reader) -> Any:
        """Read one value; raises `PostcardError` for a number that is not known."""
        number = reader.varint()
        variant = self.by_number.get(number)
        if variant is None:
            raise PostcardError(f"{self.name} number {number} is not known")
        return variant.read(reader)

    def to_json(self, value: Any) -> dict[str, Any]:
        """`{"kind": ..., fields}`."""
        return {"kind": value.kind, **value.to_json()}

    def from_json(self, document: Any) -> Any:
        """Build a variant from `{"kind": ..., fields}`; raises `invalid-argument`."""
        kind = document.get("kind") if isinstance(document, dict) else None
        if not isinstance(kind, str) or kind not in self.by_kind:
            raise invalid_field(self.name, "kind", f"must be one of {', '.join(sorted(self.by_kind))}")
        fields = {name: value for name, value in document.items() if name != "kind"}
        return self.by_kind[kind].from_json(fields, kind)
