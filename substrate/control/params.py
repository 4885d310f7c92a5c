"""What a request may carry: one typed struct per query string and body, unknown fields refused (contract section 8)."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from substrate.wire.errors import NetError
from substrate.wire.records import MAX_ENTRY_RECORDS
from substrate.wire.times import parse_iso

MAX_LIMIT: Final = 10_000
MAX_SIGNATURES: Final = 64
MAX_REASON_CHARS: Final = 4096

Seq = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Millis = Annotated[int, Meta(ge=0, le=2**53)]
Limit = Annotated[int, Meta(ge=1, le=MAX_LIMIT)]
Reference = Annotated[str, Meta(min_length=1, max_length=255)]
Reason = Annotated[str, Meta(max_length=MAX_REASON_CHARS)]
U64 = Annotated[str, Meta(pattern=r"^[0-9]{1,20}$")]
Hex16 = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}$")]
Hex32 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
Hex64 = Annotated[str, Meta(pattern=r"^[0-9a-f]{128}$")]
Time = Annotated[str, Meta(min_length=1, max_length=40)]


class _Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base: immutable, closed."""


class NoQuery(_Params, frozen=True):
    """A route without query parameters."""


class LogsQuery(_Params, frozen=True):
    """Which log lines; `since` is exclusive and counts on the attached node."""

    since: Seq | None = None
    follow: bool = False
    limit: Limit = 100
    min_level: Literal["trace", "debug", "info", "warn", "error"] = "trace"
    daemon: Reference | None = None
    node: Reference | None = None
    contains: Annotated[str, Meta(min_length=1, max_length=256)] | None = None


class AuditQuery(_Params, frozen=True):
    """Which ledger records; `since` is exclusive, `from` and `to` are inclusive ISO 8601 times."""

    limit: Limit = 20
    since: Seq | None = None
    operator: Reference | None = None
    from_: Time | None = msgspec.field(default=None, name="from")
    to: Time | None = None
    force_only: bool = False
    kind: Annotated[str, Meta(pattern=r"^[a-z0-9-]{1,64}$")] | None = None
    node: Reference | None = None
    outcome: Literal["accepted", "rejected"] | None = None
    follow: bool = False

    def __post_init__(self) -> None:
        _ = self.from_ms, self.to_ms  # a time that cannot be read is refused here, before any work

    @property
    def from_ms(self) -> int | None:
        """`from` in milliseconds since 1970; `invalid-argument` if it is no time."""
        return None if self.from_ is None else parse_iso(self.from_)

    @property
    def to_ms(self) -> int | None:
        """`to` in milliseconds since 1970; `invalid-argument` if it is no time."""
        return None if self.to is None else parse_iso(self.to)


class ProgressQuery(_Params, frozen=True):
    """Whether to stay until the commit's work is over."""

    follow: bool = False


class RecordsQuery(_Params, frozen=True):
    """Which records of a chain: those after `since` (exclusive, default from the first), or the last `tail`."""

    since: Seq | None = None
    limit: Limit = 100
    follow: bool = False
    tail: Limit | None = None

    def __post_init__(self) -> None:
        if self.since is not None and self.tail is not None:
            raise NetError(
                "invalid-argument", "'since' and 'tail' exclude each other", "give one of them", {"field": "tail"}
            )


class NamesQuery(_Params, frozen=True):
    """Which names, for completion."""

    kind: Literal["node", "daemon", "chain", "operator"]


class Empty(_Params, frozen=True):
    """The body `{}`."""


class ProposeBody(_Params, frozen=True):
    """An event an operator wants judged; node and daemon references may be names."""

    event: dict[str, Any]
    reason: Reason = ""
    operator_id: U64 | None = None
    preview: bool = False


class ProposalPart(_Params, frozen=True):
    """What was signed, as the proposal document showed it."""

    event: dict[str, Any]
    reason: Reason
    issued_at_ms: Millis
    expires_at_ms: Millis
    nonce: Hex16
    cluster_id: Hex16
    blast_hash: Hex32 | None = None


class SignaturePart(_Params, frozen=True):
    """One operator's ed25519 signature over the signing payload."""

    operator_id: U64
    signature: Hex64


class CommitBody(_Params, frozen=True):
    """A proposal with its signatures."""

    proposal: ProposalPart
    signatures: Annotated[list[SignaturePart], Meta(min_length=1, max_length=MAX_SIGNATURES)]


class AppendBody(_Params, frozen=True):
    """Records for a data chain, all or none; `expect_seq` makes it a compare-and-append, `entry_id` idempotent."""

    records: Annotated[list[msgspec.Raw], Meta(min_length=1, max_length=MAX_ENTRY_RECORDS)]
    encoding: Literal["json", "text", "base64"] = "json"
    expect_seq: Seq | None = None
    entry_id: Hex16 | None = None
