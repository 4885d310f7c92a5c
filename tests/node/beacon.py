"""A daemon that proves when it ran: it stamps CLOCK_BOOTTIME into a shared file from its start to its end.

Standard library only, quick to start. Usage: `beacon.py FILE [--deaf] [--crash-after SECONDS]`. Every line is
`word daemon/instance node epoch pid boottime_ns born_ns`; each is one O_APPEND write, so lines of many processes never mix.
"""

from __future__ import annotations

import os
import signal
import sys
import time

BEAT_S = 0.02


def main() -> int:
    file = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    who = f"{os.environ['NET_DAEMON']}/{os.environ['NET_INSTANCE']}"
    tail = f"{who} {os.environ['NET_NODE']} {os.environ['NET_EPOCH']} {os.getpid()}"

    # The kernel counts a process's birth on the same clock, in ticks (field 22 of proc_pid_stat(5)).
    with open("/proc/self/stat", "rb") as stat:
        born_ns = int(stat.read().rpartition(b")")[2].split()[19]) * 1_000_000_000 // os.sysconf("SC_CLK_TCK")

    def stamp(word: str) -> None:
        os.write(file, f"{word} {tail} {time.clock_gettime_ns(time.CLOCK_BOOTTIME)} {born_ns}\n".encode())

    ended: list[int] = []
    signal.signal(signal.SIGTERM, signal.SIG_IGN if "--deaf" in sys.argv else lambda number, _: ended.append(number))
    crash_s = float(sys.argv[sys.argv.index("--crash-after") + 1]) if "--crash-after" in sys.argv else None
    begun = time.monotonic()
    stamp("start")
    print("beacon is up", flush=True)
    while not ended:
        time.sleep(BEAT_S)
        stamp("beat")
        if crash_s is not None and time.monotonic() - begun >= crash_s:
            return 3
    stamp("term")
    return 0


if __name__ == "__main__":
    sys.exit(main())
