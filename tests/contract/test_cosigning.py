"""Two people, two machines, three files: how a commit that needs two signatures is made (contract section 6)."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.contract.documents import check
from tests.contract.wire import admin_seq, get
from tests.harness import ClusterHarness
from tests.procs import wait_until


@pytest.fixture(scope="module")
def two() -> Iterator[ClusterHarness]:
    """Operators alice and bob, threshold 2; carol's and dave's keys exist."""
    with ClusterHarness() as cluster:
        cluster.up(("a", "b"))
        for name in ("bob", "carol", "dave"):
            cluster.ok("identity", "generate", name)
        cluster.ok("identity", "registry", "add", "bob", "--operator", "alice")
        cluster.ok("identity", "registry", "threshold", "2", "--operator", "alice")
        yield cluster


def registry(cluster: ClusterHarness, *args: str) -> Any:
    return cluster.ok("identity", "registry", *args)


def propose(cluster: ClusterHarness, name: str, file: str) -> None:
    document = registry(cluster, "add", name, "--operator", "alice", "--out", file)
    check("proposal-written", document)
    check("proposal-file", json.loads((cluster.root / file).read_text()))
    assert document["threshold"] == 2


def sign(cluster: ClusterHarness, file: str, operator: str) -> str:
    out = f"{file}.{operator}.sig"
    check("signature-file", registry(cluster, "sign", file, "--operator", operator, "--out", out))
    assert (cluster.root / out).stat().st_mode & 0o777 == 0o600
    return out


def operators(cluster: ClusterHarness) -> list[str]:
    return [row["name"] for row in get(cluster, "/v1/registry")["operators"] if row["active"]]


def test_two_sign_and_a_third_is_installed(two: ClusterHarness) -> None:
    seq = admin_seq(two)
    propose(two, "carol", "carol.json")
    assert admin_seq(two) == seq, "a proposal is no commit"
    alice, bob = sign(two, "carol.json", "alice"), sign(two, "carol.json", "bob")
    # One does not suffice, and burns nothing.
    refused = two.refused("insufficient-signatures", "identity", "registry", "commit", "carol.json", "--sig", alice)
    assert refused.error["details"]["got"] == 1
    # The same one twice is one.
    two.refused(
        "insufficient-signatures", "identity", "registry", "commit", "carol.json", "--sig", alice, "--sig", alice
    )
    commit = registry(two, "commit", "carol.json", "--sig", alice, "--sig", bob)
    check("commit", commit)
    assert [row["name"] for row in commit["operators"]] == ["alice", "bob"]
    assert operators(two) == ["alice", "bob", "carol"]
    two.refused("replayed", "identity", "registry", "commit", "carol.json", "--sig", alice, "--sig", bob)


def test_the_wrong_signer(two: ClusterHarness) -> None:
    propose(two, "dave", "dave.json")
    alice, dave = sign(two, "dave.json", "alice"), sign(two, "dave.json", "dave")
    two.refused("not-authorized", "identity", "registry", "commit", "dave.json", "--sig", alice, "--sig", dave)
    assert "dave" not in operators(two)


def test_a_signature_of_another_proposal(two: ClusterHarness) -> None:
    propose(two, "dave", "one.json")
    propose(two, "dave", "other.json")
    alice, bob = sign(two, "one.json", "alice"), sign(two, "other.json", "bob")
    two.refused("invalid-argument", "identity", "registry", "commit", "one.json", "--sig", alice, "--sig", bob)
    # Renaming what it signs does not help: the bytes are others.
    document = json.loads((two.root / bob).read_text())
    document["commit_id"] = json.loads((two.root / alice).read_text())["commit_id"]
    (two.root / "bent.sig").write_text(json.dumps(document))
    two.refused("signature-invalid", "identity", "registry", "commit", "one.json", "--sig", alice, "--sig", "bent.sig")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("reason", "something harmless"),
        ("event", {"kind": "registry-threshold", "threshold": 1}),
        ("nonce", "00" * 16),
        ("expires_at_ms", 4_000_000_000_000),
        ("signing_payload", "00" * 80),
        ("commit_id", "00" * 16),
    ],
)
def test_a_proposal_that_does_not_say_what_would_be_signed(two: ClusterHarness, field: str, value: Any) -> None:
    """Who signs sees what is signed, or nothing is signed."""
    file = f"bent-{field}.json"
    propose(two, "dave", file)
    document = json.loads((two.root / file).read_text())
    document["proposal"][field] = value
    (two.root / file).write_text(json.dumps(document))
    two.refused("signature-invalid", "identity", "registry", "sign", file, "--operator", "bob", "--out", f"{file}.sig")
    assert not (two.root / f"{file}.sig").exists()


def test_a_proposal_of_another_cluster(two: ClusterHarness) -> None:
    """The cluster's id is pinned where the signer works."""
    propose(two, "dave", "foreign.json")
    known = two.root / "c" / "known_clusters"
    kept = known.read_text()
    known.write_text(kept.replace(get(two, "/v1/status")["cluster_id"], "ab" * 16))
    try:
        two.refused("cluster-changed", "identity", "registry", "sign", "foreign.json", "--operator", "bob")
    finally:
        known.write_text(kept)


