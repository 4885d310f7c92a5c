"""Finding a node to talk to, and making sure it belongs to the cluster one means.

A cluster's name is pinned to its id at first contact, in `<config home>/known_clusters`: lines of `name id`.
Source: contract sections 5 and 10.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from typing import Final

from net_sdk.client import Client
from substrate.wire.errors import NetError
from substrate.wire.paths import config_home, runtime_dir

_SUFFIX: Final = ".sock"
_PEER_SUFFIX: Final = ".peer.sock"
_HEADING: Final = "# clusters this user has met: name and id; a cluster that was made anew needs its line removed\n"


def sockets(cluster: str, directory: str | None = None) -> list[tuple[str, str]]:
    """(node name, control socket path) of the nodes of a cluster on this machine, by name; some may be dead."""
    where = directory or runtime_dir(cluster)
    try:
        entries = os.listdir(where)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except PermissionError:
        raise NetError(
            "peer-uid",
            f"the socket directory {where} belongs to another user",
            "run as the user that started the nodes",
        ) from None
    return sorted(
        (entry[: -len(_SUFFIX)], os.path.join(where, entry))
        for entry in entries
        if entry.endswith(_SUFFIX) and not entry.endswith(_PEER_SUFFIX)
    )


def attach(
    cluster: str = "default", via: str | None = None, socket: str | None = None, timeout_s: float = 30.0
) -> Client:
    """A client of the node named by `socket`, else by `via` (name, unique beginning of a name, or id), else of the first live
    node in name order. Its `cluster_id` is set and pinned.

    Raises `not-connected`, `node-not-found`, `ambiguous-name`, `cluster-changed`, and what the node answers.
    """
    if socket is not None:
        client = Client(socket, timeout_s)
        _meet(client, None)
        return client
    found = sockets(cluster)
    if via is not None:
        client = _client_of(cluster, via, found, timeout_s)
        _meet(client, cluster)
        return client
    for _, path in found:
        client = Client(path, timeout_s, lambda dead: _another(cluster, dead))
        try:
            _meet(client, cluster)
        except NetError as failure:
            if failure.kind != "not-connected" or failure.details.get("sent"):
                raise
            continue
        return client
    raise NetError(
        "not-connected",
        f"no node of cluster {cluster!r} runs on this machine",
        "net node start --name a --detach",
        {"cluster": cluster, "directory": runtime_dir(cluster)},
    )


def known_clusters_path() -> str:
    """The file of pinned clusters."""
    return os.path.join(config_home(), "known_clusters")


def pinned(cluster: str) -> str | None:
    """The id (32 hex digits) a cluster's name is pinned to, or None."""
    return _read(known_clusters_path()).get(cluster)


def pin(cluster: str, cluster_id: str) -> None:
    """Remember `cluster_id` for the name; `cluster-changed` if it is pinned to another id."""
    path = known_clusters_path()
    known = _read(path).get(cluster)
    if known is None:
        known = _update(path, cluster, cluster_id)
    if known != cluster_id:
        raise NetError(
            "cluster-changed",
            f"cluster {cluster!r} has the id {cluster_id}, but this user knows it as {known}",
            f"if it was made anew on purpose, remove its line from {path}",
            {"cluster": cluster, "cluster_id": cluster_id, "known_as": known, "file": path},
        )


def forget(cluster: str) -> None:
    """Remove a cluster's pin, for those who take the cluster down for good; with the last pin its file goes."""
    path = known_clusters_path()
    if cluster in _read(path):
        _update(path, cluster, None)


def _meet(client: Client, cluster: str | None) -> None:
    """Ask the node who it is and hold it to its cluster's pin; a node without a genesis has nothing to pin yet."""
    try:
        status = client.get("/v1/status")
        found, cluster_id = str(status["cluster"]), status.get("cluster_id")
        if cluster is not None and found != cluster:
            raise NetError(
                "cluster-changed",
                f"the node at {client.socket_path} belongs to cluster {found!r}, not {cluster!r}",
                f"--cluster {found}",
                {"cluster": cluster, "found": found},
            )
        if cluster_id:
            pin(found, cluster_id)
            client.cluster_id = cluster_id
    except BaseException:
        client.close()
        raise


def _client_of(cluster: str, via: str, found: list[tuple[str, str]], timeout_s: float) -> Client:
    by_name = dict(found)
    matches = [via] if via in by_name else [name for name, _ in found if via and name.startswith(via)]
    if len(matches) > 1:
        raise NetError(
            "ambiguous-name",
            f"{via!r} is the beginning of {len(matches)} nodes: {', '.join(matches[:8])}",
            "give the whole name",
            {"matches": matches},
        )
    if matches:
        return Client(by_name[matches[0]], timeout_s)
    from substrate.wire.ids import parse_id

    wanted = parse_id(via)
    for _, path in found if wanted is not None else ():
        client = Client(path, timeout_s)
        try:
            if client.get("/v1/status").get("node_id") == str(wanted):
                return client
        except NetError as failure:
            if failure.kind != "not-connected":
                raise
        client.close()
    names = ", ".join(by_name) or "none"
    raise NetError(
        "node-not-found",
        f"no node {via!r} of cluster {cluster!r} runs on this machine",
        f"known here: {names}; start one with: net node start --name {via}",
        {"node": via, "known": list(by_name)},
    )


def _another(cluster: str, dead: str) -> str | None:
    """The socket of another node that listens, for a client whose node has gone."""
    for _, path in sockets(cluster):
        if path != dead:
            try:
                with Client(path, 2.0) as client:
                    client.get("/v1/version")
            except NetError:
                continue  # as dead as the first: the client reports its own failure if all are
            return path
    return None


def _read(path: str) -> dict[str, str]:
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read().splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as failure:
        raise NetError("invalid-config", f"{path} cannot be read: {failure}", f"mend or remove {path}") from None
    known = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        parts = line.split()
        if len(parts) != 2 or len(parts[1]) != 32:
            raise NetError("invalid-config", f"{path} line {number} is not `name id`", f"mend or remove {path}")
        known[parts[0]] = parts[1]
    return known


def _update(path: str, cluster: str, cluster_id: str | None) -> str | None:
    """Set (unless another process was first) or remove one pin, atomically; the id that stands afterwards."""
    directory = os.path.dirname(path)
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        lock = _lock(path + ".lock")
        try:
            known = _read(path)
            if cluster_id is None:
                known.pop(cluster, None)
            else:
                known.setdefault(cluster, cluster_id)
            if known:
                _write(path, known)
            else:  # the last pin is gone: leave nothing behind
                for each in (path, path + ".lock"):
                    with suppress(FileNotFoundError):
                        os.unlink(each)
        finally:
            os.close(lock)
    except OSError as failure:
        raise NetError("io-error", f"{path} cannot be written: {failure.strerror}") from failure
    return known.get(cluster)


def _lock(path: str) -> int:
    """Hold the lock file; one that was removed while we waited for it guards nothing, so the next one is taken."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _write(path: str, known: dict[str, str]) -> None:
    temporary = f"{path}.new"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(_HEADING + "".join(f"{name} {value}\n" for name, value in sorted(known.items())))
        file.flush()
        os.fsync(descriptor)
    os.replace(temporary, path)
