"""kill -9 of a process with eight writing threads: nothing acknowledged is lost, doubled or out of order."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from substrate.redex import Store

WRITER = """
import os, sys, threading
from pathlib import Path
from substrate.redex import Store
run = sys.argv[2]
store = Store.open(Path(sys.argv[1]))
def write(name):
    n = 0
    while True:
        done = store.append("a", [b"%s %s %d" % (run.encode(), name, n), b"pair"], create=True)
        os.write(1, b"%d %s %s %d\\n" % (done.first_seq, run.encode(), name, n))
        n += 1
for thread in range(8):
    threading.Thread(target=write, args=(b"t%d" % thread,), daemon=True).start()
sys.stdin.read()
"""


def kill_while_writing(path: Path, run: int, lines: int) -> list[tuple[int, bytes]]:
    """Start the writer, kill it after about `lines` acknowledgements; return all that it acknowledged."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        acked = [process.stdout.readline() for _ in range(lines)]
    finally:
        os.kill(process.pid, signal.SIGKILL)
    acked += process.communicate(timeout=30)[0].splitlines(keepends=True)
    assert process.returncode == -signal.SIGKILL
    parsed = [line.rstrip(b"\n").split(b" ", 1) for line in acked if line.endswith(b"\n")]
    return [(int(seq), payload) for seq, payload in parsed]


def kill_many(path: Path, kills: int, seed: int) -> None:
    noise = random.Random(seed)
    acked: dict[int, bytes] = {}
    for run in range(kills):
        for seq, payload in kill_while_writing(path, run, noise.randrange(1, 120)):
            assert seq not in acked, "one seq acknowledged twice"
            acked[seq] = payload
        with Store.open(path) as store:
            assert store.verify("a") == store.head("a")
            payloads = [row[3] for row in store.scan("a")]
        for seq, payload in acked.items():
            assert payloads[seq - 1 : seq + 1] == [payload, b"pair"]
        firsts = payloads[::2]
        assert len(firsts) == len(set(firsts)) == len(payloads) / 2, "an entry is doubled or torn"
        for name in range(8):
            own = [int(p.rsplit(b" ", 1)[1]) for p in firsts if p.startswith(b"%d t%d " % (run, name))]
            assert own == list(range(len(own))), "a thread's appends changed their order"
    assert len(acked) >= kills


def test_twenty_kills(tmp_path: Path) -> None:
    kill_many(tmp_path / "s.db", 20, seed=1)


@pytest.mark.campaign
@pytest.mark.timeout(7200)
def test_two_thousand_kills(tmp_path: Path) -> None:
    for part in range(40):
        kill_many(tmp_path / f"{part}.db", 50, seed=100 + part)
