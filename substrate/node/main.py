"""The node's process: logging, signals, and the loop around `Runtime`."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any

from substrate.node.runtime import Runtime
from substrate.node.settings import NodeSettings

log = logging.getLogger("net.node")


def run(settings: NodeSettings, on_ready: Callable[[dict[str, Any]], None]) -> int:
    """Run a node until it is told to stop; returns the exit code. Raises what keeps it from starting.

    `on_ready` is called once the node serves, with what the user is shown.
    """
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # two descriptors for each daemon instance
    return asyncio.run(_run(settings, on_ready))


async def _run(settings: NodeSettings, on_ready: Callable[[dict[str, Any]], None]) -> int:
    runtime = Runtime(settings)
    loop = asyncio.get_running_loop()
    hastening: set[asyncio.Task[None]] = set()

    def stop(name: str) -> None:
        if runtime.stopped.is_set():
            hastening.add(loop.create_task(runtime.hasten()))
        runtime.request_stop(name)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, stop, number.name)
    await runtime.start()
    on_ready(ready_document(runtime))
    await runtime.stopped.wait()
    await runtime.close()
    if runtime.failure is not None:
        log.error("ended by %s: %s", runtime.failure.kind, runtime.failure.message)
        return int(runtime.failure.exit_code)
    return 0


def ready_document(runtime: Runtime) -> dict[str, Any]:
    """What `net node start` prints."""
    state = runtime.ledger.state
    return {
        "node_name": runtime.settings.name,
        "node_id": str(runtime.node_id),
        "cluster": state.cluster,
        "cluster_id": state.cluster_id.hex(),
        "pid": os.getpid(),
        "socket": runtime.settings.control_socket,
        "state": runtime.state,
    }
