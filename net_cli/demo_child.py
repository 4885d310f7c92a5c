"""Children of the demo: `net` as a process, without the user's settings, and signals that never leave half a job."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from substrate.wire.errors import NetError

CHILD_LIMIT_S: Final = 90
_TIDY_S: Final = 10
_ROOTS: Final = ("NET_STATE_HOME", "NET_DATA_HOME", "NET_RUNTIME_DIR", "NET_CONFIG_HOME")


def program() -> list[str]:
    """How to start `net` as a process: with this interpreter."""
    return [sys.executable, "-m", "net_cli"]


def environment(roots: dict[str, str] | None = None) -> dict[str, str]:
    """The environment for children: no setting of the user's but the directories, or `roots` in their place."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("NET_") or name in _ROOTS}
    source = str(Path(__file__).resolve().parent.parent)
    inherited = kept.get("PYTHONPATH")
    kept["PYTHONPATH"] = os.pathsep.join((source, inherited) if inherited else (source,))
    return kept | {"NET_CONFIG": os.devnull} | (roots or {})  # an empty config file: the demo is the same for everybody


class Ended(NamedTuple):
    """How a child ended; `out` and `err` are empty where they went to our own stdout."""

    code: int
    out: str
    err: str


def child(argv: Sequence[str], env: dict[str, str], cwd: str, stdin: str = "", *, show: bool = False) -> Ended:
    """Run a command to its end. With `show` all it says goes to our stdout. Raises `timeout`.

    It is in a process group of its own: Ctrl-C reaches only us, and we hand it on once and wait for the child to tidy up.
    """
    caught = None if show else subprocess.PIPE
    with subprocess.Popen(
        argv,
        env=env,
        cwd=cwd,
        stdin=subprocess.PIPE,
        stdout=caught,
        stderr=subprocess.STDOUT if show else caught,
        text=True,
        errors="replace",
        process_group=0,
    ) as process:
        try:
            out, err = process.communicate(stdin, timeout=CHILD_LIMIT_S)
        except BaseException as error:
            with undisturbed():
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(timeout=_TIDY_S)
                except subprocess.TimeoutExpired:
                    process.kill()
            if isinstance(error, subprocess.TimeoutExpired):
                raise NetError("timeout", f"{shlex.join(argv)} has not ended after {CHILD_LIMIT_S} s") from None
            raise
    return Ended(process.returncode, out or "", err or "")


def interrupt(number: int, frame: Any) -> None:
    """Signal handler: end like Ctrl-C does, so that what was started is taken down."""
    raise KeyboardInterrupt


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP end the block as SIGINT does."""
    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Nothing but SIGKILL ends the block, nor the processes it starts: taking down is not left half done."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
