"""Every exit code of contract section 3, reached through a real node with the real command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest

from substrate.wire.errors import KINDS, Exit
from tests.contract.documents import check
from tests.contract.terminal import Screen
from tests.contract.wire import admin_seq
from tests.harness import ClusterHarness
from tests.procs import wait_until


class Case(NamedTuple):
    """A command line and how it must end."""

    args: str
    kind: str
    stdin: str = ""


BY = "--operator alice"

CASES = (
    # 1
    Case(f"admin enter-maintenance --node b {BY}", "not-yet-supported"),
    Case(f"chain create app/more --replicas 3 {BY}", "not-yet-supported"),
    # 2
    Case("admin drain --node b", "invalid-argument"),
    Case(f"admin drain --node b --drain-for soon {BY}", "invalid-argument"),
    Case(f"admin drain --node b --drain-for -5s {BY}", "invalid-argument"),
    Case(f"admin drain --node b --drain-for 0s {BY}", "invalid-argument"),
    Case(f"admin drain --node b --drain-for 99999999999h {BY}", "invalid-argument"),
    Case("explode", "invalid-argument"),
    Case("node ls --colour", "invalid-argument"),
    Case("--config /nonexistent.toml node ls", "invalid-config"),
    Case(f"admin policy set nothing_ms=5s {BY}", "invalid-argument"),
    Case(f"admin cordon --node b --reason {'x' * 4097} {BY}", "invalid-argument"),
    Case("chain append app/log -", "invalid-argument", "{not json\n"),
    Case(f"chain create a//b {BY}", "invalid-argument"),
    # 3
    Case(f"admin drain --node nowhere --drain-for 30s {BY}", "node-not-found"),
    Case(f"admin cordon --node 12345 {BY}", "node-not-found"),
    Case("node ls --via nowhere", "node-not-found"),
    Case("daemon show nothing", "daemon-not-found"),
    Case(f"daemon rm nothing {BY}", "daemon-not-found"),
    Case("chain show app/none", "chain-not-found"),
    Case("identity show nobody", "identity-not-found"),
    Case(f"identity registry remove nobody {BY}", "operator-not-found"),
    Case("admin cordon --node b --operator nobody", "identity-not-found"),
    Case("audit show 00000000000000000000000000000000", "commit-not-found"),
    Case("audit verify --path /nonexistent", "store-not-found"),
    Case("--profile nothing node ls", "profile-not-found"),
    Case(f"daemon apply nothing.toml {BY}", "file-not-found"),
    # 4
    Case("identity generate alice", "identity-exists"),
    Case(f"chain create app/log {BY}", "chain-exists"),
    Case("chain append app/log --data {} --expect 0", "conflict"),
    Case(f"identity registry add alice {BY}", "operator-exists"),
    Case(f"node start --name a --detach {BY}", "node-running"),
    Case(f"node token --out here.token {BY}", "out-exists"),
    # 5
    Case("admin cordon --node b", "no-operator-key"),
    Case("admin cordon --node b --operator mallory", "not-authorized"),
    Case("chain append admin --data {}", "not-authorized"),
    Case("identity show open", "permissive-mode"),
    Case("admin cordon --node b --operator open", "permissive-mode"),
    Case("admin cordon --node b --operator forged", "key-mismatch"),
    Case(f"--profile looker admin cordon --node b {BY}", "read-only"),
    # 6
    Case("--cluster elsewhere node ls", "not-connected"),
    Case("--socket /tmp/nonexistent.sock node ls", "not-connected"),
    Case("node stop --name nowhere", "not-connected"),
)


@pytest.fixture(scope="module")
def calm_with_keys(calm: ClusterHarness) -> Iterator[ClusterHarness]:
    """Keys that must not work, a profile, and a file in the way."""
    for name in ("mallory", "open", "forged"):
        calm.ok("identity", "generate", name)
    calm.key_file("open").chmod(0o640)
    forged = calm.key_file("forged")
    mallory = json.loads(calm.run("identity", "show", "mallory", "--json", check=0).out)
    own = json.loads(calm.run("identity", "show", "forged", "--json", check=0).out)
    forged.write_text(forged.read_text().replace(own["public_key"], mallory["public_key"]))
    config = calm.root / "c" / "config.toml"
    config.write_text("[profiles.looker]\nread_only = true\n")
    (calm.root / "here.token").write_text("mine\n")
    yield calm
    config.unlink()
    for name in ("mallory", "open", "forged"):
        calm.key_file(name).unlink()


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{int(KINDS[case.kind].exit)}-{case.args[:48]}")
def test_refusal(calm_with_keys: ClusterHarness, case: Case) -> None:
    before = admin_seq(calm_with_keys)
    result = calm_with_keys.refused(case.kind, *case.args.split(), stdin=case.stdin)
    check("error", {"error": result.error})
    assert "Traceback" not in result.err
    assert admin_seq(calm_with_keys) == before, "a refused command was committed"


def test_every_code_has_a_case() -> None:
    tabled = {KINDS[case.kind].exit for case in CASES}
    assert tabled | {Exit.OK, Exit.TIMEOUT, Exit.REFUSED, Exit.INTERRUPTED} == set(Exit)  # the four have tests below


@pytest.mark.parametrize(
    "args", ["node ls", "admin cordon --node b --preview", "--help", "admin drain --help", "--version"]
)
def test_success(calm: ClusterHarness, args: str) -> None:
    result = calm.run(*args.split(), check=0)
    assert result.out
    assert result.err == ""


@contextmanager
def stopped(cluster: ClusterHarness, name: str) -> Iterator[None]:
    """A node that does not answer for a moment; shorter than its lease."""
    pid = cluster.node_pid(name)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_timeout(calm: ClusterHarness) -> None:
    with stopped(calm, "c"):
        result = calm.run("node", "status", "--via", "c", "--timeout", "300ms", "--json")
    assert (result.code, result.error["kind"]) == (Exit.TIMEOUT, "timeout"), str(result)


def test_interrupt(calm: ClusterHarness) -> None:
    with stopped(calm, "c"):
        process = calm.popen("node", "status", "--via", "c", "--json")
        wait_until(lambda: _waits(process.pid), 10.0, "the command to wait for its answer")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=10)
    assert (process.returncode, out) == (Exit.INTERRUPTED, "")
    assert json.loads(err)["error"]["kind"] == "interrupted"


def _waits(pid: int) -> bool:
    """Whether a process has a connected socket: it has started up and asked."""
    links = (os.readlink(f"/proc/{pid}/fd/{number}") for number in os.listdir(f"/proc/{pid}/fd"))
    return any(link.startswith("socket:") for link in links)


@pytest.mark.parametrize("answer", ["no\n", "yes\n", "YES please\n", "\n", " YES\n", "\x04"])
def test_confirmation_refused(calm: ClusterHarness, answer: str) -> None:
    before = admin_seq(calm)
    with Screen(calm, "admin", "cordon", "--node", "b", "--operator", "alice") as screen:
        screen.read_until("Type YES to confirm: ")
        screen.type(answer)
        assert screen.end() == Exit.REFUSED
    assert "not confirmed; nothing was committed" in screen.output
    assert admin_seq(calm) == before


def test_confirmation_refused_by_an_interrupt(calm: ClusterHarness) -> None:
    with Screen(
        calm, "admin", "cordon", "--node", "b", "--operator", "alice", "--json", stdout=subprocess.PIPE
    ) as screen:
        screen.read_until("Type YES to confirm: ")
        screen.process.send_signal(signal.SIGINT)
        assert screen.end() == Exit.REFUSED
        assert screen.process.stdout is not None
        assert screen.process.stdout.read() == b""


def test_confirmation_given(calm: ClusterHarness) -> None:
    with Screen(calm, "admin", "cordon", "--node", "b", "--operator", "alice") as screen:
        screen.read_until("Type YES to confirm: ")
        screen.type("YES\n")
        assert screen.end() == Exit.OK
    assert "cordon b: accepted" in screen.output
    calm.ok("admin", "uncordon", "--node", "b", "--operator", "alice")
