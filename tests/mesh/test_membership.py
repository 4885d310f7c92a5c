"""The view of members: what events and time make of them, and when a silent node may be given up."""

from __future__ import annotations

from typing import Literal

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from substrate.engine.api import KvEvent
from substrate.mesh.load import Load, Reading
from substrate.mesh.membership import (
    MAX_GAP_MS,
    MAX_MEMBERS,
    LastExit,
    Member,
    MembershipView,
    Running,
    decode_member,
    encode_member,
    member_key,
)
from substrate.wire.errors import NetError

TTL, MARGIN = 6000, 3000
U64 = 2**64 - 1


def member(node_id: int = 1, session: int = 7, **more: object) -> Member:
    return Member(node_id, f"n{node_id}", session, bytes([node_id % 256]) * 32, **more)  # type: ignore[arg-type]


class Feed:
    """Events with growing revisions, as an engine makes them."""

    def __init__(self) -> None:
        self.view = MembershipView(TTL, MARGIN)
        self.revision = 0

    def event(self, op: Literal["put", "delete", "expired", "reset"], node: Member | None, now: int) -> list[str]:
        self.revision += 1
        key = member_key(node.node_id) if node else ""
        value = encode_member(node) if node and op == "put" else b""
        return kinds(self.view, KvEvent(op, key, value, self.revision), now)

    def put(self, node: Member, now: int) -> list[str]:
        return self.event("put", node, now)

    def walk(self, start: int, end: int) -> list[tuple[str, int, int]]:
        """Let time pass as a loop does, which asks when it is told to; (kind, node, time) of each change."""
        told: list[tuple[str, int, int]] = [
            (change.kind, change.member.node_id, start) for change in self.view.advance(start)
        ]
        while (due := self.view.next_change_ms()) is not None and due <= end:
            told += [(change.kind, change.member.node_id, due) for change in self.view.advance(due)]
        return told + [(change.kind, change.member.node_id, end) for change in self.view.advance(end)]

    def state(self, node_id: int = 1) -> str | None:
        return self.view.state(node_id)


def kinds(view: MembershipView, event: KvEvent, now: int) -> list[str]:
    return [change.kind for change in view.feed(event, now)]


# The codec


def full_member() -> Member:
    reading = Reading(1_700_000_000_000, 12.5)
    load = Load(reading, reading, reading, reading, reading, reading, Reading(5, None, "gone"))
    running = (
        Running(U64, 2, 9, "running", pid=77, restarts=3, last_exit=LastExit(5, signal=9)),
        Running(1, 0, 1, "backing-off", next_start_ms=10),
    )
    return Member(
        node_id=U64,
        name="a",
        session=U64 - 1,
        public_key=bytes(range(32)),
        endpoints=("unix:/x",),
        labels=("gpu",),
        load=load,
        admin_seq=10,
        control_seq=11,
        restarted_seq=9,
        running=running,
        state="stopping",
        version="0.18.0",
        control_endpoint="unix:/c",
        started_at_ms=12,
    )


def test_members_survive_the_codec() -> None:
    for each in (member(), full_member()):
        assert decode_member(member_key(each.node_id), encode_member(each)) == each


def test_fields_of_a_newer_release_are_ignored() -> None:
    document = msgspec.json.decode(encode_member(member()))
    document["of_tomorrow"] = {"x": 1}
    assert decode_member("member/1", msgspec.json.encode(document)) == member()


@pytest.mark.parametrize("value", [b"", b"{}", b"\xff\xfe", b'{"node_id":"x"}', b"[]", b'"\xff"'])
def test_damaged_members_are_refused(value: bytes) -> None:
    with pytest.raises(NetError) as caught:
        decode_member("member/1", value)
    assert caught.value.kind == "invalid-argument"


def test_member_under_the_key_of_another_is_refused() -> None:
    with pytest.raises(NetError) as caught:
        decode_member("member/2", encode_member(member(1)))
    assert "announces node 1" in caught.value.message


def test_a_hundred_instances_fit_into_one_value() -> None:
    running = tuple(
        Running(U64 - n, 0, 10**6, "running", "healthy", 3, 10**6, 10**12, "x" * 60, LastExit(10**12, 1), 10**12)
        for n in range(200)
    )
    assert len(encode_member(member(running=running))) <= 64 * 1024


# Life


def test_life_of_a_member_that_renews() -> None:
    feed = Feed()
    assert feed.put(member(), 0) == ["joined"]
    assert feed.put(member(), 1000) == [], "a renewal that says nothing new is no change"
    assert feed.put(member(admin_seq=5), 2000) == ["updated"]
    assert feed.state() == "alive"
    status = feed.view.status(1, 2500)
    assert status is not None
    assert (status.member.admin_seq, status.state, status.last_seen_ms) == (5, "alive", 500)
    assert feed.view.status(2, 0) is None
    assert feed.view.is_live(1, 7)
    assert not feed.view.is_live(1, 8)
    assert not feed.view.is_live(2, 7)


