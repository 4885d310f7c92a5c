"""The control API of a node: HTTP/1.1 and JSON on a Unix socket (contract section 8)."""

from substrate.control.api import ControlApi, Peer, Request
from substrate.control.routes import ROUTES, Route
from substrate.control.server import ControlServer, Limits
from substrate.control.stream import End, Lagged, Subscription

__all__ = [
    "ROUTES",
    "ControlApi",
    "ControlServer",
    "End",
    "Lagged",
    "Limits",
    "Peer",
    "Request",
    "Route",
    "Subscription",
]
