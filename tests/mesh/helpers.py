"""A small cluster of keys, and nodes that serve it in this process or in one of their own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from substrate.identity.keys import Keypair
from substrate.mesh.handshake import PeerInfo
from substrate.mesh.peer import PeerServer
from substrate.mesh.pool import PeerAddress, PeerPool
from substrate.wire.errors import NetError
from tests.harness import REPO
from tests.procs import wait_until

CLUSTER = bytes(range(16))
SEEDS = {name: bytes([number]) * 32 for number, name in enumerate(("a", "b", "c", "mallory"), 1)}
ADMITTED = ("a", "b", "c")


def key(name: str) -> Keypair:
    return Keypair(SEEDS[name])


def authorize(public_key: bytes) -> PeerInfo | None:
    for name in ADMITTED:
        if key(name).public_key == public_key:
            return PeerInfo(key(name).node_id, name, public_key)
    return None


def address(name: str, path: str, public_key: bytes | None = None) -> PeerAddress:
    own = key(name)
    return PeerAddress(own.node_id, name, public_key or own.public_key, (f"unix:{path}",))


def pool(name: str, *addresses: PeerAddress, cluster_id: bytes = CLUSTER) -> PeerPool:
    known = {found.node_id: found for found in addresses}
    return PeerPool(key(name), cluster_id, known.get)


@contextmanager
def socket_dir() -> Iterator[str]:
    """A short private directory: a socket's path has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="mesh", dir="/tmp") as directory:
        yield directory


class Counters:
    """What the handlers of one server saw."""

    def __init__(self) -> None:
        self.produced = 0
        self.streams_closed = 0
        self.cancelled = 0
        self.running = 0


def add_handlers(server: PeerServer) -> Counters:
    counters = Counters()

    async def echo(peer: PeerInfo, payload: bytes) -> bytes:
        return payload

    async def who(peer: PeerInfo, payload: bytes) -> bytes:
        return peer.name.encode()

    async def sleep(peer: PeerInfo, payload: bytes) -> bytes:
        counters.running += 1
        try:
            await asyncio.sleep(float(payload))
        except asyncio.CancelledError:
            counters.cancelled += 1
            raise
        finally:
            counters.running -= 1
        return b"slept"

    async def refuse(peer: PeerInfo, payload: bytes) -> bytes:
        raise NetError("daemon-not-found", "no such daemon", "net daemon ls", {"daemon": payload.decode()})

    async def odd_details(peer: PeerInfo, payload: bytes) -> bytes:
        raise NetError("conflict", "details that do not travel", details={"value": object()})

    async def broken(peer: PeerInfo, payload: bytes) -> bytes:
        raise ZeroDivisionError("a fault in a handler")

    async def too_much(peer: PeerInfo, payload: bytes) -> bytes:
        return bytes(2 * 1024 * 1024)

    async def count(peer: PeerInfo, payload: bytes) -> AsyncGenerator[bytes, None]:
        """`{"items", "size", "fail"?, "hang"?}`: items numbered from 0, padded to `size` bytes."""
        ask = json.loads(payload)
        try:
            for number in range(ask["items"]):
                counters.produced += 1
                yield b"%d" % number + b" " * (ask["size"] - len(b"%d" % number))
            if ask.get("fail"):
                raise NetError("chain-not-found", "the chain went away")
            if ask.get("hang"):
                await asyncio.sleep(3600)
        finally:
            counters.streams_closed += 1

    for handler in (echo, who, sleep, refuse, odd_details, broken, too_much):
        server.handle(handler.__name__, handler)
    server.handle_stream("count", count)
    return counters


def ask(items: int, size: int = 16, **more: bool) -> bytes:
    return json.dumps({"items": items, "size": size, **more}).encode()


async def until(predicate: Callable[[], object], what: str, limit_s: float = 10.0) -> None:
    """Let the loop run until `predicate` is true."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + limit_s
    while not predicate():
        assert loop.time() < deadline, f"waited {limit_s:g} s for {what}"
        await asyncio.sleep(0.005)


class NodeProcess:
    """A `PeerServer` in a process of its own."""

    def __init__(self, name: str, path: str) -> None:
        self.path = path
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.mesh.helpers", name, path],
            cwd=REPO,
            env={**os.environ, "PYTHONPATH": str(REPO)},
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n"

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)
        stat = Path(f"/proc/{self.process.pid}/stat")
        wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", 5, "the process to stop")

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def __enter__(self) -> NodeProcess:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.returncode is None:
            self.kill()


async def serve(name: str, path: str) -> None:
    async with PeerServer(path, key(name), CLUSTER, authorize) as server:
        add_handlers(server)
        print("ready", flush=True)
        await asyncio.sleep(3600)


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], sys.argv[2]))
