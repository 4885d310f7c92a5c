"""Who is in the cluster: members as they announce themselves in the engine, and what their silence means.

A node keeps the key `member/<node_id>` with a time-to-live and renews it every second; the value is a `Member` as JSON. The
view turns the watch's events and the passing of time into states. It is pure: the caller passes monotonic milliseconds.

What lets another node take over the work of a silent one is `lost`, so `lost` needs proof: the engine said that the lease ran
out, or forgot all leases (a restart), and since then, and since the node was last seen, TTL + margin have passed without it.
A node that only cannot be seen because the engine itself is silent is `suspect` for as long as that lasts. And a viewer that
did not look for a while (stopped, starved) begins to wait anew before absence means anything: the renewals it missed may
still stand in its queue.
Sources: architecture ("Real effects": takeover waits TTL + kill margin), contract section 6.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from substrate.mesh.load import Load
from substrate.wire.errors import NetError

if TYPE_CHECKING:  # only its shape matters here, and the engine's room pulls the store in
    from substrate.engine.api import KvEvent

PREFIX: Final = "member/"
TTL_MS: Final = 6000
RENEW_EVERY_MS: Final = 1000
MARGIN_MS: Final = 3000
"""What a guardian may need, after its deadline, until everything it started is dead."""
MAX_GAP_MS: Final = 2000
"""A view that is not asked for longer than this was blind meanwhile."""
MAX_MEMBERS: Final = 4096
"""Announcements beyond this are ignored and counted."""

State = Literal["alive", "suspect", "lost", "stopped"]
"""`suspect`: not renewed, but perhaps still running its daemons. `lost`: surely not. `stopped`: it said goodbye."""

ChangeKind = Literal["joined", "updated", "returned", "new-session", "suspect", "lost", "stopped"]


class LastExit(msgspec.Struct, frozen=True):
    """How a daemon's process ended last: an exit code, or a signal."""

    at_ms: int
    code: int | None = None
    signal: int | None = None


class Running(msgspec.Struct, frozen=True, omit_defaults=True):
    """One daemon instance as its node sees it. Times are milliseconds since 1970."""

    daemon_id: int
    instance: int
    epoch: int
    lifecycle: str
    health: str = "unknown"
    restarts: int = 0
    pid: int | None = None
    since_ms: int | None = None
    """Start of the present process."""
    reason: str | None = None
    last_exit: LastExit | None = None
    next_start_ms: int | None = None


