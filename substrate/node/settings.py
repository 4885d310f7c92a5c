"""What a node is started with, and where its things are."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from substrate.wire import paths
from substrate.wire.errors import NetError
from substrate.wire.ids import check_name


class NodeSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The start options of one node. `operator` names the key that founds the cluster or admits the node."""

    name: str
    cluster: str = "default"
    operator: str | None = None
    labels: tuple[str, ...] = ()
    join_token: str | None = None
    heartbeat_s: float = 15.0

    def check(self) -> NodeSettings:
        """Return the settings if a node can be started with them; raises `invalid-argument` or `invalid-config`."""
        check_name("node", self.name)
        check_name("cluster", self.cluster)
        for label in self.labels:
            if not 1 <= len(label) <= 128 or not label.isprintable():
                raise NetError("invalid-argument", f"{label!r} is no label", "labels are like gpu or zone=eu")
        paths.check_socket_path(self.control_socket)
        paths.check_socket_path(self.peer_socket)
        return self

    @property
    def directory(self) -> Path:
        """State of the node."""
        return Path(paths.node_dir(self.cluster, self.name))

    @property
    def engine_directory(self) -> Path:
        """State of the cluster's engine on this machine."""
        return Path(paths.engine_dir(self.cluster))

    @property
    def control_socket(self) -> str:
        """Where clients attach."""
        return paths.control_socket(self.cluster, self.name)

    @property
    def peer_socket(self) -> str:
        """Where other nodes connect."""
        return paths.peer_socket(self.cluster, self.name)

    def all_labels(self) -> tuple[str, ...]:
        """The given labels and those every node has."""
        system = os.uname()
        own = (f"node={self.name}", f"os={system.sysname.lower()}", f"arch={system.machine}")
        return tuple(dict.fromkeys((*own, *self.labels)))


def make_private(directory: Path) -> None:
    """Create a directory and the parents it lacks, all of them 0700."""
    try:
        missing = [parent for parent in directory.parents if not parent.exists()]
        for each in [*reversed(missing), directory]:
            each.mkdir(mode=0o700, exist_ok=True)
        os.chmod(directory, 0o700)
    except OSError as error:
        raise NetError(
            "io-error", f"cannot make {directory}: {error.strerror}", "choose another NET_STATE_HOME"
        ) from error
