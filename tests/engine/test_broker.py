"""What is particular to the local engine: election, life and limits of its broker process."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from substrate.engine.local import LocalEngine, stop_broker
from substrate.engine.local import protocol as p
from substrate.engine.local.connection import MAX_IN_FLIGHT
from substrate.engine.local.directory import BrokerIdentity, EngineDirectory, next_epoch, start_time
from substrate.engine.local.launch import kill_broker
from substrate.engine.local.service import MAX_CONNECTIONS
from substrate.wire.errors import NetError
from substrate.wire.frames import FrameDecoder
from tests.engine.conformance import engines, error_of, next_line, read_all, take, until
from tests.engine.local_harness import LocalHarness, reap_children
from tests.harness import REPO
from tests.procs import wait_until


@pytest.fixture
def harness() -> Iterator[LocalHarness]:
    made = LocalHarness()
    yield made
    made.close()


class RawClient:
    """Bytes to and from the broker, without any of the client's manners."""

    def __init__(self, directory: EngineDirectory) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(10)
        self.socket.connect(str(directory.socket))
        self.decoder = FrameDecoder()

    def send(self, *messages: p.Message) -> None:
        self.socket.sendall(b"".join(map(p.encode, messages)))

    def receive(self) -> list[p.BrokerMessage]:
        """The messages of the next piece; empty at the end."""
        while True:
            data = self.socket.recv(65536)
            if not data:
                return []
            payloads = self.decoder.feed(data)
            if payloads:
                return [p.decode_broker(payload) for payload in payloads]

    def greet(self) -> p.Welcome:
        self.send(p.Hello(1, p.VERSION))
        (welcome,) = self.receive()
        assert isinstance(welcome, p.Welcome)
        return welcome

    def refusal(self) -> p.Failure:
        """The one failure the broker closes this connection with."""
        (message,) = self.receive()
        assert isinstance(message, p.Failure)
        assert message.id == 0
        assert self.socket.recv(1) == b""
        return message

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


@pytest.fixture
def running(harness: LocalHarness) -> LocalHarness:
    """A harness whose broker runs (it stays 10 s without clients)."""
    asyncio.run(start(harness))
    return harness


async def start(harness: LocalHarness) -> None:
    await (await harness.connect()).close()


# election and life ------------------------------------------------------------------------------------------------


def test_clients_that_race_to_start_a_broker_end_up_with_one(harness: LocalHarness) -> None:
    clients = [harness.client("connect") for _ in range(6)]
    pids = {int(client.stdout.readline()) for client in clients if client.stdout is not None}
    assert len(pids) == 1
    wait_until(lambda: harness.brokers() == list(pids), 10, "the losers of the election to be gone")


def test_a_second_broker_leaves_quietly_and_changes_nothing(running: LocalHarness) -> None:
    before = running.directory.read_identity()
    second = subprocess.run(
        [sys.executable, "-m", "substrate.engine.local.broker", "--dir", str(running.directory.path)],
        cwd=REPO,
        capture_output=True,
        timeout=20,
        check=False,
    )
    assert (second.returncode, second.stdout, second.stderr) == (0, b"", b"")
    assert running.directory.read_identity() == before
    with RawClient(running.directory) as client:
        assert client.greet().pid == running.server_pid()


