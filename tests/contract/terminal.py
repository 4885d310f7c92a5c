"""`net` on a real terminal: a pty of a stated size, whose answers are typed when the prompt stands there."""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Mapping
from typing import Final

from tests.harness import ClusterHarness, net_command

LIMIT_S: Final = 20.0


class Screen:
    """A command running on a pty. `output` is what it has shown so far, line ends as `\\n`."""

    def __init__(
        self,
        cluster: ClusterHarness,
        *args: str,
        columns: int = 80,
        env: Mapping[str, str] | None = None,
        stdout: int | None = None,
    ) -> None:
        """Start `net ARGS`; with `stdout` (a subprocess constant or a descriptor) only stdin and stderr are the terminal."""
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        attributes = termios.tcgetattr(slave)
        attributes[3] &= ~termios.ECHO
        termios.tcsetattr(slave, termios.TCSANOW, attributes)
        self._seen = bytearray()
        self.process = subprocess.Popen(
            [*net_command(), *args],
            stdin=slave,
            stdout=slave if stdout is None else stdout,
            stderr=slave,
            env=cluster.env | {"TERM": "xterm-256color"} | dict(env or {}),
            cwd=cluster.root,
        )
        os.close(slave)

    def __enter__(self) -> Screen:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(LIMIT_S)
        if self.process.stdout is not None:
            self.process.stdout.close()
        os.close(self._master)

    @property
    def output(self) -> str:
        return self._seen.decode().replace("\r\n", "\n")

    def read_until(self, text: str, limit_s: float = LIMIT_S) -> str:
        """Wait until `text` has been shown."""
        deadline = time.monotonic() + limit_s
        while text not in self.output:
            assert self._read(deadline), f"{text!r} never came; shown: {self.output!r}"
        return self.output

    def type(self, text: str) -> None:
        """Type on the keyboard."""
        os.write(self._master, text.encode())

    def end(self, limit_s: float = LIMIT_S) -> int:
        """Read to the end; the exit code."""
        deadline = time.monotonic() + limit_s
        while self._read(deadline):
            pass
        return self.process.wait(max(0.1, deadline - time.monotonic()))

    def _read(self, deadline: float) -> bool:
        ready, _, _ = select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"the command is silent; shown: {self.output!r}"
        try:
            piece = os.read(self._master, 65536)
        except OSError as error:
            if error.errno != errno.EIO:  # the other side of the pty is closed: the end
                raise
            piece = b""
        self._seen += piece
        return bool(piece)


def run(
    cluster: ClusterHarness, *args: str, columns: int = 80, env: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Run `net ARGS` on a terminal to its end: exit code and everything shown."""
    with Screen(cluster, *args, columns=columns, env=env) as screen:
        return screen.end(), screen.output
