"""The server on a real socket: what it answers, what it refuses, what it lets nobody do to it."""

from __future__ import annotations

import json
import logging
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from substrate.control import Limits
from substrate.control.connection import Phase
from substrate.wire.errors import NetError
from tests.control.raw import Raw, get, post
from tests.control.sample import Serving
from tests.procs import wait_until


@pytest.fixture
def serving() -> Iterator[Serving]:
    with Serving() as running:
        yield running


def kind_of(document: Any) -> str:
    assert set(document) == {"error"}
    assert set(document["error"]) == {"kind", "message", "hint", "exit_code", "details"}
    return str(document["error"]["kind"])


def test_a_document_and_who_asked(serving: Serving) -> None:
    with Raw(serving.path) as raw:
        raw.send(get("/v1/status"))
        status, headers, document = raw.response()
    assert (status, headers["content-type"]) == (200, "application/json")
    assert document["peer_pid"] == os.getpid()


def test_one_connection_serves_many_requests_also_pipelined(serving: Serving) -> None:
    with Raw(serving.path) as raw:
        raw.send(get("/v1/version"))
        assert raw.response()[0] == 200
        raw.send(get("/v1/nodes/a") + post("/v1/node/stop", b"{}") + get("/v1/nodes/none") + get("/v1/nodes/b"))
        answers = [raw.response() for _ in range(4)]
    assert [answer[0] for answer in answers] == [200, 200, 404, 200]
    assert [answers[0][2]["name"], answers[3][2]["name"]] == ["a", "b"]


def test_a_flood_of_pipelined_requests_is_answered_whole_and_in_order(serving: Serving) -> None:
    many = 3000
    with Raw(serving.path) as raw:
        raw.socket.setblocking(False)
        out, answered = b"".join(get(f"/v1/nodes/n{i}") for i in range(many)), b""
        deadline = time.monotonic() + 60
        while answered.count(b"HTTP/1.1 200") < many and time.monotonic() < deadline:
            if out:
                try:
                    out = out[raw.socket.send(out[:100_000]) :]
                except BlockingIOError:
                    pass
            try:
                answered += raw.socket.recv(1 << 20)
            except BlockingIOError:
                time.sleep(0.001)
    names = [part.split(b'"')[0] for part in answered.split(b'"node_name":"')[1:]]
    assert names == [f"n{i}".encode() for i in range(many)][: len(names)]
    assert len(names) >= many - 1


def test_names_with_a_slash_travel_percent_encoded(serving: Serving) -> None:
    with Raw(serving.path) as raw:
        raw.send(get("/v1/chains/sensors%2Ftemp"))
        assert raw.response()[2]["name"] == "sensors/temp"
        raw.send(get("/v1/chains/sensors/temp"))
        assert kind_of(raw.response()[2]) == "route-not-found"


