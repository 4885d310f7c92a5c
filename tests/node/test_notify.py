"""sd_notify against a real datagram socket."""

from __future__ import annotations

import os
import secrets
import socket
import tempfile
from collections.abc import Iterator

import pytest

from substrate.node import notify


def listen(address: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(address)
    sock.settimeout(5)
    return sock


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    if request.param == "path":
        with tempfile.TemporaryDirectory(dir="/tmp") as directory:
            monkeypatch.setenv("NOTIFY_SOCKET", f"{directory}/notify")
            with listen(f"{directory}/notify") as sock:
                yield sock
    else:
        name = f"net-test-{secrets.token_hex(8)}"
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        with listen(f"\0{name}") as sock:
            yield sock


def test_every_message_arrives_as_systemd_reads_it(manager: socket.socket) -> None:
    assert notify.ready()
    assert manager.recv(4096) == b"READY=1"
    assert notify.ready("serving as node a")
    assert manager.recv(4096) == b"READY=1\nSTATUS=serving as node a"
    assert notify.stopping()
    assert manager.recv(4096) == b"STOPPING=1"
    assert notify.watchdog()
    assert manager.recv(4096) == b"WATCHDOG=1"


def test_status_is_one_short_line(manager: socket.socket) -> None:
    assert notify.status("draining\nREADY=1")
    assert manager.recv(4096) == b"STATUS=draining READY=1"
    assert notify.status("ä" * 5000)
    assert manager.recv(65536).decode() == "STATUS=" + "ä" * (notify.MAX_STATUS_BYTES // 2)


def test_manager_that_does_not_read_never_blocks_the_node(manager: socket.socket) -> None:
    sent = 0
    while notify.status("x" * 500):
        sent += 1
        assert sent < 1_000_000
    assert sent > 0


@pytest.mark.parametrize("address", [None, "", "relative", "/nonexistent/notify", "@net-test-nobody-listens"])
def test_without_a_manager_nothing_happens(address: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if address is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert not notify.ready()


@pytest.mark.parametrize(
    ("usec", "pid", "expected"),
    [
        (None, None, None),
        ("30000000", None, 15.0),
        ("30000000", "self", 15.0),
        ("30000000", "1", None),
        ("0", None, None),
        ("soon", None, None),
        ("30000000", "me", None),
    ],
)
def test_watchdog_period_is_half_the_limit(
    usec: str | None, pid: str | None, expected: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("WATCHDOG_USEC", usec), ("WATCHDOG_PID", str(os.getpid()) if pid == "self" else pid)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert notify.watchdog_period_s() == expected
