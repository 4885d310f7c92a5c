"""The attack table of the admin plane, over real HTTP: each attack is refused with its own kind, and changes nothing.

"Nothing" is the folded state; the ledger's head may only grow by the record of the rejection itself, and only where an
operator's true signature stands over a nonce that a node minted (contract sections 5 and 6).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import pytest

from substrate.wire.envelope import key_proof_payload
from substrate.wire.errors import KINDS
from tests.contract.attacks import (
    Attacker,
    Body,
    bent,
    malleated,
    moved,
    payload_of,
    random_hex,
    resigned,
    signatures,
    wrong_domain,
)
from tests.contract.documents import check
from tests.contract.wire import Answer, admin_seq, get, request
from tests.harness import ClusterHarness
from tests.procs import wait_until

ZERO_SIGNATURE = "00" * 64


@pytest.fixture(scope="module")
def attacker() -> Iterator[Attacker]:
    with ClusterHarness() as cluster:
        cluster.up(("a", "b", "c"))
        for name in ("bob", "carol", "dave"):
            cluster.ok("identity", "generate", name)
        for name in ("bob", "dave"):
            cluster.ok("identity", "registry", "add", name, "--operator", "alice")
        cluster.ok("identity", "registry", "remove", "dave", "--operator", "alice", "--yes")
        yield Attacker(cluster)


def state_of(cluster: ClusterHarness, via: str = "a") -> dict[str, Any]:
    """What the accepted records fold to, as far as anybody can see it."""
    nodes = [
        {key: row[key] for key in ("node_id", "name", "cordoned", "maintenance", "public_key")}
        for row in get(cluster, "/v1/nodes", via)
    ]
    chains = [row["name"] for row in get(cluster, "/v1/chains", via)]
    daemons = get(cluster, "/v1/names?kind=daemon", via)
    return {
        "nodes": nodes,
        "chains": chains,
        "daemons": daemons,
        "registry": get(cluster, "/v1/registry", via),
        "policy": get(cluster, "/v1/policy", via),
    }


def demand_refusal(attacker: Attacker, send: Callable[[], Answer], kind: str, recorded: bool) -> Answer:
    """Send, and demand the refusal of this kind, an unchanged state, and a record of it exactly where one is due."""
    cluster = attacker.cluster
    before, seq = state_of(cluster), admin_seq(cluster)
    answer = send()
    check("error", answer.document)
    assert (answer.kind, answer.status) == (kind, KINDS[kind].http), answer
    assert answer.document["error"]["exit_code"] == KINDS[kind].exit
    assert admin_seq(cluster) == seq + recorded
    if recorded:
        row = get(cluster, "/v1/audit?limit=1")[0]
        check("audit-record", row)
        assert (row["seq"], row["outcome"], row["error"]["kind"]) == (seq + 1, "rejected", kind)
        assert answer.document["error"]["details"]["commit"]["seq"] == row["seq"]
    assert state_of(cluster) == before
    return answer


class Attack(NamedTuple):
    """A commit body and how it must be refused."""

    name: str
    make: Callable[[Attacker], Body]
    kind: str
    recorded: bool = False


TABLE = (
    # signatures
    Attack("unsigned", signatures(lambda a, p: []), "invalid-argument"),
    Attack(
        "zero signature",
        signatures(lambda a, p: [a.alice.sign(p) | {"signature": ZERO_SIGNATURE}]),
        "signature-invalid",
    ),
    Attack(
        "short signature", signatures(lambda a, p: [a.alice.sign(p) | {"signature": "00" * 63}]), "invalid-argument"
    ),
    Attack("unknown key", signatures(lambda a, p: [a.carol.sign(p)]), "not-authorized"),
    Attack("removed operator", signatures(lambda a, p: [a.dave.sign(p)]), "not-authorized"),
    Attack(
        "another's id",
        signatures(lambda a, p: [a.carol.sign(p) | {"operator_id": a.alice.operator_id}]),
        "signature-invalid",
    ),
    Attack("malleated", signatures(lambda a, p: [malleated(a.alice.sign(p))]), "signature-invalid"),
    Attack("wrong domain", signatures(lambda a, p: [a.alice.sign(wrong_domain(p))]), "signature-invalid"),
    Attack("no domain", signatures(lambda a, p: [a.alice.sign(p[len(b"net-deck-admin:") :])]), "signature-invalid"),
    Attack("good and unknown", signatures(lambda a, p: [a.alice.sign(p), a.carol.sign(p)]), "not-authorized", True),
    Attack(
        "good and bad",
        signatures(lambda a, p: [a.alice.sign(p), a.bob.sign(b"something else")]),
        "signature-invalid",
        True,
    ),
    # bent after signing
    Attack("tampered reason", bent(lambda a, p: {"reason": "a better one"}), "signature-invalid"),
    Attack(
        "tampered node",
        bent(lambda a, p: {"event": {"kind": "cordon", "node": a.node_id("c")}}),
        "signature-invalid",
    ),
    Attack(
        "tampered verb",
        bent(lambda a, p: {"event": {"kind": "uncordon", "node": a.node_id("b")}}),
        "signature-invalid",
    ),
    Attack("tampered expiry", bent(lambda a, p: {"expires_at_ms": p["expires_at_ms"] - 1}), "signature-invalid"),
    Attack("tampered cluster", bent(lambda a, p: {"cluster_id": random_hex(16)}), "cluster-changed"),
    # signed, but nothing that may be committed
    Attack("unknown nonce", resigned(lambda a, p: {"nonce": random_hex(16)}), "simulation-required"),
    Attack(
        "nonce not minted yet",
        resigned(lambda a, p: {"nonce": p["nonce"][:16] + (1023).to_bytes(8, "little").hex()}),
        "simulation-required",
    ),
    Attack("other cluster", resigned(lambda a, p: {"cluster_id": random_hex(16)}), "cluster-changed", True),
    Attack(
        "other cluster, nonce and all",
        resigned(lambda a, p: {"cluster_id": random_hex(16), "nonce": random_hex(16)}),
        "cluster-changed",
    ),
    Attack("expired", resigned(lambda a, p: moved(p, -120_000)), "envelope-expired", True),
    Attack(
        "expired, nonce unknown",
        resigned(lambda a, p: moved(p, -120_000) | {"nonce": random_hex(16)}),
        "envelope-expired",
    ),
    Attack("from the future", resigned(lambda a, p: moved(p, 45_000)), "envelope-from-future", True),
    Attack(
        "a longer window",
        resigned(lambda a, p: {"expires_at_ms": p["expires_at_ms"] + 1}),
        "envelope-expired",
        True,
    ),
    Attack(
        "an unknown node",
        resigned(lambda a, p: {"event": {"kind": "cordon", "node": "12345"}}),
        "node-not-found",
        True,
    ),
    Attack(
        "a verb without an object",
        resigned(lambda a, p: {"event": {"kind": "clear-avoid-list", "node": a.node_id("b")}}),
        "not-yet-supported",
        True,
    ),
    Attack(
        "break-glass without its simulation",
        bent(lambda a, p: {"event": {"kind": "freeze-cluster", "ttl_ms": 1000}}),
        "simulation-required",
    ),
    Attack("a longer reason", bent(lambda a, p: {"reason": "x" * 4097}), "invalid-argument"),
    Attack("a longer reason in bytes", bent(lambda a, p: {"reason": "ü" * 4096}), "too-large"),
    Attack("a field of its own", bent(lambda a, p: {"force": True}), "invalid-argument"),
    Attack("a field in the event", bent(lambda a, p: {"event": p["event"] | {"force": True}}), "invalid-argument"),
    Attack(
        "a genesis",
        resigned(
            lambda a, p: {
                "event": {
                    "kind": "genesis",
                    "cluster": "default",
                    "operator_name": "carol",
                    "operator_key": a.carol.public_key.hex(),
                    "node_name": "z",
                    "node_key": a.carol.public_key.hex(),
                    "policy": {},
                }
            }
        ),
        "not-authorized",
    ),
)


@pytest.mark.parametrize("attack", TABLE, ids=lambda attack: attack.name)
def test_attack(attacker: Attacker, attack: Attack) -> None:
    body = attack.make(attacker)
    demand_refusal(attacker, lambda: attacker.commit(body), attack.kind, attack.recorded)


def test_the_same_rejection_is_recorded_once(attacker: Attacker) -> None:
    """A signed envelope that was refused cannot be used to fill the ledger."""
    body = attacker.signed(moved(attacker.part(), -120_000))
    demand_refusal(attacker, lambda: attacker.commit(body), "envelope-expired", True)
    for via in ("a", "b", "c"):
        demand_refusal(attacker, partial(attacker.commit, body, via), "envelope-expired", False)


def test_replay(attacker: Attacker) -> None:
    """On the same node, on another, and on one that was started anew: always `replayed`, with the original's outcome."""
    part = attacker.part({"kind": "uncordon", "node": "b"})
    body = attacker.signed(part)
    accepted = attacker.commit(body)
    assert (accepted.status, accepted.document["outcome"]) == (200, "accepted")
    cluster = attacker.cluster
    for via in ("a", "b"):
        refused = demand_refusal(attacker, partial(attacker.commit, body, via), "replayed", False)
        assert refused.document["error"]["details"]["commit"] == accepted.document
    cluster.stop("c")
    cluster.start("c")
    demand_refusal(attacker, lambda: attacker.commit(body, "c"), "replayed", False)
    # Signed again by somebody else, it is the same envelope.
    demand_refusal(attacker, lambda: attacker.commit(attacker.signed(part, attacker.bob)), "replayed", False)
    assert attacker.commit(attacker.signed(attacker.part({"kind": "uncordon", "node": "b"}))).status == 200


