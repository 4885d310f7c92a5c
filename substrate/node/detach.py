"""Starts a process that outlives its parent, and lets it say when it is ready.

The child gets a pipe as descriptor 3, named in `NET_READY_FD`, and writes one line of JSON into it: `{"ready": {...}}` or an
error document. The parent waits for that line, so that `--detach` returns only when the node really serves, or with the
reason why it does not.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from substrate.node.process import ProcessId
from substrate.wire.errors import NetError

READY_VARIABLE: Final = "NET_READY_FD"
READY_LIMIT_S: Final = 20.0
_READY_FD: Final = 3
_MAX_LINE_BYTES: Final = 64 * 1024
_LOG_TAIL_BYTES: Final = 2048
_KILL_AFTER_S: Final = 2.0
_RESET_SIGNALS: Final = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGPIPE,
    signal.SIGTERM,
    signal.SIGCHLD,
    signal.SIGUSR1,
    signal.SIGUSR2,
)


class ReadyMessage(msgspec.Struct, frozen=True):
    """A child that is ready: who it is, and what it said."""

    process: ProcessId
    document: dict[str, Any]


def spawn_detached(
    argv: Sequence[str], env: Mapping[str, str], log_path: str, *, limit_s: float = READY_LIMIT_S
) -> ReadyMessage:
    """Start `argv` (argv[0] is a path) in a session of its own and wait until it is ready.

    Its input is empty, its output goes to the end of `log_path` (0600). Raises what the child reported, `timeout` after
    `limit_s` (the child is killed then), `internal` if it ended without a word (details: exit_code, log), `io-error` if it cannot
    be started.
    """
    listen, speak = (_above_standard(each) for each in os.pipe())
    log = -1
    # An interrupt that came between the child's start and our knowing its pid would leave it behind.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        log = _above_standard(os.open(log_path, flags, 0o600))
        log_start = os.fstat(log).st_size
        pid = _spawn(argv, env, log, speak)
    except OSError as error:
        os.close(listen)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        raise NetError("io-error", f"cannot start {argv[0]}: {error.strerror}", details={"log": log_path}) from None
    finally:
        os.close(speak)  # the child's copy must be the last one, or its end would go unnoticed
        if log >= 0:
            os.close(log)
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        process = ProcessId.of(pid)
        line = _read_line(listen, time.monotonic() + limit_s)
    except TimeoutError:
        _end(pid)
        raise NetError(
            "timeout",
            f"{os.path.basename(argv[0])} was not ready within {limit_s:g} s",
            f"see {log_path}",
            {"pid": pid, "log": log_path},
        ) from None
    except BaseException:
        _end(pid)  # interrupted while waiting: nothing half started stays behind
        raise
    finally:
        os.close(listen)
    document = _parse(line)
    if document is not None and "ready" in document and process is not None:
        return ReadyMessage(process, document["ready"])
    code = _end(pid, _KILL_AFTER_S)
    if document is not None and "error" in document:
        raise NetError.from_document(document)
    raise NetError(
        "internal",
        f"the process ended with {_describe(code)} before it was ready",
        f"see {log_path}",
        {"exit_code": code, "log": log_path, "output": _log_since(log_path, log_start)},
    )


def _spawn(argv: Sequence[str], env: Mapping[str, str], log: int, speak: int) -> int:
    """The pid of the new process. posix_spawn leaves no object behind that wants to be waited for."""
    return os.posix_spawn(
        argv[0],
        list(argv),
        {**env, READY_VARIABLE: str(_READY_FD)},
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, log, 1),
            (os.POSIX_SPAWN_DUP2, log, 2),
            (os.POSIX_SPAWN_DUP2, speak, _READY_FD),
            # What the user's shell handed down (a lock, a pipe) must not stay open for as long as the child lives.
            *[(os.POSIX_SPAWN_CLOSE, each) for each in _inheritable() if each > _READY_FD],
        ],
        setsid=True,
        setsigmask=[],
        setsigdef=_RESET_SIGNALS,
    )


def _inheritable() -> list[int]:
    """Our open descriptors that a new program would get."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.get_inheritable(int(name)):
                found.append(int(name))
        except OSError:
            pass  # the one that listed the directory
    return found


def _above_standard(descriptor: int) -> int:
    """Move a descriptor out of the way of 0 to 3, where it is if ours were closed when we were started."""
    if descriptor > _READY_FD:
        return descriptor
    try:
        return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _READY_FD + 1)
    finally:
        os.close(descriptor)


def _read_line(descriptor: int, deadline: float) -> bytes:
    """Everything up to the first line break or the end; raises `TimeoutError`."""
    held = b""
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    while b"\n" not in held and len(held) <= _MAX_LINE_BYTES:
        left_ms = (deadline - time.monotonic()) * 1000
        if left_ms <= 0 or not poller.poll(left_ms):
            raise TimeoutError
        piece = os.read(descriptor, 65536)
        if not piece:
            break
        held += piece
    return held


def _parse(line: bytes) -> dict[str, Any] | None:
    """The document in a complete line, or None."""
    if not line.endswith(b"\n"):
        return None
    try:
        return msgspec.json.decode(line, type=dict[str, Any])
    except msgspec.DecodeError:
        return None


def _end(pid: int, patience_s: float = 0.0) -> int:
    """Make sure that our child is gone; its exit code, or minus the signal it died of.

    It may end by itself for `patience_s`, then gets SIGTERM, then SIGKILL with its whole process group.
    """
    start = time.monotonic()
    asked = False
    while True:
        done, raw = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(raw)
        # Not waited for yet, so the pid, and the group of that number, are still our child's.
        waited_s = time.monotonic() - start
        if waited_s >= patience_s + _KILL_AFTER_S:
            os.killpg(pid, signal.SIGKILL)
        elif waited_s >= patience_s and not asked:
            os.kill(pid, signal.SIGTERM)
            asked = True
        time.sleep(0.01)


def _describe(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"


def _log_since(path: str, start: int) -> str:
    """The end of what the child wrote."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(start, size - _LOG_TAIL_BYTES))
        return file.read(_LOG_TAIL_BYTES).decode(errors="replace")


class ReadyPipe:
    """The child's side. Without a parent that waits, `ready` and `fail` do nothing."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor

    @classmethod
    def from_environment(cls) -> ReadyPipe:
        """Take the pipe out of the environment, so that no process of ours inherits it. Raises `invalid-config`."""
        text = os.environ.pop(READY_VARIABLE, None)
        if text is None:
            return cls(None)
        try:
            descriptor = int(text)
            os.set_inheritable(descriptor, False)
        except (ValueError, OSError):
            raise NetError("invalid-config", f"{READY_VARIABLE}={text} names no open descriptor") from None
        return cls(descriptor)

    def ready(self, document: dict[str, Any]) -> None:
        """Tell the parent that the process serves; `document` is what it shows to the user."""
        self._say({"ready": document})

    def fail(self, error: NetError) -> None:
        """Tell the parent why the process will not serve; it should end now."""
        self._say(error.document())

    def _say(self, document: dict[str, Any]) -> None:
        if self._descriptor is None:
            return
        line = memoryview(msgspec.json.encode(document) + b"\n")
        try:
            while line:
                line = line[os.write(self._descriptor, line) :]
        except BrokenPipeError:
            pass  # the parent gave up waiting; the process is none the worse for it
        os.close(self._descriptor)
        self._descriptor = None