class Member(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a node announces about itself."""

    node_id: int
    name: str
    session: int
    """Random u64, new after every lost lease: work assigned to an older session is no longer this node's."""
    public_key: bytes
    endpoints: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    load: Load | None = None
    admin_seq: int = 0
    control_seq: int = 0
    """How far it has folded the two chains."""
    restarted_seq: int = 0
    """The seq of the last restart-all it has carried out."""
    running: tuple[Running, ...] = ()
    state: str = "ready"
    """Its own word for what it does: `starting`, `ready`, `stopping`."""
    version: str = ""
    control_endpoint: str = ""
    started_at_ms: int = 0


_encoder: Final = msgspec.json.Encoder()
_decoder: Final = msgspec.json.Decoder(Member)


def member_key(node_id: int) -> str:
    """The engine key of a node."""
    return f"{PREFIX}{node_id}"


def encode_member(member: Member) -> bytes:
    """The value of a node's key (public_key as base64; read only by nodes, so ids are plain numbers)."""
    return _encoder.encode(member)


def decode_member(key: str, value: bytes) -> Member:
    """The member in a key's value; raises `invalid-argument` for a damaged one or one under another node's key.

    Unknown fields are ignored: a newer release may announce more.
    """
    try:
        member = _decoder.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise NetError("invalid-argument", f"the value of {key!r} is no member: {error}") from None
    if key != member_key(member.node_id):
        raise NetError("invalid-argument", f"the value of {key!r} announces node {member.node_id}")
    return member


class Change(msgspec.Struct, frozen=True):
    """Something that happened to a member; `previous` is what was announced before, if anything was."""

    kind: ChangeKind
    member: Member
    previous: Member | None = None


class MemberStatus(msgspec.Struct, frozen=True):
    """A member and what is known about its life."""

    member: Member
    state: State
    last_seen_ms: int
    """Time since its last announcement arrived."""


class _Tracked:
    """One member over time."""

    __slots__ = ("expired_at_ms", "forgotten", "member", "revision", "seen_at_ms", "state")

    def __init__(self, member: Member, revision: int, now_ms: int) -> None:
        self.member = member
        self.revision = revision
        self.seen_at_ms = now_ms
        self.state: State = "alive"
        self.expired_at_ms: int | None = None  # when the engine said that the lease ran out
        self.forgotten = False  # the engine restarted and has not seen it since

    @property
    def gone(self) -> bool:
        """Whether its key is known to be absent."""
        return self.forgotten or self.expired_at_ms is not None


class MembershipView:
    """The members as far as the events fed so far tell. Times are monotonic milliseconds and must not go back.

    `feed` and `advance` return the changes they cause, in order; `next_change_ms` says when `advance` is due.
    """

    def __init__(self, ttl_ms: int = TTL_MS, margin_ms: int = MARGIN_MS) -> None:
        self._ttl_ms = ttl_ms
        self._patience_ms = ttl_ms + margin_ms
        self._tracked: dict[int, _Tracked] = {}
        self._reset_at_ms = 0
        self._woke_at_ms = 0
        self._asked_at_ms: int | None = None
        self._began_at_ms: int | None = None
        self.malformed = 0
        """Announcements that could not be read."""
        self.ignored = 0
        """Announcements of nodes beyond `MAX_MEMBERS`."""
        self.last_malformed: str | None = None

    # Questions

    def status(self, node_id: int, now_ms: int) -> MemberStatus | None:
        """One member, or None if the node was never seen."""
        tracked = self._tracked.get(node_id)
        return self._status(tracked, now_ms) if tracked else None

    def members(self, now_ms: int) -> list[MemberStatus]:
        """Every member seen so far, ordered by name, then id."""
        found = sorted(self._tracked.values(), key=lambda t: (t.member.name, t.member.node_id))
        return [self._status(tracked, now_ms) for tracked in found]

    def state(self, node_id: int) -> State | None:
        """The state of a node as of the last `feed` or `advance`."""
        tracked = self._tracked.get(node_id)
        return tracked.state if tracked else None

    def is_live(self, node_id: int, session: int) -> bool:
        """Whether the node is alive in exactly this session."""
        tracked = self._tracked.get(node_id)
        return tracked is not None and tracked.state == "alive" and tracked.member.session == session

    def watched_ms(self, now_ms: int) -> int:
        """How long the view has looked without a break, and seen the engine's keys without a restart.

        A node that has not shown itself in this time, if it is long enough, holds no lease.
        """
        if self._asked_at_ms is None or self._began_at_ms is None or now_ms - self._asked_at_ms > MAX_GAP_MS:
            return 0
        return now_ms - max(self._began_at_ms, self._woke_at_ms, self._reset_at_ms)

    @staticmethod
    def _status(tracked: _Tracked, now_ms: int) -> MemberStatus:
        return MemberStatus(tracked.member, tracked.state, max(0, now_ms - tracked.seen_at_ms))

    # Events

    def feed(self, event: KvEvent, now_ms: int) -> list[Change]:
        """Take one event of the watch on `PREFIX`."""
        changes = self.advance(now_ms)
        if event.op == "reset":
            self._reset_at_ms = now_ms
            for known in self._tracked.values():
                known.forgotten = True
            return changes + self.advance(now_ms)
        if not event.key.startswith(PREFIX):
            return changes
        if event.op == "put":
            return changes + self._put(event, now_ms)
        tracked = self._by_key(event.key)
        if tracked is None or event.revision < tracked.revision:
            return changes
        tracked.revision = event.revision
        tracked.expired_at_ms = now_ms
        if event.op == "delete" and tracked.state != "stopped":
            # Only the node itself deletes its key, as the last thing it does, when its daemons are dead.
            tracked.state = "stopped"
            changes.append(Change("stopped", tracked.member))
        return changes + self.advance(now_ms)

    def _by_key(self, key: str) -> _Tracked | None:
        digits = key.removeprefix(PREFIX)
        return self._tracked.get(int(digits)) if digits.isascii() and digits.isdigit() and len(digits) <= 20 else None

    def _put(self, event: KvEvent, now_ms: int) -> list[Change]:
        try:
            member = decode_member(event.key, event.value)
        except NetError as error:
            self.malformed += 1
            self.last_malformed = error.message
            return []
        tracked = self._tracked.get(member.node_id)
        if tracked is None:
            if len(self._tracked) >= MAX_MEMBERS:
                self.ignored += 1
                return []
            self._tracked[member.node_id] = _Tracked(member, event.revision, now_ms)
            return [Change("joined", member)]
        if event.revision < tracked.revision:
            return []  # delivered late: something newer was seen
        previous, before = tracked.member, tracked.state
        tracked.member, tracked.revision = member, event.revision
        tracked.seen_at_ms, tracked.state = now_ms, "alive"
        tracked.expired_at_ms, tracked.forgotten = None, False
        if member.session != previous.session:
            return [Change("new-session", member, previous)]
        if before != "alive":
            return [Change("returned", member, previous)]
        return [Change("updated", member, previous)] if member != previous else []

    # Time

    def advance(self, now_ms: int) -> list[Change]:
        """Let time pass: members become `suspect`, then `lost`. Call it again no later than `next_change_ms`."""
        if self._asked_at_ms is not None and now_ms - self._asked_at_ms > MAX_GAP_MS:
            self._woke_at_ms = now_ms
        if self._began_at_ms is None:
            self._began_at_ms = now_ms
        self._asked_at_ms = now_ms
        changes: list[Change] = []
        for tracked in self._tracked.values():
            if tracked.state == "alive" and now_ms >= self._suspect_at(tracked):
                tracked.state = "suspect"
                changes.append(Change("suspect", tracked.member))
            if tracked.state == "suspect" and tracked.gone and now_ms >= self._lost_at(tracked):
                tracked.state = "lost"
                changes.append(Change("lost", tracked.member))
        return changes

    def next_change_ms(self) -> int | None:
        """When `advance` must be called at the latest, or None while nothing can change by time alone."""
        due = [
            self._suspect_at(tracked) if tracked.state == "alive" else self._lost_at(tracked)
            for tracked in self._tracked.values()
            if tracked.state == "alive" or (tracked.state == "suspect" and tracked.gone)
        ]
        if not due or self._asked_at_ms is None:
            return None
        return min(*due, self._asked_at_ms + MAX_GAP_MS // 2)  # sooner than needed, to prove that it looks

    def _suspect_at(self, tracked: _Tracked) -> int:
        if tracked.expired_at_ms is not None:
            return tracked.expired_at_ms
        # A restart of the engine alone says nothing about a node: its next renewal is on its way.
        return max(tracked.seen_at_ms, self._woke_at_ms) + self._ttl_ms

    def _lost_at(self, tracked: _Tracked) -> int:
        if tracked.expired_at_ms is not None:
            # A reader that fell behind may never see the last renewals, only the expiry: the margin counts from there too.
            return max(tracked.seen_at_ms + self._patience_ms, tracked.expired_at_ms + self._patience_ms - self._ttl_ms)
        return max(tracked.seen_at_ms, self._reset_at_ms, self._woke_at_ms) + self._patience_ms

    def forget(self, node_ids: Iterable[int]) -> None:
        """Drop members that were removed from the cluster."""
        for node_id in node_ids:
            self._tracked.pop(node_id, None)
