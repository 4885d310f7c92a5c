"""The routes table: the one list of what the control API serves. `docs/openapi.yaml` is checked against it."""

from __future__ import annotations

from typing import Any, Final, Literal, NamedTuple
from urllib.parse import unquote_to_bytes

import msgspec

from substrate.control import params as p
from substrate.wire.errors import NetError

MAX_PARAM_BYTES: Final = 255


class Route(NamedTuple):
    """One operation: `name` is the `ControlApi` method and the operationId of the description."""

    method: Literal["GET", "POST"]
    path: str
    name: str
    query: type[msgspec.Struct]
    body: type[msgspec.Struct] | None
    stream: bool
    summary: str


def _get(path: str, name: str, summary: str, query: type[msgspec.Struct] = p.NoQuery, stream: bool = False) -> Route:
    return Route("GET", path, name, query, None, stream, summary)


def _post(path: str, name: str, summary: str, body: type[msgspec.Struct]) -> Route:
    return Route("POST", path, name, p.NoQuery, body, False, summary)


ROUTES: Final[tuple[Route, ...]] = (
    _get("/v1/version", "version", "Version of the node, of its wire formats, and its features"),
    _get("/v1/status", "status", "The attached node, its cluster and its engine"),
    _get("/v1/health", "health", "Checks of the attached node"),
    _get("/v1/nodes", "nodes", "Nodes of the cluster, ordered by name"),
    _get("/v1/nodes/{ref}", "node", "One node"),
    _post("/v1/node/stop", "node_stop", "Stop the attached node gracefully", p.Empty),
    _get("/v1/daemons", "daemons", "Daemon instances, ordered by name and instance"),
    _get("/v1/daemons/{ref}", "daemon", "One daemon: its specification and its instances"),
    _get("/v1/logs", "logs", "Log lines of daemons and nodes, cluster-wide", p.LogsQuery, stream=True),
    _get("/v1/audit", "audit", "Ledger records: newest first, or followed oldest first", p.AuditQuery, stream=True),
    _get("/v1/audit/verify", "audit_verify", "Check the attached node's copy of the ledger"),
    _get("/v1/commits/{id}", "commit", "What became of a commit"),
    _get(
        "/v1/commits/{id}/progress", "commit_progress", "How far a commit's work has come", p.ProgressQuery, stream=True
    ),
    _post("/v1/proposals", "propose", "Have an event resolved, judged and made ready to sign", p.ProposeBody),
    _post("/v1/commits", "commit_post", "Commit a signed proposal", p.CommitBody),
    _get("/v1/registry", "registry", "Operators and the threshold"),
    _get("/v1/policy", "policy", "The cluster's policy"),
    _get("/v1/chains", "chains", "Chains, ordered by name"),
    _get("/v1/chains/{ref}", "chain", "One chain with its holders"),
    _post("/v1/chains/{ref}/records", "chain_append", "Append records to a data chain, all or none", p.AppendBody),
    _get("/v1/chains/{ref}/records", "chain_records", "Records of a chain", p.RecordsQuery, stream=True),
    _get("/v1/chains/{ref}/verify", "chain_verify", "Re-check the hashes of a chain"),
    _get("/v1/names", "names", "Names and ids of one noun, for completion", p.NamesQuery),
)


class Match(NamedTuple):
    """A route and the decoded parts of the path."""

    route: Route
    params: dict[str, str]


def _segments(path: str) -> tuple[str, ...]:
    return tuple(path.split("/")[1:])


_BY_LENGTH: Final[dict[int, list[tuple[tuple[str, ...], Route]]]] = {}
for _route in ROUTES:
    _pattern = _segments(_route.path)
    _BY_LENGTH.setdefault(len(_pattern), []).append((_pattern, _route))
for _patterns in _BY_LENGTH.values():
    _patterns.sort(key=lambda entry: sum(part.startswith("{") for part in entry[0]))  # literal parts win over {ref}


def match(method: str, path: str) -> Match | list[str]:
    """The route of an undecoded path, or the methods allowed there when `method` is not one of them.

    Raises `route-not-found`, or `invalid-argument` for a path part that does not decode to a plain name.
    """
    parts = _segments(path)
    allowed: list[str] = []
    for pattern, route in _BY_LENGTH.get(len(parts), ()):
        if all(want == have or want[0] == "{" for want, have in zip(pattern, parts, strict=True)):
            if route.method == method:
                return Match(route, _decode(pattern, parts))
            allowed.append(route.method)
    if allowed:
        return allowed
    raise NetError("route-not-found", f"there is no {path[:200]!r} here", "GET /v1/version tells what this node speaks")


def _decode(pattern: tuple[str, ...], parts: tuple[str, ...]) -> dict[str, str]:
    params: dict[str, str] = {}
    for want, have in zip(pattern, parts, strict=True):
        if want[0] == "{":
            params[want[1:-1]] = _decode_part(want[1:-1], have)
    return params


def _decode_part(name: str, raw: str) -> str:
    decoded = unquote_to_bytes(raw)
    problem = None
    text = ""
    if not 1 <= len(decoded) <= MAX_PARAM_BYTES:
        problem = f"must be 1 to {MAX_PARAM_BYTES} bytes long"
    else:
        try:
            text = decoded.decode()
        except UnicodeDecodeError:
            problem = "is not UTF-8"
        else:
            if not text.isprintable():
                problem = "holds a control character"
    if problem is not None:
        raise NetError("invalid-argument", f"the path part {{{name}}} {problem}", details={"field": name})
    return text


def document(route: Route) -> dict[str, Any]:
    """A route as data, for the description's checks and the SDKs' generators."""
    fields = {field.encode_name: field.required for field in msgspec.structs.fields(route.query)}
    body = None if route.body is None else {f.encode_name: f.required for f in msgspec.structs.fields(route.body)}
    return {"method": route.method, "path": route.path, "name": route.name, "query": fields, "body": body}