@pytest.mark.parametrize(
    ("request_bytes", "status", "kind"),
    [
        (get("/v2/status"), 404, "route-not-found"),
        (get("/"), 404, "route-not-found"),
        (b"CONNECT net.local:80 HTTP/1.1\r\nHost: net.local\r\n\r\n", 404, "route-not-found"),
        (get("/v1/nodes/none", "Connection: Upgrade", "Upgrade: websocket"), 404, "node-not-found"),
        (get("http://net.local/v1/status"), 404, "route-not-found"),
        (post("/v1/status", b""), 405, "invalid-argument"),
        (get("/v1/proposals"), 405, "invalid-argument"),
        (get("/v1/nodes/%ff"), 400, "invalid-argument"),
        (get("/v1/nodes/a%00b"), 400, "invalid-argument"),
        (get("/v1/nodes/"), 400, "invalid-argument"),
        (get("/v1/nodes/" + "x" * 256), 400, "invalid-argument"),
        (get("/v1/status?x=1"), 400, "invalid-argument"),
        (get("/v1/logs?limit=0"), 400, "invalid-argument"),
        (get("/v1/logs?limit=10001"), 400, "invalid-argument"),
        (get("/v1/logs?limit=5&limit=6"), 400, "invalid-argument"),
        (get("/v1/logs?limit"), 400, "invalid-argument"),
        (get("/v1/logs?min_level=loud"), 400, "invalid-argument"),
        (get("/v1/logs?since=-1"), 400, "invalid-argument"),
        (get("/v1/logs?contains=%ff"), 400, "invalid-argument"),
        (get("/v1/logs?" + "&".join(f"a{i}=1" for i in range(40))), 400, "invalid-argument"),
        (get("/v1/audit?from=yesterday"), 400, "invalid-argument"),
        (get("/v1/names"), 400, "invalid-argument"),
        (get("/v1/chains/sensors%2Ftemp/records?since=1&tail=2"), 400, "invalid-argument"),
        (get("/v1/status", "Content-Length: 2") + b"{}", 400, "invalid-argument"),
        (post("/v1/node/stop", b'{"now":true}'), 400, "invalid-argument"),
        (post("/v1/node/stop", b"[]"), 400, "invalid-argument"),
        (post("/v1/node/stop", b"{"), 400, "invalid-argument"),
        (post("/v1/node/stop", b'"\xff"'), 400, "invalid-argument"),
        (post("/v1/proposals", b"{}"), 400, "invalid-argument"),
        (post("/v1/proposals", b'{"event":' * 3000 + b"1" + b"}" * 3000), 400, "invalid-argument"),
        (post("/v1/proposals", b'{"event":{},"operator_id":5}'), 400, "invalid-argument"),
        (post("/v1/commits", b'{"proposal":{},"signatures":[]}'), 400, "invalid-argument"),
        (get("/v1/status", host="evil.example"), 403, "not-authorized"),
        (get("/v1/status", host="net.local.evil.example"), 403, "not-authorized"),
        (get("/v1/status", "Origin: http://net.local"), 403, "not-authorized"),
        (get("/v1/status", "Referer: http://x/"), 403, "not-authorized"),
        (get("/v1/nodes/broken"), 500, "internal"),
        (get("/v1/nodes/unjson"), 500, "internal"),
        (get("/v1/nodes/none"), 404, "node-not-found"),
    ],
)  # fmt: skip
def test_what_is_refused_keeps_the_connection(serving: Serving, request_bytes: bytes, status: int, kind: str) -> None:
    with Raw(serving.path) as raw:
        raw.send(request_bytes)
        answer = raw.response()
        assert (answer[0], kind_of(answer[2])) == (status, kind)
        raw.send(get("/v1/version"))
        assert raw.response()[0] == 200


@pytest.mark.parametrize(
    ("request_bytes", "status", "kind"),
    [
        (b"GARBAGE\r\n\r\n", 400, "invalid-argument"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 40 + b"\r\n\r\n", 400, "invalid-argument"),
        (b"GET /v1/status HTTP/1.1\r\n\r\n", 400, "invalid-argument"),
        (b"GET /v1/status HTTP/2.0\r\nHost: net.local\r\n\r\n", 505, "invalid-argument"),
        (get("/v1/status", "X: " + "y" * 20_000), 431, "too-large"),
        (b"GET /v1/status HTTP/1.1\r\nHost: net.local\r\nX: " + b"y" * 20_000, 431, "too-large"),
        (get("/v1/status?" + "x" * 17_000), 431, "too-large"),
        (b"POST /v1/proposals HTTP/1.1\r\nHost: net.local\r\nContent-Length: 1048577\r\n\r\n", 413, "too-large"),
        (b"POST /v1/proposals HTTP/1.1\r\nHost: net.local\r\nContent-Length: 99999999999999\r\n\r\n", 413, "too-large"),
        (b"POST /v1/proposals HTTP/1.1\r\nHost: net.local\r\nTransfer-Encoding: chunked\r\n\r\n"
         + (b"10000\r\n" + b" " * 65536 + b"\r\n") * 17, 413, "too-large"),
        (b"POST /v1/proposals HTTP/1.1\r\nHost: net.local\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400,
         "invalid-argument"),
        (b"POST /v1/proposals HTTP/1.1\r\nHost: net.local\r\nTransfer-Encoding: gzip\r\n\r\n", 501, "invalid-argument"),
        (b"POST /v1/proposals HTTP/1.1\r\nHost: net.local\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400,
         "invalid-argument"),
        (b"GET /v1/version HTTP/1.0\r\n\r\n", 403, "not-authorized"),
    ],
)  # fmt: skip
def test_what_ends_the_connection_is_still_told_why(
    serving: Serving, request_bytes: bytes, status: int, kind: str
) -> None:
    with Raw(serving.path) as raw:
        raw.send(request_bytes)
        answer = raw.response()
        assert (answer[0], kind_of(answer[2])) == (status, kind)
        assert raw.rest() == b""