def test_replay_after_expiry(attacker: Attacker) -> None:
    """The nonce may be forgotten by then; the window is not."""
    cluster = attacker.cluster
    cluster.ok("admin", "policy", "set", "commit_window_ms=1s", "--operator", "alice")
    try:
        body = attacker.signed(attacker.part({"kind": "uncordon", "node": "b"}))
        late = attacker.signed(attacker.part())
        assert attacker.commit(body).status == 200

        def expired() -> bool:
            return attacker.commit(body).kind == "envelope-expired"

        wait_until(expired, 10.0, "the envelope to expire", every_s=0.1)
        demand_refusal(attacker, lambda: attacker.commit(late), "envelope-expired", True)
        for via in ("a", "b"):
            demand_refusal(attacker, partial(attacker.commit, body, via), "envelope-expired", False)
    finally:
        cluster.ok("admin", "policy", "set", "commit_window_ms=60s", "--operator", "alice")


def test_the_second_of_two_equal_commits_at_once_is_replayed(attacker: Attacker) -> None:
    from concurrent.futures import ThreadPoolExecutor

    body = attacker.signed(attacker.part({"kind": "uncordon", "node": "c"}))
    seq = admin_seq(attacker.cluster)
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda via: attacker.commit(body, via), "abcabc"))
    outcomes = sorted("accepted" if answer.status == 200 else answer.kind for answer in answers)
    assert outcomes == ["accepted"] + ["replayed"] * 5
    assert admin_seq(attacker.cluster) == seq + 1


