"""Clients that keep writing while the cluster is being damaged, remember what they were told, and check it afterwards.

Half of them sign commits, half append to a data chain. Every unit of work carries a name (`writer/number`) that is found again in
the cluster's own records, so that a lost, doubled or reordered one cannot hide.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from net_sdk.client import Client
from net_sdk.commits import run
from substrate.identity import keyfile
from substrate.wire.errors import NetError
from tests.harness import ClusterHarness
from tests.procs import wait_until

CHAIN = "app/kills"
REQUEST_S = 12.0
PAUSE_S = 0.01
PASSING = frozenset(
    (
        "not-connected",
        "node-unreachable",
        "engine-unavailable",
        "unknown-outcome",
        "timeout",
        "wait-timeout",
        "overloaded",
        "simulation-required",
        "proposal-not-found",
        "disk-full",
        "conflict",
    )
)
"""What a client may be told while nodes and the broker die under it; anything else is a failure of the test."""


class Acknowledged(NamedTuple):
    """One unit of work that the cluster said is durable, and when the client asked and heard (monotonic seconds)."""

    name: str
    seq: int
    asked: float
    heard: float


class Writer(threading.Thread):
    """One client. `acknowledged`, `unclear` (names that may or may not be there) and `wrong` (what it must not hear)."""

    def __init__(self, cluster: ClusterHarness, number: int, nodes: str, stop: threading.Event) -> None:
        super().__init__(name=f"writer-{number}", daemon=True)
        self.cluster = cluster
        self.number = number
        self.nodes = nodes
        self.stop = stop
        self.acknowledged: list[Acknowledged] = []
        self.unclear: dict[str, str] = {}
        self.wrong: list[str] = []
        self._turn = number
        self._sockets = {name: str(cluster.socket(name)) for name in nodes}

    def run(self) -> None:
        """Write until told to stop."""
        try:
            for n in itertools.count():
                if self.stop.is_set():
                    return
                self.one(f"w{self.number}/{n}")
                self.stop.wait(PAUSE_S)
        except BaseException as error:
            self.wrong.append(repr(error))
            raise

    def client(self) -> Client:
        """The next node's, which may be dead: then the client goes on to another."""
        self._turn += 1
        name = self.nodes[self._turn % len(self.nodes)]
        return Client(self._sockets[name], REQUEST_S, self._another)

    def _another(self, dead: str) -> str | None:
        others = [path for path in self._sockets.values() if path != dead]
        return others[self._turn % len(others)] if others else None

    def one(self, name: str) -> None:
        """Do one unit of work and note how it ended."""
        asked = time.monotonic()
        try:
            with self.client() as client:
                seq = self.work(client, name)
        except NetError as error:
            self.unclear[name] = f"{error.kind}: {error.message}"
            if error.kind not in PASSING:
                self.wrong.append(f"{name}: {error.kind}: {error.message}")
            return
        self.acknowledged.append(Acknowledged(name, seq, asked, time.monotonic()))

    def work(self, client: Client, name: str) -> int:
        """Returns the seq the cluster gave it."""
        raise NotImplementedError


class Committer(Writer):
    """Signs cordons and uncordons; the work's name is their reason."""

    def __init__(self, cluster: ClusterHarness, number: int, nodes: str, stop: threading.Event) -> None:
        super().__init__(cluster, number, nodes, stop)
        self.keypair = keyfile.load(str(cluster.root / "c" / "operator"), "alice").keypair

    def work(self, client: Client, name: str) -> int:
        kind = "cordon" if int(name.partition("/")[2]) % 2 == 0 else "uncordon"
        return int(run(client, self.keypair, {"kind": kind, "node": self.nodes[-1]}, name)["seq"])


