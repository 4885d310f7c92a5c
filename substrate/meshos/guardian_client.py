"""The node's side of its guardian: start it, send commands, hear what became of them.

Nothing here waits on the guardian: commands go into the socket at once, answers arrive as events on the loop.
The guardian acknowledges every deadline; one that stays silent for `SILENT_LIMIT_S` (stopped, hung) is killed,
which kills the daemons it started, and reported lost, like one that was killed from outside.
Source: architecture, "Real effects".
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from substrate.meshos import proctree
from substrate.wire.errors import NetError

MAX_PACKET_BYTES: Final = 160 * 1024
MAX_QUEUED_COMMANDS: Final = 4096
SILENT_LIMIT_S: Final = 5.0
_ROOT: Final = str(Path(__file__).resolve().parents[2])
_ENTRY: Final = (
    "import sys; sys.path.append(sys.argv[1]); from substrate.meshos.guardian import main; sys.exit(main(sys.argv[2:]))"
)


def boottime_ns() -> int:
    """Now on CLOCK_BOOTTIME, in nanoseconds: the clock of deadlines. It counts time spent suspended."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Spawned(msgspec.Struct, frozen=True):
    """A started process: its pid, its start time in clock ticks since boot, and the read ends of its output.

    The caller owns the two descriptors (non-blocking) and closes them.
    """

    pid: int
    start_ticks: int
    stdout_fd: int
    stderr_fd: int


class Exited(msgspec.Struct, frozen=True):
    """A tree is over: no process of it is left. One of `code` and `signal` is None; both when nobody saw it end."""

    key: str
    pid: int
    code: int | None
    signal: int | None


class Stuck(msgspec.Struct, frozen=True):
    """Processes that survive SIGKILL (uninterruptible I/O). `key` is None when the guardian is lost as well."""

    key: str | None
    pids: list[int]


class Fenced(msgspec.Struct, frozen=True):
    """The deadline passed: every tree is being killed, each with its own `Exited`; spawns are refused."""

    reason: str


class GuardianLost(msgspec.Struct, frozen=True):
    """The guardian is gone without being asked. All it started is dead; the `Exited` of each tree came before."""

    reason: str


Event = Exited | Stuck | Fenced | GuardianLost


class SpawnFailed(NetError):
    """The process was not started. `details["reason"]`: exec, fork, fenced, busy, limit, closing or guardian-lost."""

    @property
    def reason(self) -> str:
        """Why, as one word; only `exec` and `fork` are the daemon's own failures."""
        return str(self.details["reason"])

    @classmethod
    def of(cls, key: str, reason: str, error: str, **details: Any) -> SpawnFailed:
        """The failure of a spawn of `key`."""
        return cls("rejected", error, details={"key": key, "reason": reason, **details})


