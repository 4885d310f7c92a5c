"""What a node must implement to be served: one async method per route."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from substrate.control.routes import Route
from substrate.control.socketfile import Peer

__all__ = ["ControlApi", "Peer", "Request"]


class Request(NamedTuple):
    """One decoded request.

    `params` are the decoded path parts; `query` and `body` are instances of the structs the route names (`body` is None where
    it has none); `peer` is the calling process.
    """

    route: Route
    params: dict[str, str]
    query: Any
    body: Any
    peer: Peer


class ControlApi(Protocol):
    """The operations behind the routes table.

    A method returns what orjson can encode (dicts, lists, msgspec structs), or, when `query.follow` is set on a stream
    route, an async iterator. That yields rows, lists of rows (sent together), `Lagged`, and last an `End`
    with the reason (without one it is `complete`). Raise `NetError` before returning the iterator to refuse
    the stream with a status; an error raised later travels in the last line. An iterator with `aclose` is closed when
    the reader leaves. Every other exception reaches the client as `internal` and the node's log in full.
    A method that answers at once is not cancelled when its client leaves; a stream is.
    """

    async def version(self, request: Request) -> Any:
        """GET /v1/version."""

    async def status(self, request: Request) -> Any:
        """GET /v1/status."""

    async def health(self, request: Request) -> Any:
        """GET /v1/health."""

    async def nodes(self, request: Request) -> Any:
        """GET /v1/nodes."""

    async def node(self, request: Request) -> Any:
        """GET /v1/nodes/{ref}."""

    async def node_stop(self, request: Request) -> Any:
        """POST /v1/node/stop."""

    async def daemons(self, request: Request) -> Any:
        """GET /v1/daemons."""

    async def daemon(self, request: Request) -> Any:
        """GET /v1/daemons/{ref}."""

    async def logs(self, request: Request) -> Any:
        """GET /v1/logs, `LogsQuery`."""

    async def audit(self, request: Request) -> Any:
        """GET /v1/audit, `AuditQuery`."""

    async def audit_verify(self, request: Request) -> Any:
        """GET /v1/audit/verify."""

    async def commit(self, request: Request) -> Any:
        """GET /v1/commits/{id}."""

    async def commit_progress(self, request: Request) -> Any:
        """GET /v1/commits/{id}/progress, `ProgressQuery`."""

    async def propose(self, request: Request) -> Any:
        """POST /v1/proposals, `ProposeBody`."""

    async def commit_post(self, request: Request) -> Any:
        """POST /v1/commits, `CommitBody`."""

    async def registry(self, request: Request) -> Any:
        """GET /v1/registry."""

    async def policy(self, request: Request) -> Any:
        """GET /v1/policy."""

    async def chains(self, request: Request) -> Any:
        """GET /v1/chains."""

    async def chain(self, request: Request) -> Any:
        """GET /v1/chains/{ref}."""

    async def chain_append(self, request: Request) -> Any:
        """POST /v1/chains/{ref}/records, `AppendBody`."""

    async def chain_records(self, request: Request) -> Any:
        """GET /v1/chains/{ref}/records, `RecordsQuery`."""

    async def chain_verify(self, request: Request) -> Any:
        """GET /v1/chains/{ref}/verify."""

    async def names(self, request: Request) -> Any:
        """GET /v1/names, `NamesQuery`."""
