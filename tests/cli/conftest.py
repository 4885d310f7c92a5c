"""Runs the real `net` as a process, in directories of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.cli.smallnode import SmallNode

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 30


class Run(NamedTuple):
    """How a run of `net` ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> dict[str, Any]:
        assert self.out == "", self.out
        assert self.err.count("\n") == 1, self.err
        error: dict[str, Any] = json.loads(self.err)["error"]
        assert error["exit_code"] == self.code
        return error


Net = Callable[..., Run]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own; whatever NET_* the caller's shell has is forgotten."""
    for name in [*os.environ]:
        if name.startswith(("NET_", "XDG_")) or name in ("NO_COLOR", "COLUMNS"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NET_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("NET_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("NET_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TERM", "xterm")
    return tmp_path


@pytest.fixture
def net(home: Path) -> Net:
    def run(*args: str, stdin: str | bytes = b"", env: dict[str, str] | None = None) -> Run:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        done = subprocess.run(
            [sys.executable, "-m", "net_cli", *args],
            input=data,
            capture_output=True,
            timeout=LIMIT_S,
            env={**os.environ, **(env or {})},
            check=False,
        )
        return Run(done.returncode, done.stdout.decode(), done.stderr.decode())

    return run


_TAKE_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that ^C becomes SIGINT
os.execv(sys.argv[1], sys.argv[1:])
"""


class Terminal:
    """A `net` on a pseudo-terminal of 80 columns."""

    def __init__(self, args: tuple[str, ...], env: dict[str, str], columns: int) -> None:
        import fcntl
        import pty
        import struct
        import termios

        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-c", _TAKE_TERMINAL, sys.executable, "-m", "net_cli", *args],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**os.environ, **env},
            start_new_session=True,
        )
        os.close(slave)
        self.screen = ""

    def until(self, text: str) -> str:
        """Read until `text` is on the screen; the suite's time limit bounds it."""
        while text not in self.screen:
            data = self._read()
            assert data, f"ended before {text!r}: {self.screen!r}"
        return self.screen

    def _read(self) -> str:
        import select

        ready, _, _ = select.select([self.master], [], [], LIMIT_S)
        assert ready, f"silent for {LIMIT_S} s: {self.screen!r}"
        try:
            data = os.read(self.master, 65536).decode(errors="replace")
        except OSError:  # EIO: the other end is closed
            data = ""
        self.screen += data
        return data

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def end(self) -> int:
        """Read to the end; returns the exit code."""
        while self._read():
            pass
        return self.process.wait(LIMIT_S)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)


@pytest.fixture
def terminal(home: Path) -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def start(*args: str, env: dict[str, str] | None = None, columns: int = 80) -> Terminal:
        opened.append(Terminal(args, env or {}, columns))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


@pytest.fixture
def node(home: Path) -> Iterator[SmallNode]:
    """A node `a` of the cluster `default`, listening where the command line looks for it."""
    small = SmallNode(home / "run" / "default" / "a.sock")
    yield small
    small.close()


@pytest.fixture
def alice(net: Net, node: SmallNode) -> str:
    """An operator the node knows."""
    install(net, node, "alice")
    return "alice"


def install(net: Net, node: SmallNode, name: str) -> dict[str, Any]:
    """A new identity on this machine, in the node's registry."""
    document: dict[str, Any] = net("identity", "generate", name).document
    node.operators[int(document["operator_id"])] = (name, bytes.fromhex(document["public_key"]))
    return document
