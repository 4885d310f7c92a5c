"""Records from a file or a pipe to a chain, in batches that are each all or nothing."""

from __future__ import annotations

import base64
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple

from substrate.wire.errors import NetError

if TYPE_CHECKING:
    from net_sdk.client import Client

MAX_RECORD_BYTES: Final = 256 * 1024
"""Largest record (the limit of the chains)."""
MAX_BATCH_RECORDS: Final = 1000
MAX_BATCH_BYTES: Final = 256 * 1024
"""A batch is sent when it has grown to this; with one more record it stays below the 512 KiB of an atomic entry."""
READ_BYTES: Final = 64 * 1024
RETRIES: Final = 3


class Batch(NamedTuple):
    """Payloads to append together; `line` is the number of the first one in the input."""

    line: int
    payloads: list[bytes]


@contextmanager
def source(file: str | None, data: str | None) -> Iterator[IO[bytes]]:
    """The input: `data` itself, stdin for `-`, or a file; raises `file-not-found`, `io-error`."""
    if data is not None:
        yield BytesIO(data.encode())
    elif file == "-":
        yield sys.stdin.buffer
    else:
        assert file is not None
        try:
            opened = open(file, "rb")  # noqa: SIM115 - closed below, where reading errors are not opening errors
        except FileNotFoundError:
            raise NetError("file-not-found", f"there is no file {file}", "check the path", {"path": file}) from None
        except OSError as error:
            raise NetError("io-error", f"cannot read {file}: {error.strerror}", "check the file") from error
        with opened:
            yield opened


def batches(stream: IO[bytes], text: bool, raw: bool) -> Iterator[Batch]:
    """Batches of payloads. A pipe's lines are sent as they come, not when it ends. Empty lines are skipped in JSON.

    Raises `invalid-argument` naming the line that is no JSON or no UTF-8, `too-large`.
    """
    if raw:
        content = stream.read(MAX_RECORD_BYTES + 1)
        _check_size(content, 1)
        yield Batch(1, [content])
        return
    batch, size = Batch(1, []), 0
    for number, line in _lines(stream):
        if line is None:  # what has come so far is complete; the next read may take long
            if batch.payloads:
                yield batch
                batch, size = Batch(number, []), 0
            continue
        if not text and not line.strip():
            continue
        _check(line, number, text)
        if not batch.payloads:
            batch = Batch(number, [])
        batch.payloads.append(line)
        size += len(line)
        if len(batch.payloads) >= MAX_BATCH_RECORDS or size >= MAX_BATCH_BYTES:
            yield batch
            batch, size = Batch(number + 1, []), 0
    if batch.payloads:
        yield batch


def _lines(stream: IO[bytes]) -> Iterator[tuple[int, bytes | None]]:
    number, rest = 1, b""
    read = getattr(stream, "read1", stream.read)
    while chunk := read(READ_BYTES):
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield number, line.removesuffix(b"\r")
            number += 1
        _check_size(rest, number)
        if len(chunk) < READ_BYTES:
            yield number, None
    if rest:
        yield number, rest


def _check_size(payload: bytes, line: int) -> None:
    if len(payload) > MAX_RECORD_BYTES:
        raise NetError(
            "too-large",
            f"the record on line {line} is larger than {MAX_RECORD_BYTES} bytes",
            "split it, or store it as a blob",
            {"line": line},
        )


def _check(payload: bytes, line: int, text: bool) -> None:
    import json

    _check_size(payload, line)
    try:
        decoded = payload.decode()
        if not text:
            json.loads(decoded, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        wanted = "UTF-8 text" if text else "JSON"
        hint = "use --raw for bytes" if text else "use --text for plain lines"
        raise NetError("invalid-argument", f"line {line} is no {wanted}: {error}", hint, {"line": line}) from None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def append_all(
    client: Client, path: str, batched: Iterator[Batch], encoding: str, expect: int | None
) -> dict[str, Any]:
    """Append every batch; returns `{first_seq, head_seq, head_hash, count}`.

    A batch whose answer was lost is sent again under the same entry id, which appends it once. Errors carry
    `details.appended`, the number of records durable before.
    """
    first: int | None = None
    count, answer = 0, dict[str, Any]()
    try:
        for batch in batched:
            answer = _append(client, path, batch, encoding, expect)
            first = answer["first_seq"] if first is None else first
            count += len(batch.payloads)
            expect = answer["head_seq"] if expect is not None else None
    except NetError as error:
        error.details["appended"] = count
        raise
    if first is None:
        raise NetError("invalid-argument", "there is no record in the input", "give one JSON value a line")
    return {"first_seq": first, "head_seq": answer["head_seq"], "head_hash": answer["head_hash"], "count": count}


def _append(client: Client, path: str, batch: Batch, encoding: str, expect: int | None) -> dict[str, Any]:
    texts = [
        base64.b64encode(payload).decode() if encoding == "base64" else payload.decode() for payload in batch.payloads
    ]
    entry_id = (time.time_ns() // 1_000_000).to_bytes(6, "big") + os.urandom(10)  # ordered by time, as the engine wants
    body: dict[str, Any] = {"records": texts, "encoding": encoding, "entry_id": entry_id.hex()}
    if expect is not None:
        body["expect_seq"] = expect
    for attempt in range(1, RETRIES + 1):
        try:
            answer: dict[str, Any] = client.post(path, body)
        except NetError as error:
            if error.kind not in ("not-connected", "unknown-outcome", "timeout") or attempt == RETRIES:
                raise
        else:
            return answer
    raise AssertionError("the last attempt returns or raises")
