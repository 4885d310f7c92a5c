"""Tells systemd how the node is doing (sd_notify(3)): one datagram to the socket named in the environment.

Outside systemd, or in a unit without `Type=notify`, nothing is sent and nobody is troubled.
"""

from __future__ import annotations

import os
import socket
from typing import Final

MAX_STATUS_BYTES: Final = 512


def notify(state: str) -> bool:
    """Send `state` (`READY=1`, ...); False when there is nobody to tell or the service manager cannot be reached."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return False
    if address[0] == "@":  # an abstract socket: its name begins with NUL
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
            sock.sendto(state.encode(), address)
    except OSError:
        return False  # a service manager that restarts must not take its services down
    return True


def ready(status: str = "") -> bool:
    """The node serves."""
    return notify(f"READY=1\n{_status(status)}" if status else "READY=1")


def stopping() -> bool:
    """The node has begun to stop."""
    return notify("STOPPING=1")


def status(text: str) -> bool:
    """One line for `systemctl status`."""
    return notify(_status(text))


def watchdog() -> bool:
    """The node lives; send it every `watchdog_period_s`."""
    return notify("WATCHDOG=1")


def watchdog_period_s() -> float | None:
    """Half of the time after which systemd takes this process for dead, or None if it does not watch it."""
    try:
        limit_us = int(os.environ.get("WATCHDOG_USEC", "0"))
        watched = int(os.environ.get("WATCHDOG_PID", str(os.getpid())))
    except ValueError:
        return None
    return limit_us / 2e6 if limit_us > 0 and watched == os.getpid() else None


def _status(text: str) -> str:
    line = " ".join(text.split())  # a line break would begin another assignment
    return "STATUS=" + line.encode()[:MAX_STATUS_BYTES].decode(errors="ignore")
