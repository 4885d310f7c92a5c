"""Identities and the registry on the command line."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from substrate.wire.errors import NetError
from tests.cli.conftest import Net, Terminal, install
from tests.cli.smallnode import SmallNode

SEED = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"
PUBLIC = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
"""RFC 8032, test 1."""


def test_generate_show_list(net: Net, home: Path) -> None:
    made = net("identity", "generate", "alice", "--note", "laptop").document
    path = Path(made["path"])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert made["next"].startswith("net identity registry add alice --public-key " + made["public_key"])
    assert made.pop("next")
    assert net("identity", "show", "alice").document == made
    assert net("identity", "ls").document == [made]
    assert net("identity", "fingerprint", "alice").document["fingerprint"] == made["fingerprint"]
    assert net("identity", "fingerprint", "alice", "--output", "pretty").out == made["fingerprint"] + "\n"
    seed = path.read_text().split('seed = "')[1][:64]
    for args in (("show", "alice"), ("ls",), ("show", "alice", "--output", "pretty", "-v")):
        assert seed not in net("identity", *args).out


def test_an_empty_store(net: Net) -> None:
    assert net("identity", "ls").document == []
    done = net("identity", "ls", "--output", "pretty")
    assert done.out == "" and "net identity generate" in done.err


def test_refusals(net: Net, home: Path) -> None:
    made = net("identity", "generate", "alice").document
    assert net("identity", "generate", "alice").error["kind"] == "identity-exists"
    assert net("identity", "show", "bob").error["kind"] == "identity-not-found"
    assert net("identity", "generate", "../x").error["kind"] == "invalid-argument"
    Path(made["path"]).chmod(0o644)
    for args in (("show", "alice"), ("ls",)):
        error = net("identity", *args).error
        assert (error["kind"], error["exit_code"]) == ("permissive-mode", 5)
        assert "chmod 600" in error["hint"]
    error = net("admin", "cordon", "--node", "b", "--operator", "alice").error
    assert error["kind"] == "permissive-mode", "before a node is looked for"


def test_import(net: Net, home: Path) -> None:
    assert net("identity", "import", "rfc", stdin=SEED + "\n").document["public_key"] == PUBLIC
    file = home / "seed.hex"
    file.write_text(SEED)
    assert net("identity", "import", "again", "--from", str(file)).document["public_key"] == PUBLIC
    for text in ("", SEED[:-1], SEED[:-1] + "x", SEED + "00"):
        done = net("identity", "import", "bad", stdin=text)
        assert done.error["kind"] == "invalid-argument"
        assert SEED[:16] not in done.err, "a refused seed is still a secret"


def test_import_on_a_terminal_does_not_echo(terminal: Callable[..., Terminal], home: Path) -> None:
    screen = terminal("identity", "import", "rfc")
    screen.until("(not shown): ")
    screen.type(SEED + "\n")
    assert screen.end() == 0
    assert SEED not in screen.screen and PUBLIC in screen.screen


def test_registry(net: Net, node: SmallNode, alice: str) -> None:
    net("identity", "generate", "bob")
    assert net("identity", "registry", "add", "bob", "--operator", alice).document["event_kind"] == "registry-add"
    assert [row["name"] for row in net("identity", "registry", "ls").document] == ["alice", "bob"]
    shown = net("identity", "registry", "threshold").document
    assert shown == {"threshold": 1, "active_operators": 2}
    assert net("identity", "registry", "threshold", "0").error["kind"] == "invalid-argument"


def test_the_command_that_generate_prints_installs_the_key(net: Net, node: SmallNode, alice: str) -> None:
    made = net("identity", "generate", "bob").document
    words = made["next"].split()
    Path(made["path"]).unlink()  # it may come from another machine
    assert words[0] == "net" and words[-2:] == ["--operator", "NAME"]
    assert net(*words[1:-1], alice).code == 0
    assert int(made["operator_id"]) in node.operators


def test_cosigning_by_files(net: Net, node: SmallNode, alice: str, home: Path) -> None:
    install(net, node, "carol")
    node.threshold = 2
    net("identity", "generate", "bob")
    file, first, second = (str(home / name) for name in ("bob.json", "a.sig", "c.sig"))
    done = net("identity", "registry", "add", "bob", "--operator", alice, "--out", file)
    assert done.document["threshold"] == 2 and "registry sign" in done.err
    assert node.ledger == []
    assert net("identity", "registry", "add", "bob", "--operator", alice, "--out", file).error["kind"] == "out-exists"

    signed = net("identity", "registry", "sign", file, "--operator", alice, "--out", first)
    assert "registry-add" in signed.err and "bob" in signed.err, "it shows what is signed"
    assert net("identity", "registry", "commit", file, "--sig", first).error["kind"] == "insufficient-signatures"
    Path(second).write_text(net("identity", "registry", "sign", file, "--operator", "carol", "-q").out)
    done = net("identity", "registry", "commit", file, "--sig", first, "--sig", second)
    assert done.document["outcome"] == "accepted"
    assert "bob" in [name for name, _ in node.operators.values()]


def test_files_that_say_something_else_than_they_sign(net: Net, node: SmallNode, alice: str, home: Path) -> None:
    file = home / "p.json"
    net("identity", "registry", "threshold", "1", "--operator", alice, "--out", str(file))
    proposal = json.loads(file.read_text())
    for change in (
        {"reason": "other"},
        {"nonce": "00" * 16},
        {"event": {"kind": "registry-threshold", "threshold": 2}},
    ):
        forged = home / "forged.json"
        forged.write_text(json.dumps({**proposal, "proposal": {**proposal["proposal"], **change}}))
        error = net("identity", "registry", "sign", str(forged), "--operator", alice).error
        assert (error["kind"], error["exit_code"]) == ("signature-invalid", 5), change
    for text in ("", "{}", "[]", json.dumps({**proposal, "proposal": 1}), json.dumps({**proposal, "version": 2})):
        file.write_text(text)
        assert net("identity", "registry", "sign", str(file), "--operator", alice).error["kind"] == "invalid-argument"
    (home / "config" / "known_clusters").write_text("default " + "ff" * 16 + "\n")
    file.write_text(json.dumps(proposal))
    assert net("identity", "registry", "sign", str(file), "--operator", alice).error["kind"] == "cluster-changed"


def test_a_signature_for_another_proposal(net: Net, node: SmallNode, alice: str, home: Path) -> None:
    for name in ("p", "q"):
        net("identity", "registry", "threshold", "1", "--operator", alice, "--out", str(home / f"{name}.json"))
        net(
            "identity",
            "registry",
            "sign",
            str(home / f"{name}.json"),
            "--operator",
            alice,
            "--out",
            str(home / f"{name}.sig"),
        )
    error = net("identity", "registry", "commit", str(home / "p.json"), "--sig", str(home / "q.sig")).error
    assert error["kind"] == "invalid-argument" and "another proposal" in error["message"]
    assert node.ledger == []


def test_signing_asks_on_a_terminal(
    net: Net, node: SmallNode, alice: str, home: Path, terminal: Callable[..., Terminal]
) -> None:
    file = str(home / "p.json")
    net("identity", "registry", "threshold", "1", "--operator", alice, "--out", file)
    screen = terminal("identity", "registry", "sign", file, "--operator", alice, "--json")
    assert "registry-threshold" in screen.until("Type YES to confirm: ")
    screen.type("no\n")
    assert screen.end() == 8 and "net-signature" not in screen.screen


def test_rotation(net: Net, node: SmallNode, alice: str) -> None:
    before = net("identity", "show", alice).document
    done = net("identity", "rotate", alice, "--reason", "yearly").document
    assert done["public_key"] != before["public_key"] and done["commit"]["event_kind"] == "registry-rotate"
    assert list(node.operators) == [int(done["operator_id"])]
    assert net("admin", "uncordon", "--node", "b", "--operator", alice).code == 0, "the new key signs"
    assert [row["name"] for row in net("identity", "ls").document] == [alice]


def test_a_rotation_interrupted_after_its_commit_is_finished(net: Net, node: SmallNode, alice: str, home: Path) -> None:
    from substrate.identity import keyfile

    directory = str(home / "config" / "operator")
    current, fresh = keyfile.begin_rotation(directory, alice)
    node.operators = {fresh.keypair.operator_id: (alice, fresh.keypair.public_key)}
    done = net("identity", "rotate", alice).document
    assert (
        done["commit"] is None
        and done["public_key"] == fresh.keypair.public_key.hex() != current.keypair.public_key.hex()
    )
    assert node.ledger == []


def test_a_refused_rotation_leaves_the_key(net: Net, node: SmallNode, alice: str, home: Path) -> None:
    before = net("identity", "show", alice).document
    node.reject = NetError("freeze-in-effect", "frozen")
    assert net("identity", "rotate", alice).error["kind"] == "freeze-in-effect"
    assert net("identity", "show", alice).document == before
    node.reject, node.operators = None, {}
    assert net("identity", "rotate", alice).error["kind"] == "not-authorized"
    assert [entry.name for entry in (home / "config" / "operator").iterdir()] == ["alice.key"]


@pytest.mark.parametrize("args", [("rotate", "nobody"), ("registry", "add", "nobody", "--operator", "alice")])
def test_unknown_names(net: Net, node: SmallNode, alice: str, args: tuple[str, ...]) -> None:
    assert net("identity", *args).error["kind"] == "identity-not-found"
