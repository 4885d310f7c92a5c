"""The commit flow: what is signed is what was asked; a lost answer never hides or doubles a commit."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from net_sdk import commits
from net_sdk.aclient import AsyncClient, AsyncCommits
from net_sdk.client import Client
from net_sdk.proposals import commit_body, verify_proposal
from substrate.control import End
from substrate.identity.keys import Keypair
from substrate.wire.envelope import Envelope
from substrate.wire.errors import NetError
from substrate.wire.events import decode_event
from tests.control.sample import Serving, progress_document
from tests.sdk.ledger import LedgerApi, proposal_document
from tests.sdk.proxy import Relay

CLUSTER = "c1" * 16
DRAIN = {"kind": "drain", "node": "a", "drain_for_ms": 30_000}
KEY = "07" * 32
SPEC = {"name": "web", "command": ["/bin/true"], "grace": "5s", "labels": ["x"]}


@pytest.fixture
def serving() -> Iterator[Serving]:
    with Serving(api=LedgerApi) as running:
        yield running


@pytest.fixture
def client(serving: Serving) -> Iterator[Client]:
    with Client(serving.path, timeout_s=10) as made:
        made.cluster_id = CLUSTER
        yield made


def refused(kind: str, call: Callable[[], Any]) -> NetError:
    with pytest.raises(NetError) as caught:
        call()
    assert caught.value.kind == kind, caught.value.document()
    return caught.value


# -- what may be signed


def proposal_of(event: dict[str, Any], target: dict[str, Any], reason: str = "") -> dict[str, Any]:
    envelope = Envelope(bytes.fromhex(CLUSTER), 1000, 61_000, bytes(16), decode_event(event), reason)
    return proposal_document(envelope, target)


NODE_A = {"node_id": "1", "node_name": "abc"}
RESOLVED = {"kind": "drain", "node": "1", "drain_for_ms": 30_000}


@pytest.mark.parametrize("reference", ["1", "0x1", "abc", "ab"])
def test_a_reference_may_be_an_id_a_name_or_its_beginning(reference: str) -> None:
    proposal = proposal_of(RESOLVED, NODE_A, "because")
    payload = verify_proposal({**RESOLVED, "node": reference}, "because", proposal, CLUSTER)
    assert payload.hex() == proposal["signing_payload"]


@pytest.mark.parametrize(
    ("asked", "resolved", "target"),
    [
        ({"kind": "enter-maintenance", "node": "abc"}, {"kind": "enter-maintenance", "node": "1"}, NODE_A),
        ({"kind": "registry-threshold", "threshold": 2}, {"kind": "registry-threshold", "threshold": 2}, {}),
        ({"kind": "policy", "commit_window_ms": 5}, {"kind": "policy", "changes": {"commit_window_ms": 5}}, {}),
        ({"kind": "policy", "changes": {"x": 5}}, {"kind": "policy", "changes": {"x": 5}}, {}),
        ({"kind": "registry-remove", "operator": "al"}, {"kind": "registry-remove", "operator": "5"},
         {"operator_id": "5", "operator": "alice"}),
        ({"kind": "daemon-stop", "daemon": "web"}, {"kind": "daemon-stop", "daemon": "4"},
         {"daemon_id": "4", "daemon_name": "web"}),
        ({"kind": "daemon-apply", "spec": SPEC},
         {"kind": "daemon-apply", "spec": {"name": "web", "command": ["/bin/true"], "grace_ms": 5000, "labels": ["x"]}},
         {"daemon_id": "4", "daemon_name": "web"}),
        ({"kind": "drop-replicas", "node": "1", "chains": ["9"]},
         {"kind": "drop-replicas", "node": "1", "chains": ["9"]}, NODE_A),
        ({"kind": "join-token", "public_key": KEY, "ttl_ms": 5}, {"kind": "join-token", "public_key": KEY, "ttl_ms": 5}, {}),
    ],
)  # fmt: skip
def test_what_was_asked_with_its_references_resolved_passes(
    asked: dict[str, Any], resolved: dict[str, Any], target: dict[str, Any]
) -> None:
    assert verify_proposal(asked, "", proposal_of(resolved, target), CLUSTER)
    assert verify_proposal(proposal_of(resolved, target)["event"], "", proposal_of(resolved, target))


@pytest.mark.parametrize(
    ("asked", "resolved"),
    [
        (RESOLVED, {**RESOLVED, "drain_for_ms": 30_001}),
        (RESOLVED, {**RESOLVED, "node": "2"}),
        ({**RESOLVED, "node": "abc"}, {**RESOLVED, "node": "2"}),
        ({**RESOLVED, "node": "abd"}, RESOLVED),
        ({**RESOLVED, "node": ""}, RESOLVED),
        (RESOLVED, {"kind": "cordon", "node": "1"}),
        ({"kind": "cordon", "node": "1"}, {"kind": "uncordon", "node": "1"}),
        ({"kind": "enter-maintenance", "node": "1"}, {"kind": "enter-maintenance", "node": "1", "drain_for_ms": 5}),
        ({"kind": "enter-maintenance", "node": "1", "drain_for_ms": 5}, {"kind": "enter-maintenance", "node": "1"}),
        ({"kind": "join-token", "ttl_ms": 5}, {"kind": "join-token", "public_key": KEY, "ttl_ms": 5}),
        ({"kind": "policy", "x": 5}, {"kind": "policy", "changes": {"x": 5, "y": 1}}),
        ({"kind": "daemon-apply", "spec": SPEC}, {"kind": "daemon-apply", "spec": {"name": "web", "command": ["/bin/sh"]}}),
        ({"kind": "drop-replicas", "node": "1", "chains": ["9"]}, {"kind": "drop-replicas", "node": "1", "chains": ["9", "8"]}),
        ({"kind": "drop-replicas", "node": "1", "chains": ["9"]}, {"kind": "drop-replicas", "node": "1", "chains": ["8"]}),
    ],
)  # fmt: skip
def test_anything_else_is_not_signed(asked: dict[str, Any], resolved: dict[str, Any]) -> None:
    refused("signature-invalid", lambda: verify_proposal(asked, "", proposal_of(resolved, NODE_A), CLUSTER))


@pytest.mark.parametrize(
    "change",
    [
        {"signing_payload": "00"}, {"commit_id": "00" * 16}, {"reason": "another"}, {"nonce": "00" * 15},
        {"nonce": "01" * 16}, {"issued_at_ms": 999}, {"expires_at_ms": 61_001}, {"expires_at_ms": 1000},
        {"expires_at_ms": 3_700_000}, {"event": {"kind": "cordon"}}, {"event": None}, {"cluster_id": "zz"},
        {"event": {**RESOLVED, "drain_for_ms": "30000"}}, {"blast_hash": 5, "nonce": None},
    ],
)  # fmt: skip
def test_a_document_that_does_not_fit_its_bytes_is_refused(change: dict[str, Any]) -> None:
    proposal = proposal_of(RESOLVED, NODE_A) | change
    refused("signature-invalid", lambda: verify_proposal(RESOLVED, "", proposal, None))


def test_a_proposal_of_another_cluster_is_not_signed() -> None:
    refused("cluster-changed", lambda: verify_proposal(RESOLVED, "", proposal_of(RESOLVED, NODE_A), "d2" * 16))


# -- the flow


def test_propose_sign_commit(serving: Serving, client: Client) -> None:
    seen: list[dict[str, Any]] = []
    document = commits.run(client, serving.api.key, DRAIN, "upgrade", approve=seen.append)
    assert (document["outcome"], document["event_kind"]) == ("accepted", "drain")
    assert [proposal["target"] for proposal in seen] == [{"node_id": "1", "node_name": "a"}]
    assert list(serving.api.committed) == [document["commit_id"]] == [seen[0]["commit_id"]]


def test_a_refusal_at_any_step_commits_nothing(serving: Serving, client: Client) -> None:
    def no(proposal: dict[str, Any]) -> None:
        raise NetError("confirmation-refused", "not confirmed")

    key = serving.api.key
    refused("confirmation-refused", lambda: commits.run(client, key, DRAIN, approve=no))
    refused("node-not-found", lambda: commits.run(client, key, {**DRAIN, "node": "zz"}))
    refused("signature-invalid", lambda: commits.run(client, Keypair.generate(), DRAIN))

    def lie(proposal: dict[str, Any]) -> None:
        proposal["event"]["node"] = "7"

    serving.api.lie = lie
    refused("signature-invalid", lambda: commits.run(client, key, DRAIN))
    client.cluster_id = "d2" * 16
    serving.api.lie = None
    refused("cluster-changed", lambda: commits.run(client, key, DRAIN))
    assert serving.api.attempts == 1  # the wrong key's; the others never sent anything signed
    assert serving.api.committed == {}


def test_a_verdict_is_final(serving: Serving, client: Client) -> None:
    for kind in ("not-authorized", "envelope-expired", "freeze-in-effect", "engine-unavailable", "overloaded"):
        serving.api.refuse = NetError(kind, "no")
        before = serving.api.attempts
        refused(kind, lambda: commits.run(client, serving.api.key, DRAIN))
        assert serving.api.attempts == before + 1


def test_a_rejected_commit_is_never_success(serving: Serving, client: Client) -> None:
    proposal = commits.propose(client, DRAIN)
    signature = commits.sign(serving.api.key, verify_proposal(DRAIN, "", proposal))
    rejected = {"outcome": "rejected", "error": {"kind": "drain-failed", "message": "no room"}, "seq": 9}
    serving.api.committed[proposal["commit_id"]] = {"commit_id": proposal["commit_id"], **rejected}
    with Relay(serving.path) as relay, Client(relay.path, timeout_s=10) as through:
        relay.only, relay.lose_requests = b"/v1/commits HTTP", 1
        error = refused("drain-failed", lambda: commits.submit(through, proposal, [signature]))
    assert (error.message, error.details["commit"]["seq"]) == ("no room", 9)


def test_a_lost_answer_is_looked_up(serving: Serving) -> None:
    with Relay(serving.path) as relay, Client(relay.path, timeout_s=10) as client:
        relay.only, relay.lose_answers = b"/v1/commits HTTP", 1
        document = commits.run(client, serving.api.key, DRAIN)
        assert relay.lost == 1
    assert document["outcome"] == "accepted"
    assert (serving.api.attempts, len(serving.api.committed)) == (1, 1)


def test_a_lost_request_is_sent_again_and_counts_once(serving: Serving) -> None:
    with Relay(serving.path) as relay, Client(relay.path, timeout_s=10) as client:
        relay.only, relay.lose_requests = b"/v1/commits HTTP", 2
        document = commits.run(client, serving.api.key, DRAIN)
        assert relay.lost == 2
    assert document["outcome"] == "accepted"
    assert (serving.api.attempts, len(serving.api.committed), serving.api.proposals) == (1, 1, 1)


def test_an_answer_and_then_the_lookup_lost_still_count_once(serving: Serving) -> None:
    with Relay(serving.path) as relay, Client(relay.path, timeout_s=10) as client:
        relay.only, relay.lose_answers = b"/v1/commits", 2
        document = commits.run(client, serving.api.key, DRAIN)
        assert relay.lost == 2
    assert document["commit_id"] in serving.api.committed
    assert len(serving.api.committed) == 1


def test_an_outcome_that_stays_unclear_is_called_so(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits, "RESOLVE_S", 0.3)
    with Relay(serving.path) as relay, Client(relay.path, timeout_s=10) as client:
        relay.only, relay.lose_requests = b"/v1/commits", 1000
        error = refused("unknown-outcome", lambda: commits.run(client, serving.api.key, DRAIN))
    assert len(error.details["commit_id"]) == 32
    assert error.hint == f"net audit show {error.details['commit_id']}"


def test_sending_an_accepted_commit_again_is_replayed(serving: Serving, client: Client) -> None:
    proposal = commits.propose(client, DRAIN, operator_id="5")
    signature = commits.sign(serving.api.key, verify_proposal(DRAIN, "", proposal))
    first = commits.submit(client, proposal, [signature])
    error = refused("replayed", lambda: commits.submit(client, proposal, [signature]))
    assert error.details["commit"] == first


def test_a_forgotten_proposal_is_made_once_more_and_not_for_ever(serving: Serving, client: Client) -> None:
    serving.api.forget_nonces = 1
    seen: list[Any] = []
    assert commits.run(client, serving.api.key, DRAIN, approve=seen.append)["outcome"] == "accepted"
    assert (serving.api.proposals, len(serving.api.committed), len(seen)) == (2, 1, 1)
    serving.api.forget_nonces = 5
    refused("simulation-required", lambda: commits.run(client, serving.api.key, DRAIN))
    assert serving.api.proposals == 4


def test_nobody_listening_is_not_an_unclear_outcome(serving: Serving, client: Client) -> None:
    proposal = commits.propose(client, DRAIN)
    signature = commits.sign(serving.api.key, verify_proposal(DRAIN, "", proposal))
    serving.stop()
    started = time.monotonic()
    refused("not-connected", lambda: commits.submit(client, proposal, [signature]))
    assert time.monotonic() - started < 5


def test_a_commit_carries_the_blast_hash_only_where_it_is_signed() -> None:
    proposal = proposal_of(RESOLVED, NODE_A) | {"blast_hash": "0f" * 32}
    assert "blast_hash" not in commit_body(proposal, [])["proposal"]
    frozen = {"kind": "freeze-cluster", "ttl_ms": 5}
    assert commit_body(proposal | {"event": frozen}, [])["proposal"]["blast_hash"] == "0f" * 32


# -- waiting for the work


def test_wait_ends_with_the_work(serving: Serving, client: Client) -> None:
    seen: list[Any] = []
    last = commits.wait(client, "0a" * 16, 10, seen.append)
    assert [row["state"] for row in seen] == ["running", "done"]
    assert last["result"] == "drained"
    assert commits.progress_error(last) is None


def test_failed_work_is_returned_and_has_its_own_kind(serving: Serving, client: Client) -> None:
    serving.api.progress = [progress_document("failed", result="drain-failed", reasons=["no room for web/0"])]
    error = commits.progress_error(commits.wait(client, "0a" * 16, 10))
    assert error is not None
    assert (error.kind, "no room for web/0" in error.message) == ("drain-failed", True)
    other = commits.progress_error(progress_document("failed", result="lost"))
    assert other is not None
    assert other.kind == "rejected"


def test_wait_takes_a_broken_stream_up_again_and_gives_up_in_time(serving: Serving, client: Client) -> None:
    serving.api.progress = [progress_document(), End("node-stopping")]
    started = time.monotonic()
    error = refused("wait-timeout", lambda: commits.wait(client, "0a" * 16, 0.5))
    assert 0.4 < time.monotonic() - started < 5
    assert (error.details["commit_id"], error.details["moved"]) == ("0a" * 16, 1)
    with Relay(serving.path) as relay, Client(relay.path, timeout_s=10) as through:
        serving.api.progress = [progress_document(), progress_document("done", result="drained")]
        relay.only, relay.lose_answers = b"/progress", 1
        assert commits.wait(through, "0a" * 16, 10)["state"] == "done"
        assert relay.lost == 1


# -- the same on the async client


def test_the_async_flow_is_the_same_flow(serving: Serving) -> None:
    async def run() -> None:
        with Relay(serving.path) as relay:
            relay.only, relay.lose_answers = b"/v1/commits HTTP", 1
            async with AsyncClient(relay.path, timeout_s=10) as client:
                client.cluster_id = CLUSTER
                flow = AsyncCommits(client)
                document = await flow.run(serving.api.key, DRAIN, "upgrade")
                assert document["outcome"] == "accepted"
                seen: list[Any] = []
                assert (await flow.wait(document["commit_id"], 10, seen.append))["result"] == "drained"
                assert len(seen) == 2
                proposal = await flow.propose(DRAIN)
                signature = commits.sign(serving.api.key, verify_proposal(DRAIN, "", proposal))
                assert (await flow.submit(proposal, [signature]))["seq"] == 2
                serving.api.progress = [progress_document(), End("node-stopping")]
                with pytest.raises(NetError) as caught:
                    await flow.wait(document["commit_id"], 0.4)
                assert caught.value.kind == "wait-timeout"
            assert relay.lost == 1

    asyncio.run(run())
    assert (serving.api.attempts, len(serving.api.committed)) == (2, 2)