# -- what is refused before anybody signs ---------------------------------------------------------------------------


def _proof(attacker: Attacker) -> str:
    return attacker.carol.raw(key_proof_payload(attacker.carol.public_key)).hex()


class Wish(NamedTuple):
    """An event proposed and the kind it is refused with."""

    name: str
    event: Callable[[Attacker], dict[str, Any]]
    kind: str
    reason: str = ""


def _small_order(encoded: str) -> Callable[[Attacker], dict[str, Any]]:
    # Under a small-order key the all-zero-but-one signature verifies for every message in lax implementations.
    signature = "01" + "00" * 63
    return lambda a: {"kind": "registry-add", "name": "eve", "public_key": encoded, "proof": signature}


WISHES = (
    Wish("small-order key: identity", _small_order("01" + "00" * 31), "invalid-argument"),
    Wish("small-order key: zero", _small_order("00" * 32), "invalid-argument"),
    Wish(
        "small-order key: order 8",
        _small_order("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"),
        "invalid-argument",
    ),
    Wish("no point of the curve", _small_order("02" + "00" * 31), "invalid-argument"),
    Wish(
        "one key under two ids",
        lambda a: {
            "kind": "registry-add",
            "name": "alice2",
            "public_key": a.alice.public_key.hex(),
            "proof": a.alice.raw(key_proof_payload(a.alice.public_key)).hex(),
        },
        "operator-exists",
    ),
    Wish(
        "the key of a removed operator",
        lambda a: {
            "kind": "registry-add",
            "name": "dave2",
            "public_key": a.dave.public_key.hex(),
            "proof": a.dave.raw(key_proof_payload(a.dave.public_key)).hex(),
        },
        "operator-exists",
    ),
    Wish(
        "a name twice",
        lambda a: {"kind": "registry-add", "name": "bob", "public_key": a.carol.public_key.hex(), "proof": _proof(a)},
        "operator-exists",
    ),
    Wish(
        "no proof of possession",
        lambda a: {
            "kind": "registry-add",
            "name": "carol",
            "public_key": a.carol.public_key.hex(),
            "proof": a.alice.raw(key_proof_payload(a.carol.public_key)).hex(),
        },
        "signature-invalid",
    ),
    Wish(
        "a node-join with a foreign proof",
        lambda a: {"kind": "node-join", "name": "z", "public_key": a.carol.public_key.hex(), "proof": _proof(a)},
        "signature-invalid",
    ),
    Wish(
        "a rotation onto a key in use",
        lambda a: {
            "kind": "registry-rotate",
            "operator": "alice",
            "public_key": a.bob.public_key.hex(),
            "proof": a.bob.raw(key_proof_payload(a.bob.public_key)).hex(),
        },
        "operator-exists",
    ),
    Wish(
        "a threshold above the operators", lambda a: {"kind": "registry-threshold", "threshold": 3}, "invalid-argument"
    ),
    Wish("a threshold of nothing", lambda a: {"kind": "registry-threshold", "threshold": 0}, "invalid-argument"),
    Wish(
        "a policy out of range",
        lambda a: {"kind": "policy", "changes": {"commit_window_ms": 86_400_000}},
        "invalid-argument",
    ),
    Wish("an unknown policy", lambda a: {"kind": "policy", "changes": {"anything": 1}}, "invalid-argument"),
    Wish("an unknown event", lambda a: {"kind": "become-root"}, "invalid-argument"),
    Wish(
        "an event with a field too many", lambda a: {"kind": "cordon", "node": "b", "force": True}, "invalid-argument"
    ),
    Wish("a removed operator removed", lambda a: {"kind": "registry-remove", "operator": "dave"}, "operator-not-found"),
    Wish("a break-glass verb", lambda a: {"kind": "freeze-cluster", "ttl_ms": 1000}, "not-yet-supported"),
    Wish("a long reason", lambda a: {"kind": "cordon", "node": "b"}, "invalid-argument", "x" * 4097),
    Wish("a long reason in bytes", lambda a: {"kind": "cordon", "node": "b"}, "too-large", "ü" * 4096),
)


