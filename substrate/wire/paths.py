"""Where things live on a machine: XDG directories with overrides for each root.

`NET_CONFIG_HOME` replaces `~/.config/net`, `NET_STATE_HOME` replaces `$XDG_STATE_HOME/net`, `NET_DATA_HOME`
replaces `$XDG_DATA_HOME/net`, `NET_RUNTIME_DIR` replaces `$XDG_RUNTIME_DIR/net`. Only names are computed here; nothing is created or read.
"""

from __future__ import annotations

import os
from typing import Final

from substrate.wire.errors import NetError

MAX_SOCKET_PATH_BYTES: Final = 107
"""What fits into `sockaddr_un.sun_path` with its terminating NUL (unix(7))."""


def config_home() -> str:
    """Directory of `config.toml`, `known_clusters` and `operator/`."""
    override = os.environ.get("NET_CONFIG_HOME")
    if override:
        return override
    from platformdirs import user_config_dir  # only when needed: 8 ms

    return user_config_dir("net")


def data_home() -> str:
    """Directory of local stores that belong to the user."""
    override = os.environ.get("NET_DATA_HOME")
    if override:
        return override
    from platformdirs import user_data_dir

    return user_data_dir("net")


def state_home() -> str:
    """Directory with one sub-directory per cluster."""
    override = os.environ.get("NET_STATE_HOME")
    if override:
        return override
    from platformdirs import user_state_dir

    return user_state_dir("net")


def operator_directory() -> str:
    """Directory of the operator keys."""
    return os.path.join(config_home(), "operator")


def cluster_dir(cluster: str) -> str:
    """State of one cluster on this machine: `engine/` and `nodes/<name>/`."""
    return os.path.join(state_home(), cluster)


def engine_dir(cluster: str) -> str:
    """State and socket of the local engine's broker."""
    return os.path.join(cluster_dir(cluster), "engine")


def node_dir(cluster: str, node: str) -> str:
    """State of one node: key, ledger copy, logs, checkpoints."""
    return os.path.join(cluster_dir(cluster), "nodes", node)


def runtime_dir(cluster: str) -> str:
    """Directory of the control and peer sockets of one cluster."""
    override = os.environ.get("NET_RUNTIME_DIR")
    if override:
        return os.path.join(override, cluster)
    session = os.environ.get("XDG_RUNTIME_DIR")
    if session:
        return os.path.join(session, "net", cluster)
    return os.path.join(cluster_dir(cluster), "run")


def control_socket(cluster: str, node: str) -> str:
    """Path of a node's control socket."""
    return os.path.join(runtime_dir(cluster), f"{node}.sock")


def peer_socket(cluster: str, node: str) -> str:
    """Path of a node's socket for other nodes."""
    return os.path.join(runtime_dir(cluster), f"{node}.peer.sock")


def check_socket_path(path: str) -> str:
    """Return `path` if a Unix socket can be bound to it, else raise `invalid-config`."""
    length = len(os.fsencode(path))
    if length > MAX_SOCKET_PATH_BYTES:
        raise NetError(
            "invalid-config",
            f"the socket path {path} is {length} bytes long; the system allows {MAX_SOCKET_PATH_BYTES}",
            "set NET_RUNTIME_DIR (or XDG_RUNTIME_DIR) to a shorter directory",
        )
    return path
