"""The guardian with real processes: whatever a daemon does to escape, nothing of it outlives its lease."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from substrate.meshos import proctree
from substrate.meshos.guardian_client import (
    Event,
    Exited,
    Fenced,
    GuardianClient,
    GuardianLost,
    Spawned,
    SpawnFailed,
    boottime_ns,
)
from substrate.wire.errors import NetError

ROOT = Path(__file__).resolve().parents[2]
ENV = {"PATH": os.environ["PATH"]}
SECOND = 1_000_000_000


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(45):
            await test()

    asyncio.run(limited())


async def until(condition: Callable[[], Any], limit_s: float = 10.0) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "the condition did not come true in time"
        await asyncio.sleep(0.005)


def alive(pid: int) -> bool:
    return proctree.read_proc(pid) is not None


class Node:
    """A guardian client with the events it told, and the output of what it spawned."""

    def __init__(self, client: GuardianClient) -> None:
        self.client = client
        self.events: list[Event] = []
        self.fds: list[int] = []
        client.subscribe(self.events.append)

    async def spawn(self, key: str, code: str, *args: str) -> Spawned:
        return await self.spawn_argv(key, [sys.executable, "-c", textwrap.dedent(code), *args])

    async def spawn_argv(self, key: str, argv: list[str], env: dict[str, str] | None = None) -> Spawned:
        spawned = await self.client.spawn(key, argv, ENV if env is None else env, "/")
        self.fds += [spawned.stdout_fd, spawned.stderr_fd]
        return spawned

    async def exited(self, key: str) -> Exited:
        def found() -> list[Exited]:
            return [event for event in self.events if isinstance(event, Exited) and event.key == key]

        await until(found)
        assert len(found()) == 1
        return found()[0]


@asynccontextmanager
async def node(directory: Path, *, lease_s: float = 60.0) -> AsyncIterator[Node]:
    client = await GuardianClient.start(directory)
    it = Node(client)
    if lease_s:
        client.set_deadline(boottime_ns() + int(lease_s * SECOND))
    try:
        yield it
    finally:
        if client.running:
            await client.shutdown(0)
        for fd in it.fds:
            os.close(fd)
    assert (directory / "guardian.log").read_text() == ""


async def read_line(fd: int) -> str:
    """One line from a non-blocking pipe."""
    data = b""

    def more() -> bool:
        nonlocal data
        try:
            data += os.read(fd, 4096)
        except BlockingIOError:
            return False
        return data.endswith(b"\n")

    await until(more)
    return data.decode().strip()


async def pids_from(fd: int) -> list[int]:
    return [int(pid) for pid in (await read_line(fd)).split()]


SLEEPER = "import time\ntime.sleep(120)"

# Each prints the pids of every process it makes, itself included, once all of them are there.
TREES = {
    "grandchildren": """
        import os, time, subprocess, sys
        code = "import os, time; os.fork(); os.write(1, b'%d ' % os.getpid()); time.sleep(120)"
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        text = b""
        while text.count(b" ") < 2:
            text += os.read(child.stdout.fileno(), 100)
        print(os.getpid(), text.decode(), flush=True)
        time.sleep(120)
    """,
    "double-fork": """
        import os, time
        r, w = os.pipe()
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.write(w, str(os.getpid()).encode())
                time.sleep(120)
            os._exit(0)
        print(os.getpid(), os.read(r, 100).decode(), flush=True)
        time.sleep(120)
    """,
    "double-fork with no environment": """
        import os, sys, time
        r, w = os.pipe()
        os.set_inheritable(w, True)
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                code = f"import os, time; os.write({w}, str(os.getpid()).encode()); time.sleep(120)"
                os.execve(sys.executable, [sys.executable, "-I", "-S", "-c", code], {})
            os._exit(0)
        print(os.getpid(), os.read(r, 100).decode(), flush=True)
        time.sleep(120)
    """,
    "ignores SIGTERM": """
        import os, signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        r, w = os.pipe()
        if os.fork() == 0:
            os.write(w, str(os.getpid()).encode())
            time.sleep(120)
        print(os.getpid(), os.read(r, 100).decode(), flush=True)
        time.sleep(120)
    """,
    "stopped": """
        import os, signal, time
        r, w = os.pipe()
        if os.fork() == 0:
            os.write(w, str(os.getpid()).encode())
            os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(120)
        print(os.getpid(), os.read(r, 100).decode(), flush=True)
        time.sleep(120)
    """,
}


@pytest.mark.parametrize("shape", TREES)
def test_stop_leaves_nothing_of_a_tree(tmp_path: Path, shape: str) -> None:
    async def test() -> None:
        async with node(tmp_path) as it:
            spawned = await it.spawn("d.0", TREES[shape])
            other = await it.spawn("other.0", TREES["double-fork"])
            pids, others = await pids_from(spawned.stdout_fd), await pids_from(other.stdout_fd)
            assert pids[0] == spawned.pid and len(pids) >= 2
            assert all(alive(pid) for pid in (*pids, *others))
            it.client.stop("d.0", 300)
            exited = await it.exited("d.0")
            # Asked the moment the event arrives: it is a promise about the whole tree.
            assert [pid for pid in pids if alive(pid)] == []
            assert exited.signal == (signal.SIGKILL if shape == "ignores SIGTERM" else signal.SIGTERM)
            assert all(alive(pid) for pid in others), "the neighbour must not be touched"

    run(test)


@pytest.mark.parametrize("shape", ["double-fork", "ignores SIGTERM", "double-fork with no environment"])
def test_what_a_daemon_leaves_behind_at_its_exit_is_killed(tmp_path: Path, shape: str) -> None:
    async def test() -> None:
        async with node(tmp_path) as it:
            code = textwrap.dedent(TREES[shape]).rsplit("time.sleep", 1)[0] + "os._exit(7)"
            spawned = await it.spawn("d.0", code)
            pids = await pids_from(spawned.stdout_fd)
            assert (await it.exited("d.0")).code == 7
            assert len(pids) == 2 and not any(alive(pid) for pid in pids)

    run(test)


def test_grace_is_given_to_the_whole_group(tmp_path: Path) -> None:
    """The shell dies of SIGTERM at once; its child may still use the grace to finish its work."""

    async def test() -> None:
        async with node(tmp_path) as it:
            worker = (
                "import signal, sys, time, os\n"
                "def end(*_):\n"
                "    time.sleep(0.3); open(sys.argv[1], 'w').write('saved'); os._exit(0)\n"
                "signal.signal(signal.SIGTERM, end)\nprint(os.getpid(), flush=True)\ntime.sleep(120)"
            )
            saved = tmp_path / "saved"
            spawned = await it.spawn_argv(
                "d.0", ["sh", "-c", f'"{sys.executable}" -c "$0" "$1" & wait', worker, str(saved)]
            )
            [pid] = await pids_from(spawned.stdout_fd)
            it.client.stop("d.0", 20_000)
            await it.exited("d.0")
            assert saved.read_text() == "saved" and not alive(pid)

    run(test)


def test_kill_is_at_once_and_codes_are_reported(tmp_path: Path) -> None:
    async def test() -> None:
        async with node(tmp_path) as it:
            spawned = await it.spawn("a.0", SLEEPER)
            it.client.kill("a.0")
            assert await it.exited("a.0") == Exited("a.0", spawned.pid, None, signal.SIGKILL)
            await it.spawn("b.0", "raise SystemExit(3)")
            assert (await it.exited("b.0")).code == 3
            it.client.stop("b.0", 1000)  # already over: nothing happens, nothing breaks
            await it.spawn("b.1", "pass")
            assert (await it.exited("b.1")).code == 0

    run(test)


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        (["/no/such/program"], "No such file"),
        (["no-such-program-anywhere"], "No such file"),
        (["/etc"], "Permission denied"),
        ([], "needs a program"),
        (["true", "a\0b"], "zero bytes"),
        (["true", "x" * 200_000], "of 163840 allowed"),
    ],
)
def test_a_command_that_cannot_run_says_why(tmp_path: Path, argv: list[str], error: str) -> None:
    async def test() -> None:
        async with node(tmp_path) as it:
            for _ in range(2):  # the key is free again after a failure
                with pytest.raises(SpawnFailed, match=error) as failure:
                    await it.spawn_argv("d.0", argv)
                assert failure.value.reason == "exec" and failure.value.kind == "rejected"
            await it.spawn_argv("d.0", ["true"])
            assert (await it.exited("d.0")).code == 0

    run(test)


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    async def test() -> None:
        async with node(tmp_path) as it:
            with pytest.raises(SpawnFailed, match="No such file") as failure:
                await it.client.spawn("d.0", ["true"], ENV, str(tmp_path / "gone"))
            assert failure.value.reason == "exec"

    run(test)


def test_one_key_runs_once(tmp_path: Path) -> None:
    async def test() -> None:
        async with node(tmp_path) as it:
            results = await asyncio.gather(*(it.spawn("d.0", SLEEPER) for _ in range(3)), return_exceptions=True)
            failures = [result for result in results if isinstance(result, SpawnFailed)]
            assert [failure.reason for failure in failures] == ["busy", "busy"]
            with pytest.raises(SpawnFailed, match="earlier start"):
                await it.spawn("d.0", SLEEPER)

    run(test)


def test_a_cancelled_spawn_leaves_no_process(tmp_path: Path) -> None:
    async def test() -> None:
        async with node(tmp_path) as it:
            tasks = [asyncio.ensure_future(it.spawn(f"d.{i}", SLEEPER)) for i in range(5)]
            await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            assert all(
                isinstance(r, asyncio.CancelledError) for r in await asyncio.gather(*tasks, return_exceptions=True)
            )
            for i in range(5):
                assert (await it.exited(f"d.{i}")).signal == signal.SIGKILL

    run(test)


def test_a_daemon_is_born_clean(tmp_path: Path) -> None:
    """Only three descriptors, default signals, its own session, the environment given plus the mark."""

    async def test() -> None:
        async with node(tmp_path) as it:
            await it.spawn("first.0", SLEEPER)
            code = """
                import json, os, signal
                status = dict(l.split(":", 1) for l in open("/proc/self/status").read().splitlines())
                fds = {fd: os.readlink("/proc/self/fd/" + fd) for fd in os.listdir("/proc/self/fd")
                       if os.path.lexists("/proc/self/fd/" + fd)}
                print(json.dumps({
                    "fds": fds, "env": dict(os.environ), "cwd": os.getcwd(), "sid": os.getsid(0), "pid": os.getpid(),
                    "blocked": status["SigBlk"].strip(), "ignored": status["SigIgn"].strip(),
                }), flush=True)
            """
            # -I -S, so that what the interpreter itself changes is the same everywhere.
            argv = [sys.executable, "-I", "-S", "-c", textwrap.dedent(code)]
            spawned = await it.spawn_argv("d.0", argv, {"PATH": ENV["PATH"], "NET_DAEMON": "web", "ODD": "\udcff"})
            seen = json.loads(await read_line(spawned.stdout_fd))
            assert sorted(map(int, seen["fds"])) == [0, 1, 2]
            assert seen["fds"]["0"] == "/dev/null" and seen["fds"]["1"].startswith("pipe:")
            assert seen["fds"]["1"] != seen["fds"]["2"]
            assert seen["cwd"] == "/" and seen["sid"] == seen["pid"] == spawned.pid
            mark = seen["env"].pop("NET_TREE")
            assert mark == f"{(tmp_path / 'guardian.lock').read_text().strip()}-2"
            seen["env"].pop("LC_CTYPE", None)  # the interpreter's own doing
            assert seen["env"] == {"PATH": ENV["PATH"], "NET_DAEMON": "web", "ODD": "\udcff"}
            assert int(seen["blocked"], 16) == 0
            # SIGPIPE and SIGXFSZ are Python's own; 32 and 33 belong to the C library, and only it could reset them.
            assert int(seen["ignored"], 16) & ~(1 << 12 | 1 << 24 | 1 << 31 | 1 << 32) == 0

    run(test)


def test_no_descriptor_is_left_over(tmp_path: Path) -> None:
    async def test() -> None:
        async with node(tmp_path) as it:

            def fds(pid: int) -> int:
                return len(os.listdir(f"/proc/{pid}/fd"))

            mine, its = fds(os.getpid()), fds(it.client.pid)
            for i in range(20):
                await it.spawn_argv(f"d.{i}", ["true"])
                await it.exited(f"d.{i}")
                with pytest.raises(SpawnFailed):
                    await it.spawn_argv(f"d.{i}", ["/no/such/program"])
            while it.fds:
                os.close(it.fds.pop())
            assert (fds(os.getpid()), fds(it.client.pid)) == (mine, its)

    run(test)


# --- fences ---


def test_nothing_starts_without_a_lease(tmp_path: Path) -> None:
    async def test() -> None:
        async with node(tmp_path, lease_s=0) as it:
            with pytest.raises(SpawnFailed, match="no lease") as failure:
                await it.spawn("d.0", SLEEPER)
            assert failure.value.reason == "fenced"
            it.client.set_deadline(boottime_ns() - 1)
            await until(lambda: it.events)
            assert it.events == [Fenced("deadline")]
            with pytest.raises(SpawnFailed, match="no lease"):
                await it.spawn("d.0", SLEEPER)

    run(test)


@pytest.mark.parametrize("shape", TREES)
def test_at_the_deadline_everything_dies(tmp_path: Path, shape: str) -> None:
    async def test() -> None:
        async with node(tmp_path) as it:
            spawned = await it.spawn("d.0", TREES[shape])
            pids = await pids_from(spawned.stdout_fd)
            deadline = boottime_ns() + SECOND // 5
            it.client.set_deadline(deadline)
            await until(lambda: boottime_ns() > deadline - SECOND // 20)
            exited = await it.exited("d.0")
            late_s = (boottime_ns() - deadline) / SECOND
            assert 0 <= late_s < 2.0
            assert exited.signal == signal.SIGKILL and it.events[0] == Fenced("deadline")
            assert [pid for pid in pids if alive(pid)] == []
            # A new lease opens it again, under the same key.
            it.client.set_deadline(boottime_ns() + 60 * SECOND)
            assert alive((await it.spawn("again.0", SLEEPER)).pid)

    run(test)


def test_a_renewed_deadline_does_not_fire(tmp_path: Path) -> None:
    async def test() -> None:
        async with node(tmp_path, lease_s=0.4) as it:
            spawned = await it.spawn("d.0", SLEEPER)
            end = time.monotonic() + 1.2
            while time.monotonic() < end:
                it.client.set_deadline(boottime_ns() + 2 * SECOND // 5)
                await asyncio.sleep(0.05)
            assert it.events == [] and alive(spawned.pid)
            assert it.client.acknowledged_deadline_ns is not None

    run(test)


def test_shutdown_is_graceful(tmp_path: Path) -> None:
    async def test() -> None:
        async with node(tmp_path) as it:
            polite = await it.spawn("polite.0", SLEEPER)
            rude = await it.spawn("rude.0", TREES["ignores SIGTERM"])
            pids = [polite.pid, *await pids_from(rude.stdout_fd)]
            await it.client.shutdown(300)
            assert (await it.exited("polite.0")).signal == signal.SIGTERM
            assert (await it.exited("rude.0")).signal == signal.SIGKILL
            assert not any(alive(pid) for pid in pids)
            assert not any(isinstance(event, GuardianLost) for event in it.events)
            with pytest.raises(SpawnFailed, match="gone"):
                await it.spawn("d.0", SLEEPER)

    run(test)


# --- the death of a node or a guardian ---

FAKE_NODE = """
    import asyncio, json, os, sys
    from pathlib import Path
    from substrate.meshos.guardian_client import GuardianClient, boottime_ns

    async def main(directory, lease_s, holder, *codes):
        client = await GuardianClient.start(Path(directory))
        client.set_deadline(boottime_ns() + int(float(lease_s) * 1e9))
        if holder == "fork" and os.fork() == 0:
            import time; time.sleep(120)    # a worker that keeps the node's descriptors open
        events = []
        client.subscribe(lambda event: print(json.dumps(["event", type(event).__name__]), flush=True))
        for i, code in enumerate(codes):
            spawned = await client.spawn(f"d.{i}", [sys.executable, "-c", code], dict(os.environ), "/")
            line = b""
            while not line.endswith(b"\\n"):
                try:
                    line += os.read(spawned.stdout_fd, 1000)
                except BlockingIOError:
                    await asyncio.sleep(0.005)
            print(json.dumps(["pids", *map(int, line.split())]), flush=True)
        print(json.dumps(["ready", client.pid]), flush=True)
        await client.wait_gone()

    asyncio.run(main(*sys.argv[1:]))
