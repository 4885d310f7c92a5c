"""Supervision of real processes by a real guardian, with lowered times."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from substrate.meshos import proctree
from substrate.meshos.capture import LogCapture, RateLimit
from substrate.meshos.guardian_client import GuardianClient, boottime_ns
from substrate.meshos.instance_types import InstanceKey, InstanceReport, InstanceSpec, RestartMode, SupervisorSettings
from substrate.meshos.loglines import Level, LogLine, LogSource
from substrate.meshos.restart import RestartSettings
from substrate.meshos.supervision import Supervisor
from substrate.wire.errors import NetError
from substrate.wire.times import now_ms

QUICK = SupervisorSettings(
    restart=RestartSettings(first_backoff_ms=40, max_backoff_ms=400, crash_loop_ms=600, stable_run_ms=5000),
    clean_restart_ms=30,
)
SLOW = SupervisorSettings(restart=RestartSettings(first_backoff_ms=60_000), clean_restart_ms=60_000)
SLEEPER = "import time\ntime.sleep(120)"
STUBBORN = """
    import signal, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("ready", flush=True)
    time.sleep(120)
"""
KEY = (7, 0)


class Lines:
    """A log sink that keeps the lines in a list."""

    def __init__(self) -> None:
        self.lines: list[LogLine] = []

    def attach(self, source: LogSource, stdout_fd: int, stderr_fd: int) -> LogCapture:
        return LogCapture(source, stdout_fd, stderr_fd, self.lines.append, now_ms, RateLimit())

    def note(self, source: LogSource | None, level: Level, message: str) -> None:
        assert source is not None
        self.lines.append(LogLine(now_ms(), level, "node", message, source.daemon_id, source.daemon, source.instance))

    def texts(self, stream: str = "stdout") -> list[str]:
        return [line.message for line in self.lines if line.stream == stream]


class Bench:
    def __init__(self, guardian: GuardianClient, settings: SupervisorSettings) -> None:
        self.guardian = guardian
        self.log = Lines()
        self.supervisor = Supervisor(guardian, self.log, now_ms, random.Random(1), node="alpha", settings=settings)
        self.history: list[str] = []
        self.changes: list[InstanceReport] = []
        self.supervisor.on_change = self._changed

    def _changed(self, report: InstanceReport) -> None:
        self.changes.append(report)
        self.history.append(report.lifecycle)

    def start(
        self, code: str, *, key: InstanceKey = KEY, epoch: int = 1, restart: RestartMode = "always", **rest: Any
    ) -> InstanceSpec:
        argv = rest.pop("argv", (sys.executable, "-c", textwrap.dedent(code)))
        spec = InstanceSpec(
            key=key, name="web", epoch=epoch, argv=argv, restart=restart, grace_ms=rest.pop("grace_ms", 20_000), **rest
        )
        self.supervisor.start(spec)
        return spec

    def now(self, key: InstanceKey = KEY) -> InstanceReport:
        return next(report for report in self.supervisor.report() if report.key == key)

    async def reaches(self, lifecycle: str, key: InstanceKey = KEY) -> InstanceReport:
        await until(lambda: self.now(key).lifecycle == lifecycle)
        return self.now(key)


@asynccontextmanager
async def bench(directory: Path, settings: SupervisorSettings = QUICK) -> AsyncIterator[Bench]:
    guardian = await GuardianClient.start(directory)
    guardian.set_deadline(boottime_ns() + 60 * 10**9)
    it = Bench(guardian, settings)
    try:
        yield it
        await it.supervisor.close()
    finally:
        if it.guardian.running:
            await it.guardian.shutdown(0)


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(45):
            await test()

    asyncio.run(limited())


async def until(condition: Callable[[], Any], limit_s: float = 15.0) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "the condition did not come true in time"
        await asyncio.sleep(0.003)


def alive(pid: int | None) -> bool:
    assert pid is not None
    return proctree.read_proc(pid) is not None


def test_a_life(tmp_path: Path) -> None:
    async def test() -> None:
        async with bench(tmp_path) as it:
            before = now_ms()
            spec = it.start(SLEEPER)
            report = await it.reaches("running")
            assert alive(report.pid) and report.pid is not None
            assert (report.name, report.epoch, report.restarts, report.last_exit) == ("web", 1, 0, None)
            assert report.started_at_ms is not None and before <= report.started_at_ms <= now_ms()
            it.supervisor.start(spec)  # what runs so already is left alone
            await it.supervisor.stop(KEY, "drain")
            assert not alive(report.pid)
            ended = it.now()
            assert (ended.lifecycle, ended.reason, ended.pid) == ("stopped", "drain", None)
            assert ended.last_exit is not None
            assert (ended.last_exit.code, ended.last_exit.signal) == (None, signal.SIGTERM)
            assert ended.last_exit.reason == "was killed by SIGTERM"
            await it.supervisor.stop(KEY, "again")
            assert it.now().reason == "drain"
            assert it.history == ["starting", "running", "stopping", "stopped"]
            it.supervisor.start(spec)
            await it.reaches("running")
            with pytest.raises(NetError) as error:
                it.supervisor.forget(KEY)
            assert error.value.kind == "conflict"
            await it.supervisor.stop(KEY, "drain")
            it.supervisor.forget(KEY)
            assert it.supervisor.report() == []

    run(test)


def test_what_a_daemon_is_told(tmp_path: Path) -> None:
    async def test() -> None:
        async with bench(tmp_path) as it:
            code = "import json, os; print(json.dumps(dict(os.environ))); print(os.getcwd())"
            it.start(code, restart="never", env={"COLOUR": "blue", "NET_NODE": "forged"}, cwd=str(tmp_path), epoch=12)
            await it.reaches("stopped")
            env, cwd = it.log.texts()
            seen = json.loads(env)
            assert cwd == str(tmp_path)
            assert seen["COLOUR"] == "blue" and seen["PATH"] == os.environ["PATH"]
            told = {name: value for name, value in seen.items() if name.startswith("NET_") and name != "NET_TREE"}
            assert told == {
                "NET_DAEMON": "web",
                "NET_DAEMON_ID": "7",
                "NET_INSTANCE": "0",
                "NET_EPOCH": "12",
                "NET_NODE": "alpha",
            }
            assert "PYTEST_CURRENT_TEST" not in seen

    run(test)


@pytest.mark.parametrize(
    ("restart", "code", "again"),
    [
        ("always", 0, True), ("always", 3, True),
        ("on-failure", 0, False), ("on-failure", 3, True),
        ("never", 0, False), ("never", 3, False),
    ],
)  # fmt: skip
def test_restart_modes(tmp_path: Path, restart: RestartMode, code: int, again: bool) -> None:
    async def test() -> None:
        async with bench(tmp_path) as it:
            spec = it.start(f"print('here'); raise SystemExit({code})", restart=restart)
            if again:
                await until(lambda: it.now().restarts >= 2)
                assert it.history[:5] == ["starting", "running", "backing-off", "starting", "running"]
                await it.supervisor.stop(KEY, "enough")
            else:
                report = await it.reaches("stopped")
                assert report.last_exit is not None and report.last_exit.code == code
                assert report.reason == f"exited with code {code}"
                it.supervisor.start(spec)  # it has done its work; the same assignment does not run it twice
                await it.supervisor.stop(KEY, "sync")
                assert it.log.texts() == ["here"] and it.now().reason == f"exited with code {code}"
                await it.supervisor.restart(KEY)  # an operator's order does
                await until(lambda: len(it.log.texts()) == 2)

    run(test)


def test_a_crash_loop(tmp_path: Path) -> None:
    async def test() -> None:
        async with bench(tmp_path) as it:
            it.start("raise SystemExit(1)")
            report = await it.reaches("crash-looping")
            assert report.restarts == 4 and report.next_start_ms is not None
            assert 0 < report.next_start_ms - now_ms() <= 660
            pauses = [
                change.next_start_ms - change.last_exit.at_ms
                for change in it.changes
                if change.lifecycle == "backing-off" and change.next_start_ms and change.last_exit
            ]
            for pause, least in zip(pauses, [40, 80, 160, 320], strict=True):
                assert least - 5 <= pause <= least * 1.1 + 50
            assert it.log.texts("node") == ["web exited with code 1"] * 5
            # The loop's pause is over: one more try, and the back-off begins anew.
            await until(lambda: it.now().restarts == 5)
            await it.supervisor.stop(KEY, "enough")

    run(test)


def test_a_command_that_is_not_there_is_a_crash_with_a_reason(tmp_path: Path) -> None:
    async def test() -> None:
        async with bench(tmp_path) as it:
            it.start("", argv=("/no/such/program", "--now"))
            report = await it.reaches("crash-looping")
            assert report.reason == "could not start /no/such/program: No such file or directory"
            assert report.last_exit is not None and report.last_exit.code is None
            assert set(it.log.texts("node")) == {report.reason}
            assert "running" not in it.history
            await it.supervisor.stop(KEY, "enough")
            it.start("", argv=("/no/such/program",), restart="never", epoch=2)
            assert (await it.reaches("stopped")).restarts == 0

    run(test)


def test_stop_during_a_pause_cancels_it(tmp_path: Path) -> None:
    async def test() -> None:
        async with bench(tmp_path, SLOW) as it:
            it.start("raise SystemExit(1)")
            report = await it.reaches("backing-off")
            assert report.next_start_ms is not None and report.next_start_ms > now_ms() + 50_000
            await it.supervisor.stop(KEY, "drain")
            assert (it.now().lifecycle, it.now().reason, it.now().next_start_ms) == ("stopped", "drain", None)

    run(test)


def test_reset_restart_and_a_new_epoch_end_a_pause(tmp_path: Path) -> None:
    async def test() -> None:
        async with bench(tmp_path, SLOW) as it:
            spec = it.start("raise SystemExit(1)")
            await it.reaches("backing-off")
            it.supervisor.start(spec)  # the same assignment again does not
            it.supervisor.reset_backoff(KEY)
            await until(lambda: it.now().restarts == 1 and it.now().lifecycle == "backing-off")
            await it.supervisor.restart(KEY)
            await until(lambda: it.now().restarts == 2 and it.now().lifecycle == "backing-off")
            it.start(SLEEPER, epoch=2)
            report = await it.reaches("running")
            assert (report.epoch, report.restarts, report.next_start_ms) == (2, 0, None)

    run(test)


def test_requests_are_carried_out_one_by_one(tmp_path: Path) -> None:
    """Whatever comes at once, the processes of one instance never overlap, and the last word holds."""

    async def test() -> None:
        lock, bad = tmp_path / "lock", tmp_path / "bad"
        code = f"""
            import os, signal, time
            def end(*_):
                time.sleep(0.02); os.unlink({str(lock)!r}); os._exit(0)
            try:
                os.close(os.open({str(lock)!r}, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                open({str(bad)!r}, "w")
            signal.signal(signal.SIGTERM, end)
            print("up", flush=True)
            while True:
                signal.pause()
        """
        async with bench(tmp_path) as it:
            spec = it.start(code)
            await until(lambda: "up" in it.log.texts())
            for _ in range(3):
                ups = it.log.texts().count("up")
                tasks = [asyncio.ensure_future(it.supervisor.restart(KEY)) for _ in range(2)]
                tasks.append(asyncio.ensure_future(it.supervisor.stop(KEY, "now")))
                await asyncio.sleep(0)
                it.supervisor.start(spec)
                await asyncio.gather(*tasks)
                await until(lambda n=ups: it.now().lifecycle == "running" and it.log.texts().count("up") > n)  # type: ignore[misc]
            assert not bad.exists()
            await it.supervisor.stop(KEY, "done")
            assert it.now().lifecycle == "stopped" and not lock.exists()

    run(test)


def test_too_many_requests_are_refused(tmp_path: Path) -> None:
    async def test() -> None:
        async with bench(tmp_path) as it:
            it.start(STUBBORN)
            await until(lambda: it.log.texts())
            stops = [asyncio.ensure_future(it.supervisor.stop(KEY, "now")) for _ in range(100)]
            await it.reaches("stopping")
            refused = [stop for stop in stops if stop.done() and isinstance(stop.exception(), NetError)]
            assert 30 <= len(refused) <= 40
            assert {stop.exception().kind for stop in refused} == {"overloaded"}  # type: ignore[union-attr]
            it.guardian.kill("7.0")
            await asyncio.gather(*stops, return_exceptions=True)
            assert it.now().lifecycle == "stopped"

    run(test)


def test_a_stop_under_way_can_be_hastened(tmp_path: Path) -> None:
    async def test() -> None:
        async with bench(tmp_path) as it:
            it.start(STUBBORN, grace_ms=60_000)
            await until(lambda: it.log.texts())
            slow = asyncio.ensure_future(it.supervisor.stop(KEY, "drain"))
            report = await it.reaches("stopping")
            assert alive(report.pid)
            await it.supervisor.stop(KEY, "deadline", grace_ms=0)
            await slow
            ended = it.now()
            assert ended.reason == "drain" and not alive(report.pid)
            assert ended.last_exit is not None and ended.last_exit.signal == signal.SIGKILL

    run(test)


def test_replacing_waits_for_the_old_one(tmp_path: Path) -> None:
    async def test() -> None:
        async with bench(tmp_path) as it:
            it.start(STUBBORN, grace_ms=100)
            await until(lambda: it.log.texts())
            old = it.now().pid
            it.start(SLEEPER, epoch=2)
            await until(lambda: it.now().epoch == 2 and it.now().lifecycle == "running")
            assert not alive(old) and alive(it.now().pid)
            assert it.history == ["starting", "running", "stopping", "starting", "running"]

    run(test)


def test_a_fence_stops_everything_for_good(tmp_path: Path) -> None:
    async def test() -> None:
        async with bench(tmp_path, SLOW) as it:
            spec = it.start(SLEEPER, key=(1, 0))
            it.start("raise SystemExit(1)", key=(2, 0))
            it.start(STUBBORN, key=(3, 0))
            await it.reaches("running", (1, 0))
            await it.reaches("backing-off", (2, 0))
            await until(lambda: "ready" in it.log.texts())
            stopping = asyncio.ensure_future(it.supervisor.stop((3, 0), "drain"))
            it.guardian.set_deadline(boottime_ns() + 10**8)
            for key in ((1, 0), (2, 0), (3, 0)):
                assert (await it.reaches("stopped", key)).reason == "fenced"
            await stopping
            # Without a lease a start comes to nothing; with one it works again, same epoch or not.
            it.supervisor.start(spec)
            await until(lambda: it.history[-2:] == ["starting", "stopped"])
            assert it.now((1, 0)).reason == "fenced"
            it.guardian.set_deadline(boottime_ns() + 60 * 10**9)
            it.supervisor.start(spec)
            await it.reaches("running", (1, 0))

    run(test)


def test_the_loss_of_the_guardian_and_a_new_one(tmp_path: Path) -> None:
    async def test() -> None:
        async with bench(tmp_path) as it:
            spec = it.start(SLEEPER)
            pid = (await it.reaches("running")).pid
            os.kill(it.guardian.pid, signal.SIGKILL)
            report = await it.reaches("stopped")
            assert report.reason == "guardian-lost" and not alive(pid)
            it.supervisor.start(spec)
            await until(lambda: it.history[-2:] == ["starting", "stopped"])
            await it.guardian.wait_gone()
            it.guardian = await GuardianClient.start(tmp_path)
            it.guardian.set_deadline(boottime_ns() + 60 * 10**9)
            it.supervisor.attach(it.guardian)
            it.supervisor.start(spec)
            assert alive((await it.reaches("running")).pid)

    run(test)


def test_many_at_once(tmp_path: Path) -> None:
    async def test() -> None:
        async with bench(tmp_path) as it:
            keys = [(daemon, index) for daemon in (3, 1, 2) for index in (1, 0)]
            for key in keys:
                it.start(SLEEPER, key=key)
            await until(lambda: all(report.lifecycle == "running" for report in it.supervisor.report()))
            assert [report.key for report in it.supervisor.report()] == sorted(keys)
            pids = [report.pid for report in it.supervisor.report()]
            await it.supervisor.stop_all("node-stop")
            assert not any(alive(pid) for pid in pids)

    run(test)


def test_unknown_instances(tmp_path: Path) -> None:
    async def test() -> None:
        async with bench(tmp_path) as it:
            with pytest.raises(NetError) as stop:
                await it.supervisor.stop(KEY, "x")
            with pytest.raises(NetError) as restart:
                await it.supervisor.restart(KEY)
            with pytest.raises(NetError) as reset:
                it.supervisor.reset_backoff(KEY)
            assert {error.value.kind for error in (stop, restart, reset)} == {"daemon-not-found"}

    run(test)


def test_output_to_the_last_byte(tmp_path: Path) -> None:
    """Huge output, an unfinished last line, and both streams; nothing is lost when the process ends at once."""

    async def test() -> None:
        async with bench(tmp_path) as it:
            code = """
                import sys
                sys.stdout.write("".join(f"line {i} " + "x" * 200 + "\\n" for i in range(3000)) + "no end")
                sys.stderr.write("trouble\\n")
            """
            it.start(code, restart="never")
            await it.reaches("stopped")
            lines = it.log.texts()
            assert len(lines) == 3001 and lines[-1] == "no end"
            assert all(line.startswith(f"line {i} x") for i, line in enumerate(lines[:-1]))
            assert it.log.texts("stderr") == ["trouble"]
            levels = {line.stream: line.level for line in it.log.lines}
            assert levels["stdout"] == "info" and levels["stderr"] == "warn"

    run(test)
