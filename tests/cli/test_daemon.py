"""Daemons and log lines on the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Net
from tests.cli.smallnode import SmallNode

SPECS = """
[[daemon]]
name = "web"
command = ["/usr/bin/web", "--port", "80"]
grace = "5s"
replicas = 2
labels = ["front"]
[[daemon]]
name = "db"
command = ["db"]
essential = true
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "daemons.toml"
    path.write_text(SPECS)
    return path


def test_apply_commits_each_in_order(net: Net, node: SmallNode, alice: str, file: Path) -> None:
    rows = net("daemon", "apply", str(file), "--operator", alice, "--reason", "first").document
    assert [row["target"]["daemon_name"] for row in rows] == ["web", "db"]
    assert node.ledger == rows
    assert net("daemon", "apply", "-", "--operator", alice, stdin=SPECS).code == 0
    pretty = net("daemon", "apply", str(file), "--operator", alice, "--output", "pretty").out
    assert pretty.splitlines()[0].split() == ["DAEMON", "OUTCOME", "SEQ", "COMMIT"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no [[daemon]] tables"),
        ("[other]", "'other'"),
        ("[daemon]\nname='x'", "no [[daemon]] tables"),
        ("[[daemon]]\nname='x'", "command"),
        ("[[daemon]]\nname='x'\ncommand=['y']\ncolour=1", "colour"),
        ("[[daemon]]\nname='x'\ncommand=['y']\ngrace='soon'", "soon"),
        ("[[daemon]]\nname='x'\ncommand=['y']\nreplicas=0", "replicas"),
        ("[[daemon]]\nname='X'\ncommand=['y']", "'X'"),
        ("[[daemon]]\nname='x'\ncommand=['y']\n[[daemon]]\nname='x'\ncommand=['z']", "two daemons"),
        ("[[daemon]", "line 1"),
    ],
)
def test_a_mistake_commits_nothing(net: Net, node: SmallNode, alice: str, file: Path, text: str, words: str) -> None:
    file.write_text(text)
    error = net("daemon", "apply", str(file), "--operator", alice).error
    assert error["kind"] == "invalid-argument" and words in error["message"] and str(file) in error["message"]
    assert node.ledger == []


def test_run(net: Net, node: SmallNode, alice: str) -> None:
    done = net("daemon", "run", "--env", "A=b=c", "--require", "gpu", "--grace", "1s", "--restart", "never",
               "--operator", alice, "--", "/bin/Sleep", "--json", "5")  # fmt: skip
    assert done.document[0]["target"]["daemon_name"] == "sleep"
    named = net("daemon", "run", "--name", "clock", "--operator", alice, "sh", "-c", "date")
    assert named.document[0]["target"]["daemon_name"] == "clock"
    assert net("daemon", "run", "--operator", alice).error["kind"] == "invalid-argument"
    assert net("daemon", "run", "--cwd", "rel", "--operator", alice, "--", "x").error["kind"] == "invalid-argument"


def test_list_show_and_commands(net: Net, node: SmallNode, alice: str) -> None:
    assert [row["name"] for row in net("daemon", "ls").document] == ["web", "db"]
    pretty = net("daemon", "ls", "--output", "pretty").out.splitlines()
    assert pretty[1].split() == ["web", "0", "a", "running", "healthy", "0", "4021", "1m1s"]
    assert net("daemon", "show", "we").document["name"] == "web"
    assert net("daemon", "show", "zzz").error["kind"] == "daemon-not-found"
    for verb, kind in (("restart", "restart"), ("stop", "stop"), ("rm", "remove")):
        assert net("daemon", verb, "web", "--operator", alice).document["event_kind"] == f"daemon-{kind}"
    assert len(node.ledger) == 3
    assert net("daemon", "rm", "zzz", "--operator", alice).error["kind"] == "daemon-not-found"
    assert len(node.ledger) == 3


def row(seq: int, message: str) -> dict[str, object]:
    return {
        "seq": seq,
        "at": "2026-01-01T00:00:00.000Z",
        "node_name": "b",
        "daemon": "web",
        "instance": 1,
        "stream": "stdout",
        "level": "info",
        "message": message,
    }


def test_logs(net: Net, node: SmallNode) -> None:
    node.log_rows = [row(1, "one"), row(2, "\x1b[2Jtwo\nlines")]
    assert net("logs", "show", "-n", "5").document == node.log_rows
    assert [json.loads(line) for line in net("logs", "tail").out.splitlines()] == node.log_rows
    pretty = net("logs", "tail", "--output", "pretty").out.splitlines()
    assert pretty[1] == "2026-01-01T00:00:00.000Z b web/1 info \\x1b[2Jtwo\\nlines"
    net("logs", "tail", "--node", "b", "--daemon", "web", "--contains", "x", "--min-level", "warn", "-n", "9")
    assert node.queries[-1][1] == {
        "node": "b", "daemon": "web", "contains": "x", "min_level": "warn", "limit": 9
    }  # fmt: skip
    net("daemon", "logs", "web", "-n", "3")
    assert node.queries[-1][1] == {"daemon": "web", "limit": 3}


def test_following_logs_shows_each_line_as_it_comes(net: Net, node: SmallNode) -> None:
    command = [sys.executable, "-m", "net_cli", "daemon", "logs", "web", "-f", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert node.fed.wait(20)
        assert process.stdout is not None
        for seq in range(3):
            node.push(seq, row(seq, f"line {seq}"))
            assert json.loads(process.stdout.readline())["message"] == f"line {seq}"
        node.finish()
        assert process.wait(20) == 0