def test_expired_lease_is_suspect_and_lost_after_the_margin() -> None:
    feed = Feed()
    feed.put(member(), 0)
    assert feed.event("expired", member(), TTL) == ["suspect"]
    assert feed.walk(TTL, 100_000) == [("lost", 1, TTL + MARGIN)]
    assert feed.view.next_change_ms() is None
    assert feed.put(member(session=8), 100_001) == ["new-session"]
    assert feed.state() == "alive"


def test_missed_renewals_before_the_expiry_are_counted_from_the_expiry() -> None:
    # The watch fell behind: renewals until 50 s were dropped, only the expiry arrives.
    feed = Feed()
    feed.put(member(), 0)
    assert feed.event("expired", member(), 56_000) == ["suspect"]
    assert feed.walk(56_000, 100_000) == [("lost", 1, 56_000 + MARGIN)]


def test_silence_of_the_engine_makes_nobody_lost() -> None:
    feed = Feed()
    feed.put(member(), 0)
    assert feed.walk(0, 100_000) == [("suspect", 1, TTL)]
    assert feed.view.next_change_ms() is None
    assert feed.put(member(), 10**9 + 1) == ["returned"]


def test_restarted_engine_makes_nobody_lost_before_ttl_and_margin() -> None:
    feed = Feed()
    feed.put(member(1), 0)
    feed.put(member(2), 0)
    feed.walk(0, 5000)
    assert feed.event("reset", None, 5000) == []
    assert feed.put(member(2), 5500) == []
    told = feed.walk(5500, 30_000)
    assert [entry for entry in told if entry[1] == 1] == [("suspect", 1, TTL), ("lost", 1, 5000 + TTL + MARGIN)]
    assert feed.state(2) == "suspect"


def test_engine_that_restarts_again_and_again_starts_the_wait_anew() -> None:
    feed = Feed()
    feed.put(member(), 0)
    now = 0
    for at in (4000, 12_000, 20_000):
        assert "lost" not in [kind for kind, _, _ in feed.walk(now, at)]
        feed.event("reset", None, at)
        now = at
    assert feed.walk(now, 100_000) == [("lost", 1, 20_000 + TTL + MARGIN)]


def test_viewer_that_was_stopped_waits_anew_before_absence_means_anything() -> None:
    feed = Feed()
    feed.put(member(1), 0)
    feed.put(member(2), 0)
    feed.event("reset", None, 1000)
    # Frozen for a minute; the renewals of the first node stand in the queue behind another event.
    assert feed.put(member(2), 60_000) == []
    assert feed.state(1) == "alive"
    assert feed.put(member(1), 60_001) == []
    feed.event("reset", None, 60_002)
    feed.put(member(2), 60_003)
    assert ("lost", 1, 60_002 + TTL + MARGIN) in feed.walk(60_003, 90_000)


def test_viewer_that_was_stopped_believes_the_engine_about_an_expired_lease() -> None:
    feed = Feed()
    feed.put(member(), 0)
    feed.event("expired", member(), TTL)
    assert [change.kind for change in feed.view.advance(60_000)] == ["lost"]


def test_lost_and_stopped_stay_so_over_a_restart_of_the_engine() -> None:
    feed = Feed()
    for number in (1, 2):
        feed.put(member(number), 0)
    feed.event("expired", member(1), TTL)
    feed.event("delete", member(2), TTL)
    feed.walk(TTL, TTL + MARGIN)
    assert feed.event("reset", None, 20_000) == []
    assert (feed.state(1), feed.state(2)) == ("lost", "stopped")
    assert feed.walk(20_000, 10**6) == []


def test_goodbye_is_stopped_at_once() -> None:
    feed = Feed()
    feed.put(member(), 0)
    assert feed.event("delete", member(), 100) == ["stopped"]
    assert feed.event("delete", member(), 101) == []
    assert feed.view.next_change_ms() is None
    assert feed.put(member(session=9), 200) == ["new-session"]


def test_new_session_is_told_with_what_was_before() -> None:
    feed = Feed()
    feed.put(member(), 0)
    [change] = feed.view.feed(KvEvent("put", member_key(1), encode_member(member(session=8)), 99), 100)
    assert change.kind == "new-session"
    assert change.previous == member()


def test_late_events_of_older_revisions_change_nothing() -> None:
    feed = Feed()
    feed.put(member(), 0)
    feed.revision = 100
    feed.put(member(session=8), 10)
    for late in (
        KvEvent("put", member_key(1), encode_member(member()), 50),
        KvEvent("expired", member_key(1), b"", 50),
        KvEvent("delete", member_key(1), b"", 50),
    ):
        assert kinds(feed.view, late, 20) == []
    assert feed.view.is_live(1, 8)