def test_405_says_what_is_allowed_and_head_has_no_body(serving: Serving) -> None:
    with Raw(serving.path) as raw:
        raw.send(b"DELETE /v1/chains/x/records HTTP/1.1\r\nHost: net.local\r\n\r\n")
        status, headers, document = raw.response()
        assert (status, headers["allow"], document["error"]["details"]["allowed"]) == (
            405,
            "GET, POST",
            ["GET", "POST"],
        )
        raw.send(b"HEAD /v1/status HTTP/1.1\r\nHost: net.local\r\n\r\n" + get("/v1/version"))
        assert raw.until(b"\r\n\r\n").startswith(b"HTTP/1.1 405")
        assert raw.response()[0] == 200  # nothing but the next answer followed the header


@pytest.mark.parametrize(
    "broken",
    [
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"Content-Length: 2000000\r\n\r\n",
        b"X: " + b"y" * 17_000 + b"\r\n\r\n",
    ],
)
def test_a_refused_head_has_no_body_either_and_ends(serving: Serving, broken: bytes) -> None:
    with Raw(serving.path) as raw:
        raw.send(b"HEAD /v1/status HTTP/1.1\r\nHost: net.local\r\n" + broken)
        header, _, body = raw.rest().partition(b"\r\n\r\n")
        assert header.startswith(b"HTTP/1.1 4")
        assert body == b""
    wait_until(lambda: serving.server.connections == 0, 5, "the connection to end")


def test_the_refused_field_is_named(serving: Serving) -> None:
    cases = [
        (post("/v1/proposals", b'{"event":{},"preveiw":true}'), "preveiw"),
        (post("/v1/commits", json.dumps({"proposal": {"event": {}}, "signatures": []}).encode()), "proposal.reason"),
        (get("/v1/logs?folow=true"), "folow"),
        (get("/v1/logs?limit=many"), "limit"),
        (get("/v1/audit?outcome=maybe"), "outcome"),
    ]
    with Raw(serving.path) as raw:
        for request_bytes, field in cases:
            raw.send(request_bytes)
            error = raw.response()[2]["error"]
            assert error["details"] == {"field": field}
            assert repr(field) in error["message"]


def test_typed_query_and_body_arrive(serving: Serving) -> None:
    with Raw(serving.path) as raw:
        raw.send(get("/v1/audit?limit=5&from=2026-01-31T12:00:00Z&force_only=true&operator=b%C3%B6b&kind=drain"))
        assert raw.response()[0] == 200
        raw.send(post("/v1/proposals", b'{"event":{"kind":"cordon","node":"a"},"reason":"because","operator_id":"7"}'))
        assert raw.response()[0] == 200
    query, body = serving.api.seen[0].query, serving.api.seen[1].body
    assert (query.limit, query.from_ms, query.to_ms, query.force_only, query.operator) == (
        5,
        1769860800000,
        None,
        True,
        "böb",
    )
    assert (body.event, body.reason, body.operator_id, body.preview) == (
        {"kind": "cordon", "node": "a"}, "because", "7", False)  # fmt: skip


