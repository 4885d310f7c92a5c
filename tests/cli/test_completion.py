"""Completion: the scripts as published, and what they are answered."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from net_cli.commands.completion import SCRIPTS
from tests.cli.conftest import ROOT, Net


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_pinned(name: str) -> None:
    assert (ROOT / "completions" / name).read_text() == SCRIPTS[name]


def test_nothing_else_is_published() -> None:
    assert {file.name for file in (ROOT / "completions").iterdir()} == set(SCRIPTS)


@pytest.mark.parametrize(("shell", "name"), [("bash", "net.bash"), ("zsh", "_net"), ("fish", "net.fish")])
def test_the_command_prints_the_script(net: Net, shell: str, name: str) -> None:
    done = net("completion", shell)
    assert (done.code, done.out) == (0, SCRIPTS[name])


def answer(net: Net, *words: str) -> list[str]:
    env = {"_NET_COMPLETE": "bash_complete", "COMP_WORDS": "\n".join(("net", *words)), "COMP_CWORD": str(len(words))}
    done = net(env=env)
    assert (done.code, done.err) == (0, "")
    return [line.partition(",")[2] for line in done.out.splitlines() if line]


def test_words(net: Net) -> None:
    assert answer(net, "au") == ["audit"]
    assert answer(net, "admin", "dr") == ["drain", "drop-replicas"]
    assert answer(net, "admin", "drain", "--dr") == ["--drain-for"]
    assert answer(net, "identity", "registry", "th") == ["threshold"]
    assert answer(net, "audit", "recent", "--outcome", "r") == ["rejected"]


def test_names_from_disk(net: Net, home: Path) -> None:
    for name in ("alice", "bob"):
        assert net("identity", "generate", name).code == 0
    (home / "config" / "config.toml").write_text("[profiles.lab]\n[profiles.live]\n")
    assert answer(net, "identity", "show", "") == ["alice", "bob"]
    assert answer(net, "admin", "cordon", "--operator", "b") == ["bob"]
    assert answer(net, "node", "ls", "--profile", "l") == ["lab", "live"]


def test_silent_and_quick_without_a_node(net: Net, home: Path) -> None:
    started = time.monotonic()
    assert answer(net, "admin", "drain", "--node", "") == []
    assert answer(net, "chain", "show", "x") == []
    assert time.monotonic() - started < 10, "two starts of the interpreter and no waiting for a node"
    (home / "config").mkdir()
    (home / "config" / "config.toml").write_text("broken [")
    assert answer(net, "node", "ls", "--profile", "") == []


def test_nonsense_instruction(net: Net) -> None:
    assert net(env={"_NET_COMPLETE": "tcsh_complete"}).code == 1


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_really_completes(net: Net, tmp_path: Path) -> None:
    program = tmp_path / "net"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m net_cli "$@"\n')
    program.chmod(0o755)
    script = (
        f"PATH={tmp_path}:$PATH; source {ROOT}/completions/net.bash 2>/dev/null\n"
        "COMP_WORDS=(net admin dr); COMP_CWORD=2; _net_complete net; printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout.split() == ["drain", "drop-replicas"]
