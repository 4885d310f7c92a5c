"""The broker process: `python -m substrate.engine.local.broker --dir D`.

One per engine directory, elected by flock. It alone writes `engine.db`; everything it knows beside that (keys, tails,
watches, subjects) lives in its memory and ends with it. It ends by itself when no client has been connected for
`service.IDLE_EXIT_S`, on SIGTERM, and when its store fails: its clients then start another.

Exit codes: 0 done (or another broker was there first), 1 the store failed or could not be opened.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import gc
import os
import signal
import socket
import sys
import time
from pathlib import Path

from substrate.engine.local.connection import Connection
from substrate.engine.local.directory import BrokerIdentity, EngineDirectory, next_epoch, start_time
from substrate.engine.local.service import Broker, say
from substrate.redex import Store
from substrate.wire.errors import NetError


async def run(directory: EngineDirectory) -> int:
    """Serve until told or inclined to end; the election is won already. Returns the exit code."""
    loop = asyncio.get_running_loop()
    pid = os.getpid()
    started = start_time(pid)
    assert started is not None
    identity = BrokerIdentity(pid, started, next_epoch(directory.read_identity(), time.time()))
    directory.write_identity(identity)

    def failed(error: NetError) -> None:
        loop.call_soon_threadsafe(broker.fail, error)

    store = Store.open(directory.database, on_fatal=failed)
    try:
        broker = Broker(store, directory, identity)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, broker.end, 0)
        listener = _listen(directory)
        server = await loop.create_unix_server(lambda: Connection(broker, loop.time()), sock=listener, backlog=256)
        say(f"serving {directory.path}, epoch {identity.epoch}")
        broker.keep_house()
        gc.freeze()  # what is there now stays: full collections need not look at it
        code = await broker.exit_code
        directory.socket.unlink(missing_ok=True)  # clients that come now wait for the next broker
        server.close()
        if code == 0:
            await broker.drain()
        say("ended")
        return code
    finally:
        store.close()


def _listen(directory: EngineDirectory) -> socket.socket:
    directory.socket.unlink(missing_ok=True)  # the lock is ours: whoever bound it is gone
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    mask = os.umask(0o177)
    try:
        with directory.socket_address() as address:
            listener.bind(address)
    finally:
        os.umask(mask)
    return listener


def main(arguments: list[str] | None = None) -> int:
    """Take the lock and serve; returns the exit code."""
    parser = argparse.ArgumentParser(prog="broker", description="The local engine of one cluster.")
    parser.add_argument("--dir", required=True, type=Path, help="the engine directory")
    directory = EngineDirectory(parser.parse_args(arguments).dir.absolute())
    try:
        directory.check()
        lock = os.open(directory.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return 0  # another broker was first
        os.chdir("/")
        return asyncio.run(run(directory))  # the lock goes with the process
    except NetError as error:
        say(f"ending: {error.kind}: {error.message}")
        return 1
    except OSError as error:
        say(f"ending: io-error: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