@pytest.mark.parametrize("wish", WISHES, ids=lambda wish: wish.name)
def test_wish(attacker: Attacker, wish: Wish) -> None:
    event = wish.event(attacker)
    demand_refusal(attacker, lambda: attacker.propose(event, wish.reason), wish.kind, False)


def test_a_rotation_without_the_old_key(attacker: Attacker) -> None:
    """Bob may not put a key of his in alice's place."""
    event = {
        "kind": "registry-rotate",
        "operator": "alice",
        "public_key": attacker.carol.public_key.hex(),
        "proof": _proof(attacker),
    }
    body = attacker.signed(attacker.part(event), attacker.bob)
    demand_refusal(attacker, lambda: attacker.commit(body), "not-authorized", True)


def test_a_body_that_is_no_commit(attacker: Attacker) -> None:
    bodies: tuple[Any, ...] = (
        {},
        {"proposal": {}, "signatures": []},
        [],
        {"proposal": attacker.part(), "signatures": "alice"},
    )
    for body in bodies:
        demand_refusal(
            attacker,
            partial(request, attacker.cluster.socket("a"), "POST", "/v1/commits", body),
            "invalid-argument",
            False,
        )


# -- a threshold of two ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two(attacker: Attacker) -> Iterator[Attacker]:
    """Alice and bob must both sign now."""
    attacker.cluster.ok("identity", "registry", "threshold", "2", "--operator", "alice")
    yield attacker
    part = attacker.part({"kind": "registry-threshold", "threshold": 1})
    assert attacker.commit(attacker.signed(part, attacker.bob, attacker.alice)).status == 200


