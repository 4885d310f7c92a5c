"""`net node start`: run a node here, or leave one running."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import msgspec

from substrate.node.settings import NodeSettings, make_private

SETTINGS_VARIABLE = "NET_NODE_SETTINGS"


def start(
    *,
    name: str,
    cluster: str = "default",
    operator: str | None = None,
    labels: Sequence[str] = (),
    detach: bool = False,
    join_token: str | None = None,
) -> dict[str, Any] | None:
    """Start a node.

    In the foreground it returns None when the node was stopped (and exits the process with the node's code if that is not 0);
    detached it returns the ready document. Raises what keeps the node from starting.
    """
    settings = NodeSettings(
        name=name, cluster=cluster, operator=operator, labels=tuple(labels), join_token=join_token
    ).check()
    if detach:
        return _detached(settings)
    from substrate.node.main import run

    def ready(document: dict[str, Any]) -> None:
        sys.stderr.write(f"node {document['node_name']} of cluster {document['cluster']} is ready; Ctrl-C stops it\n")

    code = run(settings, ready)
    if code:
        raise SystemExit(code)
    return None


def _detached(settings: NodeSettings) -> dict[str, Any]:
    from substrate.node.detach import spawn_detached

    make_private(settings.directory)
    environment = {**os.environ, SETTINGS_VARIABLE: msgspec.json.encode(settings).decode()}
    message = spawn_detached(
        [sys.executable, "-m", "substrate.node"], environment, str(settings.directory / "node.log"), limit_s=60
    )
    return message.document
