"""The sync client against the real server, and against servers that misbehave."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from net_sdk.client import Client, quote
from substrate.control import Limits
from substrate.wire.errors import NetError
from tests.control.sample import Serving
from tests.harness import REPO
from tests.procs import wait_until
from tests.sdk.proxy import Relay

RECORDS = f"/v1/chains/{quote('sensors/temp')}/records"


@pytest.fixture
def serving() -> Iterator[Serving]:
    with Serving() as running:
        yield running


@pytest.fixture
def client(serving: Serving) -> Iterator[Client]:
    with Client(serving.path, timeout_s=10) as made:
        yield made


def refused(kind: str, call: object) -> NetError:
    assert callable(call)
    with pytest.raises(NetError) as caught:
        call()
    assert caught.value.kind == kind, caught.value.document()
    return caught.value


def test_documents_and_errors_over_one_connection(serving: Serving, client: Client) -> None:
    assert client.get("/v1/status")["node_name"] == "a"
    assert refused("node-not-found", lambda: client.get("/v1/nodes/none")).details == {"node": "none"}
    assert client.post(RECORDS, {"records": [{"ä": 1}]})["count"] == 1
    assert client.get(RECORDS, tail=1)[0]["payload"] == {"ä": 1}
    assert refused("invalid-argument", lambda: client.get("/v1/logs", limit=0)).details == {"field": "limit"}
    assert serving.server.connections == 1


def test_a_connection_the_node_closed_meanwhile_is_replaced() -> None:
    with Serving(Limits(idle_s=0.2)) as serving, Client(serving.path) as client:
        client.get("/v1/version")
        wait_until(lambda: serving.server.connections == 0, 5, "the idle connection to be closed")
        assert client.get("/v1/version")["api"] == 1


def test_large_documents_both_ways(client: Client) -> None:
    assert len(client.get("/v1/nodes/big")["name"]) == 4_000_000
    records = ["x" * 1000] * 500
    assert client.post(RECORDS, {"records": records})["count"] == 500
    error = refused("too-large", lambda: client.post(RECORDS, {"records": ["x" * 1_100_000]}))
    assert error.details == {"limit_bytes": 1024 * 1024}
    assert client.get("/v1/version")["api"] == 1


def test_streams(serving: Serving, client: Client) -> None:
    rows = list(client.stream("/v1/logs", follow=True))
    assert [row.get("seq") for row in rows] == [1, None, 10]
    assert rows[1] == {"lagged": {"from": 2, "to": 9}}
    assert [row["seq"] for row in client.stream("/v1/logs")] == [1]  # not followed: an array, row by row
    rows = []
    error = refused("corrupt-store", lambda: rows.extend(client.stream("/v1/audit", follow=True, kind="fails")))
    assert (len(rows), error.details) == (1, {"seq": 4})
    refused("chain-not-found", lambda: list(client.stream("/v1/chains/x/records", follow=True)))


def test_a_stream_runs_beside_requests_and_is_left_cleanly(serving: Serving, client: Client) -> None:
    client.post(RECORDS, {"records": ["x"]})
    rows = client.stream(RECORDS, follow=True)
    assert next(rows)["seq"] == 1
    for n in (2, 3):
        client.post(RECORDS, {"records": [n]})
        assert next(rows)["payload"] == n
    rows.close()  # type: ignore[attr-defined]
    wait_until(lambda: not serving.api.followers, 5, "the stream to be given up")


def test_a_stream_that_outlasts_its_time_is_a_timeout_heartbeats_or_not() -> None:
    with Serving(Limits(heartbeat_s=0.1)) as serving, Client(serving.path) as client:
        started = time.monotonic()
        refused("timeout", lambda: list(client.stream(RECORDS, timeout_s=0.5, follow=True)))
        assert 0.4 < time.monotonic() - started < 5


def test_the_end_of_the_node_ends_a_stream_without_an_error(serving: Serving, client: Client) -> None:
    client.post(RECORDS, {"records": ["x"]})
    rows = client.stream(RECORDS, follow=True)
    assert next(rows)["seq"] == 1
    serving.begin_stop()
    assert list(rows) == []


def test_a_stream_cut_off_is_an_error_not_an_end(serving: Serving) -> None:
    with Relay(serving.path) as relay, Client(relay.path) as client:
        client.post(RECORDS, {"records": ["x"]})
        relay.cut_after = 400
        seen: list[object] = []
        error = refused("not-connected", lambda: seen.extend(client.stream("/v1/logs", follow=True)))
        assert error.details["sent"] is True
        assert relay.lost == 1


def test_a_lost_answer_is_not_connected_and_the_request_is_not_repeated(serving: Serving) -> None:
    with Relay(serving.path) as relay, Client(relay.path) as client:
        client.get("/v1/version")
        relay.lose_answers = 1
        error = refused("not-connected", lambda: client.post(RECORDS, {"records": ["once"]}))
        assert error.details["sent"] is True
        assert len(client.get(RECORDS)) == 1


def test_nobody_there(tmp_path: Path) -> None:
    for path in (tmp_path / "none.sock", tmp_path / "no" / "dir.sock"):
        error = refused("not-connected", lambda path=path: Client(str(path)).get("/v1/status"))
        assert (error.hint, error.details["sent"]) == ("net node start", False)
    dead = tmp_path / "dead.sock"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(dead))
    refused("not-connected", lambda: Client(str(dead)).get("/v1/status"))
    (tmp_path / "file.sock").write_text("")
    refused("not-connected", lambda: Client(str(tmp_path / "file.sock")).get("/v1/status"))
    refused("not-connected", lambda: Client("/tmp/" + "x" * 200).get("/v1/status"))


def test_another_node_is_asked_when_the_first_has_gone(serving: Serving, tmp_path: Path) -> None:
    asked = []

    def relocate(dead: str) -> str | None:
        asked.append(dead)
        return serving.path

    gone = str(tmp_path / "gone.sock")
    with Client(gone, relocate=relocate) as client:
        assert client.get("/v1/version")["api"] == 1
        assert (asked, client.socket_path) == ([gone], serving.path)


def listener(path: Path, answer: bytes, backlog: int = 1) -> socket.socket:
    """A server that says `answer` to the first client, whatever it asks, and nothing more."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    listening.listen(backlog)

    def serve() -> None:
        try:
            connected, _ = listening.accept()
        except OSError:
            return
        with connected:
            connected.settimeout(10)
            connected.recv(65536)
            connected.sendall(answer)
            if answer.endswith(b"STALL"):
                connected.recv(1)

    threading.Thread(target=serve, daemon=True).start()
    return listening


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"", "not-connected"),
        (b"HTTP/1.1 200 OK\r\nContent-Le", "not-connected"),
        (b'HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"a":1}', "not-connected"),
        (b"SSH-2.0-x\r\n\r\n\r\n", "internal"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>", "internal"),
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n", "internal"),
    ],
)
def test_answers_that_are_none(tmp_path: Path, answer: bytes, kind: str) -> None:
    with listener(tmp_path / "s", answer), Client(str(tmp_path / "s"), timeout_s=5) as client:
        refused(kind, lambda: client.get("/v1/status"))
    with listener(tmp_path / "t", answer), Client(str(tmp_path / "t"), timeout_s=5) as client:
        refused(kind, lambda: list(client.stream("/v1/audit")))


