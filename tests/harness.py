"""A real cluster in a temporary home: real nodes, real sockets, the real `net` command as a subprocess.

Nothing here reaches into the node's code; everything goes through the command line and the control socket, as a
user's script would (contract sections 2, 8, 10).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from tests import procs
from tests.procs import Process, wait_until

REPO = Path(__file__).resolve().parent.parent
DEFAULT_LIMIT_S = 30.0
STOP_LIMIT_S = 20.0
"""How long a cluster may take to be gone after a clean stop."""


@dataclass(frozen=True)
class Result:
    """What one `net` call did."""

    args: tuple[str, ...]
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON document on stdout."""
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        """The NDJSON rows on stdout."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def error(self) -> dict[str, Any]:
        """The body of the error document, which is the last line of stderr in json mode."""
        body: dict[str, Any] = json.loads(self.err.splitlines()[-1])["error"]
        return body

    def __str__(self) -> str:
        return f"net {' '.join(self.args)} -> {self.code}\nstdout: {self.out}\nstderr: {self.err}"


def net_command() -> list[str]:
    """How to start `net` with the interpreter that runs the tests: the installed script, else the module."""
    script = Path(sys.executable).with_name("net")
    return [str(script)] if script.exists() else [sys.executable, "-m", "net_cli"]


def clean_environment(root: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """An environment that knows nothing of the user's home and keeps every file of Net under `root`."""
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(root / "h"),
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(REPO),
        "NET_STATE_HOME": str(root / "s"),
        "NET_DATA_HOME": str(root / "d"),
        "NET_RUNTIME_DIR": str(root / "r"),
        "NET_CONFIG_HOME": str(root / "c"),
    }
    return environment | dict(extra or {})


