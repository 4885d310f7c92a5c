"""One daemon instance under supervision: its requests, its lifecycle and its restarts, in one task."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Literal

import msgspec

from substrate.meshos.guardian_client import Exited, GuardianClient, SpawnFailed
from substrate.meshos.instance_types import (
    InstanceReport,
    InstanceSpec,
    LastExit,
    Lifecycle,
    LogSink,
    SupervisorSettings,
)
from substrate.meshos.loglines import Level, LogSource
from substrate.meshos.restart import Gate, RestartPolicy
from substrate.wire.errors import NetError

MAX_REQUESTS: Final = 64
MAX_OUTPUT_WAIT_S: Final = 1.0
INHERITED: Final = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "TZ", "TMPDIR")
"""What a daemon sees of the node's environment: as little as possible, so that it runs alike on every node."""


class _Request(msgspec.Struct):
    what: Literal["start", "stop", "restart"]
    spec: InstanceSpec | None
    reason: str
    done: asyncio.Future[None]
    grace_ms: int | None = None


def _monotonic_ms() -> int:
    return time.monotonic_ns() // 1_000_000


class Instance:
    """One instance. Methods only leave requests; the task carries them out one by one."""

    def __init__(
        self,
        spec: InstanceSpec,
        guardian: Callable[[], GuardianClient],
        log_sink: LogSink,
        now_ms: Callable[[], int],
        rng: random.Random,
        node: str,
        settings: SupervisorSettings,
    ) -> None:
        self._spec = spec
        self._guardian = guardian
        self._log_sink = log_sink
        self._now_ms = now_ms
        self._rng = rng
        self._node = node
        self._settings = settings
        self._policy = RestartPolicy(settings.restart)
        self._requests: deque[_Request] = deque()
        self._wake = asyncio.Event()
        self._exit: Exited | None = None
        self._ended_by: str | None = None
        """fenced or guardian-lost: from outside, over the head of every rule of restart."""
        self._wanted = False
        self._completed = False
        """It ended by itself and is, by its restart mode, not to run again."""
        self._hasten = False
        self._closed = False
        self.guardian_key = f"{spec.key[0]}.{spec.key[1]}"
        self.lifecycle: Lifecycle = "stopped"
        self.on_change: Callable[[Instance], None] | None = None
        self._reason: str | None = None
        self._pid: int | None = None
        self._started_at_ms: int | None = None
        self._restarts = -1
        self._last_exit: LastExit | None = None
        self._next_start_ms: int | None = None
        self._since = _monotonic_ms()
        self._task = asyncio.get_running_loop().create_task(self._live())
        self._task.add_done_callback(self._task_ended)

    # --- requests ---

    @property
    def idle(self) -> bool:
        """Stopped, and nobody asked for anything else."""
        return self.lifecycle == "stopped" and not self._requests and not self._wanted

    def request_start(self, spec: InstanceSpec) -> None:
        """Run as `spec` says. A report made right after this shows it already."""
        if not self.idle or self._closed:
            self._ask("start", spec)
        elif spec != self._spec or not self._completed:
            self._begin(spec)
            self._enter("starting", None)
            self._wake.set()

    async def request_stop(self, reason: str, grace_ms: int | None = None) -> None:
        """Stop; returns when that is done. A grace given here shortens that of a stop under way."""
        done = self._ask("stop", None, reason, grace_ms)
        if self.lifecycle == "stopping" and grace_ms is not None:
            self._guardian().stop(self.guardian_key, grace_ms)
        await asyncio.shield(done)

    async def request_restart(self) -> None:
        """Stop and start; returns when the old run is over and the new one is about to start."""
        await asyncio.shield(self._ask("restart", None, "restart"))

    def configure(self, settings: SupervisorSettings) -> None:
        """Go by other times from now on."""
        self._settings = settings
        self._policy.settings = settings.restart

    def reset_backoff(self) -> None:
        """Forget crashes and end a pause."""
        self._policy.release()
        self._hasten = True
        self._wake.set()

    def exited(self, event: Exited) -> None:
        """The guardian says that the tree is over."""
        self._exit = event
        self._wake.set()

    def end(self, reason: str) -> None:
        """The guardian kills everything: do not start again until asked to."""
        if self._wanted:
            self._ended_by = reason
            self._wake.set()

    async def close(self) -> None:
        """End the task, once it is stopped."""
        self._closed = True
        self._wake.set()
        await self._task

    def report(self) -> InstanceReport:
        """What it is doing."""
        return InstanceReport(
            key=self._spec.key,
            name=self._spec.name,
            epoch=self._spec.epoch,
            lifecycle=self.lifecycle,
            pid=self._pid,
            started_at_ms=self._started_at_ms,
            restarts=max(self._restarts, 0),
            last_exit=self._last_exit,
            next_start_ms=self._next_start_ms,
            age_ms=_monotonic_ms() - self._since,
            reason=self._reason,
        )

    def _ask(
        self,
        what: Literal["start", "stop", "restart"],
        spec: InstanceSpec | None,
        reason: str = "",
        grace_ms: int | None = None,
    ) -> asyncio.Future[None]:
        if len(self._requests) >= MAX_REQUESTS or self._closed:
            raise NetError("overloaded", f"too many requests wait for instance {self.guardian_key}")
        request = _Request(what, spec, reason, asyncio.get_running_loop().create_future(), grace_ms)
        self._requests.append(request)
        self._wake.set()
        return request.done

    # --- the task ---

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        """Nobody may wait for ever on a task that failed: a bug, told to the loop's exception handler."""
        error = None if task.cancelled() else task.exception()
        if error is not None:
            task.get_loop().call_exception_handler({"message": f"instance {self.guardian_key}", "exception": error})
        self._closed = True
        for request in self._requests:
            if not request.done.done():
                request.done.set_exception(NetError("internal", f"supervision of {self.guardian_key} ended: {error!r}"))

    async def _live(self) -> None:
        while True:
            while self._requests:
                self._obey(self._requests.popleft())
            if self._wanted:
                await self._run()
            elif self._closed:
                return
            else:
                await self._woken(None)

    def _obey(self, request: _Request) -> None:
        """Carry out a request while nothing runs."""
        if request.what == "start":
            assert request.spec is not None
            if request.spec != self._spec or not (self._wanted or self._completed):
                self._begin(request.spec)  # else it is on its way already, or has done its work
        elif request.what == "restart":
            self._policy.release()
            self._wanted, self._completed, self._ended_by = True, False, None
        elif self._wanted:
            self._stopped(request.reason)
        if not request.done.done():
            request.done.set_result(None)

    def _begin(self, spec: InstanceSpec) -> None:
        if spec.epoch != self._spec.epoch or spec.argv != self._spec.argv:
            self._policy = RestartPolicy(self._settings.restart)
        self._spec, self._restarts = spec, -1
        self._wanted, self._completed, self._ended_by = True, False, None

    async def _run(self) -> None:
        """One run, from the start to the decision what comes after it."""
        if self._ended_by is not None:
            self._stopped(self._ended_by)
        else:
            await self._run_once()

    async def _run_once(self) -> None:
        self._exit, spec = None, self._spec
        self._restarts += 1
        if self.lifecycle != "starting":
            self._enter("starting", None)
        source = LogSource(spec.key[0], spec.name, spec.key[1])
        try:
            spawned = await self._guardian().spawn(self.guardian_key, spec.argv, self._environment(), spec.cwd or "/")
        except SpawnFailed as error:
            if error.reason in ("exec", "fork"):
                message = f"could not start {spec.argv[0] if spec.argv else 'an empty command'}: {error.message}"
                self._log_sink.note(source, "error", message)
                self._last_exit = LastExit(None, None, self._now_ms(), message)
                await self._pause(failed=True, reason=message)
            elif error.reason == "busy":  # an earlier run that somebody else stopped is not over yet
                await self._woken(0.05)
            else:
                self._stopped(self._ended_by or error.reason)
            return
        capture = self._log_sink.attach(source, spawned.stdout_fd, spawned.stderr_fd)
        self._policy.started(_monotonic_ms())
        self._pid, self._started_at_ms = spawned.pid, self._now_ms()
        self._enter("running", None)
        exited, ordered = await self._until_exit()
        await capture.finish(MAX_OUTPUT_WAIT_S)
        self._pid = None
        self._last_exit = LastExit(exited.code, exited.signal, self._now_ms(), self._ended_by or _describe(exited))
        if self._ended_by is not None:
            self._policy.ended(_monotonic_ms())
            self._stopped(self._ended_by)
        elif ordered:
            self._policy.ended(_monotonic_ms())  # the request that ended it is obeyed next
        else:
            failed = exited.code != 0
            level: Level = "error" if failed else "info"
            self._log_sink.note(source, level, f"{spec.name} {self._last_exit.reason}")
            await self._pause(failed=failed, reason=self._last_exit.reason)

    async def _until_exit(self) -> tuple[Exited, bool]:
        """Wait until the tree is over: how it ended, and whether a request had it end."""
        ordered = False
        while True:
            await self._woken(None)
            if self._exit is not None:
                return self._exit, ordered
            if self.lifecycle == "running":
                ordered = self._end_if_asked()

    def _end_if_asked(self) -> bool:
        """Have the present run end when somebody wants that; True when a request does."""
        if self._ended_by is not None:
            self._enter("stopping", self._ended_by)
            return False
        request = self._ending_request()
        if request is None:
            return False
        self._enter("stopping", request.reason or "replaced")
        self._guardian().stop(self.guardian_key, self._spec.grace_ms if request.grace_ms is None else request.grace_ms)
        return True

    def _ending_request(self) -> _Request | None:
        """The first request that needs the present run to end; those that ask for what is so already are answered."""
        while self._requests:
            request = self._requests[0]
            if request.what != "start" or request.spec != self._spec:
                return request
            self._requests.popleft()
            request.done.set_result(None)
        return None

    async def _pause(self, *, failed: bool, reason: str) -> None:
        """Decide about the next start, and wait until it is due or somebody wants something else."""
        now = _monotonic_ms()
        gate = self._policy.crashed(now) if failed else self._policy.ended(now)
        if self._spec.restart == "never" or (self._spec.restart == "on-failure" and not failed):
            self._completed = True
            self._stopped(reason)
            return
        if gate.until_ms is None:
            gate = Gate("backing-off", now + self._settings.clean_restart_ms)
        assert gate.until_ms is not None and gate.state != "open"
        pause_ms = int((gate.until_ms - now) * (1 + self._rng.random() * self._settings.jitter))
        self._next_start_ms = self._now_ms() + pause_ms
        self._enter(gate.state, reason)
        end, self._hasten = now + pause_ms, False
        while (left_ms := end - _monotonic_ms()) > 0:
            if (ended_by := self._ended_by) is not None:
                self._stopped(ended_by)
                break
            if self._ending_request() is not None or self._hasten:
                break
            await self._woken(left_ms / 1000)
        self._next_start_ms = None

    async def _woken(self, limit_s: float | None) -> None:
        """Wait for any news, at most `limit_s`."""
        try:
            async with asyncio.timeout(limit_s):
                await self._wake.wait()
        except TimeoutError:
            return
        self._wake.clear()

    # --- small things ---

    def _stopped(self, reason: str) -> None:
        self._wanted, self._ended_by, self._next_start_ms = False, None, None
        self._enter("stopped", reason)

    def _enter(self, lifecycle: Lifecycle, reason: str | None) -> None:
        self.lifecycle, self._reason, self._since = lifecycle, reason, _monotonic_ms()
        if self.on_change is not None:
            self.on_change(self)

    def _environment(self) -> dict[str, str]:
        spec = self._spec
        inherited: dict[str, Any] = {name: os.environ[name] for name in INHERITED if name in os.environ}
        return {
            **inherited,
            **spec.env,
            "NET_DAEMON": spec.name,
            "NET_DAEMON_ID": str(spec.key[0]),
            "NET_INSTANCE": str(spec.key[1]),
            "NET_EPOCH": str(spec.epoch),
            "NET_NODE": self._node,
        }


def _describe(exited: Exited) -> str:
    """How a run ended, in words."""
    if exited.signal is not None:
        known = exited.signal in set(signal.Signals)
        return f"was killed by {signal.Signals(exited.signal).name if known else f'signal {exited.signal}'}"
    if exited.code is not None:
        return f"exited with code {exited.code}"
    return "ended unseen"