def test_a_node_that_says_nothing_is_a_timeout(tmp_path: Path) -> None:
    started = time.monotonic()
    with listener(tmp_path / "s", b"STALL"), Client(str(tmp_path / "s"), timeout_s=0.3) as client:
        refused("timeout", lambda: client.get("/v1/status"))
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "t"))
        silent.listen(1)
        refused("timeout", lambda: Client(str(tmp_path / "t"), timeout_s=0.3).get("/v1/status"))
        held = []
        for _ in range(5):  # a stopped node: its queue of connections fills up
            waiting = socket.socket(socket.AF_UNIX)
            held.append(waiting)
            waiting.setblocking(False)
            waiting.connect_ex(str(tmp_path / "t"))
        refused("timeout", lambda: Client(str(tmp_path / "t"), timeout_s=0.3).get("/v1/status"))
        for waiting in held:
            waiting.close()
    assert time.monotonic() - started < 5


def test_too_many_connections_is_overloaded() -> None:
    with Serving(Limits(connections=1)) as serving, Client(serving.path) as first, Client(serving.path) as second:
        first.get("/v1/version")
        for _ in range(20):  # refused before it could ask: never a broken pipe instead of the reason
            refused("overloaded", lambda: second.get("/v1/version"))
            second.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_another_user_is_told_whose_socket_it_is(serving: Serving) -> None:
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[2]); from net_sdk.client import Client; "
        "from substrate.wire.errors import NetError\n"
        "os.setgroups([]); os.setgid(54321); os.setuid(54321)\n"
        "try: Client(sys.argv[1]).get('/v1/status')\n"
        "except NetError as error: print(error.kind)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, serving.path, str(REPO)], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.stdout == "peer-uid\n", done.stderr