class ClusterHarness:
    """One cluster's home and everything that runs in it; a context manager.

    Leaving it stops every node the polite way first and fails if anything survived that; a test that killed nodes
    on purpose sets `expect_clean = False`, and then leftovers are only removed. With `keep_files` the directory
    stays for reading (the fixtures set it when the test failed). `root` is short because a Unix socket's path has
    at most 107 bytes.
    """

    def __init__(self, cluster: str = "default", env: Mapping[str, str] | None = None) -> None:
        self.cluster = cluster
        self.root = Path(tempfile.mkdtemp(prefix="net", dir="/tmp"))
        run = uuid.uuid4().hex
        self.marker = f"NET_TEST_RUN={run}"
        self.env = clean_environment(self.root, {"NET_TEST_RUN": run, **(env or {})})
        (self.root / "h").mkdir()
        self.expect_clean = True
        self.keep_files = False
        self.started: dict[str, dict[str, Any]] = {}

    # -- running the command ------------------------------------------------------------------------------------

    def run(
        self,
        *args: str,
        stdin: str | None = None,
        limit_s: float = DEFAULT_LIMIT_S,
        env: Mapping[str, str] | None = None,
        check: int | None = None,
    ) -> Result:
        """Run `net ARGS` to its end; stdin is empty unless given. With `check`, any other exit code fails the test."""
        done = subprocess.run(
            [*net_command(), *args],
            input=stdin if stdin is not None else "",
            env=self.env | dict(env or {}),
            cwd=self.root,
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )
        result = Result(args, done.returncode, done.stdout, done.stderr)
        if check is not None:
            assert result.code == check, str(result)
        return result

    def ok(self, *args: str, stdin: str | None = None, limit_s: float = DEFAULT_LIMIT_S) -> Any:
        """Run `net ARGS --json`, demand exit 0, return the document."""
        return self.run(*args, "--json", stdin=stdin, limit_s=limit_s, check=0).json

    def refused(self, kind: str, *args: str, stdin: str | None = None, limit_s: float = DEFAULT_LIMIT_S) -> Result:
        """Run `net ARGS --json` and demand this error kind, its exit code, and silence on stdout."""
        from substrate.wire.errors import KINDS

        result = self.run(*args, "--json", stdin=stdin, limit_s=limit_s)
        assert result.code == KINDS[kind].exit, str(result)
        assert result.error["kind"] == kind, str(result)
        assert result.error["exit_code"] == result.code, str(result)
        assert result.out == "", str(result)
        return result

    def popen(self, *args: str, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
        """Start `net ARGS` without waiting (streams); the caller ends it, teardown kills it if not."""
        return subprocess.Popen(
            [*net_command(), *args],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.env,
            cwd=self.root,
            text=True,
        )

    # -- building a cluster --------------------------------------------------------------------------------------

    def operator(self, name: str = "alice") -> dict[str, Any]:
        """Generate an operator key in this home."""
        document: dict[str, Any] = self.ok("identity", "generate", name)
        return document

    def start(
        self, name: str, *extra: str, operator: str | None = "alice", limit_s: float = DEFAULT_LIMIT_S
    ) -> dict[str, Any]:
        """`net node start --name NAME --detach`, then wait until the node answers as alive."""
        args = ["node", "start", "--name", name, "--detach", "--cluster", self.cluster, *extra]
        if operator is not None:
            args += ["--operator", operator]
        document: dict[str, Any] = self.ok(*args, limit_s=limit_s)
        self.started[name] = document
        return document

    def up(self, names: Sequence[str] = ("a", "b", "c"), operator: str = "alice") -> None:
        """An operator and these nodes, each seeing all the others alive."""
        if not self.key_file(operator).exists():
            self.operator(operator)
        for name in names:
            self.start(name, operator=operator)
        for name in names:
            self.wait_nodes(names, via=name)

    def wait_nodes(self, names: Sequence[str], via: str, state: str = "alive", limit_s: float = 20.0) -> None:
        """Wait until node `via` sees exactly these names in this state (others may be known in another)."""

        def seen() -> bool:
            result = self.run("node", "ls", "--via", via, "--json")
            if result.code != 0:
                return False
            return sorted(row["name"] for row in result.json if row["state"] == state) == sorted(names)

        wait_until(seen, limit_s, f"node {via} to see {list(names)} {state}", every_s=0.1)

    def stop(self, name: str) -> None:
        """Stop one node gracefully; returns when its process is gone."""
        self.ok("node", "stop", "--name", name, "--cluster", self.cluster)

    # -- processes ----------------------------------------------------------------------------------------------

    def processes(self) -> list[Process]:
        """Everything this cluster runs now: nodes, guardians, broker, daemons, commands."""
        return procs.find(self.marker)

    def node_pid(self, name: str) -> int:
        """The pid of a started node, as `node start --detach` reported it."""
        return int(self.started[name]["pid"])

    def broker_pid(self) -> int:
        """The pid of the cluster's broker, from the file it writes."""
        return int(json.loads((self.engine_dir() / "broker.json").read_text())["pid"])

    def guardian_pid(self, name: str) -> int:
        """The pid of a node's guardian: the process whose arguments name that program and the node's directory."""
        directory = str(self.node_dir(name))
        found = [
            process.pid
            for process in self.processes()
            if any("guardian" in part for part in process.argv) and directory in process.argv
        ]
        assert len(found) == 1, f"expected one guardian of {name}, found {found}"
        return found[0]

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a node's process; after anything but TERM and INT a clean end is no longer demanded."""
        if number not in (signal.SIGTERM, signal.SIGINT, signal.SIGCONT):
            self.expect_clean = False
        os.kill(self.node_pid(name), number)

    def kill(self, name: str) -> None:
        """SIGKILL a node and wait until the process is gone."""
        pid = self.node_pid(name)
        self.signal(name, signal.SIGKILL)
        wait_until(lambda: procs.start_time(pid) is None, 10.0, f"node {name} to die")

    # -- files --------------------------------------------------------------------------------------------------

    @property
    def state_dir(self) -> Path:
        """The cluster's state on disk."""
        return self.root / "s" / self.cluster

    def engine_dir(self) -> Path:
        """The broker's directory."""
        return self.state_dir / "engine"

    def node_dir(self, name: str) -> Path:
        """A node's directory."""
        return self.state_dir / "nodes" / name

    def socket(self, name: str) -> Path:
        """A node's control socket."""
        return self.root / "r" / self.cluster / f"{name}.sock"

    def key_file(self, name: str) -> Path:
        """An operator's key file."""
        return self.root / "c" / "operator" / f"{name}.key"

    # -- the end ------------------------------------------------------------------------------------------------

    def __enter__(self) -> ClusterHarness:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        demand_clean = error is None and self.expect_clean
        problem = self._stop_cleanly() if demand_clean and self.started else None
        survivors = procs.kill_all(self.marker)
        if error is not None or self.keep_files or (demand_clean and (problem or survivors)):
            sys.stderr.write(f"the cluster's files are kept in {self.root}\n")
        else:
            shutil.rmtree(self.root)
        if demand_clean:
            assert problem is None, problem
            assert not survivors, f"still running after a clean stop: {survivors}"

    def _only_brokers(self) -> bool:
        return all("substrate.engine.local.broker" in process.argv for process in self.processes())

    def _stop_cleanly(self) -> str | None:
        """Stop all nodes and wait for everything to be gone; what went wrong, or None."""
        try:
            result = self.run("node", "stop", "--all", "--cluster", self.cluster, "--json", limit_s=60.0)
            if result.code not in (0, 6):  # 6: no node runs any more
                return str(result)
            wait_until(self._only_brokers, STOP_LIMIT_S, "every process but the broker to end", every_s=0.05)
            for broker in self.processes():  # it would leave by itself 10 s after its last client; a test of its own
                broker.kill(signal.SIGTERM)
            wait_until(lambda: not self.processes(), STOP_LIMIT_S, "the broker to end", every_s=0.05)
        except (AssertionError, subprocess.TimeoutExpired) as late:
            return f"{late}; left: {self.processes()}"
        return None