def test_a_broker_does_not_bring_a_removed_directory_back(harness: LocalHarness) -> None:
    late = subprocess.run(
        [sys.executable, "-m", "substrate.engine.local.broker", "--dir", str(harness.directory.path)],
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert late.returncode == 1
    assert "ending: io-error" in late.stderr and "Traceback" not in late.stderr
    assert not harness.directory.path.exists()


def test_files_are_private(running: LocalHarness) -> None:
    directory = running.directory
    assert stat.S_IMODE(directory.path.stat().st_mode) == 0o700
    for path in directory.path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    assert stat.S_IMODE(directory.socket.stat().st_mode) == 0o600


def test_an_idle_broker_ends_by_itself_and_leaves_no_socket(running: LocalHarness) -> None:
    pid = running.server_pid()
    began = time.monotonic()
    wait_until(lambda: start_time(pid) is None, 20, "the idle broker to end")
    assert time.monotonic() - began > 7
    reap_children()
    assert not running.directory.socket.exists()
    assert not running.directory.database.with_name("engine.db-wal").exists(), "closed cleanly"
    with pytest.raises(NetError) as error:
        asyncio.run(LocalEngine.connect(running.directory.path, start=False, timeout_ms=300))
    assert error.value.kind == "engine-unavailable"
    assert not running.directory.socket.exists()


def test_sigterm_answers_what_is_in_progress(harness: LocalHarness) -> None:
    async def scenario() -> None:
        async with engines(harness) as (engine,):
            await engine.append("log", [b"0"], create=True)
            calls = [asyncio.create_task(engine.append("log", [b"%d" % n])) for n in range(200)]
            await asyncio.sleep(0)
            os.kill(harness.server_pid(), signal.SIGTERM)
            outcomes = await asyncio.gather(*calls)
            assert sorted(outcome.first_seq for outcome in outcomes) == list(range(2, 202))
            assert not any(outcome.duplicate for outcome in outcomes), "what was committed was answered"
            assert len(await read_all(engine, "log")) == 201

    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_stop_broker_waits_for_the_end(running: LocalHarness) -> None:
    assert stop_broker(running.directory.path) is True
    assert running.brokers() == []
    assert stop_broker(running.directory.path) is False


def test_a_client_that_was_frozen_does_not_kill_a_healthy_broker(harness: LocalHarness) -> None:
    client = harness.client("serve", "node/1")
    assert client.stdout is not None
    assert client.stdout.readline() == "ready\n"
    pid = harness.server_pid()
    client.send_signal(signal.SIGSTOP)
    time.sleep(3.5)  # the span of the freeze is the test; nothing is awaited
    client.send_signal(signal.SIGCONT)

    async def scenario() -> None:
        async with engines(harness) as (engine,):
            for _ in range(15):
                assert await engine.request("node/1", b"x", timeout_ms=5000) == b"x"
                await asyncio.sleep(0.1)

    asyncio.run(asyncio.wait_for(scenario(), 30))
    assert harness.server_pid() == pid


def test_kill_broker_leaves_other_processes_alone(harness: LocalHarness) -> None:
    victim = subprocess.Popen(["sleep", "60"])
    try:
        harness.directory.create()
        started = start_time(victim.pid)
        assert started is not None
        assert kill_broker(harness.directory, victim.pid, None) is False, "no broker.json"
        assert kill_broker(harness.directory, victim.pid, started + 1) is False, "another start time"
        harness.directory.write_identity(BrokerIdentity(victim.pid, started + 1, 1))
        assert kill_broker(harness.directory, victim.pid, None) is False
        assert stop_broker(harness.directory.path) is False
        assert victim.poll() is None
        assert kill_broker(harness.directory, victim.pid, started) is True
        assert victim.wait(10) == -signal.SIGKILL
        assert kill_broker(harness.directory, victim.pid, started) is False
    finally:
        victim.kill()
        victim.wait()


def test_a_broker_frozen_before_it_ever_answered_is_replaced(running: LocalHarness) -> None:
    frozen = running.server_pid()
    os.kill(frozen, signal.SIGSTOP)

    async def scenario() -> int:
        async with engines(running) as (engine,):
            return (await engine.status()).pid

    assert asyncio.run(asyncio.wait_for(scenario(), 30)) != frozen
    reap_children()
    assert start_time(frozen) is None


def test_a_store_that_cannot_write_ends_the_broker_and_the_next_one_settles_the_append(harness: LocalHarness) -> None:
    async def scenario() -> None:
        async with engines(harness) as (engine,):
            await engine.append("log", [b"before"], create=True)
            first = (await engine.status()).pid
            resource.prlimit(first, resource.RLIMIT_FSIZE, (4096, 4096))  # every write beyond 4 KiB fails
            appended = await engine.append("log", [bytes(20_000)])
            assert appended.first_seq == 2
            assert (await engine.status()).pid != first
            assert len(await read_all(engine, "log")) == 2

    asyncio.run(asyncio.wait_for(scenario(), 30))
    assert "ending: io-error" in harness.directory.log.read_text()


def test_a_full_disk_refuses_appends_until_there_is_space_again(harness: LocalHarness) -> None:
    place = harness.directory.path
    place.mkdir(mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m,mode=0700", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("cannot mount a small file system here")

    async def scenario() -> None:
        async with engines(harness) as (engine,):
            await engine.append("log", [b"first"], create=True)
            broker = (await engine.status()).pid
            filler = place / "filler"
            with open(filler, "wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
                while True:
                    file.write(bytes(65536))
            head = await engine.head("log")
            kinds = {(await error_of(engine.append("log", [bytes(250_000)]))).kind for _ in range(5)}
            assert kinds == {"disk-full"}
            assert await engine.head("log") == head
            filler.unlink()
            assert (await engine.append("log", [bytes(250_000)])).first_seq == 2
            assert (await engine.status()).pid == broker
            await engine.kv_put("k", b"alive")

    try:
        asyncio.run(asyncio.wait_for(scenario(), 30))
        stop_broker(place)
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_damaged_store_is_named_when_connecting(harness: LocalHarness) -> None:
    harness.directory.create()
    harness.directory.database.write_bytes(b"this is no database" * 1000)
    with pytest.raises(NetError) as error:
        asyncio.run(asyncio.wait_for(LocalEngine.connect(harness.directory.path, timeout_ms=15_000), 30))
    assert error.value.kind == "engine-unavailable"
    assert "corrupt-store" in error.value.message
    assert error.value.hint == f"see {harness.directory.log}"


def test_a_directory_open_to_others_is_refused(harness: LocalHarness) -> None:
    harness.directory.path.mkdir(mode=0o755)
    with pytest.raises(NetError) as error:
        asyncio.run(LocalEngine.connect(harness.directory.path))
    assert error.value.kind == "permissive-mode"
    assert not harness.directory.log.exists()


def test_a_path_too_long_for_a_socket_address_works(harness: LocalHarness) -> None:
    harness.directory = EngineDirectory(harness.root / ("deep" * 20) / ("deeper" * 20) / "engine")

    async def scenario() -> None:
        async with engines(harness) as (engine,):
            assert (await engine.append("log", [b"x"], create=True)).first_seq == 1

    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_epochs_grow_even_when_the_identity_was_lost(tmp_path: Path) -> None:
    year = 365 * 24 * 3600
    in_2027 = 1_767_225_600 + year + 60
    assert next_epoch(None, in_2027) == 365 * 24 + 1
    assert next_epoch(BrokerIdentity(1, 1, 5), in_2027) == 365 * 24 + 1
    assert next_epoch(BrokerIdentity(1, 1, 10_000), in_2027) == 10_001
    assert next_epoch(BrokerIdentity(1, 1, 7), 0.0) == 8, "a clock before 2026"
    directory = EngineDirectory(tmp_path)
    assert directory.read_identity() is None
    directory.identity.write_text("{")
    assert directory.read_identity() is None


# connections ------------------------------------------------------------------------------------------------------


def test_the_first_message_must_be_a_hello_of_this_version(running: LocalHarness) -> None:
    for first in (p.Ping(1), p.Hello(1, p.VERSION + 1)):
        with RawClient(running.directory) as client:
            client.send(first)
            assert client.refusal().kind == "invalid-argument"
    with RawClient(running.directory) as client:
        client.greet()
        client.send(p.Hello(2, p.VERSION), p.Ping(3))
        failure, pong = client.receive()
        assert isinstance(failure, p.Failure) and (failure.id, failure.kind) == (2, "invalid-argument")
        assert isinstance(pong, p.Pong)


@pytest.mark.parametrize(
    "nonsense",
    [b"\x05\0\0\0hello", b"\x01\0\0\0\x90", b"\x04\0\0\0\x93\x01\x01\xc0", b"\0\0\0\0", b"GET / HTTP/1.1\r\n\r\n"],
)
def test_nonsense_closes_only_its_own_connection(running: LocalHarness, nonsense: bytes) -> None:
    with RawClient(running.directory) as other, RawClient(running.directory) as client:
        other.greet()
        client.socket.sendall(nonsense)
        assert client.refusal().kind in ("invalid-argument", "too-large")
        other.send(p.Ping(2))
        assert isinstance(other.receive()[0], p.Pong)


def test_a_request_cut_short_does_nothing(running: LocalHarness) -> None:
    with RawClient(running.directory) as client:
        client.greet()
        client.socket.sendall(p.encode(p.PutCall(2, "k", b"v", None, None))[:-1])
    with RawClient(running.directory) as client:
        client.greet()
        client.send(p.GetCall(2, "k"))
        assert client.receive() == [p.EntryIs(2, None)]


def test_connections_are_limited(running: LocalHarness) -> None:
    clients = [RawClient(running.directory) for _ in range(MAX_CONNECTIONS)]
    try:
        for client in clients:
            client.greet()
        with RawClient(running.directory) as one_more:
            assert one_more.refusal().kind == "overloaded"
        clients.pop().socket.close()

        def accepted() -> bool:
            with RawClient(running.directory) as again:
                again.send(p.Hello(1, p.VERSION))
                return isinstance(again.receive()[0], p.Welcome)

        wait_until(accepted, 10, "a place to be free")
    finally:
        for client in clients:
            client.socket.close()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can play another user")
def test_another_user_is_refused_even_past_the_file_modes(running: LocalHarness) -> None:
    running.root.chmod(0o755)
    running.directory.path.chmod(0o755)
    running.directory.socket.chmod(0o666)
    child = (
        "import os, socket, sys; os.setgid(65534); os.setuid(65534)\n"
        "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n"
        "print(s.recv(4096)[4:])"
    )
    result = subprocess.run(
        [sys.executable, "-c", child, str(running.directory.socket)], capture_output=True, timeout=20, check=True
    )
    assert b"peer-uid" in result.stdout
    with RawClient(running.directory) as client:
        client.greet()


def test_appends_in_flight_are_limited_and_all_answered(running: LocalHarness) -> None:
    count = 3 * MAX_IN_FLIGHT
    with RawClient(running.directory) as client:
        client.greet()
        entries = [p.AppendCall(n + 2, "flood", [b"%d" % n], None, n.to_bytes(16, "big"), True) for n in range(count)]
        client.send(*entries)
        answers: list[p.BrokerMessage] = []
        while len(answers) < count:
            answers += client.receive()
        done = [answer for answer in answers if isinstance(answer, p.AppendDone)]
        assert [(answer.id, answer.appended.first_seq) for answer in done] == [(n + 2, n + 1) for n in range(count)]


def test_a_client_that_takes_nothing_is_dropped_and_delays_nobody(harness: LocalHarness) -> None:
    async def scenario() -> None:
        async with engines(harness) as (engine,):
            for _ in range(40):
                await engine.append("big", [bytes(250_000)], create=True)
            with RawClient(harness.directory) as dead:
                dead.greet()
                dead.send(*(p.TailOpen(n, "big", 1, 1000) for n in range(2, 12)))
                tail = engine.tail("big", 1)
                assert len(await take(tail, 40)) == 40
                assert (await engine.status()).connections == 2

                async def dropped() -> bool:
                    return (await engine.status()).connections == 1

                await until(dropped, "the dead client to be dropped", 20)
            assert (await engine.status()).tails == 1

    asyncio.run(asyncio.wait_for(scenario(), 50))
    assert "took nothing" in harness.directory.log.read_text()


def test_a_flood_of_reads_without_taking_the_answers_is_held_back(running: LocalHarness) -> None:
    async def fill() -> None:
        async with engines(running) as (engine,):
            for _ in range(8):
                await engine.append("big", [bytes(250_000)], create=True)

    asyncio.run(fill())
    pid = running.server_pid()
    with RawClient(running.directory) as flood:
        flood.greet()
        flood.socket.setblocking(False)
        request = b"".join(p.encode(p.ReadCall(n, "big", 1, 1000)) for n in range(2, 5000))
        try:
            flood.socket.send(request)
        except BlockingIOError:
            pass
        with RawClient(running.directory) as other:
            other.greet()
            other.send(p.Ping(2))
            assert isinstance(other.receive()[0], p.Pong)
        status = Path(f"/proc/{pid}/status").read_text()
        peak_kib = int(status.partition("VmHWM:")[2].split()[0])
        assert peak_kib < 150_000, "thousands of answers of 250 kB did not pile up"


def test_requests_by_hand_are_checked(running: LocalHarness) -> None:
    """The broker does not rely on the client's own checks."""
    bad: list[tuple[p.Message, str]] = [
        (p.AppendCall(2, "log", [b"x"], None, b"short", True), "invalid-argument"),
        (p.AppendCall(2, "no//name", [b"x"], None, bytes(16), True), "invalid-argument"),
        (p.AppendCall(2, "log", [], None, bytes(16), True), "invalid-argument"),
        (p.AppendCall(2, "log", [bytes(300_000)], None, bytes(16), True), "too-large"),
        (p.ReadCall(2, "log", 0, 10), "invalid-argument"),
        (p.ReadCall(2, "log", 1, 0), "invalid-argument"),
        (p.TailOpen(2, "log", 0, 10), "invalid-argument"),
        (p.TailOpen(2, "log", 1, 0), "invalid-argument"),
        (p.WatchOpen(2, "k" * 600), "invalid-argument"),
        (p.PutCall(2, "", b"", None, None), "invalid-argument"),
        (p.ServeCall(2, ""), "invalid-argument"),
        (p.RequestCall(2, "nobody", b"", 1000), "node-unreachable"),
        (p.RequestCall(2, "nobody", b"", 0), "invalid-argument"),
        (p.RequestCall(2, "nobody", bytes(600_000), 1000), "too-large"),
    ]
    with RawClient(running.directory) as client:
        client.greet()
        for message, kind in bad:
            client.send(message)
            (answer,) = client.receive()
            assert isinstance(answer, p.Failure), message
            assert (answer.id, answer.kind) == (2, kind), message


def test_stray_answers_and_acknowledgements_are_ignored(running: LocalHarness) -> None:
    with RawClient(running.directory) as client:
        client.greet()
        client.send(p.Answer(77, b""), p.TailAck(5, 9), p.WatchAck(6), p.CloseStream(7), p.Ping(8))
        (answer,) = client.receive()
        assert isinstance(answer, p.Pong)


def test_an_engine_closed_in_the_middle_of_an_append_says_unknown(harness: LocalHarness) -> None:
    async def scenario() -> None:
        engine = await harness.connect()
        await engine.append("log", [b"x"], create=True)
        os.kill(harness.server_pid(), signal.SIGSTOP)
        call = asyncio.create_task(engine.append("log", [b"y"]))
        claim = asyncio.create_task(engine.kv_put("leader", b"", expect=0))
        look = asyncio.create_task(engine.head("log"))
        await asyncio.sleep(0.05)
        await engine.close()
        assert (await error_of(call)).kind == "unknown-outcome"
        assert (await error_of(claim)).kind == "unknown-outcome"
        assert (await error_of(look)).kind == "engine-unavailable"
        os.kill(harness.server_pid(), signal.SIGKILL)

    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_an_engine_closes_although_the_broker_takes_nothing(harness: LocalHarness) -> None:
    async def scenario() -> None:
        engine = await harness.connect()
        started = asyncio.Event()

        async def slow(payload: bytes) -> bytes:
            started.set()
            await asyncio.sleep(60)
            return payload

        await engine.serve("node/1", slow).ready()
        asked = asyncio.create_task(engine.request("node/1", b"", timeout_ms=60_000))
        await started.wait()
        broker = harness.server_pid()
        os.kill(broker, signal.SIGSTOP)
        calls = [asyncio.create_task(engine.append("log", [bytes(200_000)], create=True)) for _ in range(20)]
        await asyncio.sleep(0.05)
        began = time.monotonic()
        await engine.close()
        assert time.monotonic() - began < 2
        assert {(await error_of(call)).kind for call in calls} == {"unknown-outcome"}
        assert (await error_of(asked)).kind == "node-unreachable"
        os.kill(broker, signal.SIGKILL)

    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_a_handler_that_fails_answers_internal_and_is_reported(harness: LocalHarness) -> None:
    async def scenario() -> None:
        reported: list[dict[str, object]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
        async with engines(harness) as (engine,):

            async def broken(payload: bytes) -> bytes:
                raise ZeroDivisionError("oh")

            await engine.serve("node/1", broken).ready()
            assert (await error_of(engine.request("node/1", b"", timeout_ms=5000))).kind == "internal"
            with pytest.raises(NetError, match="served here already"):
                engine.serve("node/1", broken)
        assert [str(context["exception"]) for context in reported] == ["oh"]

    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_brokers_are_reaped_by_the_client_that_started_them(harness: LocalHarness) -> None:
    async def scenario() -> None:
        async with engines(harness) as (engine,):
            first = harness.server_pid()
            os.kill(first, signal.SIGKILL)
            await engine.head("log")

            async def gone() -> bool:
                return not Path(f"/proc/{first}").exists()

            await until(gone, "the killed broker to be reaped")

    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_a_reader_process_ends_a_tail_it_finished(harness: LocalHarness) -> None:
    async def scenario() -> None:
        async with engines(harness) as (engine,):
            await engine.append("log", [b"%d" % n for n in range(5)], create=True)
            reader = harness.client("tail", "log", "5")
            assert [await next_line(reader) for _ in range(5)] == ["1", "2", "3", "4", "5"]
            assert await asyncio.to_thread(reader.wait, 20) == 0

    asyncio.run(asyncio.wait_for(scenario(), 30))
