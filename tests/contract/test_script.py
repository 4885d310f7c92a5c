"""The script an operator writes first: `set -e`, real `jq`, a fresh home, nothing but exit codes to go by."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.harness import ClusterHarness, net_command

SCRIPT = Path(__file__).with_name("script.sh")
DAEMONS = """
[[daemon]]
name = "web"
command = ["sh", "-c", "exec sleep 9999"]
replicas = 3

[[daemon]]
name = "db"
command = ["sleep", "9999"]
essential = true
"""


@pytest.fixture
def path_to_net(cluster: ClusterHarness) -> str:
    """A PATH whose first `net` is the one under test."""
    programs = cluster.root / "bin"
    programs.mkdir()
    wrapper = programs / "net"
    wrapper.write_text(f'#!/bin/sh\nexec {" ".join(net_command())} "$@"\n')
    wrapper.chmod(0o755)
    return f"{programs}:{cluster.env['PATH']}"


def run(cluster: ClusterHarness, path: str, script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", script],
        env=cluster.env | {"PATH": path},
        cwd=cluster.root,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def test_the_script(cluster: ClusterHarness, path_to_net: str) -> None:
    if shutil.which("jq") is None:
        pytest.skip("jq is not installed on this machine")
    (cluster.root / "daemons.toml").write_text(DAEMONS)
    cluster.started = {name: {} for name in "abc"}
    done = run(cluster, path_to_net, SCRIPT.read_text())
    assert done.returncode == 0, done
    assert done.stdout.splitlines()[-3:] == ["true", "true", "true"]
    # It is the exit codes that carry it: the same script on the same home fails at its first line.
    again = run(cluster, path_to_net, SCRIPT.read_text())
    assert again.returncode == 4
    assert "identity-exists" in again.stderr
