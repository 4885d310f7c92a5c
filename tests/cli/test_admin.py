"""Signed commands: what is sent, what is shown, what is asked, and how each ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from substrate.wire.errors import NetError
from tests.cli.conftest import Net, Terminal
from tests.cli.smallnode import SmallNode

REMAINING = [{"daemon_name": "web", "daemon_id": "21", "instance": 0, "essential": False, "blocked_by": None}]
RUNNING = {"state": "running", "result": None, "remaining": REMAINING, "moved": 1, "total": 2, "elapsed_ms": 5}
DRAINED = {"state": "done", "result": "drained", "remaining": [], "moved": 2, "total": 2, "elapsed_ms": 900}
FAILED = {**RUNNING, "state": "failed", "result": "drain-failed", "reasons": ["web/0: no eligible node"]}
DRAIN = ("admin", "drain", "--node", "b", "--drain-for", "30s")


def test_a_drain_returns_its_commit_at_once(net: Net, node: SmallNode, alice: str) -> None:
    done = net(*DRAIN, "--reason", "new disk", "--operator", alice)
    assert (done.code, done.err) == (0, "")
    commit = done.document
    assert commit["event_kind"] == "drain" and commit["outcome"] == "accepted" and commit["reason"] == "new disk"
    assert commit["target"] == {"node_id": "12", "node_name": "b"}
    assert "result" not in commit
    assert node.ledger == [commit]


def test_waiting_adds_the_result_and_shows_progress(net: Net, node: SmallNode, alice: str) -> None:
    node.progress = [RUNNING, RUNNING, DRAINED]
    done = net(*DRAIN, "--operator", alice, "--wait")
    assert (done.document["result"], done.document["elapsed_ms"]) == ("drained", 900)
    assert done.err.splitlines() == [
        "drain b: running, 1 of 2 moved, waiting for web/0",
        "drain b: done, 2 of 2 moved",
    ]
    assert net(*DRAIN, "--operator", alice, "--wait", "-q").err == ""


def test_a_failed_drain(net: Net, node: SmallNode, alice: str) -> None:
    node.progress = [RUNNING, FAILED]
    done = net(*DRAIN, "--operator", alice, "--wait", "--quiet")
    error = done.error
    assert (error["kind"], error["exit_code"]) == ("drain-failed", 1)
    assert "web/0: no eligible node" in error["message"]
    assert error["details"]["commit"]["commit_id"] == node.ledger[0]["commit_id"]


def test_waiting_has_a_limit(net: Net, node: SmallNode, alice: str) -> None:
    node.progress = [RUNNING]
    error = net(*DRAIN, "--operator", alice, "--wait", "--timeout", "300ms", "-q").error
    assert (error["kind"], error["exit_code"]) == ("wait-timeout", 7)
    assert error["details"]["commit_id"] == node.ledger[0]["commit_id"]


def test_interrupted_waiting_says_that_the_command_goes_on(
    node: SmallNode, alice: str, terminal: Callable[..., Terminal]
) -> None:
    node.progress = [RUNNING]
    screen = terminal(*DRAIN, "--operator", alice, "--yes")
    screen.until("waiting for web/0")
    screen.process.send_signal(signal.SIGINT)
    assert screen.end() == 130
    assert "the command goes on" in screen.screen and node.ledger[0]["commit_id"] in screen.screen


def test_a_preview_needs_no_key_and_commits_nothing(net: Net, node: SmallNode) -> None:
    done = net(*DRAIN, "--preview")
    document = done.document
    assert list(document) == [
        "proposal", "blast_radius", "blast_hash", "cluster_id", "nonce", "signing_payload", "issued_at", "expires_at",
    ]  # fmt: skip
    assert document["proposal"]["event"] == {"kind": "drain", "node": "12", "drain_for_ms": 30_000}
    assert document["blast_radius"]["moves"][0]["to"] == "c"
    assert node.ledger == []
    shown = net(*DRAIN, "--preview", "--output", "pretty").out
    assert "drain b" in shown and "move: web/0 b -> c" in shown and "takes up to: 1s" in shown


@pytest.mark.parametrize("word", ["YES\n"])
def test_on_a_terminal_it_shows_asks_and_waits(
    node: SmallNode, alice: str, terminal: Callable[..., Terminal], word: str
) -> None:
    node.progress, node.warnings = [DRAINED], [{"kind": "\x1b]0;owned\x07"}]
    screen = terminal(*DRAIN, "--operator", alice)
    shown = screen.until("Type YES to confirm: ")
    assert "daemons: 1  web/0" in shown and "move: web/0 b -> c" in shown
    assert "\x1b]" not in shown and "\\x1b]0;owned" in shown
    assert node.ledger == []
    screen.type(word)
    assert screen.end() == 0
    assert "drain b: accepted, drained after 900ms" in screen.screen
    assert len(node.ledger) == 1


@pytest.mark.parametrize("word", ["yes\n", "\n", "YES please\n", "y\n", "\x04", "\x03"])
@pytest.mark.parametrize("verb", [DRAIN, ("admin", "cordon", "--node", "b", "--json")])
def test_any_other_word_refuses(
    node: SmallNode, alice: str, terminal: Callable[..., Terminal], word: str, verb: tuple[str, ...]
) -> None:
    screen = terminal(*verb, "--operator", alice)
    screen.until("Type YES to confirm: ")
    screen.type(word)
    assert screen.end() == 8
    assert node.ledger == []


def test_verbs_that_do_not_ask(node: SmallNode, alice: str, terminal: Callable[..., Terminal]) -> None:
    for args in (("uncordon",), ("exit-maintenance",), ("cordon", "--yes")):
        screen = terminal("admin", *args, "--node", "b", "--operator", alice)
        assert screen.end() == 0, screen.screen
        assert "Type YES" not in screen.screen
    assert [row["event_kind"] for row in node.ledger] == ["uncordon", "exit-maintenance", "cordon"]


@pytest.mark.parametrize("verb", ["cordon", "restart-all-daemons", "enter-maintenance"])
def test_verbs_without_a_terminal_run(net: Net, node: SmallNode, alice: str, verb: str) -> None:
    assert net("admin", verb, "--node", "b", "--operator", alice).document["event_kind"] == verb


def test_an_unknown_node_commits_nothing(net: Net, node: SmallNode, alice: str) -> None:
    error = net("admin", "cordon", "--node", "nowhere", "--operator", alice).error
    assert (error["kind"], error["exit_code"]) == ("node-not-found", 3)
    assert node.ledger == []


def test_a_key_the_cluster_does_not_know(net: Net, node: SmallNode) -> None:
    net("identity", "generate", "mallory")
    error = net("admin", "cordon", "--node", "b", "--operator", "mallory").error
    assert (error["kind"], error["exit_code"]) == ("not-authorized", 5)
    assert node.ledger == []


def test_a_rejected_commit_is_no_success(net: Net, node: SmallNode, alice: str) -> None:
    node.reject = NetError("freeze-in-effect", "the cluster is frozen")
    error = net("admin", "uncordon", "--node", "b", "--operator", alice).error
    assert (error["kind"], error["exit_code"]) == ("freeze-in-effect", 5)
    assert error["details"]["commit"] == node.ledger[0]


def test_a_lost_answer_is_looked_up(net: Net, node: SmallNode, alice: str) -> None:
    node.lose_answers = 1
    commit = net("admin", "uncordon", "--node", "b", "--operator", alice).document
    assert commit["outcome"] == "accepted" and node.ledger == [commit]


def test_another_cluster_under_the_name(net: Net, node: SmallNode, alice: str, home: Path) -> None:
    assert net("node", "status").code == 0
    (home / "config" / "known_clusters").write_text("default " + "ff" * 16 + "\n")
    error = net("admin", "uncordon", "--node", "b", "--operator", alice).error
    assert (error["kind"], error["exit_code"]) == ("cluster-changed", 5)
    assert node.ledger == []


def test_policy(net: Net, node: SmallNode, alice: str) -> None:
    changed = net("admin", "policy", "set", "commit_window_ms=2m", "crash_limit=7", "--operator", alice)
    assert changed.document["event_kind"] == "policy"
    pretty = net("admin", "policy", "show", "--output", "pretty").out
    assert "commit_window_ms" in pretty and "1m" in pretty
    assert all(len(line) <= 80 for line in pretty.splitlines())


def test_reads(net: Net, node: SmallNode, alice: str) -> None:
    net("admin", "uncordon", "--node", "b", "--operator", alice)
    net(*DRAIN, "--operator", alice)
    rows = net("audit", "recent", "-n", "5").document
    assert [row["event_kind"] for row in rows] == ["drain", "uncordon"]
    net("audit", "recent", "--by-operator", "alice", "--since", "3", "--from", "2026-01-01T00:00:00Z", "--to", "0s",
        "--force-only", "--kind", "drain", "--node", "b", "--outcome", "accepted", "-n", "7")  # fmt: skip
    query = node.queries[-1][1]
    assert query.pop("to").endswith("Z")
    assert query == {
        "limit": 7, "operator": "alice", "since": 3, "from": "2026-01-01T00:00:00.000Z", "force_only": True,
        "kind": "drain", "node": "b", "outcome": "accepted",
    }  # fmt: skip
    shown = net("audit", "show", rows[0]["commit_id"]).document
    assert shown == rows[0]
    assert net("audit", "show", "00" * 16).error["kind"] == "commit-not-found"
    pretty = net("audit", "recent", "--output", "pretty").out.splitlines()
    assert pretty[0].split() == ["SEQ", "AT", "OPERATOR", "KIND", "TARGET", "OUTCOME", "REASON"]
    assert all(len(line) <= 80 for line in pretty)


def follow(*args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "net_cli", *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_followed_stream_ends_well_with_sigint(net: Net, node: SmallNode) -> None:
    row: dict[str, Any] = {"seq": 1, "committed_at": "x", "operator": "alice", "event_kind": "drain",
                           "outcome": "accepted", "target": {"node_name": "b"}}  # fmt: skip
    with follow("audit", "stream", "--json") as process:
        assert node.fed.wait(20)
        node.push(1, row)
        assert process.stdout is not None and process.stderr is not None
        assert json.loads(process.stdout.readline()) == row, "each line is flushed as it comes"
        node.lag(2, 9)
        assert json.loads(process.stdout.readline()) == {"lagged": {"from": 2, "to": 9}}
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert (process.stdout.read(), process.stderr.read()) == ("", "")


def test_a_stream_that_ends_and_one_that_is_cut(net: Net, node: SmallNode) -> None:
    with follow("audit", "stream", "--output", "pretty") as process:
        assert node.fed.wait(20)
        node.lag(2, 9)
        node.finish()
        out, err = process.communicate(timeout=20)
        assert (process.returncode, out, err) == (0, "", "warning: too slow, missed 2 to 9\n")
    node.fed.clear()
    with follow("audit", "stream", "--json") as process:
        assert node.fed.wait(20)
        assert node.server is not None
        for connection in list(node.server._connections):
            node.soon(connection.abort)
        _, err = process.communicate(timeout=20)
        assert process.returncode == 6
        assert json.loads(err)["error"]["kind"] == "not-connected"


def test_node_commands(net: Net, node: SmallNode) -> None:
    assert [row["name"] for row in net("node", "ls").document] == ["a", "b", "c"]
    pretty = net("node", "ls", "--output", "pretty").out.splitlines()
    assert all(len(line) <= 80 for line in pretty) and "cordoned" in pretty[2] and " - " in pretty[2]
    assert net("node", "show", "b").document["node_id"] == "12"
    assert net("node", "show", "0xc").document["name"] == "b"
    assert net("node", "show", "z").error["kind"] == "node-not-found"
    assert net("node", "health").document["status"] == "degraded"
    assert net("node", "health", "--output", "pretty").out.startswith("degraded\n  engine:")
    assert net("node", "status", "--via", "a").document["node_name"] == "a"
    assert net("node", "status", "--via", "nope").error["exit_code"] == 3


def test_the_nearer_source_chooses_the_node(net: Net, node: SmallNode, home: Path) -> None:
    env = {"NET_VIA": "nope"}
    assert net("node", "status", env=env).error["kind"] == "node-not-found"
    assert net("node", "status", "--socket", str(node.path), env=env).code == 0
    env = {"NET_SOCKET": str(home / "none.sock")}
    assert net("node", "status", env=env).error["kind"] == "not-connected"
    assert net("node", "status", "--via", "a", env=env).code == 0
    assert net("node", "status", "--via", "a", "--socket", str(home / "none.sock")).code == 0


def test_stopping(net: Net, node: SmallNode, home: Path) -> None:
    second = SmallNode(home / "run" / "default" / "b.sock")
    try:
        done = net("node", "stop", "--name", "a").document
        assert (done["node_name"], done["stopped"]) == ("a", True)
        assert node.stopped.is_set()
        assert [row["node_name"] for row in net("node", "stop", "--all").document] == ["b"]
        assert second.stopped.is_set()
    finally:
        second.close()
    assert net("node", "stop", "--all").document == []
    assert net("node", "stop", "--name", "a").error["kind"] == "not-connected"


def test_stopping_waits_for_the_process(net: Net, node: SmallNode) -> None:
    with subprocess.Popen(["sleep", "600"]) as process:
        node.pid = process.pid
        error = net("node", "stop", "--name", "a", "--timeout", "300ms").error
        assert (error["kind"], error["exit_code"]) == ("wait-timeout", 7), "its socket is gone, but it still lives"
        process.kill()


def test_a_join_token_is_shown_once_or_written(net: Net, node: SmallNode, alice: str, home: Path) -> None:
    from substrate.identity.keys import Keypair

    done = net("node", "token", "--ttl", "10m", "--operator", alice)
    assert len(Keypair(bytes.fromhex(done.document["token"])).public_key) == 32
    out = home / "join.token"
    written = net("node", "token", "--out", str(out), "--operator", alice)
    assert written.code == 0 and out.read_text().strip() not in written.out
    assert out.stat().st_mode & 0o777 == 0o600
    assert net("node", "token", "--out", str(out), "--operator", alice).error["kind"] == "out-exists"


def test_names_complete_from_the_node(net: Net, node: SmallNode) -> None:
    def words(*typed: str) -> list[str]:
        env = {
            "_NET_COMPLETE": "bash_complete",
            "COMP_WORDS": "\n".join(("net", *typed)),
            "COMP_CWORD": str(len(typed)),
        }
        return [line.partition(",")[2] for line in net(env=env).out.splitlines() if line]

    assert words("admin", "drain", "--node", "") == ["a", "b", "c"]
    assert words("daemon", "show", "w") == ["web"]
    assert words("chain", "tail", "") == ["app/orders"]
    assert words("node", "ls", "--via", "b") == ["b"]


def test_a_silent_node_does_not_hold_up_the_prompt(net: Net, home: Path) -> None:
    import socket

    path = home / "run" / "default" / "a.sock"
    path.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        started = time.monotonic()
        env = {"_NET_COMPLETE": "bash_complete", "COMP_WORDS": "net\nnode\nshow\n", "COMP_CWORD": "3"}
        done = net(env=env)
        assert (done.code, done.out.strip(), done.err) == (0, "", "")
        assert time.monotonic() - started < 10
        error = net("node", "ls", "--timeout", "200ms").error
        assert (error["kind"], error["exit_code"]) == ("timeout", 7)