class Appender(Writer):
    """Appends to the data chain under an entry id; an unclear append is sent again under the same id, to any node."""

    def work(self, client: Client, name: str) -> int:
        serial = int(name.partition("/")[2])
        entry_id = (
            (time.time_ns() // 1_000_000).to_bytes(6, "big")
            + self.number.to_bytes(2, "big")
            + serial.to_bytes(8, "big")
        )
        body = {"records": [{"name": name}], "encoding": "json", "entry_id": entry_id.hex()}
        deadline = time.monotonic() + REQUEST_S
        while True:
            try:
                return int(client.post(f"/v1/chains/{CHAIN.replace('/', '%2F')}/records", body)["first_seq"])
            except NetError as error:
                if error.kind not in PASSING or time.monotonic() > deadline:
                    raise
            time.sleep(0.05)


class Crowd:
    """Eight clients at work; a context manager that ends them."""

    def __init__(self, cluster: ClusterHarness, nodes: str = "abc") -> None:
        self.cluster = cluster
        self._stop = threading.Event()
        self.committers: list[Writer] = [Committer(cluster, n, nodes, self._stop) for n in range(4)]
        self.appenders: list[Writer] = [Appender(cluster, 4 + n, nodes, self._stop) for n in range(4)]

    @property
    def writers(self) -> list[Writer]:
        """All of them."""
        return [*self.committers, *self.appenders]

    def count(self) -> int:
        """Units of work acknowledged so far."""
        return sum(len(writer.acknowledged) for writer in self.writers)

    def wait_for_work(self, writers: list[Writer], what: str, limit_s: float = 20.0) -> None:
        """Wait until these have had one more acknowledgement each, on the average."""

        def done() -> int:
            assert not (wrong := [text for writer in writers for text in writer.wrong]), wrong[:5]
            return sum(len(writer.acknowledged) for writer in writers)

        enough = done() + len(writers)
        try:
            wait_until(lambda: done() >= enough, limit_s, what)
        except AssertionError as late:
            last = [list(writer.unclear.items())[-1:] for writer in writers]
            raise AssertionError(f"{late}; last failures: {last}") from None

    def __enter__(self) -> Crowd:
        for writer in self.writers:
            writer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for writer in self.writers:
            writer.join(3 * REQUEST_S)
            assert not writer.is_alive(), f"{writer.name} hangs"

    def check(self, via: str) -> None:
        """Demand that what node `via` reads is exactly what was acknowledged, and what was unclear at most once."""
        with Client(str(self.cluster.socket(via))) as client:
            ledger = [(row["seq"], row["reason"]) for row in _ledger(client) if row["outcome"] == "accepted"]
            data = [(row["seq"], row["payload"]["name"]) for row in _records(client)]
        compare(self.committers, [entry for entry in ledger if entry[1].startswith("w")])
        compare(self.appenders, data)


def compare(writers: list[Writer], found: list[tuple[int, str]]) -> None:
    """`found` is (seq, name) of every record that is really there, in order."""
    wrong = [text for writer in writers for text in writer.wrong]
    assert not wrong, wrong[:5]
    counts = Counter(name for _, name in found)
    assert not (doubled := {name: n for name, n in counts.items() if n > 1}), f"doubled: {doubled}"
    there = {name: seq for seq, name in found}
    acknowledged = [item for writer in writers for item in writer.acknowledged]
    missing = [item for item in acknowledged if there.get(item.name) != item.seq]
    assert not missing, f"{len(missing)} acknowledged are missing or elsewhere: {missing[:5]}"
    unclear = {name for writer in writers for name in writer.unclear}
    assert not (strange := set(there) - {item.name for item in acknowledged} - unclear), f"nobody sent {strange}"
    # What was heard before the next was asked comes first, whoever asked: no reordering.
    by_seq = sorted(acknowledged, key=lambda item: item.seq)
    latest_asked = 0.0
    for item in by_seq:
        assert item.heard >= latest_asked, f"{item} was acknowledged before an earlier record was even asked for"
        latest_asked = max(latest_asked, item.asked)


def _ledger(client: Client) -> Iterator[dict[str, Any]]:
    head = client.get("/v1/status")["admin_seq"]
    for row in client.stream("/v1/audit", timeout_s=60.0, follow=True, since=0):
        if "hash" in row:
            yield row
            if row["seq"] >= head:
                return


def _records(client: Client) -> Iterator[dict[str, Any]]:
    since = 0
    while rows := client.get(f"/v1/chains/{CHAIN.replace('/', '%2F')}/records", since=since, limit=1000):
        yield from rows
        since = rows[-1]["seq"]