POLICY = {"kind": "policy", "changes": {"crash_limit": 7}}
PAIRS: tuple[tuple[str, Callable[[Attacker, bytes], list[dict[str, str]]], str, bool], ...] = (
    ("one of two", lambda a, p: [a.alice.sign(p)], "insufficient-signatures", True),
    ("the same twice", lambda a, p: [a.alice.sign(p), a.alice.sign(p)], "insufficient-signatures", True),
    ("one and an outsider", lambda a, p: [a.alice.sign(p), a.carol.sign(p)], "not-authorized", True),
    ("one and a removed one", lambda a, p: [a.alice.sign(p), a.dave.sign(p)], "not-authorized", True),
    (
        "one signature under two ids",
        lambda a, p: [a.alice.sign(p), a.alice.sign(p) | {"operator_id": a.bob.operator_id}],
        "signature-invalid",
        True,
    ),
    (
        "one and its malleated twin",
        lambda a, p: [a.alice.sign(p), malleated(a.alice.sign(p))],
        "signature-invalid",
        True,
    ),
    ("two outsiders", lambda a, p: [a.carol.sign(p), a.dave.sign(p)], "not-authorized", False),
)


@pytest.mark.parametrize(("name", "make", "kind", "recorded"), PAIRS, ids=[pair[0] for pair in PAIRS])
def test_threshold(
    two: Attacker, name: str, make: Callable[[Attacker, bytes], list[dict[str, str]]], kind: str, recorded: bool
) -> None:
    part = two.part(POLICY, reason=name)
    body = {"proposal": part, "signatures": make(two, payload_of(part))}
    answer = demand_refusal(two, lambda: two.commit(body), kind, recorded)
    if kind == "insufficient-signatures":
        assert {key: answer.document["error"]["details"][key] for key in ("got", "required")} == {
            "got": 1,
            "required": 2,
        }


def test_a_refused_commit_may_be_completed(two: Attacker) -> None:
    """Only an accepted commit burns its nonce: the missing signature can still be added."""
    part = two.part({"kind": "policy", "changes": {"crash_limit": 8}})
    demand_refusal(two, lambda: two.commit(two.signed(part)), "insufficient-signatures", True)
    assert two.commit(two.signed(part, two.alice, two.bob), "b").status == 200
    assert get(two.cluster, "/v1/policy", "b")["crash_limit"]["value"] == 8


def test_removing_below_the_threshold(two: Attacker) -> None:
    demand_refusal(two, lambda: two.propose({"kind": "registry-remove", "operator": "bob"}), "invalid-argument", False)


def test_one_suffices_for_what_needs_one(two: Attacker) -> None:
    assert two.commit(two.signed(two.part({"kind": "uncordon", "node": "b"}), two.bob)).status == 200


def test_all_nodes_agree_in_the_end(attacker: Attacker) -> None:
    """After all of it the copies are the same, and the whole ledger verifies from the files alone."""
    cluster = attacker.cluster
    wait_until(lambda: len({admin_seq(cluster, via) for via in "abc"}) == 1, 10.0, "the nodes to catch up")
    states = [state_of(cluster, via) for via in "abc"]
    assert states[0] == states[1] == states[2]
    assert cluster.ok("audit", "verify")["ok"] is True
