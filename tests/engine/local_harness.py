"""The local engine as the conformance suite wants it, and a connection that loses what it is told to lose."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from substrate.engine.local import LocalEngine
from substrate.engine.local import protocol as p
from substrate.engine.local.directory import EngineDirectory, start_time
from substrate.redex import Retention, Store
from substrate.wire.frames import FrameDecoder, encode_frame
from tests.harness import REPO
from tests.procs import wait_until


class LossyProxy:
    """Stands between a client and the broker, frame by frame; see `conformance.Loss`."""

    def __init__(self, place: Path, broker: EngineDirectory) -> None:
        self.answers: float = 0
        self.requests: float = 0
        self.mute = False
        self._place = EngineDirectory(place)
        self._broker = broker
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> LossyProxy:
        self._place.create()
        self._server = await asyncio.start_unix_server(self._accept, str(self._place.socket))
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        streams = [writer]
        pumps: list[asyncio.Task[None]] = []
        try:
            there, back = await asyncio.open_unix_connection(str(self._broker.socket))
            streams.append(back)
            pumps = [
                asyncio.create_task(self._pump(reader, back, True)),
                asyncio.create_task(self._pump(there, writer, False)),
            ]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        except OSError:
            return  # no broker at the moment: the client sees its connection end
        finally:
            for pump in pumps:
                pump.cancel()
            for stream in streams:
                stream.transport.abort()
            if pumps:
                await asyncio.wait(pumps)

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, requests: bool) -> None:
        decoder = FrameDecoder()
        try:
            while data := await source.read(65536):
                for payload in decoder.feed(data):
                    if requests:
                        if isinstance(p.decode_client(payload), p.AppendCall) and self.requests:
                            self.requests -= 1
                            return
                    elif isinstance(p.decode_broker(payload), p.AppendDone):
                        if self.mute:
                            continue
                        if self.answers:
                            self.answers -= 1
                            return
                    target.write(encode_frame(payload))
                await target.drain()
        except ConnectionError:
            return

    def close(self) -> None:
        if self._server is not None:
            self._server.close()


class LocalHarness:
    """`conformance.EngineHarness` for the local engine, in a directory of its own."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="engine-"))
        self.directory = EngineDirectory(self.root / "engine")
        self._clients: list[subprocess.Popen[str]] = []

    async def connect(self, *, call_timeout_ms: int = 15_000) -> LocalEngine:
        return await LocalEngine.connect(self.directory.path, timeout_ms=15_000, call_timeout_ms=call_timeout_ms)

    @asynccontextmanager
    async def connected_badly(self, *, call_timeout_ms: int) -> AsyncIterator[tuple[LocalEngine, LossyProxy]]:
        keeper = await self.connect()  # the engine behind the proxy starts no broker
        place = Path(tempfile.mkdtemp(dir=self.root))
        async with LossyProxy(place, self.directory) as proxy:
            engine = await LocalEngine.connect(place, start=False, call_timeout_ms=call_timeout_ms)
            try:
                yield engine, proxy
            finally:
                await engine.close()
                await keeper.close()

    async def trimmed_chain(self, name: str, *, records: int, kept: int) -> None:
        with Store.open(self.directory.database) as store:
            store.create_chain(name, Retention(max_records=kept))
            store.append(name, [b"%d" % n for n in range(records)])
            assert store.sweep(name, 0) == records - kept

    def server_pid(self) -> int:
        def running() -> int | None:
            identity = self.directory.read_identity()
            if identity is None or start_time(identity.pid) != identity.start_time:
                return None
            return identity.pid

        return wait_until(running, 10, "a broker to run")

    def brokers(self) -> list[int]:
        """The processes that run a broker of this directory, also one that just begins."""
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit() and start_time(int(entry)) is not None:
                try:
                    command = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
                except (FileNotFoundError, ProcessLookupError):
                    continue  # ended while we looked
                if b"substrate.engine.local.broker" in command and os.fsencode(self.directory.path) in command:
                    found.append(int(entry))
        return found

    def client(self, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.engine.clients", str(self.directory.path), *arguments],
            cwd=REPO,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._clients.append(process)
        return process

    def close(self) -> None:
        for client in self._clients:
            client.kill()
            client.wait()
            for stream in (client.stdin, client.stdout):
                if stream is not None:
                    stream.close()
        for pid in self.brokers():
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not self.brokers(), 10, "the brokers to be gone")
        reap_children()
        shutil.rmtree(self.root)


def reap_children() -> None:
    """Collect brokers this process started and that ended after their client closed."""
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
