"""The tour: a story told by real commands against a real cluster, in a temporary home that is removed at the end."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from net_cli.demo_child import child, environment, interruptible, program, undisturbed
from net_cli.demo_sample import INSTANCES, SPEC, SPEC_FILE
from net_cli.output import dumps, write
from substrate.wire.errors import NetError

if TYPE_CHECKING:
    from net_cli.context import App

ORDER: Final = json.dumps({"order": 1, "item": "tea"})
WAIT_LIMIT_S: Final = 60
_POLL_S: Final = 0.25
_END_ON_TERM: Final = {"substrate.engine.local.broker", "substrate.node"}
"""Modules whose processes take SIGTERM as: stop gracefully."""
_LONGEST_ROOT: Final = 60
"""Bytes of a temporary directory's path that leave room for a socket's name in it."""


class Step(NamedTuple):
    """One command of the story. `{pid:c}` in it stands for the process of node c; `until` holds it back until the cluster
    is as the step shows it."""

    says: str
    command: str
    exit_code: int = 0
    until: Callable[[Tour], bool] | None = None


def _met(tour: Tour) -> bool:
    rows = tour.ask("node", "ls", "--via", "a")
    return len(rows) == 3 and any(row["leader"] for row in rows) and sum(row["rtt_us"] is not None for row in rows) == 2


def _settled(tour: Tour, without: str | None = None) -> bool:
    rows = tour.ask("daemon", "ls", "--via", "a")
    good = [row for row in rows if row["lifecycle"] == "running" and row["node_name"] != without]
    return len(good) == len(rows) == INSTANCES


def _left_c(tour: Tour) -> bool:
    return _settled(tour, without="c")


STEPS: Final = (
    Step("An operator is a key in a file that only you can read.", "net identity generate alice"),
    Step("The first node founds the cluster, with alice as its operator.",
         "net node start --name a --operator alice --detach"),
    Step("More nodes join; alice's signature admits them.", "net node start --name b --operator alice --detach"),
    Step("Each is a process that stays.", "net node start --name c --operator alice --detach"),
    Step("They have found each other, and one of them leads.", "net node ls", until=_met),
    Step("Three daemons in a file, six instances.", f"cat {SPEC_FILE}"),
    Step("Apply it: a signed event for each.", f"net daemon apply {SPEC_FILE} --operator alice"),
    Step("The leader has placed them, and they run.", "net daemon ls", until=_settled),
    Step("What they print is kept, wherever they run.", "net logs show -n 4"),
    Step("Programs keep records in chains.", "net chain create demo/orders --operator alice"),
    Step("Durable when it returns.", f"net chain append demo/orders --data '{ORDER}'"),
    Step("Node b needs a new disk: nothing new goes there.",
         "net admin cordon --node b --reason 'new disk' --yes --operator alice"),
    Step("What would emptying it do? The cluster computes it and commits nothing.",
         "net admin drain --node b --drain-for 30s --preview"),
    Step("Empty it, and wait: its daemons start elsewhere.",
         "net admin drain --node b --drain-for 30s --wait --yes --operator alice"),
    Step("Nothing is left on b.", "net daemon ls", until=_settled),
    Step("It stays cordoned until somebody says otherwise.", "net node ls"),
    Step("Mallory has a key too, ...", "net identity generate mallory"),
    Step("... but the cluster does not know it: exit code 5.", "net admin uncordon --node b --operator mallory", 5),
    Step("A node that does not exist: exit code 3.", "net admin cordon --node zebra --yes --operator alice", 3),
    Step("Alice may: b is back.", "net admin uncordon --node b --operator alice"),
    Step("Now the power of node c fails.", "kill -9 {pid:c}"),
    Step("When its lease has run out (6 s and a margin), its daemons start elsewhere.", "net daemon ls", until=_left_c),
    Step("Who ordered what, read from another node:", "net audit recent --via b"),
    Step("And nobody has touched it since: every hash and signature, from the files.", "net audit verify"),
)  # fmt: skip
LAST: Final = Step("That is the tour. Everything stops,", "net node stop --all")


class Tour:
    """One run: a directory, the environment of its commands, and the place in the story."""

    def __init__(self, app: App) -> None:
        self.app = app
        temporary = tempfile.gettempdir()
        self.root = Path(tempfile.mkdtemp(prefix="net", dir=temporary if len(temporary) <= _LONGEST_ROOT else "/tmp"))
        roots = {
            "NET_STATE_HOME": str(self.root / "state"),
            "NET_DATA_HOME": str(self.root / "data"),
            "NET_RUNTIME_DIR": str(self.root / "run"),
            "NET_CONFIG_HOME": str(self.root / "config"),
            "NET_OUTPUT": "pretty",
        }
        if app.flags.get("no_color"):
            roots["NO_COLOR"] = "1"
        self.marker = f"NET_STATE_HOME={roots['NET_STATE_HOME']}"
        self.env = environment(roots)
        self.number = 0
        (self.root / SPEC_FILE).write_text(SPEC)

    def play(self, step: Step) -> None:
        """Wait for the step's time, show and run its command; raises `internal` if it ends otherwise than told."""
        self.number += 1
        color = self.app.out.color
        if not self.app.out.json:
            write(f"\n{self.number}. {step.says}")
        if step.until is not None:
            self._hold(step.until)
        command = step.command
        if "{pid:c}" in command:
            command = command.replace("{pid:c}", str(self.ask("node", "status", "--via", "c")["pid"]))
        if not self.app.out.json:
            write(f"\x1b[1m$ {command}\x1b[0m" if color else f"$ {command}")
        started = time.monotonic()
        code, output = self._run(command)
        if self.app.out.json:
            shown = {"command": command, "exit_code": code, "expected_exit_code": step.exit_code, "output": output}
            elapsed_ms = int((time.monotonic() - started) * 1000)
            write(dumps({"seq": self.number, "says": step.says, **shown, "elapsed_ms": elapsed_ms}))
        if code != step.exit_code:
            raise NetError(
                "internal",
                f"step {self.number} of the tour, `{command}`, ended with exit code {code} instead of {step.exit_code}",
                "run net demo tour again; if it fails again, that is a defect of Net",
                {"command": command, "exit_code": code, "expected_exit_code": step.exit_code},
            )
        if code and not self.app.out.json:
            write(f"(exit code {code})")

    def _run(self, command: str) -> tuple[int, str]:
        words = shlex.split(command)
        argv = [*program(), *words[1:]] if words[0] == "net" else ["sh", "-c", command]
        # On the screen it writes itself, errors too, in the order and the colours of its own.
        done = child(argv, self.env, str(self.root), show=not self.app.out.json)
        return done.code, done.out + done.err

    def ask(self, *args: str) -> Any:
        """What `net ARGS` answers through node a, unseen; raises `internal`."""
        done = child([*program(), *args, "--json"], self.env, str(self.root))
        if done.code:
            raise NetError("internal", f"net {shlex.join(args)} ended with {done.code}", details={"stderr": done.err})
        return json.loads(done.out)

    def _hold(self, until: Callable[[Tour], bool]) -> None:
        deadline = time.monotonic() + WAIT_LIMIT_S
        while not until(self):
            if time.monotonic() > deadline:
                raise NetError(
                    "wait-timeout",
                    f"the cluster is not as step {self.number} expects it after {WAIT_LIMIT_S} s",
                    "net demo tour again, on a quieter machine",
                )
            time.sleep(_POLL_S)

    def clean(self) -> int:
        """End every process of the tour and remove its home; returns how many had to be killed."""
        from substrate.node.process import ProcessId

        deadline = time.monotonic() + WAIT_LIMIT_S
        patience = time.monotonic() + 15  # a guardian may still be giving its daemons their grace
        asked: set[ProcessId] = set()
        killed: set[ProcessId] = set()
        while found := list(processes(self.marker)):
            for process in found:
                # A broker would leave by itself 10 s after its last client; a node is here only if the tour was cut short.
                if process not in asked and not set(command_line(process.pid)).isdisjoint(_END_ON_TERM):
                    process.send(signal.SIGTERM)
                    asked.add(process)
                elif time.monotonic() > patience and process.send(signal.SIGKILL):
                    killed.add(process)
            if time.monotonic() > deadline:
                raise NetError("wait-timeout", f"processes of the tour do not end: {[each.pid for each in found]}")
            time.sleep(0.05)
        shutil.rmtree(self.root)
        return len(killed)