def test_what_is_no_member_is_counted_and_harms_nobody() -> None:
    feed = Feed()
    feed.put(member(), 0)
    assert kinds(feed.view, KvEvent("put", "member/2", b"{", 50), 1) == []
    assert (feed.view.malformed, feed.view.status(2, 1)) == (1, None)
    assert feed.view.last_malformed is not None
    for stranger in (
        KvEvent("put", "leader", b"x", 51),
        KvEvent("expired", "member/9", b"", 52),
        KvEvent("delete", "member/none", b"", 53),
        KvEvent("delete", "member/" + "9" * 30, b"", 54),
    ):
        assert kinds(feed.view, stranger, 1) == []
    assert feed.state() == "alive"


def test_members_are_limited_listed_in_order_and_forgotten() -> None:
    feed = Feed()
    for number in range(MAX_MEMBERS, -1, -1):
        feed.put(member(number), 0)
    assert feed.view.ignored == 1
    names = [status.member.name for status in feed.view.members(10)]
    assert names == sorted(names)
    assert len(names) == MAX_MEMBERS
    feed.view.forget([1, 2, 10**9])
    assert feed.state(1) is None
    assert len(feed.view.members(10)) == MAX_MEMBERS - 2


# Any history


OPS = st.sampled_from(["put", "put", "put", "new-session", "expired", "delete", "reset", "walk", "walk", "stall"])


@settings(max_examples=300)
@given(st.lists(st.tuples(OPS, st.integers(1, 3), st.integers(0, 12_000)), max_size=40))
def test_lost_only_with_proof_and_no_time_is_missed(script: list[tuple[str, int, int]]) -> None:
    """The rule in the words of the architecture, against any history of events, pauses and stalls of the viewer."""
    feed = Feed()
    now = blind_until = reset_at = 0
    seen: dict[int, int] = {}
    proof: dict[int, str] = {}
    expired_at: dict[int, int] = {}
    sessions = dict.fromkeys((1, 2, 3), 1)

    def check(told: list[tuple[str, int, int]]) -> None:
        for kind, node_id, at in told:
            if kind == "lost":
                assert at >= seen[node_id] + TTL + MARGIN
                if proof[node_id] == "reset":
                    assert at >= max(reset_at, blind_until) + TTL + MARGIN
                else:
                    assert proof[node_id] == "expired"
                    assert at >= expired_at[node_id] + MARGIN

    for op, node_id, delay in script:
        if op == "stall":
            now += delay
            if delay > MAX_GAP_MS and feed.revision:
                blind_until = now
            check([(change.kind, change.member.node_id, now) for change in feed.view.advance(now)])
            continue
        check(feed.walk(now, now + delay) if feed.revision else [])
        now += delay
        if op in ("put", "new-session"):
            sessions[node_id] += op == "new-session"
            told = feed.put(member(node_id, sessions[node_id]), now)
            assert "lost" not in told
            assert op != "new-session" or node_id not in seen or "new-session" in told
            seen[node_id], proof[node_id] = now, ""
            assert feed.view.is_live(node_id, sessions[node_id])
        elif op == "expired" or op == "delete":
            known = node_id in seen and proof[node_id] != "stopped"
            if known and proof[node_id] != "expired":
                # Only what the engine says first; it never says it twice of one lease.
                feed_op: Literal["expired", "delete"] = "expired" if op == "expired" else "delete"
                proof[node_id], expired_at[node_id] = ("expired", now) if op == "expired" else ("stopped", now)
                told = feed.event(feed_op, member(node_id), now)
                assert "lost" not in told or now >= seen[node_id] + TTL + MARGIN
        elif op == "reset":
            feed.event("reset", None, now)
            reset_at = now
            proof = {each: "reset" if kind == "" else kind for each, kind in proof.items()}
        assert feed.view.advance(now) == [], "the same moment brings nothing twice"
        following = feed.view.next_change_ms()
        assert following is None or following > now
    end = now + 2 * (TTL + MARGIN)
    check(feed.walk(now, end))
    for node_id, kind in proof.items():
        expected = {"": "suspect", "reset": "lost", "expired": "lost", "stopped": "stopped"}[kind]
        assert feed.state(node_id) == expected


def test_silence_counts_only_while_the_view_looks() -> None:
    """Who never showed itself is given up after a while; the while begins anew after each blindness and each restart."""
    feed = Feed()
    view = feed.view
    assert view.watched_ms(5000) == 0, "it has not begun to look"
    view.advance(5000)
    for now in range(6000, 20_000, 1000):
        view.advance(now)
        assert view.watched_ms(now) == now - 5000
    assert view.watched_ms(19_000 + MAX_GAP_MS + 1) == 0, "nobody looked for a while"
    view.advance(30_000)
    assert view.watched_ms(30_000) == 0
    view.advance(31_000)
    feed.event("reset", None, 31_500)
    assert view.watched_ms(32_000) == 500, "the engine forgot the keys of all"
