"""The demo cluster: put up, looked at and taken down with the commands a user would type (contract section 7, `net demo`)."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from net_cli.demo_child import child, environment, interruptible, program, undisturbed
from net_cli.demo_sample import CHAINS, INSTANCES, SPEC, SPEC_FILE, ndjson
from substrate.wire.errors import NetError

if TYPE_CHECKING:
    from net_cli.context import App
    from net_sdk.client import Client

CLUSTER: Final = "demo"
OPERATOR: Final = "demo"
NOTE: Final = "made by net demo up"
"""Stands in the key file; `down` removes no key without it."""
MAX_NODES: Final = 9
START_LIMIT_S: Final = 20
_POLL_S: Final = 0.1


def net(*args: str, stdin: str = "") -> Any:
    """Run `net ARGS --json` on the demo cluster and return its document; raises what it failed with."""
    # Not in the user's directory: a module there might come before ours.
    done = child([*program(), *args, "--cluster", CLUSTER, "--json"], environment(), "/", stdin)
    if done.code == 0:
        return json.loads(done.out)
    try:
        raise NetError.from_document(json.loads(done.err.splitlines()[-1]))
    except (ValueError, LookupError, TypeError):  # killed, or it never came as far as an error document
        raise NetError(
            "internal", f"net {' '.join(args)} ended with {done.code}", details={"stderr": done.err[-2000:]}
        ) from None


def spec_path() -> Path:
    """The spec file of the demo's daemons; where it exists, the cluster's directory is ours."""
    from substrate.wire.paths import cluster_dir

    return Path(cluster_dir(CLUSTER), SPEC_FILE)


def up(app: App, count: int) -> dict[str, Any]:
    """Make the key, the nodes, the daemons and the chains; if anything fails, nothing of it stays."""
    from net_sdk.discovery import forget
    from substrate.identity import keyfile
    from substrate.wire.paths import cluster_dir, operator_directory

    app.refuse_if_read_only()
    started = time.monotonic()
    if os.path.lexists(cluster_dir(CLUSTER)):
        raise NetError(
            "node-running" if _running(app) else "out-exists",
            f"there is a demo cluster in {cluster_dir(CLUSTER)} already",
            "net demo status, or net demo down",
            {"path": cluster_dir(CLUSTER)},
        )
    forget(CLUSTER)  # whatever was called demo before is gone
    with interruptible():
        keyfile.generate(operator_directory(), OPERATOR, NOTE)
        try:
            spec = _write_spec()
            names = [chr(ord("a") + place) for place in range(count)]
            nodes = [_start(app, name) for name in names]
            net("daemon", "apply", str(spec), "--operator", OPERATOR, "--reason", "demo")
            for chain, records in CHAINS.items():
                net("chain", "create", chain, "--operator", OPERATOR, "--reason", "demo")
                net("chain", "append", chain, "-", stdin=ndjson(records))
            app.out.detail("waiting for the daemons to run")
            daemons = wait_daemons(app, lambda rows: len(rows) == INSTANCES and _all_run(rows))
        except BaseException:
            with undisturbed():
                down(app)
            raise
    return {
        "cluster": CLUSTER,
        "operator": OPERATOR,
        "directory": cluster_dir(CLUSTER),
        "spec_file": str(spec),
        "nodes": nodes,
        "daemons": daemons,
        "chains": sorted(CHAINS),
        "elapsed_ms": int((time.monotonic() - started) * 1000),
    }


def _write_spec() -> Path:
    path = spec_path()
    try:
        os.makedirs(path.parent, mode=0o700)
        path.write_text(SPEC)
    except OSError as error:
        raise NetError("io-error", f"cannot write {path}: {error.strerror}", "choose another NET_STATE_HOME") from error
    return path


def _start(app: App, name: str) -> dict[str, Any]:
    app.out.detail(f"starting node {name}")
    document: dict[str, Any] = net("node", "start", "--name", name, "--operator", OPERATOR, "--detach")
    return document


def _all_run(rows: Sequence[dict[str, Any]]) -> bool:
    return all(row["lifecycle"] == "running" for row in rows)


def wait_daemons(app: App, good: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
    """The daemon rows once `good` says so; raises `wait-timeout` with what was seen last."""
    deadline = time.monotonic() + START_LIMIT_S
    with attach(app) as client:
        while True:
            rows: list[dict[str, Any]] = client.get("/v1/daemons")
            if good(rows):
                return rows
            if time.monotonic() > deadline:
                raise NetError(
                    "wait-timeout",
                    f"the demo's daemons do not all run after {START_LIMIT_S} s",
                    "net logs tail --cluster demo",
                    {"daemons": rows},
                )
            time.sleep(_POLL_S)


def attach(app: App) -> Client:
    """A client of a node of the demo, whatever the settings name; only --via on the command line counts."""
    from net_sdk.discovery import attach as attach_to

    return attach_to(CLUSTER, via=app.flags.get("via"), timeout_s=app.timeout_s)


def _running(app: App) -> bool:
    try:
        attach(app).close()
    except NetError as error:
        if error.kind != "not-connected":
            raise
        return False
    return True


def status(app: App) -> dict[str, Any]:
    """What the demo cluster does now; raises `not-connected` if it does not run."""
    from substrate.wire.paths import cluster_dir

    try:
        client = attach(app)
    except NetError as error:
        if error.kind != "not-connected":
            raise
        there = spec_path().exists()
        raise NetError(
            "not-connected",
            "the demo cluster has files but no living node" if there else "there is no demo cluster",
            "net demo down, then net demo up" if there else "net demo up",
            error.details,
        ) from None
    with client:
        return {
            "cluster": CLUSTER,
            "operator": OPERATOR,
            "directory": cluster_dir(CLUSTER),
            "spec_file": str(spec_path()),
            "nodes": client.get("/v1/nodes"),
            "daemons": client.get("/v1/daemons"),
            "chains": client.get("/v1/chains"),
        }


def down(app: App) -> dict[str, Any]:
    """Stop the demo's nodes and remove its files, its sockets, its key and its pin; what is not the demo's stays.

    Raises `out-exists` if a cluster called demo is there that `net demo up` did not make.
    """
    from net_sdk.discovery import forget
    from substrate.identity import keyfile
    from substrate.node.removal import end_nodes, remove_cluster
    from substrate.wire.paths import cluster_dir, config_home, operator_directory, runtime_dir, state_home

    app.refuse_if_read_only()
    directory = cluster_dir(CLUSTER)
    if os.path.lexists(directory) and not spec_path().exists():
        raise NetError(
            "out-exists",
            f"{directory} was not made by net demo up, and is left alone",
            f"if it may go: net node stop --all --cluster {CLUSTER}, then remove it",
            {"path": directory},
        )
    stopped = end_nodes(CLUSTER)
    removed = remove_cluster(CLUSTER)
    forget(CLUSTER)
    key = keyfile.key_path(operator_directory(), OPERATOR)
    if os.path.lexists(key) and keyfile.load(operator_directory(), OPERATOR).note == NOTE:
        os.unlink(key)
        removed.append(key)
    for empty in (os.path.dirname(runtime_dir(CLUSTER)), operator_directory(), config_home(), state_home()):
        try:
            os.rmdir(empty)
        except OSError:
            continue  # absent, or something of the user's is in it
    return {"cluster": CLUSTER, "stopped": stopped, "removed": removed}
