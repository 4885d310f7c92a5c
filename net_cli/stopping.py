"""Stopping nodes of this machine: ask over the node's own socket, then wait until its process is gone."""

from __future__ import annotations

import os
import select
import socket
import time
from typing import TYPE_CHECKING, Any, Final

from substrate.wire.errors import NetError

if TYPE_CHECKING:
    from net_cli.context import App

POLL_S: Final = 0.02


def stop_node(app: App, name: str) -> dict[str, Any]:
    """Stop the node called `name`; raises `not-connected` if it does not run here, `wait-timeout` if it stays."""
    from substrate.wire.ids import check_name
    from substrate.wire.paths import control_socket

    return _stop(app, name, control_socket(app.cluster, check_name("node", name)))


def stop_nodes(app: App) -> list[dict[str, Any]]:
    """Stop every node of the cluster on this machine, in name order; one that stays ends it with `wait-timeout`."""
    from net_sdk.discovery import sockets
    from substrate.wire.paths import runtime_dir

    found = sockets(app.cluster, runtime_dir(app.cluster))
    return [_stop(app, name, path) for name, path in found if _answers(path)]


def _stop(app: App, name: str, path: str) -> dict[str, Any]:
    from net_sdk.client import Client

    started = time.monotonic()
    deadline = started + app.timeout_s
    process = -1
    with Client(path, timeout_s=app.timeout_s) as client:
        status = client.get("/v1/status")
        try:
            # A handle, not a number: it cannot come to mean another process. Taken while the node is surely alive.
            process = os.pidfd_open(status["pid"]) if status.get("pid") else -1
            client.post("/v1/node/stop", {})
            app.out.detail(f"{name}: stopping")
            while _answers(path):
                _check(app, name, deadline)
                time.sleep(POLL_S)
            while process >= 0 and not select.select([process], [], [], POLL_S)[0]:
                _check(app, name, deadline)
        except ProcessLookupError:
            pass  # it ended between its answer and our look
        finally:
            if process >= 0:
                os.close(process)
    return {
        "node_name": name,
        "node_id": status["node_id"],
        "stopped": True,
        "elapsed_ms": int((time.monotonic() - started) * 1000),
    }


def _check(app: App, name: str, deadline: float) -> None:
    if time.monotonic() > deadline:
        raise NetError(
            "wait-timeout",
            f"node {name} has not stopped within {app.timeout_s:g} s",
            f"net node status --via {name}",
            {"node": name},
        )


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except TimeoutError:
            return True  # its queue is full: alive, and busy
        except OSError:
            return False
    return True