def test_an_unexpected_failure_is_logged_in_full_and_shown_not_at_all(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("test.control")
    with Serving(logger=logger) as serving, Raw(serving.path) as raw, caplog.at_level(logging.ERROR, "test.control"):
        raw.send(get("/v1/nodes/broken"))
        document = raw.response()[2]
    assert "secret" not in json.dumps(document)
    assert "ValueError: secret detail" in caplog.text
    assert document["error"]["details"]["incident"] in caplog.text


def test_expect_100_continue(serving: Serving) -> None:
    with Raw(serving.path) as raw:
        raw.send(b"POST /v1/node/stop HTTP/1.1\r\nHost: net.local\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        assert raw.until(b"\r\n\r\n").startswith(b"HTTP/1.1 100")
        raw.send(b"{}")
        assert raw.response()[0] == 200


def test_a_request_byte_by_byte(serving: Serving) -> None:
    with Raw(serving.path) as raw:
        for byte in post("/v1/node/stop", b"{ }"):
            raw.send(bytes((byte,)))
        assert raw.response()[2] == {"stopping": True}


def test_a_half_closed_client_still_gets_its_answer(serving: Serving) -> None:
    import socket

    with Raw(serving.path) as raw:
        raw.send(get("/v1/version"))
        raw.socket.shutdown(socket.SHUT_WR)
        assert raw.response()[0] == 200
        assert raw.rest() == b""
    with Raw(serving.path) as raw:
        raw.send(get("/v1/nodes/big"))
        raw.socket.shutdown(socket.SHUT_WR)
        assert len(raw.response()[2]["name"]) == 4_000_000


@pytest.mark.parametrize(
    "sent", [b"", b"GET /v1/st", get("/v1/proposals")[:-2], b"POST /v1/commits HTTP/1.1\r\nHost: net.local\r\n"]
)
def test_a_slow_header_is_given_up(sent: bytes) -> None:
    with Serving(Limits(header_s=0.3)) as serving, Raw(serving.path) as raw:
        raw.send(sent)
        status, _, document = raw.response()
        assert (status, kind_of(document)) == (408, "timeout")
        assert raw.rest() == b""


def test_dripping_bytes_do_not_extend_the_header_deadline() -> None:
    with Serving(Limits(header_s=0.5)) as serving, Raw(serving.path) as raw:
        started = time.monotonic()
        data = get("/v1/status", "X: " + "y" * 1000)
        for byte in data:
            try:
                raw.send(bytes((byte,)))
            except (BrokenPipeError, ConnectionResetError):
                break
            time.sleep(0.02)
            if time.monotonic() - started > 5:
                break
        assert time.monotonic() - started < 5
        assert raw.rest().startswith(b"HTTP/1.1 408")


def test_a_slow_body_is_given_up() -> None:
    with Serving(Limits(body_s=0.3)) as serving, Raw(serving.path) as raw:
        raw.send(post("/v1/node/stop", b"{}")[:-1])
        assert kind_of(raw.response()[2]) == "timeout"


def test_an_idle_connection_is_closed() -> None:
    with Serving(Limits(idle_s=0.3)) as serving, Raw(serving.path) as raw:
        raw.send(get("/v1/version"))
        assert raw.response()[0] == 200
        assert raw.rest() == b""


def test_a_reader_that_does_not_read_is_dropped() -> None:
    with Serving(Limits(stall_s=0.4)) as serving, Raw(serving.path) as raw:
        raw.send(get("/v1/nodes/big"))
        wait_until(lambda: serving.server.connections == 1, 5, "the connection to be there")
        wait_until(lambda: serving.server.connections == 0, 10, "the connection to be dropped")


@pytest.mark.parametrize("half_close", [False, True])
def test_the_unread_rest_of_an_answer_does_not_keep_an_idle_connection(half_close: bool) -> None:
    import socket

    with Serving(Limits(idle_s=0.2, stall_s=0.4, linger_s=0.1)) as serving, Raw(serving.path) as raw:
        raw.send(get("/v1/nodes/big"))
        if half_close:
            raw.socket.shutdown(socket.SHUT_WR)
        pending = True
        while pending:  # read until the server has nothing left above its low-water mark, then no more
            raw.socket.recv(65536)
            pending = serving.call(lambda: any(c.phase is Phase.ANSWER for c in serving.server._connections))
        wait_until(lambda: serving.server.connections == 0, 10, "the connection to be given up")


def test_a_slow_but_steady_reader_gets_everything() -> None:
    with Serving(Limits(stall_s=0.5)) as serving, Raw(serving.path) as raw:
        raw.send(get("/v1/nodes/big"))
        received, started = 0, time.monotonic()
        while True:
            piece = raw.socket.recv(150_000)
            received += len(piece)
            if raw.held == b"" and received > 8_000_000:
                break
            time.sleep(0.02)
        assert time.monotonic() - started > 0.5
        assert serving.server.connections == 1


def test_too_many_connections_are_told_so_and_room_is_given_back() -> None:
    with Serving(Limits(connections=4, refusals=2)) as serving:
        held = [Raw(serving.path) for _ in range(4)]
        for raw in held:
            raw.send(get("/v1/version"))
            assert raw.response()[0] == 200
        with Raw(serving.path) as fifth:
            status, _, document = fifth.response()
            assert (status, kind_of(document)) == (503, "overloaded")
            assert fifth.rest() == b""
        crowd = [Raw(serving.path) for _ in range(10)]
        assert [raw.rest().startswith(b"HTTP/1.1 503") for raw in crowd].count(
            False
        ) >= 1  # beyond the refusals: cut off
        for raw in (*held, *crowd):
            raw.socket.close()
        wait_until(lambda: serving.server.connections == 0, 5, "the connections to end")
        with Raw(serving.path) as again:
            again.send(get("/v1/version"))
            assert again.response()[0] == 200


def test_a_lost_client_does_not_cancel_what_it_asked_for(serving: Serving) -> None:
    with Raw(serving.path) as raw:
        raw.send(get("/v1/nodes/slow"))
        wait_until(lambda: serving.api.waiting == 1, 5, "the request to be worked on")
    serving.call(serving.api.release.set)
    wait_until(lambda: serving.api.answered == 1, 5, "the work to be done")


def test_close_lets_an_answer_finish_and_ends_idle_connections() -> None:
    with Serving() as serving, Raw(serving.path) as idle, Raw(serving.path) as busy:
        idle.send(get("/v1/version"))
        assert idle.response()[0] == 200
        busy.send(get("/v1/nodes/slow"))
        wait_until(lambda: serving.api.waiting == 1, 5, "the request to be worked on")
        serving.begin_stop()
        assert idle.rest() == b""
        serving.call(serving.api.release.set)
        status, headers, _ = busy.response()
        assert (status, headers["connection"]) == (200, "close")
        assert busy.rest() == b""
        serving.stop()
        assert not os.path.exists(serving.path)


def test_the_socket_file_its_directory_and_a_second_server(serving: Serving) -> None:
    directory = os.path.dirname(serving.path)
    assert stat.S_IMODE(os.lstat(directory).st_mode) == 0o700
    assert stat.S_IMODE(os.lstat(serving.path).st_mode) == 0o600
    with pytest.raises(NetError) as caught, Serving(path=serving.path):
        pass
    assert caught.value.kind == "node-running"
    with Raw(serving.path) as raw:  # the first one did not notice
        raw.send(get("/v1/version"))
        assert raw.response()[0] == 200


def test_a_stale_socket_is_taken_over_and_anything_else_is_not(tmp_path: Path) -> None:
    import socket

    directory = tmp_path / "r"
    directory.mkdir(mode=0o700)
    path = directory / "a.sock"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    with Serving(path=path) as serving, Raw(serving.path) as raw:
        raw.send(get("/v1/version"))
        assert raw.response()[0] == 200
    path.write_text("precious")
    with pytest.raises(NetError) as caught, Serving(path=path):
        pass
    assert caught.value.kind == "invalid-config"
    assert path.read_text() == "precious"
    path.unlink()
    target = directory / "target"
    target.write_text("precious")
    path.symlink_to(target)
    with pytest.raises(NetError), Serving(path=path):
        pass
    assert target.read_text() == "precious"


def test_a_long_path_and_an_open_directory_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NetError) as caught, Serving(path="/tmp/" + "x" * 100 + "/a.sock"):
        pass
    assert caught.value.kind == "invalid-config"
    assert "NET_RUNTIME_DIR" in str(caught.value.hint)
    assert not os.path.exists("/tmp/" + "x" * 100)
    directory = tmp_path / "open"
    directory.mkdir()
    directory.chmod(0o755)
    with pytest.raises(NetError) as caught, Serving(path=directory / "a.sock"):
        pass
    assert (caught.value.kind, caught.value.hint) == ("permissive-mode", f"chmod 700 {directory}")


def test_closing_leaves_a_successors_socket_alone(tmp_path: Path) -> None:
    path = tmp_path / "r" / "a.sock"
    with Serving(path=path):
        path.unlink()
        path.write_text("another's")
    assert path.read_text() == "another's"


STRANGER = """
import os, socket, sys
s = socket.socket(socket.AF_UNIX)
s.settimeout(10)
os.setgroups([]); os.setgid(54321); os.setuid(54321)
s.connect(sys.argv[1])
s.sendall(b"GET /v1/status HTTP/1.1\\r\\nHost: net.local\\r\\n\\r\\n")
data = b""
while piece := s.recv(65536):
    data += piece
sys.stdout.write(data.decode())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_another_user_is_refused_even_where_the_file_would_let_it_in() -> None:
    with Serving() as serving:
        os.chmod(os.path.dirname(serving.path), 0o755)
        os.chmod(os.path.dirname(os.path.dirname(serving.path)), 0o755)
        os.chmod(serving.path, 0o666)
        done = subprocess.run(
            [sys.executable, "-c", STRANGER, serving.path], capture_output=True, text=True, timeout=30, check=False
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("HTTP/1.1 403")
    assert '"kind":"peer-uid"' in done.stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(serving: Serving) -> None:
    base = ["curl", "-sS", "--max-time", "10", "--unix-socket", serving.path]
    one = subprocess.run([*base, "http://net.local/v1/status"], capture_output=True, text=True, timeout=30, check=True)
    assert json.loads(one.stdout)["node_name"] == "a"
    sent = subprocess.run(
        [*base, "--json", '{"records":[{"t":1},{"t":2}]}', "http://localhost/v1/chains/sensors%2Ftemp/records"],
        capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    assert json.loads(sent.stdout)["count"] == 2
    stream = subprocess.run(
        [*base, "-N", "http://net.local/v1/logs?follow=true"], capture_output=True, text=True, timeout=30, check=True
    )
    assert [sorted(json.loads(line))[0] for line in stream.stdout.splitlines()][-1] == "end"