class GuardianClient:
    """One running guardian. Use on one event loop; made by `start`."""

    def __init__(self, process: subprocess.Popen[bytes], connection: socket.socket) -> None:
        self._process = process
        self._socket = connection
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._gone: asyncio.Future[None] = self._loop.create_future()
        self._spawning: dict[str, asyncio.Future[tuple[int, int]]] = {}
        self._live: dict[str, int] = {}
        self._outbox: deque[tuple[bytes, list[int]]] = deque()
        self._listeners: list[Callable[[Event], None]] = []
        self._unacknowledged: deque[tuple[float, int]] = deque()
        self._watchdog: asyncio.TimerHandle | None = None
        self._farewell: str | None = None
        self._closing: asyncio.Task[None] | None = None
        self._failure = "it ended"
        self._token: str | None = None
        self.acknowledged_deadline_ns: int | None = None
        """The last deadline the guardian is known to hold."""
        self._loop.add_reader(connection, self._readable)

    @classmethod
    async def start(
        cls, node_dir: Path, env: Mapping[str, str] | None = None, *, limit_ms: int = 15_000
    ) -> GuardianClient:
        """Start a guardian for the node whose state is in `node_dir`, and wait until it is in charge.

        That takes until everything an earlier guardian of this node started is dead: `limit_ms` at most.
        `env` is the guardian's own environment (default: the caller's), not that of what it starts.
        Raises `timeout` when the earlier one does not give way, `io-error` when it cannot be started.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        options = ("--dir", str(node_dir), "--fd", str(theirs.fileno()), "--limit-ms", str(limit_ms))
        try:
            log = os.open(node_dir / "guardian.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
            try:
                process = subprocess.Popen(  # noqa: ASYNC220 - a fork of 2 ms, once in a node's life
                    # -I -S: nothing of the user's environment or of site-packages can slow it down or break it.
                    [sys.executable, "-I", "-S", "-c", _ENTRY, _ROOT, *options],
                    env=None if env is None else dict(env),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,
                )
            finally:
                os.close(log)
        except OSError as error:
            ours.close()
            raise NetError("io-error", f"the guardian could not be started: {error}") from error
        finally:
            theirs.close()
        client = cls(process, ours)
        client._ready.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            await asyncio.wait_for(asyncio.shield(client._ready), limit_ms / 1000 + 5)
        except BaseException as error:
            process.kill()
            await client.wait_gone()
            if isinstance(error, TimeoutError):
                raise NetError(
                    "timeout", "the guardian did not start in time", f"see {node_dir}/guardian.log"
                ) from None
            raise
        return client

    @property
    def pid(self) -> int:
        """The guardian's process id."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it can still be commanded."""
        return not self._gone.done() and self._closing is None

    def subscribe(self, listener: Callable[[Event], None]) -> None:
        """Call `listener` with every event, in order, on the loop. It must not block and not raise."""
        self._listeners.append(listener)

    # --- commands ---

    async def spawn(self, key: str, argv: Sequence[str], env: Mapping[str, str], cwd: str) -> Spawned:
        """Start a process tree named `key` (unique among the living); returns once its program runs.

        `argv[0]` is looked up in the PATH of `env`. Its stdin is /dev/null. Raises SpawnFailed.
        """
        if not self.running:
            raise SpawnFailed.of(key, "guardian-lost", "the guardian is gone")
        if key in self._spawning or key in self._live:
            raise SpawnFailed.of(key, "busy", "processes of an earlier start are still there")
        if not argv or any("\0" in text for text in (*argv, *env.keys(), *env.values(), cwd)):
            raise SpawnFailed.of(key, "exec", "a command needs a program, and no zero bytes anywhere")
        command = {"command": "spawn", "key": key, "argv": list(argv), "env": dict(env), "cwd": cwd}
        try:
            out_r, out_w = os.pipe2(os.O_CLOEXEC)
            try:
                err_r, err_w = os.pipe2(os.O_CLOEXEC)
            except OSError:
                _close_all((out_r, out_w))
                raise
        except OSError as error:
            raise SpawnFailed.of(key, "fork", f"no pipe for its output: {error.strerror}") from error
        readers, sent = [out_r, err_r], False
        future: asyncio.Future[tuple[int, int]] = self._loop.create_future()
        future.add_done_callback(lambda done: done.cancelled() or done.exception())  # may have lost its caller
        self._spawning[key] = future
        try:
            try:
                self._send(command, [out_w, err_w])
                sent = True
            finally:
                os.close(out_w)
                os.close(err_w)
            # Shielded: a cancelled caller must not lose sight of a process that has started.
            pid, start_ticks = await asyncio.shield(future)
            for fd in readers:
                os.set_blocking(fd, False)
            spawned, readers = Spawned(pid, start_ticks, out_r, err_r), []
            return spawned
        except asyncio.CancelledError:
            self.kill(key)  # nobody would look after it
            raise
        finally:
            if not sent:
                del self._spawning[key]
            for fd in readers:
                os.close(fd)

    def stop(self, key: str, grace_ms: int) -> None:
        """SIGTERM to the tree's process group, SIGKILL to all of it after the grace. `Exited` follows."""
        self._send({"command": "stop", "key": key, "grace_ms": grace_ms})

    def kill(self, key: str) -> None:
        """SIGKILL the whole tree. `Exited` follows."""
        self._send({"command": "kill", "key": key})

    def set_deadline(self, deadline_ns: int) -> None:
        """Everything is to be dead from `deadline_ns` (CLOCK_BOOTTIME) on, unless a later call moves it."""
        self._unacknowledged.append((self._loop.time(), deadline_ns))
        if self._watchdog is None:
            self._watchdog = self._loop.call_later(SILENT_LIMIT_S, self._check_silence)
        self._send({"command": "deadline", "boottime_ns": deadline_ns})

    async def shutdown(self, grace_ms: int) -> None:
        """Stop every tree (SIGTERM, grace, SIGKILL); returns when nothing is left and the guardian is gone."""
        self._send({"command": "shutdown", "grace_ms": grace_ms})
        await self.wait_gone()

    async def wait_gone(self) -> None:
        """Wait until the guardian is gone, for whatever reason, with all it started."""
        await asyncio.shield(self._gone)

    def _send(self, command: dict[str, Any], fds: Sequence[int] = ()) -> None:
        if self._closing is not None or self._gone.done():
            return  # what it would have acted on is being killed; the events of that are on the way
        data = json.dumps(command).encode()  # not msgspec: the environment may hold bytes that are no UTF-8
        if len(data) > MAX_PACKET_BYTES:
            raise SpawnFailed.of(
                command["key"], "exec", f"command and environment take {len(data)} bytes of {MAX_PACKET_BYTES} allowed"
            )
        if len(self._outbox) >= MAX_QUEUED_COMMANDS:
            raise NetError("overloaded", "the guardian does not take commands any more")
        # The caller closes its copies at once; these live until the packet is in the socket.
        self._outbox.append((data, [os.dup(fd) for fd in fds]))
        self._flush()

    def _flush(self) -> None:
        while self._outbox:
            data, fds = self._outbox[0]
            try:
                socket.send_fds(self._socket, [data], fds)
            except BlockingIOError:
                self._loop.add_writer(self._socket, self._flush)
                return
            except (BrokenPipeError, ConnectionResetError):
                break  # the end of the socket is seen by the reader, which reports the loss
            self._outbox.popleft()
            _close_all(fds)
        self._loop.remove_writer(self._socket)

    def _check_silence(self) -> None:
        self._watchdog = None
        if not self._unacknowledged or self._closing is not None:
            return
        left = self._unacknowledged[0][0] + SILENT_LIMIT_S - self._loop.time()
        if left > 0:
            self._watchdog = self._loop.call_later(left, self._check_silence)
        else:
            self._failure = f"it was silent for {SILENT_LIMIT_S:g} s"
            self._process.kill()  # works on a stopped process too; the end of the socket brings the rest

    # --- events ---

    def _readable(self) -> None:
        for _ in range(64):  # then the loop's other work has its turn
            try:
                data = self._socket.recv(MAX_PACKET_BYTES)
            except BlockingIOError:
                return
            except ConnectionResetError:
                data = b""
            if not data:
                self._loop.remove_reader(self._socket)
                self._loop.remove_writer(self._socket)
                self._closing = self._loop.create_task(self._end())
                return
            self._handle(msgspec.json.decode(data))

    def _handle(self, event: dict[str, Any]) -> None:
        match event["event"]:
            case "ready":
                self._token = event["token"]
                if not self._ready.done():
                    self._ready.set_result(None)
            case "failed":
                self._failure = event["error"]
            case "started":
                self._live[event["key"]] = event["pid"]
                future = self._spawning.pop(event["key"])
                if not future.done():
                    future.set_result((event["pid"], event["start_ticks"]))
            case "spawn-failed":
                self._refuse(event["key"], event["reason"], event["error"], event.get("errno"))
            case "exited":
                self._live.pop(event["key"], None)
                self._tell(Exited(event["key"], event["pid"], event["code"], event["signal"]))
            case "stuck":
                self._tell(Stuck(event["key"], event["pids"]))
            case "deadline":
                self.acknowledged_deadline_ns = event["boottime_ns"]
                if self._unacknowledged:
                    self._unacknowledged.popleft()
            case "fenced":
                self._tell(Fenced(event["reason"]))
            case "bye":
                self._farewell = event["reason"]

    def _refuse(self, key: str, reason: str, error: str, errno: int | None = None) -> None:
        future = self._spawning.pop(key, None)
        if future is not None and not future.done():
            future.set_exception(SpawnFailed.of(key, reason, error, errno=errno))

    def _tell(self, event: Event) -> None:
        for listener in self._listeners:
            listener(event)

    async def _end(self) -> None:
        """The socket ended: reap the guardian, and when it did not say goodbye finish its work."""
        if self._watchdog is not None:
            self._watchdog.cancel()
        if self._farewell is None:
            self._process.kill()  # whatever state it is in, only one of us may go on
        await asyncio.to_thread(self._process.wait)
        for _, fds in self._outbox:
            _close_all(fds)
        self._outbox.clear()
        self._socket.close()
        if self._farewell is None and self._token is not None:
            # Its direct children died with it; what they had forked carries its mark.
            while pids := await asyncio.to_thread(proctree.kill_marked, self._token, limit_s=10.0):
                self._tell(Stuck(None, pids))
        for key in list(self._spawning):
            self._refuse(key, "guardian-lost", f"the guardian is gone: {self._failure}")
        for key, pid in self._live.items():
            self._tell(Exited(key, pid, None, None))
        self._live.clear()
        if not self._ready.done():
            self._ready.set_exception(NetError("timeout", f"the guardian did not take over: {self._failure}"))
        elif self._farewell != "shutdown":
            self._tell(GuardianLost(self._farewell or self._failure))
        self._gone.set_result(None)


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
