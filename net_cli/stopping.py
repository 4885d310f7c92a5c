"""Stopping nodes of this machine: ask over the node's own socket, then wait until nothing answers there."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, Any, Final

from substrate.wire.errors import NetError

if TYPE_CHECKING:
    from net_cli.context import App

POLL_S: Final = 0.02


def stop_node(app: App, name: str) -> dict[str, Any]:
    """Stop the node called `name`; raises `not-connected` if it does not run here, `wait-timeout` if it stays."""
    from net_sdk.client import Client
    from substrate.wire.ids import check_name
    from substrate.wire.paths import control_socket

    path = control_socket(app.cluster, check_name("node", name))
    return _stop(app, Client(path, timeout_s=app.timeout_s), name, path)


def stop_nodes(app: App) -> list[dict[str, Any]]:
    """Stop every node of the cluster on this machine, in name order; each that cannot be stopped fails the rest."""
    from net_sdk.client import Client
    from net_sdk.discovery import sockets
    from substrate.wire.paths import runtime_dir

    stopped = []
    for name, path in sockets(app.cluster, runtime_dir(app.cluster)):
        if _answers(path):
            stopped.append(_stop(app, Client(path, timeout_s=app.timeout_s), name, path))
    return stopped


def _stop(app: App, client: Any, name: str, path: str) -> dict[str, Any]:
    started = time.monotonic()
    with client:
        status = client.get("/v1/status")
        client.post("/v1/node/stop", {})
    app.out.detail(f"{name}: stopping")
    deadline = started + app.timeout_s
    while _answers(path):
        if time.monotonic() > deadline:
            raise NetError(
                "wait-timeout",
                f"node {name} has not stopped within {app.timeout_s:g} s",
                f"net node status --via {name}",
                {"node": name},
            )
        time.sleep(POLL_S)
    return {
        "node_name": name,
        "node_id": status["node_id"],
        "stopped": True,
        "elapsed_ms": int((time.monotonic() - started) * 1000),
    }


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
