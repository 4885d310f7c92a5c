"""One wire contract: `curl` on the socket and `net` show the same documents (contract section 8)."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import Any

import pytest

from tests.contract.documents import check, pin
from tests.harness import ClusterHarness

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed on this machine")

SAME = (
    ("/v1/status", "node status"),
    ("/v1/health", "node health"),
    ("/v1/nodes", "node ls"),
    ("/v1/nodes/b", "node show b"),
    ("/v1/daemons", "daemon ls"),
    ("/v1/daemons/web", "daemon show web"),
    ("/v1/logs?limit=5&daemon=web", "logs show --daemon web -n 5"),
    ("/v1/audit?limit=3", "audit recent -n 3"),
    (
        "/v1/audit?limit=1&kind=daemon-apply&outcome=accepted",
        "audit recent -n 1 --kind daemon-apply --outcome accepted",
    ),
    ("/v1/audit/verify", "audit verify --online"),
    ("/v1/policy", "admin policy show"),
    ("/v1/chains", "chain ls"),
    ("/v1/chains/app%2Flog", "chain show app/log"),
    ("/v1/chains/app%2Flog/records?since=0&limit=10", "chain inspect app/log --since 0 -n 10"),
    ("/v1/chains/app%2Flog/verify", "chain verify app/log"),
)
WRONG = (
    ("/v1/nodes/nowhere", "node show nowhere", "404"),
    ("/v1/daemons/nothing", "daemon show nothing", "404"),
    ("/v1/chains/app%2Fnone", "chain show app/none", "404"),
    ("/v1/commits/00000000000000000000000000000000", "audit show 00000000000000000000000000000000", "404"),
    ("/v1/commits/xyz", "audit show xyz", "400"),
)


def curl(cluster: ClusterHarness, target: str, *args: str) -> str:
    done = subprocess.run(
        [
            "curl",
            "-sS",
            "--max-time",
            "20",
            "--unix-socket",
            str(cluster.socket("a")),
            *args,
            f"http://net.local{target}",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def steady(cluster: ClusterHarness, document: Any) -> Any:
    return pin(document, cluster.root, hide=("unrecorded_refusals",))


@pytest.mark.parametrize(("target", "args"), SAME, ids=[args for _, args in SAME])
def test_same_document(calm: ClusterHarness, target: str, args: str) -> None:
    by_curl = json.loads(curl(calm, target))
    by_net = calm.ok(*args.split(), "--via", "a")
    assert steady(calm, by_curl) == steady(calm, by_net)
    assert by_net not in ([], {}, None)


def test_registry(calm: ClusterHarness) -> None:
    assert json.loads(curl(calm, "/v1/registry"))["operators"] == calm.ok("identity", "registry", "ls", "--via", "a")


@pytest.mark.parametrize(("target", "args", "status"), WRONG, ids=[args for _, args, _ in WRONG])
def test_same_error(calm: ClusterHarness, target: str, args: str, status: str) -> None:
    text = curl(calm, target, "-w", "\n%{http_code}")
    body, code = text.rsplit("\n", 1)
    assert code == status
    by_net = calm.run(*args.split(), "--via", "a", "--json")
    assert json.loads(body) == {"error": by_net.error}


def test_progress_as_a_stream(calm: ClusterHarness) -> None:
    commit = calm.ok("audit", "recent", "-n", "1", "--kind", "daemon-apply")[0]["commit_id"]
    lines = [json.loads(line) for line in curl(calm, f"/v1/commits/{commit}/progress?follow=true", "-N").splitlines()]
    assert lines[-1] == {"end": "complete"}
    for row in lines[:-1]:
        check("progress", row)
    assert lines[-2]["state"] == "done"
    check("progress", json.loads(curl(calm, f"/v1/commits/{commit}/progress")))


def test_what_a_browser_would_send_is_refused(calm: ClusterHarness) -> None:
    for header in ("Origin: http://evil.example", "Referer: http://evil.example/", "Host: evil.example"):
        assert json.loads(curl(calm, "/v1/status", "-H", header))["error"]["kind"] == "not-authorized"