"""


class FakeNode:
    """A node process of its own, in its own process group, that spawned the tree shapes named."""

    def __init__(self, directory: Path, *shapes: str, lease_s: float = 60, holder: str = "") -> None:
        codes = [textwrap.dedent(TREES[shape]) for shape in shapes]
        self.process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(FAKE_NODE), str(directory), str(lease_s), holder, *codes],
            stdout=subprocess.PIPE,
            process_group=0,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        self.pids: list[int] = []
        while (line := self.read())[0] != "ready":
            self.pids += line[1:]
        self.guardian = line[1]

    def read(self) -> list[Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the fake node ended"
        document: list[Any] = json.loads(line)
        return document

    def close(self) -> None:
        for signum in (signal.SIGCONT, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, signum)
            except ProcessLookupError:
                pass
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def fake_node() -> Iterator[Callable[..., FakeNode]]:
    made: list[FakeNode] = []

    def make(*args: Any, **kwargs: Any) -> FakeNode:
        made.append(FakeNode(*args, **kwargs))
        return made[-1]

    yield make
    for it in made:
        it.close()


def wait_dead(pids: list[int], limit_s: float) -> float:
    """Seconds until none of `pids` lives."""
    start = time.monotonic()
    while any(alive(pid) for pid in pids):
        assert time.monotonic() - start < limit_s, f"still there: {[pid for pid in pids if alive(pid)]}"
        time.sleep(0.002)
    return time.monotonic() - start


@pytest.mark.parametrize("holder", ["", "fork"])
def test_kill_9_of_the_node_kills_all_it_started(
    tmp_path: Path, fake_node: Callable[..., FakeNode], holder: str
) -> None:
    it = fake_node(tmp_path, *TREES, holder=holder)
    assert len(it.pids) >= 2 * len(TREES) and all(alive(pid) for pid in it.pids)
    it.process.kill()
    wait_dead([*it.pids, it.guardian], 3.0)


def test_a_frozen_node_is_fenced(tmp_path: Path, fake_node: Callable[..., FakeNode]) -> None:
    it = fake_node(tmp_path, *TREES, lease_s=4.0)
    deadline_passed = boottime_ns() + 4 * SECOND  # a little after the true one
    os.killpg(it.process.pid, signal.SIGSTOP)
    assert all(alive(pid) for pid in it.pids)
    wait_dead(it.pids, 7.0)
    assert boottime_ns() - deadline_passed < 2 * SECOND
    assert alive(it.guardian)
    os.killpg(it.process.pid, signal.SIGCONT)
    events = [it.read()[1] for _ in range(len(TREES) + 1)]
    assert events == ["Fenced"] + ["Exited"] * len(TREES)


def test_kill_9_of_the_guardian_leaves_nothing(tmp_path: Path) -> None:
    async def test() -> None:
        async with node(tmp_path) as it:
            pids = []
            # Not the one that erases its environment: only a living guardian can know where that came from.
            shapes = [shape for shape in TREES if "no environment" not in shape]
            for i, shape in enumerate(shapes):
                pids += await pids_from((await it.spawn(f"d.{i}", TREES[shape])).stdout_fd)
            os.kill(it.client.pid, signal.SIGKILL)
            await it.client.wait_gone()
            assert not any(alive(pid) for pid in pids)
            assert [type(event) for event in it.events] == [Exited] * len(shapes) + [GuardianLost]
            with pytest.raises(SpawnFailed) as failure:
                await it.spawn("d.0", SLEEPER)
            assert failure.value.reason == "guardian-lost"

    run(test)


def test_a_guardian_that_hangs_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("substrate.meshos.guardian_client.SILENT_LIMIT_S", 0.5)

    async def test() -> None:
        async with node(tmp_path) as it:
            pids = await pids_from((await it.spawn("d.0", TREES["double-fork"])).stdout_fd)
            os.kill(it.client.pid, signal.SIGSTOP)
            it.client.set_deadline(boottime_ns() + 60 * SECOND)
            pending = asyncio.ensure_future(it.spawn("late.0", SLEEPER))
            await it.client.wait_gone()
            assert not any(alive(pid) for pid in pids)
            assert it.events[-1] == GuardianLost("it was silent for 0.5 s")
            with pytest.raises(SpawnFailed, match="silent"):
                await pending

    run(test)


def test_a_new_guardian_finishes_what_a_double_kill_left(tmp_path: Path, fake_node: Callable[..., FakeNode]) -> None:
    """Node and guardian die in the same instant: what escaped is dead before the next guardian says ready."""
    it = fake_node(tmp_path, "double-fork", "grandchildren")
    os.kill(it.guardian, signal.SIGSTOP)  # so that it cannot act on the node's death
    it.process.kill()
    os.kill(it.guardian, signal.SIGKILL)
    wait_dead([it.guardian], 3.0)

    async def test() -> None:
        async with node(tmp_path):
            assert not any(alive(pid) for pid in it.pids)

    run(test)


def test_a_second_guardian_waits_for_the_first(tmp_path: Path) -> None:
    async def test() -> None:
        async with node(tmp_path) as first:
            with pytest.raises(NetError, match="still holds this node's lock") as error:
                await GuardianClient.start(tmp_path, limit_ms=200)
            assert error.value.kind == "timeout"
            spawned = await first.spawn("d.0", TREES["ignores SIGTERM"])
            pids = await pids_from(spawned.stdout_fd)
            starting = asyncio.ensure_future(GuardianClient.start(tmp_path))
            await first.client.shutdown(100)
            second = await starting
            assert not any(alive(pid) for pid in pids)
            await second.shutdown(0)

    run(test)


def test_sigterm_to_the_guardian_ends_all_it_started(tmp_path: Path) -> None:
    async def test() -> None:
        async with node(tmp_path) as it:
            pids = await pids_from((await it.spawn("d.0", TREES["grandchildren"])).stdout_fd)
            os.kill(it.client.pid, signal.SIGTERM)
            await it.client.wait_gone()
            assert not any(alive(pid) for pid in pids)
            assert it.events[-1] == GuardianLost("signal")

    run(test)


def test_a_bad_command_ends_everything_with_the_reason(tmp_path: Path) -> None:
    async def test() -> None:
        client = await GuardianClient.start(tmp_path)
        events: list[Event] = []
        client.subscribe(events.append)
        client._send({"command": "dance"})
        await client.wait_gone()
        assert events == [GuardianLost("bad-command")]

    run(test)


def test_the_guardian_is_small_and_alone(tmp_path: Path) -> None:
    """It imports nothing outside the standard library but its own five modules, and stays within 24 MiB."""

    async def test() -> None:
        async with node(tmp_path) as it:
            rss = next(
                line for line in Path(f"/proc/{it.client.pid}/status").read_text().splitlines() if "VmRSS" in line
            )
            assert int(rss.split()[1]) < 24 * 1024
            assert len(os.listdir(f"/proc/{it.client.pid}/task")) == 1

    run(test)
    code = (
        "import sys; sys.path.append(sys.argv[1]); import substrate.meshos.guardian; "
        "print(*sorted(name for name in sys.modules if name.split('.')[0] not in sys.stdlib_module_names))"
    )
    names = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(ROOT)], capture_output=True, text=True, check=True
    ).stdout.split()
    ours = {"guardian", "linux", "proctree", "takeover", "tree"}
    assert set(names) - {"__main__"} == {"substrate", "substrate.meshos"} | {
        f"substrate.meshos.{name}" for name in ours
    }


def test_a_recycled_pid_is_not_signalled() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        proc = proctree.read_proc(process.pid)
        assert proc is not None and proc.ppid == os.getpid()
        assert not proctree.send_signal(proc._replace(start_ticks=proc.start_ticks - 1), signal.SIGKILL)
        assert process.poll() is None
        assert proctree.send_signal(proc, signal.SIGKILL)
        assert process.wait(10) == -signal.SIGKILL
        assert not proctree.send_signal(proc, signal.SIGKILL)
        assert proctree.read_proc(process.pid) is None and proctree.mark_of(process.pid) is None


def test_a_timer_on_the_boot_clock() -> None:
    import select

    from substrate.meshos.linux import BoottimeTimer

    timer = BoottimeTimer()
    try:
        timer.clear()  # nothing to forget
        timer.set(boottime_ns() + SECOND // 20)
        assert select.select([timer.fd], [], [], 10)[0]
        timer.clear()
        assert not select.select([timer.fd], [], [], 0)[0]
        timer.set(0)
        assert select.select([timer.fd], [], [], 10)[0]
    finally:
        os.close(timer.fd)


def test_socket_pairs_carry_whole_packets() -> None:
    """What the limit of a command rests on: the kernel takes a packet of that size in one piece."""
    from substrate.meshos.guardian import MAX_PACKET_BYTES as THEIRS
    from substrate.meshos.guardian_client import MAX_PACKET_BYTES as OURS

    assert THEIRS == OURS
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with left, right:
        left.setblocking(False)
        assert left.send(bytes(OURS)) == OURS
        assert len(right.recv(OURS)) == OURS
