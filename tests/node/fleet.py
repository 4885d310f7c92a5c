"""Beacon daemons on a test cluster: applying them, seeing where they run, and proving that none ran twice at once."""

from __future__ import annotations

import itertools
import json
import signal
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.harness import ClusterHarness, Result
from tests.procs import wait_until

BEACON = Path(__file__).with_name("beacon.py")
RUNNING_LIMIT_S = 10.0
TAKEOVER_LIMIT_S = 15.0
"""Lease 6 s, margin 3 s, and some time to start."""


@dataclass(frozen=True)
class Run:
    """One process of a daemon instance, as its own stamps show it. Times are nanoseconds of CLOCK_BOOTTIME."""

    who: str
    node: str
    epoch: int
    pid: int
    first_ns: int
    last_ns: int
    terminated: bool
    born_ns: int
    """When the process was forked, rounded down to a clock tick (10 ms)."""


def boottime_ns() -> int:
    """The clock of the stamps."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Fleet:
    """The daemons of one cluster and their stamps."""

    def __init__(self, cluster: ClusterHarness) -> None:
        self.cluster = cluster
        self.stamps = cluster.root / "stamps"

    def spec(self, name: str, *flags: str, **fields: Any) -> dict[str, Any]:
        """A beacon's spec as JSON."""
        return {
            "name": name,
            "command": [sys.executable, "-I", "-S", str(BEACON), str(self.stamps), *flags],
            "env": {"NET_TEST_RUN": self.cluster.env["NET_TEST_RUN"]},
            "grace": "2s",
            **fields,
        }

    def apply(self, *specs: dict[str, Any], via: str | None = None) -> list[dict[str, Any]]:
        """Apply specs in one call of the command; returns the commits."""
        more = ("--via", via) if via else ()
        document: list[dict[str, Any]] = self.cluster.ok(
            "daemon", "apply", "-", "--operator", "alice", *more, stdin=_toml(specs)
        )
        return document

    def rows(self, via: str | None = None, *names: str) -> list[dict[str, Any]]:
        """`net daemon ls`, all or some daemons."""
        rows: list[dict[str, Any]] = self.cluster.ok("daemon", "ls", *(("--via", via) if via else ()))
        return [row for row in rows if not names or row["name"] in names]

    def row(self, name: str, instance: int = 0, via: str | None = None) -> dict[str, Any]:
        """One instance."""
        return next(row for row in self.rows(via, name) if row["instance"] == instance)

    def running(
        self,
        *names: str,
        count: int,
        via: str | None = None,
        off: str | None = None,
        on: str | None = None,
        limit_s: float = RUNNING_LIMIT_S,
    ) -> list[dict[str, Any]]:
        """Wait until these daemons (all, if none is named) have exactly `count` instances, every one running.

        With `off` none of them on that node, with `on` all of them there.
        """
        seen: list[dict[str, Any]] = []

        def settled() -> bool:
            result = self.cluster.run("daemon", "ls", "--json", *(("--via", via) if via else ()))
            if result.code != 0:
                return False
            seen[:] = [row for row in result.json if not names or row["name"] in names]
            return len(seen) == count and all(
                row["lifecycle"] == "running" and row["node_name"] != off and on in (None, row["node_name"])
                for row in seen
            )

        try:
            wait_until(settled, limit_s, f"{count} running instances", every_s=0.1)
        except AssertionError as late:
            raise AssertionError(f"{late}; daemons: {json.dumps(seen, indent=1)}") from None
        return seen

    def pids(self, name: str, instance: int = 0) -> list[int]:
        """The pids of an instance's processes in the order in which they started."""
        return [run.pid for run in self.runs() if run.who == f"{name}/{instance}"]

    def remove(self, *names: str) -> None:
        """Remove daemons and wait until nothing of them is left."""
        for name in names:
            self.cluster.ok("daemon", "rm", name, "--wait", "--operator", "alice")

    # -- the proof --------------------------------------------------------------------------------------------

    def runs(self) -> list[Run]:
        """Every process that ever stamped, by its first stamp."""
        found: dict[tuple[str, int, int], Run] = {}
        with open(self.stamps) as file:
            for line in file:
                word, who, node, epoch, pid, at, born = line.split()
                key = (who, int(epoch), int(pid))
                known = found.get(key)
                if known is None or word == "start":
                    assert known is None, f"process {pid} started twice: {line}"
                    found[key] = Run(who, node, int(epoch), int(pid), int(at), int(at), False, int(born))
                else:
                    found[key] = replace(known, last_ns=int(at), terminated=known.terminated or word == "term")
        return sorted(found.values(), key=lambda run: run.first_ns)

    def assert_never_twice(self) -> list[Run]:
        """No two processes of one instance overlap in time, and epochs only grow; returns all runs."""
        runs = self.runs()
        by_instance: dict[str, list[Run]] = defaultdict(list)
        for run in runs:
            by_instance[run.who].append(run)
        for who, each in by_instance.items():
            for earlier, later in itertools.pairwise(each):
                assert earlier.last_ns < later.first_ns, f"{who} ran twice at once: {earlier} and {later}"
                assert earlier.epoch <= later.epoch, f"{who} went back to an older placement: {earlier}, {later}"
        return runs


def only_broker_left(cluster: ClusterHarness) -> bool:
    """Whether nothing runs but the broker, which leaves 10 s after its last client."""
    return all("substrate.engine.local.broker" in process.argv for process in cluster.processes())


def dismiss_broker(cluster: ClusterHarness) -> None:
    """Wait until only the broker is left, then send it away now: its patience has a test of its own."""
    wait_until(lambda: only_broker_left(cluster), 10.0, f"only the broker to be left of {cluster.processes()}")
    for broker in cluster.processes():
        broker.kill(signal.SIGTERM)
    wait_until(lambda: not cluster.processes(), 5.0, "the broker to leave")


def leader(cluster: ClusterHarness, via: str | None = None) -> str:
    """Wait until a node leads and return its name."""

    def look() -> str | None:
        rows = cluster.ok("node", "ls", *(("--via", via) if via else ()))
        leading = [row["name"] for row in rows if row["leader"]]
        assert len(leading) <= 1, leading
        return leading[0] if leading else None

    return wait_until(look, 10.0, "a leader", every_s=0.1)


def _toml(specs: tuple[dict[str, Any], ...]) -> str:
    import tomli_w

    return tomli_w.dumps({"daemon": list(specs)})


def drain(cluster: ClusterHarness, node: str, time: str, *more: str) -> Result:
    """`net admin drain --node NODE --drain-for TIME --yes --operator alice --json`."""
    args = ("admin", "drain", "--node", node, "--drain-for", time, "--yes", "--operator", "alice", "--json", *more)
    return cluster.run(*args, limit_s=60.0)


def admin(cluster: ClusterHarness, verb: str, node: str, *more: str) -> dict[str, Any]:
    """`net admin VERB --node NODE --operator alice --yes`, accepted; returns the commit."""
    args = ["admin", verb, "--node", node, "--operator", "alice", *more]
    if verb not in ("uncordon", "exit-maintenance"):
        args.append("--yes")
    commit: dict[str, Any] = cluster.ok(*args, limit_s=60.0)
    assert commit["outcome"] == "accepted", commit
    return commit
