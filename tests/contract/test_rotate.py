"""A key is replaced on a live cluster, also when the command dies half-way (contract section 4).

Dying half-way is done by taking the steps of the command one by one and stopping there, as the death would.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from net_sdk import commits
from net_sdk.client import Client
from substrate.identity import keyfile
from substrate.wire.envelope import key_proof_payload
from tests.contract.documents import check
from tests.contract.keys import seed_of
from tests.contract.wire import get
from tests.harness import ClusterHarness


@pytest.fixture(scope="module")
def cluster() -> Iterator[ClusterHarness]:
    with ClusterHarness() as harness:
        harness.up(("a", "b"))
        for name in ("one", "two", "three"):
            harness.ok("identity", "generate", name)
            harness.ok("identity", "registry", "add", name, "--operator", "alice")
        yield harness


def directory(cluster: ClusterHarness) -> str:
    return str(cluster.key_file("x").parent)


def begin(cluster: ClusterHarness, name: str, commit: bool) -> None:
    """The steps of `net identity rotate` up to its commit, or up to the moment before."""
    current, fresh = keyfile.begin_rotation(directory(cluster), name)
    event = {
        "kind": "registry-rotate",
        "operator": str(current.keypair.operator_id),
        "public_key": fresh.keypair.public_key.hex(),
        "proof": fresh.keypair.sign(key_proof_payload(fresh.keypair.public_key)).hex(),
    }
    if commit:
        with Client(str(cluster.socket("a"))) as client:
            check("commit", commits.run(client, current.keypair, event))


def active(cluster: ClusterHarness, name: str) -> list[dict[str, Any]]:
    return [row for row in get(cluster, "/v1/registry")["operators"] if row["active"] and row["name"] == name]


def signs(cluster: ClusterHarness, name: str) -> None:
    cluster.ok("admin", "uncordon", "--node", "b", "--operator", name)


def test_the_new_key_signs_and_the_old_one_does_not(cluster: ClusterHarness) -> None:
    old, seed = cluster.ok("identity", "show", "one"), seed_of(cluster, "one")
    rotated = cluster.ok("identity", "rotate", "one", "--reason", "yearly")
    check("identity-rotated", rotated)
    assert rotated["public_key"] != old["public_key"]
    assert rotated["commit"]["target"]["new_operator_id"] == rotated["operator_id"]
    assert [row["operator_id"] for row in active(cluster, "one")] == [rotated["operator_id"]]
    signs(cluster, "one")
    cluster.ok("identity", "import", "stolen", stdin=seed)
    cluster.refused("not-authorized", "admin", "uncordon", "--node", "b", "--operator", "stolen", "--via", "b")
    cluster.refused("operator-not-found", "identity", "rotate", "stolen")
    assert cluster.key_file("one").stat().st_mode & 0o777 == 0o600
    assert seed_of(cluster, "one") != seed
    # The audit still explains what the old key signed.
    rows = cluster.ok("audit", "recent", "--by-operator", old["operator_id"], "-n", "50")
    assert rows and {row["operator"] for row in rows} == {"one"}


def test_died_before_the_commit(cluster: ClusterHarness) -> None:
    """The current key stays what it was, and the command finishes with the key already made."""
    begin(cluster, "two", commit=False)
    signs(cluster, "two")
    before = active(cluster, "two")[0]["operator_id"]
    rotated = cluster.ok("identity", "rotate", "two")
    assert rotated["commit"] is not None
    assert rotated["operator_id"] != before
    signs(cluster, "two")


def test_died_between_the_commit_and_the_file(cluster: ClusterHarness) -> None:
    """The cluster knows the new key, the file still has the old one: refused with the way out, and the way out works."""
    begin(cluster, "three", commit=True)
    refused = cluster.refused("not-authorized", "admin", "uncordon", "--node", "b", "--operator", "three")
    assert refused.error["hint"] == "a rotation of three was not finished: net identity rotate three"
    rotated = cluster.ok("identity", "rotate", "three")
    check("identity-rotated", rotated)
    assert rotated["commit"] is None, "nothing was left to commit"
    assert [row["operator_id"] for row in active(cluster, "three")] == [rotated["operator_id"]]
    signs(cluster, "three")
    left = {path for path in cluster.key_file("three").parent.glob("*three*") if ".retired-" not in path.name}
    assert left == {cluster.key_file("three")}
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in cluster.key_file("three").parent.iterdir())


def test_a_key_the_cluster_never_knew_is_not_rotated(cluster: ClusterHarness) -> None:
    cluster.ok("identity", "generate", "outsider")
    seed = seed_of(cluster, "outsider")
    refused = cluster.run("identity", "rotate", "outsider", "--json")
    assert refused.code in (3, 5), refused
    assert seed_of(cluster, "outsider") == seed
    assert [path.name for path in cluster.key_file("x").parent.glob("*outsider*")] == ["outsider.key"]
