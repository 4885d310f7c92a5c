"""`net demo`: up, status, down and the tour, each with real nodes; nothing may stay behind, however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from syrupy.assertion import SnapshotAssertion

from net_cli.demo_sample import CHAINS, INSTANCES, SPEC
from net_cli.demo_tour import STEPS
from tests import procs
from tests.contract.documents import check, pin
from tests.harness import ClusterHarness, Result

PLACED = ("node_name", "node_id", "leader", "restarts", "started_at", "labels", "public_key", "endpoints")
"""Keys of rows whose values the cluster chose, or the machine it runs on."""
LIMIT_S = 110.0
"""The tour takes about 15 s; a busy machine may need far longer."""


@pytest.fixture
def home(cluster: ClusterHarness) -> Iterator[ClusterHarness]:
    """An empty home, and a demo taken down even if the test failed."""
    (cluster.root / "t").mkdir()
    cluster.env["TMPDIR"] = str(cluster.root / "t")  # the tour's own home lands here
    yield cluster
    cluster.run("demo", "down", limit_s=LIMIT_S)


def files(home: ClusterHarness) -> list[str]:
    """Everything in the home but the fixed skeleton of the harness."""
    return sorted(str(path.relative_to(home.root)) for path in home.root.rglob("*") if path.name not in ("h", "t"))


def demo(home: ClusterHarness, *args: str, check: int = 0) -> Result:
    return home.run("demo", *args, "--json", limit_s=LIMIT_S, check=check)


def gone(home: ClusterHarness) -> bool:
    return not home.processes() and files(home) == []


def test_up_status_down_and_nothing_left(home: ClusterHarness, json_snapshot: SnapshotAssertion) -> None:
    made = demo(home, "up").json
    check("demo-up", made)
    assert json_snapshot(name="demo-up") == pin(made, home.root, hide=PLACED)
    assert [node["node_name"] for node in made["nodes"]] == ["a", "b", "c"]
    assert len(made["daemons"]) == INSTANCES
    assert {row["lifecycle"] for row in made["daemons"]} == {"running"}
    assert Path(made["spec_file"]).read_text() == SPEC

    # It is a cluster like any other: the user's own commands reach it.
    rows = home.ok("chain", "inspect", "demo/orders", "--cluster", "demo")
    assert [row["payload"] for row in rows] == CHAINS["demo/orders"]
    commit = home.ok("admin", "cordon", "--node", "b", "--cluster", "demo", "--operator", "demo")
    assert commit["outcome"] == "accepted"

    seen = demo(home, "status").json
    check("demo-status", seen)
    shown = seen | {"nodes": [row | {"daemons": "<daemons>"} for row in seen["nodes"]]}
    assert json_snapshot(name="demo-status") == pin(shown, home.root, hide=PLACED)
    assert {row["name"]: row["cordoned"] for row in seen["nodes"]} == {"a": False, "b": True, "c": False}
    assert len(seen["daemons"]) == INSTANCES
    assert {row["name"] for row in seen["chains"]} >= set(CHAINS)
    assert "demo/visits" in home.run("demo", "status", "--output", "pretty", check=0).out

    again = demo(home, "up", check=4)
    assert again.error["kind"] == "node-running"

    ended = demo(home, "down").json
    check("demo-down", ended)
    assert json_snapshot(name="demo-down") == pin(ended, home.root)
    assert ended["stopped"] == ["a", "b", "c"]
    assert gone(home), (home.processes(), files(home))
    assert demo(home, "down").json == {"cluster": "demo", "stopped": [], "removed": []}
    assert demo(home, "status", check=6).error["kind"] == "not-connected"


def test_down_ends_a_frozen_node_and_a_second_demo_starts_clean(home: ClusterHarness) -> None:
    made = demo(home, "up", "--nodes", "1").json
    os.kill(made["nodes"][0]["pid"], signal.SIGSTOP)
    demo(home, "down")
    assert gone(home), (home.processes(), files(home))
    # The new cluster has another id: no pin of the first one may stand in its way.
    assert demo(home, "up", "--nodes", "1").json["nodes"][0]["cluster_id"] != made["nodes"][0]["cluster_id"]


def test_the_users_things_are_left_alone(home: ClusterHarness) -> None:
    key = home.operator("demo")
    refused = demo(home, "up", check=4)
    assert refused.error["kind"] == "identity-exists"
    assert not home.state_dir.with_name("demo").exists()
    demo(home, "down")
    assert home.ok("identity", "show", "demo")["operator_id"] == key["operator_id"]

    theirs = home.state_dir.with_name("demo") / "nodes" / "a"
    theirs.mkdir(parents=True)
    assert demo(home, "down", check=4).error["kind"] == "out-exists"
    assert demo(home, "up", check=4).error["kind"] == "out-exists"
    assert theirs.exists()
    theirs.rmdir()
    theirs.parent.rmdir()
    theirs.parent.parent.rmdir()


def test_the_demo_follows_no_setting_of_the_user(home: ClusterHarness) -> None:
    config = home.root / "c" / "config.toml"
    config.parent.mkdir()
    config.write_text('[default]\nvia = "elsewhere"\nsocket = "/nowhere"\noperator = "nobody"\ncluster = "prod"\n')
    assert len(demo(home, "up", "--nodes", "1").json["daemons"]) == INSTANCES
    assert demo(home, "status").json["cluster"] == "demo"
    assert demo(home, "up", "--cluster", "prod", check=2).error["kind"] == "invalid-argument"
    assert home.run("demo", "down", "--json", env={"NET_READ_ONLY": "1"}).code == 5
    demo(home, "down")
    assert files(home) == ["c", "c/config.toml"]


def test_an_interrupted_start_leaves_nothing(home: ClusterHarness) -> None:
    started = home.popen("demo", "up", "--json")
    procs.wait_until(lambda: home.root.joinpath("s/demo/nodes/a/node.lock").exists(), 30, "the first node")
    started.send_signal(signal.SIGINT)
    out, err = started.communicate(timeout=LIMIT_S)
    assert (started.returncode, out) == (130, ""), err
    assert json.loads(err.splitlines()[-1])["error"]["kind"] == "interrupted"
    assert gone(home), (home.processes(), files(home))


def test_the_tour_tells_its_story_and_leaves_nothing(home: ClusterHarness) -> None:
    done = home.run("demo", "tour", "--output", "pretty", limit_s=LIMIT_S, check=0)
    assert done.err == ""
    for number, step in enumerate(STEPS, 1):
        assert f"\n{number}. {step.says}\n$ {step.command.split('{')[0]}" in done.out
    assert "drained after" in done.out
    assert "is not in this cluster's registry" in done.out and "(exit code 5)" in done.out
    assert "there is no node 'zebra'" in done.out and "(exit code 3)" in done.out
    assert "nothing is left behind" in done.out
    wide = [line for line in done.out.splitlines() if len(line) > 80 and " net identity registry add " not in line]
    assert wide == []
    moved = done.out.split("$ kill -9")[1].split("$ net daemon ls\n")[1].split("\n\n")[0].splitlines()[1:]
    assert len(moved) == INSTANCES
    assert {row.split()[2] for row in moved} == {"a", "b"}
    assert gone(home), (home.processes(), files(home))


def test_a_tour_that_goes_wrong_is_taken_down_and_fails(home: ClusterHarness) -> None:
    """A story whose third command is refused: the nodes of the first two must not stay."""
    script = (
        "from net_cli import demo_tour as t; from net_cli.main import main\n"
        "t.STEPS = (*t.STEPS[:2], t.Step('A verb there is not.', 'net node dance'))\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "demo", "tour", "--json"],
        env=home.env,
        cwd=home.root,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["exit_code"] for row in rows] == [0, 0, 2]
    assert [row["seq"] for row in rows] == [1, 2, 3]
    for row in rows:
        check("demo-step", row)
    error = json.loads(done.stderr.splitlines()[-1])["error"]
    assert error["details"] == {"command": "net node dance", "exit_code": 2, "expected_exit_code": 0}
    assert gone(home), (home.processes(), files(home))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_tour_leaves_nothing(home: ClusterHarness, number: signal.Signals) -> None:
    started = home.popen("demo", "tour", "--json")
    assert started.stdout is not None
    for line in started.stdout:
        if "--name b" in line:
            break
    started.send_signal(number)  # while the third node starts
    _, err = started.communicate(timeout=LIMIT_S)
    assert started.returncode == 130, err
    assert json.loads(err.splitlines()[-1])["error"]["kind"] == "interrupted"
    assert gone(home), (home.processes(), files(home))
