"""Every JSON document of every command: pinned in `snapshots/json/`, valid against `docs/schemas/`, obeying contract section 1.

One session of commands on a real cluster, told as data. Each step's document is compared on its own.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from syrupy.assertion import SnapshotAssertion

from substrate.control.stream import Lagged
from tests.contract.documents import SCHEMAS, check, pin, validator
from tests.harness import ClusterHarness
from tests.procs import wait_until

DAEMONS = """
[[daemon]]
name = "web"
command = ["sh", "-c", "echo hello; exec sleep 9999"]
requires = ["pool=x"]
env = { COLOR = "blue" }
grace = "2s"

[[daemon]]
name = "db"
command = ["sleep", "9999"]
labels = ["storage"]
anti_affinity = ["storage"]
requires = ["node=a"]
essential = true
restart = "on-failure"
"""
SEED = "11" * 32


class Step(NamedTuple):
    """One command. `name` is the snapshot's; `code` other than 0 means the document is the error on stderr; `hide` are keys
    that depend on what the cluster chose; `full` demands a list that is not empty (what is written needs a moment)."""

    name: str
    schema: str
    args: str
    code: int = 0
    stdin: str = ""
    hide: tuple[str, ...] = ()
    full: bool = False


def on(args: str) -> str:
    return f"{args} --operator alice"


STORY = (
    Step("identity-generate", "identity-created", "identity generate alice --note first"),
    Step("identity-import", "identity-created", "identity import dave", stdin=SEED),
    Step("identity-ls", "identity-list", "identity ls"),
    Step("identity-show", "identity", "identity show alice"),
    Step("identity-fingerprint", "identity-fingerprint", "identity fingerprint alice"),
    Step("error-identity-exists", "error", "identity generate alice", 4),
    Step("error-identity-not-found", "error", "identity show nobody", 3),
    Step("error-not-connected", "error", "node ls", 6),
    Step("node-start", "node-started", on("node start --name a --detach")),
    Step("node-start-second", "node-started", on("node start --name b --label pool=x --detach")),
    Step("node-start-third", "node-started", on("node start --name c --label pool=x --detach")),
    Step("error-node-running", "error", on("node start --name a --detach"), 4),
    # operators
    Step("registry-add", "commit", on("identity registry add dave --reason colleague")),
    Step("registry-ls", "operator-list", "identity registry ls"),
    Step("registry-threshold", "threshold", "identity registry threshold"),
    Step("registry-remove", "commit", on("identity registry remove dave --yes")),
    Step("registry-ls-removed", "operator-list", "identity registry ls"),
    Step("error-last-operator", "error", on("identity registry remove alice --yes"), 2),
    Step("error-threshold-too-high", "error", on("identity registry threshold 5"), 2),
    Step("registry-threshold-set", "commit", on("identity registry threshold 1")),
    Step("registry-add-out", "proposal-written", on("identity registry add erin --out p.json")),
    Step("registry-sign", "signature-file", on("identity registry sign p.json")),
    Step("registry-sign-out", "signature-file", on("identity registry sign p.json --out p.sig")),
    Step("registry-commit", "commit", "identity registry commit p.json --sig p.sig"),
    Step("error-replayed", "error", "identity registry commit p.json --sig p.sig", 5),
    Step("error-out-exists", "error", on("identity registry sign p.json --out p.sig"), 4),
    Step("identity-rotate", "identity-rotated", "identity rotate erin --reason yearly"),
    Step("error-no-operator-key", "error", "admin cordon --node b", 5),
    Step("error-not-authorized", "error", "admin cordon --node b --operator dave", 5),
    # daemons
    Step("daemon-apply", "commit-list", on("daemon apply d.toml --reason rollout")),
    Step("daemon-restart-waited", "commit-waited", on("daemon restart web --wait")),
    Step("daemon-restart", "commit", on("daemon restart db")),
    Step("daemon-ls", "daemon-list", "daemon ls", hide=("node_name",)),
    Step("daemon-show", "daemon", "daemon show web", hide=("node_name",)),
    Step("daemon-logs", "log-line", "daemon logs web -n 1", hide=("node_name",), full=True),
    Step("logs-show", "log-list", "logs show --daemon web --contains hello -n 1", hide=("node_name",), full=True),
    Step("logs-tail", "log-line", "logs tail --daemon web --contains hello -n 1", hide=("node_name",), full=True),
    Step("logs-show-none", "log-list", "logs show --contains no-such-line"),
    Step("error-daemon-not-found", "error", "daemon show nothing", 3),
    Step("error-spec-invalid", "error", on("daemon apply -"), 2, stdin="[[daemon]]\nname='x'\n"),
    # nodes
    Step("node-ls", "node-list", "node ls", hide=("daemons",)),
    Step("node-show", "node", "node show a"),
    Step("node-status", "status", "node status --via a", hide=("leader",)),
    Step("node-health", "health", "node health --via a"),
    Step("error-node-not-found", "error", "node show nowhere", 3),
    # the nine verbs
    Step("admin-cordon", "commit", on("admin cordon --node b --reason 'flaky disk'")),
    Step("admin-uncordon", "commit", on("admin uncordon --node b")),
    Step("admin-cordon-preview", "preview", "admin cordon --node b --preview"),
    Step("admin-drain-preview", "preview", "admin drain --node a --drain-for 5s --preview"),
    Step("admin-drain", "commit", on("admin drain --node b --drain-for 30s")),
    Step("admin-drain-waited", "commit-waited", on("admin drain --node b --drain-for 30s --wait --yes")),
    Step("error-drain-failed", "error", on("admin drain --node a --drain-for 1s --wait --yes"), 1),
    Step("admin-exit-maintenance", "commit", on("admin exit-maintenance --node a")),
    Step("admin-exit-maintenance-waited", "commit-waited", on("admin exit-maintenance --node b --wait")),
    Step("admin-restart-all-daemons", "commit", on("admin restart-all-daemons --node c")),
    Step("admin-restart-all-daemons-waited", "commit-waited", on("admin restart-all-daemons --node a --wait")),
    Step("admin-enter-maintenance", "error", on("admin enter-maintenance --node b"), 1),
    Step("admin-invalidate-placement", "error", on("admin invalidate-placement --node b"), 1),
    Step("admin-clear-avoid-list", "error", on("admin clear-avoid-list --node b"), 1),
    Step("admin-drop-replicas", "error", on("admin drop-replicas --node b --chain app/orders"), 1),
    Step("error-wait-timeout", "error", on("admin drain --node a --drain-for 60s --wait --yes --timeout 1s"), 7),
    Step("admin-uncordon-cancels", "commit", on("admin uncordon --node a")),
    Step("policy-show", "policy", "admin policy show"),
    Step("policy-set", "commit", on("admin policy set crash_limit=6 backoff_max_ms=30s")),
    Step("policy-set-preview", "preview", "admin policy set crash_limit=7 --preview"),
    Step("error-policy-range", "error", on("admin policy set crash_limit=0"), 2),
    # chains
    Step("chain-create", "commit", on("chain create app/orders")),
    Step("chain-append", "chain-appended", "chain append app/orders -", stdin='{"id":1}\n{"id":"π"}\n'),
    Step("chain-append-text", "chain-appended", "chain append app/orders - --text", stdin="plain\n"),
    Step("chain-append-raw", "chain-appended", "chain append app/orders n.bin --raw"),
    Step("error-append-nothing", "error", "chain append app/orders -", 2),
    Step("error-conflict", "error", "chain append app/orders --data {} --expect 1", 4),
    Step("chain-ls", "chain-list", "chain ls"),
    Step("chain-show", "chain", "chain show app/orders"),
    Step("chain-inspect", "chain-record-list", "chain inspect app/orders -n 10"),
    Step("chain-tail", "chain-record", "chain tail app/orders -n 1"),
    Step("chain-verify", "chain-verification", "chain verify app/orders"),
    Step("error-chain-exists", "error", on("chain create app/orders"), 4),
    Step("error-chain-not-found", "error", "chain show app/none", 3),
    Step("error-chain-reserved", "error", "chain append admin --data {}", 5),
    Step("chain-rm", "error", on("chain rm app/orders --yes"), 1),
    Step("chain-set-replicas", "error", on("chain set-replicas app/orders 2"), 1),
    # more daemons
    Step("daemon-run", "commit-list", "daemon run --name once --restart never --operator alice -- true"),
    Step("daemon-stop-waited", "commit-waited", on("daemon stop web --wait")),
    Step("daemon-stop", "commit", on("daemon stop db")),
    Step("daemon-rm", "commit", on("daemon rm once")),
    # the ledger
    Step("audit-recent", "audit-list", "audit recent -n 1"),
    Step("audit-recent-drains", "audit-list", "audit recent --kind drain --node b -n 1"),
    Step("audit-recent-rejected", "audit-list", "audit recent --outcome rejected -n 1"),
    Step("audit-recent-none", "audit-list", "audit recent --force-only"),
    Step("audit-show", "commit", "audit show {commit}"),
    Step("error-commit-not-found", "error", "audit show " + "0" * 32, 3),
    Step("audit-verify", "audit-verification", "audit verify"),
    Step("audit-verify-online", "audit-verification-online", "audit verify --online"),
    # around it
    Step("node-token", "join-token", on("node token --ttl 10m")),
    Step("node-token-out", "join-token", on("node token --out join.token")),
    Step("node-start-token", "node-started", "node start --name d --token-file join.token --detach"),
    Step("node-stop", "node-stopped", "node stop --name d"),
    Step("node-rm", "commit", on("node rm d --yes")),
    Step("config-show", "config", "config show --via a --timeout 5s"),
    Step("config-path", "config-path", "config path"),
    Step("config-schema", "", "config schema"),
    Step("version", "version", "version", hide=("analytics", "jetstream", "tui")),
    Step("spec", "spec", "--spec"),
    Step("error-usage", "error", "admin drain --node b", 2),
    Step("error-unknown-command", "error", "admin explode", 2),
    Step("error-profile-not-found", "error", "--profile nothing node ls", 3),
    Step("error-read-only", "error", "--profile looker admin cordon --node b --operator alice", 5),
    Step("node-stop-all", "node-stopped-list", "node stop --all"),
    Step("audit-verify-offline", "audit-verification", "audit verify --node a"),
)
BY_NAME = {step.name: step for step in STORY}


class Session:
    """The story as it happened: one document per step."""

    def __init__(self, cluster: ClusterHarness) -> None:
        self.cluster = cluster
        self.documents: dict[str, Any] = {}
        self.raw: dict[str, str] = {}

    def run(self) -> None:
        (self.cluster.root / "d.toml").write_text(DAEMONS)
        (self.cluster.root / "n.bin").write_bytes(b"\xff\x00\xfe")
        for step in STORY:
            self._prepare(step)
            if step.full:
                wait_until(partial(self._step, step), 10.0, f"{step.name} to have something to show", 0.1)
            else:
                self._step(step)

    def _prepare(self, step: Step) -> None:
        """What a step needs and no document shows."""
        cluster = self.cluster
        if step.name == "registry-add":
            for name in ("a", "b", "c"):
                cluster.wait_nodes(("a", "b", "c"), via=name)
        elif step.name == "registry-add-out":
            cluster.ok("identity", "generate", "erin")
        elif step.name == "daemon-ls":
            wait_until(self._all_run, 15.0, "both daemons to run", 0.1)
        elif step.name == "node-ls":
            wait_until(self._all_measured, 15.0, "every node to have sent its load", 0.1)
        elif step.name == "error-read-only":
            (cluster.root / "c" / "config.toml").write_text("[profiles.looker]\nread_only = true\n")

    def _all_run(self) -> bool:
        rows = self.cluster.ok("daemon", "ls")
        return [row["lifecycle"] for row in rows] == ["running", "running"]

    def _all_measured(self) -> bool:
        return all(row["mem_used_bytes"] is not None for row in self.cluster.ok("node", "ls"))

    def _step(self, step: Step) -> bool:
        commit = self.documents.get("registry-add", {}).get("commit_id", "")
        words = [word.replace("{commit}", commit) for word in shlex.split(step.args)]
        result = self.cluster.run("--json", *words, stdin=step.stdin, check=step.code)
        text = result.out if step.code == 0 else result.err.splitlines(keepends=True)[-1]
        assert step.code == 0 or result.out == "", str(result)
        self.raw[step.name] = text
        if step.full and text.strip() in ("", "[]"):
            return False
        assert text.endswith("\n") and text.count("\n") == 1, f"not one line: {result}"
        self.documents[step.name] = json.loads(text)
        return True


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    """The story, told once."""
    with ClusterHarness() as cluster:
        told = Session(cluster)
        cluster.started = {name: {} for name in "abc"}  # the story starts and stops them; the end checks what is left
        told.run()
        yield told


@pytest.mark.parametrize("name", list(BY_NAME))
def test_document(session: Session, json_snapshot: SnapshotAssertion, name: str) -> None:
    step, document = BY_NAME[name], session.documents[name]
    if step.schema:
        check(step.schema, document)
    shown = pin(document, session.cluster.root, step.hide)
    assert json_snapshot(name=name) == shown


def test_the_schema_of_the_configuration_is_a_schema(session: Session) -> None:
    from jsonschema import Draft202012Validator

    schema = session.documents["config-schema"]
    Draft202012Validator.check_schema(schema)
    accepts = Draft202012Validator(schema).is_valid
    assert accepts({"default": {"via": "a"}, "profiles": {"x": {"read_only": True}}})
    assert not accepts({"default": {"vía": "a"}})
    assert not accepts({"default": {"ice_signature_threshold": 0}})


def test_the_file_of_a_proposal(session: Session, json_snapshot: SnapshotAssertion) -> None:
    document = json.loads((session.cluster.root / "p.json").read_text())
    check("proposal-file", document)
    assert json_snapshot(name="proposal-file") == pin(document, session.cluster.root)


def test_no_secret_is_in_any_document(session: Session) -> None:
    from tests.contract.keys import seed_of

    seeds = [seed_of(session.cluster, name) for name in ("alice", "dave", "erin")]
    for name, text in session.raw.items():
        for seed in seeds:
            assert seed not in text, f"the seed is shown by {name}"


@pytest.mark.parametrize("path", sorted(SCHEMAS.glob("*.json")), ids=lambda path: str(path.stem))
def test_every_schema_is_one_and_closes_its_objects(path: Path) -> None:
    validator(path.stem)
    for where, value in _objects(json.loads(path.read_text())):
        assert "additionalProperties" in value or where[-1:] == ("event",) or "details" in where, f"{where} is open"


def _objects(schema: Any) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    from tests.contract.documents import walk

    for where, value in walk(schema):
        if isinstance(value, dict) and value.get("type") == "object":
            yield where, value


def test_every_schema_is_used() -> None:
    """A schema nobody refers to would rot."""
    text = "".join(path.read_text() for path in SCHEMAS.glob("*.json"))
    used = {step.schema for step in STORY} | {"types", "proposal-file", "progress", "stream-lagged"}
    used |= {"demo-up", "demo-status", "demo-down", "demo-step"}  # tests/cli/test_demo.py
    unused = {path.stem for path in SCHEMAS.glob("*.json") if path.stem not in used and f'"{path.name}"' not in text}
    assert not unused


def test_the_row_that_tells_of_a_gap() -> None:
    check("stream-lagged", Lagged(3, 9).document())
