"""From a complete HTTP request to an answer: checks, typed parameters, the call, the error document. No sockets here."""

from __future__ import annotations

import binascii
import logging
import os
import re
from collections.abc import AsyncIterator
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl

import h11
import msgspec
import orjson

from substrate.control.api import ControlApi, Request
from substrate.control.routes import ROUTES, Match, Route, match
from substrate.control.socketfile import Peer
from substrate.control.stream import Lagged
from substrate.wire.errors import NetError

MAX_QUERY_FIELDS: Final = 32
_HOSTS: Final = re.compile(rb"(?:net\.local|localhost)(?::[0-9]{1,5})?\Z", re.IGNORECASE)
_FIELD: Final = re.compile(r"unknown field `([^`]*)`|missing required field `([^`]*)`")
_WHERE: Final = re.compile(r" - at `(?:key in )?\$\.?([^`]*)`")


class Answer(NamedTuple):
    """A complete response."""

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()


class StreamAnswer(NamedTuple):
    """A response whose rows follow."""

    rows: AsyncIterator[Any]


def encode(value: Any) -> bytes:
    """JSON of a document. Structs become objects; anything else JSON does not know raises `TypeError`."""
    return orjson.dumps(value, default=_struct)


def encode_line(value: Any) -> bytes:
    """JSON of a stream row, with its newline."""
    return orjson.dumps(value, default=_struct, option=orjson.OPT_APPEND_NEWLINE)


def _struct(value: Any) -> Any:
    if isinstance(value, Lagged):
        return value.document()
    if isinstance(value, msgspec.Struct):
        return {f.encode_name: getattr(value, f.name) for f in msgspec.structs.fields(value)}
    raise TypeError(f"{type(value).__name__} is not JSON")


def error_answer(error: NetError, status: int | None = None, headers: tuple[tuple[bytes, bytes], ...] = ()) -> Answer:
    """The error document under its own status, or under `status` where HTTP has a more exact one."""
    try:
        body = encode(error.document())
    except TypeError:  # details that are not JSON: a fault of ours, which must not hide the error itself
        body = encode(NetError(error.kind, error.message, error.hint).document())
    return Answer(status or error.http_status, body, headers)


def too_large(what: str, limit: int, status: int = 413) -> Answer:
    """The answer to a request whose header or body passes a limit in bytes."""
    error = NetError("too-large", f"the request {what} is over {limit} bytes", details={"limit_bytes": limit})
    return error_answer(error, status)


def malformed(failure: h11.RemoteProtocolError, header_limit: int) -> Answer:
    """The answer to bytes that are no HTTP/1.1 request."""
    if failure.error_status_hint == 431:
        return too_large("header", header_limit, 431)
    error = NetError("invalid-argument", f"the request is not HTTP/1.1: {failure}")
    return error_answer(error, failure.error_status_hint)


def invalid(failure: Exception, what: str) -> NetError:
    """`invalid-argument` that names the field msgspec complained about."""
    text = str(failure)
    where = _WHERE.search(text)
    field = _FIELD.search(text)
    path = where[1] if where else ""
    if field:
        path = ".".join(part for part in (path, field[1] or field[2]) if part)
        problem = "is not known" if field[1] else "is missing"
    else:
        problem = "is wrong: " + _WHERE.sub("", text)
    if not path:
        return NetError("invalid-argument", f"{what} {problem}")
    return NetError("invalid-argument", f"{what} field {path!r} {problem}", details={"field": path})


class Dispatcher:
    """Answers requests with the operations of one `ControlApi`."""

    def __init__(self, api: ControlApi, logger: logging.Logger) -> None:
        self._logger = logger
        self._calls = {route.name: getattr(api, route.name) for route in ROUTES}
        self._bodies = {route.name: msgspec.json.Decoder(route.body) for route in ROUTES if route.body is not None}

    async def answer(
        self, method: str, target: str, headers: list[tuple[bytes, bytes]], body: bytes, peer: Peer
    ) -> Answer | StreamAnswer:
        """The answer to one request; never raises but for cancellation. `headers` have lower-case names."""
        try:
            check_headers(headers)
            path, _, query = target.partition("?")
            found = match(method, path)
            if not isinstance(found, Match):
                return _not_allowed(method, path, found)
            route, params = found
            request = Request(route, params, _query(route, query), self._body(route, body), peer)
            result = await self._calls[route.name](request)
            if hasattr(result, "__aiter__"):
                return StreamAnswer(result)
            return Answer(200, encode(result))
        except NetError as error:
            return error_answer(error)
        except Exception:
            return error_answer(self.internal(f"{method} {target[:200]}"))

    def internal(self, doing: str) -> NetError:
        """Log the exception being handled in full; return what the client may know of it."""
        incident = binascii.hexlify(os.urandom(4)).decode()
        self._logger.exception("incident %s while answering %s", incident, doing)
        return NetError(
            "internal",
            "the node failed while answering",
            f"look for incident {incident} in the node's log",
            {"incident": incident},
        )

    def _body(self, route: Route, body: bytes) -> Any:
        if route.body is None:
            if body:
                raise NetError("invalid-argument", f"{route.method} {route.path} takes no body")
            return None
        try:
            return self._bodies[route.name].decode(body or b"{}")
        except msgspec.ValidationError as failure:
            raise invalid(failure, "body") from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as failure:
            raise NetError("invalid-argument", f"the body is not JSON: {failure}") from None


def check_headers(headers: list[tuple[bytes, bytes]]) -> None:
    """Refuse what only a browser, or something that takes us for another host, would send (`not-authorized`)."""
    hosts = 0
    for name, value in headers:
        if name == b"host":
            hosts += 1
            if not _HOSTS.match(value):
                raise NetError("not-authorized", "the Host header must be net.local or localhost")
        elif name in (b"origin", b"referer"):
            raise NetError("not-authorized", f"requests with an {name.decode().capitalize()} header are refused")
    if hosts != 1:
        raise NetError("not-authorized", "a request needs one Host header: net.local")


def _not_allowed(method: str, path: str, allowed: list[str]) -> Answer:
    allow = ", ".join(sorted(allowed))
    error = NetError(
        "invalid-argument",
        f"{method} is not possible on {path[:200]}",
        f"use {allow}",
        {"method": method, "allowed": sorted(allowed)},
    )
    return error_answer(error, 405, ((b"Allow", allow.encode()),))


def _query(route: Route, text: str) -> Any:
    values: dict[str, str] = {}
    if text:
        try:
            pairs = parse_qsl(
                text, keep_blank_values=True, strict_parsing=True, errors="strict", max_num_fields=MAX_QUERY_FIELDS
            )
        except ValueError as failure:
            raise NetError("invalid-argument", f"the query cannot be read: {failure}") from None
        for name, value in pairs:
            if name in values:
                raise NetError("invalid-argument", f"query field {name!r} is given twice", details={"field": name})
            values[name] = value
    try:
        return msgspec.convert(values, route.query, strict=False)
    except msgspec.ValidationError as failure:
        raise invalid(failure, "query") from None