def test_an_expired_file_says_how_to_propose_afresh(two: ClusterHarness) -> None:
    set_window = ("admin", "policy", "set", "--operator", "alice", "--out")
    two.ok(*set_window, "short.json", "cosign_window_ms=2s")
    signatures = [sign(two, "short.json", name) for name in ("alice", "bob")]
    registry(two, "commit", "short.json", "--sig", signatures[0], "--sig", signatures[1])
    propose(two, "dave", "late.json")
    late = [sign(two, "late.json", name) for name in ("alice", "bob")]
    expires = json.loads((two.root / "late.json").read_text())["proposal"]["expires_at_ms"]
    wait_until(lambda: _clock_ms() > expires, 10.0, "the file to expire", every_s=0.1)
    refused = two.refused(
        "envelope-expired", "identity", "registry", "commit", "late.json", "--sig", late[0], "--sig", late[1]
    )
    assert "dave" not in operators(two)
    hint = str(refused.error["hint"])
    assert hint.startswith("net identity registry add dave "), hint
    again = shlex.split(hint.replace("NAME", "alice"))[1:]
    document = two.ok(*again)
    assert document["commit_id"] != json.loads((two.root / "late.json").read_text())["proposal"]["commit_id"]
    fresh = [sign(two, "NEW-late.json", name) for name in ("alice", "bob")]
    registry(two, "commit", "NEW-late.json", "--sig", fresh[0], "--sig", fresh[1])
    assert "dave" in operators(two)


def test_an_expired_policy_file_says_so_too(two: ClusterHarness) -> None:
    two.ok(
        "admin", "policy", "set", "--operator", "alice", "--out", "policy.json", "crash_limit=9", "commit_window_ms=30s"
    )
    signatures = [sign(two, "policy.json", name) for name in ("alice", "bob")]
    expires = json.loads((two.root / "policy.json").read_text())["proposal"]["expires_at_ms"]
    wait_until(lambda: _clock_ms() > expires, 10.0, "the file to expire", every_s=0.1)
    refused = two.refused(
        "envelope-expired",
        "identity",
        "registry",
        "commit",
        "policy.json",
        "--sig",
        signatures[0],
        "--sig",
        signatures[1],
    )
    hint = str(refused.error["hint"])
    assert shlex.split(hint)[1:6] == ["admin", "policy", "set", "commit_window_ms=30000ms", "crash_limit=9"], hint


def _clock_ms() -> int:
    return time.time_ns() // 1_000_000


@pytest.mark.parametrize("content", ["", "{}", "[]", "not json", '{"format":"net-proposal","version":2,"proposal":{}}'])
def test_a_file_that_is_no_proposal(two: ClusterHarness, content: str) -> None:
    (two.root / "none.json").write_text(content)
    two.refused("invalid-argument", "identity", "registry", "sign", "none.json", "--operator", "bob")
    two.refused("file-not-found", "identity", "registry", "sign", "missing.json", "--operator", "bob")
