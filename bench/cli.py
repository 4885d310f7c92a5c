"""Whole-process times of `net` beside the floor: the same interpreter importing click and doing nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from itertools import count

from bench.harness import Row, interleaved, median, row, stopwatch
from tests.harness import ClusterHarness, net_command

RUNS = 25


def process(argv: list[str], env: dict[str, str]) -> float:
    """Seconds from spawn to exit of one command with its output thrown away; fails if the command does."""
    silent = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1)]
    with stopwatch() as seconds:
        pid = os.posix_spawnp(argv[0], argv, env, file_actions=silent)
        _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code != 0:
        raise RuntimeError(f"{' '.join(argv)} ended with {code}")
    return seconds()


def rows(runs: int = RUNS) -> list[Row]:
    """Start-up, a read verb and a signed commit, on a node that runs."""
    with ClusterHarness() as cluster:
        cluster.operator("alice")
        cluster.start("a")
        net = net_command()
        turn = count()

        def command(*args: str) -> Callable[[], float]:
            return lambda: process([*net, *args], cluster.env)

        def commit() -> float:
            verb = "uncordon" if next(turn) % 2 else "cordon"
            return process([*net, "admin", verb, "--node", "a", "--operator", "alice", "--json"], cluster.env)

        times = interleaved(
            {
                "floor": lambda: process([sys.executable, "-c", "import click"], cluster.env),
                "net --help": command("--help"),
                "net version": command("version", "--json"),
                "net node status": command("node", "status", "--json"),
                "signed admin commit": commit,
            },
            runs,
        )
    floor = median(times["floor"]) * 1000
    budgets = {"net --help": 1.6, "net version": 1.6, "net node status": 2.0, "signed admin commit": 2.6}
    return [
        row(
            f"{name}, whole process",
            median(times[name]) * 1000,
            "ms",
            compare=('python -c "import click"', floor),
            ratio_at_most=budget,
        )
        for name, budget in budgets.items()
    ] + [
        row(
            f"{name}, fastest of {runs}",
            min(times[name]) * 1000,
            "ms",
            compare=("fastest floor", min(times["floor"]) * 1000),
        )
        for name in budgets
    ]