def processes(marker: str) -> Iterator[Any]:
    """Every living process of ours that was started with `marker` (NAME=value) in its environment."""
    from substrate.node.process import ProcessId

    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        process = ProcessId.of(int(entry))  # first who it is, then what it has: a reused pid shows in between
        try:
            with open(f"/proc/{entry}/environ", "rb") as file:
                ours = marker.encode() in file.read().split(b"\0")
        except OSError:
            continue  # ended, or another user's
        if ours and process is not None and process.is_alive():
            yield process


def command_line(pid: int) -> list[str]:
    """The arguments of a process, or nothing if it has ended."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return os.fsdecode(file.read()).split("\0")
    except OSError:
        return []


def run(app: App) -> None:
    """Tell the whole story; whatever happens, nothing of it stays. Raises `internal`, `wait-timeout`, `interrupted`."""
    with interruptible():
        tour = Tour(app)
        started = time.monotonic()
        try:
            for step in (*STEPS, LAST):
                tour.play(step)
        except BaseException:
            with undisturbed():
                _stop(tour)
            raise
        with undisturbed():
            killed = tour.clean()
    if killed:
        raise NetError("internal", f"{killed} processes of the tour had to be killed", details={"killed": killed})
    if not app.out.json:
        write(f"\nand nothing is left behind. The whole tour took {time.monotonic() - started:.0f} s.")


def _stop(tour: Tour) -> None:
    """The end of a tour that was cut short."""
    child([*program(), "node", "stop", "--all", "--json"], tour.env, str(tour.root))  # what it cannot stop, clean does
    tour.clean()
