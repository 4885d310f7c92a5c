"""Record payloads between bytes and JSON: what a chain append carries in, and what a record row shows."""

from __future__ import annotations

import base64
import binascii
from typing import Any

import msgspec
import orjson

from substrate.control.params import AppendBody
from substrate.wire.errors import NetError
from substrate.wire.records import Record
from substrate.wire.times import iso


def payloads_of(body: AppendBody) -> list[bytes]:
    """The payload bytes of an append: JSON values without needless space but otherwise as sent (numbers keep every
    digit), the UTF-8 of strings, or the bytes that base64 strings spell. Raises `invalid-argument` naming the record.
    """
    if body.encoding == "json":
        return [msgspec.json.format(raw, indent=-1) for raw in body.records]
    payloads = []
    for index, raw in enumerate(body.records):
        try:
            text = msgspec.json.decode(raw, type=str)
            payloads.append(text.encode() if body.encoding == "text" else base64.b64decode(text, validate=True))
        except (msgspec.DecodeError, binascii.Error, UnicodeError, ValueError) as failure:
            raise NetError(
                "invalid-argument",
                f"body field 'records[{index}]' is not a {body.encoding} string: {failure}",
                details={"field": f"records[{index}]"},
            ) from None
    return payloads


def record_row(record: Record) -> dict[str, Any]:
    """The row of a record: `payload` if the bytes are JSON, else `text` if they are printable UTF-8, else base64."""
    row: dict[str, Any] = {
        "seq": record.seq,
        "at": iso(record.at_ms),
        "hash": record.hash.hex(),
        "prev_hash": record.prev_hash.hex(),
        "size_bytes": len(record.payload),
        "payload": None,
        "text": None,
        "payload_base64": None,
    }
    try:
        msgspec.json.decode(record.payload)
        compact = msgspec.json.format(record.payload, indent=-1)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):  # not JSON, or nested too deep to show as such
        try:
            row["text"] = record.payload.decode()
        except UnicodeDecodeError:
            row["payload_base64"] = base64.b64encode(record.payload).decode()
    else:
        row["payload"] = orjson.Fragment(compact)
    return row
