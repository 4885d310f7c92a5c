"""The one table of failures: kind, HTTP status, exit code.

Contract sections 2 and 3. Every error that reaches a user is a `NetError` whose kind stands in
`KINDS`; the CLI turns it into an exit code, the control API into a status, the SDK into an exception.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Final, NamedTuple


class Exit(IntEnum):
    """Process exit codes, fixed for ever (contract section 3)."""

    OK = 0
    """Success, dry runs included."""
    GENERIC = 1
    """Failure that no other code names."""
    INVALID = 2
    """The arguments or the configuration are wrong."""
    NOT_FOUND = 3
    """The named thing does not exist."""
    EXISTS = 4
    """The named thing exists already, or a compare-and-append lost."""
    DENIED = 5
    """No key, a bad key, a bad signature, or a rule of the operator plane."""
    NOT_CONNECTED = 6
    """No node, or no engine, could be reached."""
    TIMEOUT = 7
    """The time given ran out."""
    REFUSED = 8
    """A confirmation was refused or could not be asked for."""
    INTERRUPTED = 130
    """SIGINT."""


class Kind(NamedTuple):
    """What one error kind means on each surface."""

    http: int
    exit: Exit


def _kinds(http: int, code: Exit, *names: str) -> dict[str, Kind]:
    return {name: Kind(http, code) for name in names}


KINDS: Final[dict[str, Kind]] = {
    **_kinds(500, Exit.GENERIC, "internal", "io-error", "corrupt-store", "ledger-tampered", "ledger-behind"),
    **_kinds(507, Exit.GENERIC, "disk-full", "join-memory-exceeded"),
    **_kinds(422, Exit.GENERIC, "rejected", "drain-failed", "partial-result"),
    **_kinds(501, Exit.GENERIC, "not-yet-supported", "missing-feature", "unsupported-platform"),
    **_kinds(400, Exit.INVALID, "invalid-argument", "invalid-config", "ambiguous-name", "query-parse"),
    **_kinds(413, Exit.INVALID, "too-large"),
    **_kinds(
        404,
        Exit.NOT_FOUND,
        "node-not-found",
        "chain-not-found",
        "daemon-not-found",
        "identity-not-found",
        "operator-not-found",
        "task-not-found",
        "memory-not-found",
        "blob-not-found",
        "group-not-found",
        "migration-not-found",
        "proposal-not-found",
        "commit-not-found",
        "profile-not-found",
        "store-not-found",
        "file-not-found",
        "route-not-found",
    ),
    **_kinds(
        409,
        Exit.EXISTS,
        "identity-exists",
        "chain-exists",
        "daemon-exists",
        "operator-exists",
        "task-exists",
        "memory-exists",
        "out-exists",
        "node-running",
        "conflict",
    ),
    **_kinds(
        403,
        Exit.DENIED,
        "no-operator-key",
        "permissive-mode",
        "key-mismatch",
        "read-only",
        "not-authorized",
        "signature-invalid",
        "insufficient-signatures",
        "envelope-expired",
        "envelope-from-future",
        "replayed",
        "consumed",
        "simulation-required",
        "simulation-stale",
        "ice-cooldown-active",
        "freeze-in-effect",
        "clock-skew",
        "cluster-changed",
        "peer-uid",
        "not-admitted",
    ),
    **_kinds(503, Exit.NOT_CONNECTED, "not-connected", "node-unreachable", "engine-unavailable", "overloaded"),
    **_kinds(504, Exit.TIMEOUT, "timeout", "wait-timeout", "unknown-outcome"),
    **_kinds(409, Exit.REFUSED, "confirmation-refused"),
    **_kinds(499, Exit.INTERRUPTED, "interrupted"),
}


class NetError(Exception):
    """A failure a user may see.

    `kind` is one of `KINDS`; `message` says what is wrong in one sentence without a full stop at the
    end of the kind; `hint` is the command or file that mends it, or None; `details` is JSON-able.
    """

    def __init__(
        self,
        kind: str,
        message: str,
        hint: str | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        assert kind in KINDS, f"unknown error kind {kind!r}"
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.hint = hint
        self.details: dict[str, Any] = details or {}

    @property
    def exit_code(self) -> Exit:
        """The process exit code this failure ends with."""
        return KINDS[self.kind].exit

    @property
    def http_status(self) -> int:
        """The HTTP status this failure travels under."""
        return KINDS[self.kind].http

    def document(self) -> dict[str, Any]:
        """The error document of contract section 2: `{"error": {...}}`."""
        return {
            "error": {
                "kind": self.kind,
                "message": self.message,
                "hint": self.hint,
                "exit_code": int(self.exit_code),
                "details": self.details,
            }
        }

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> NetError:
        """Rebuild an error from its document; an unknown kind (a newer node) becomes `internal`."""
        body = document["error"]
        kind = body["kind"] if body["kind"] in KINDS else "internal"
        return cls(kind, body["message"], body.get("hint"), body.get("details"))

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.kind, self.message, self.hint, self.details))
