"""What the nodes of a cluster share: ordered durable chains, key-value, requests."""

from substrate.engine.api import (
    ChainInfo,
    Engine,
    EngineStatus,
    Handler,
    KvEntry,
    KvEvent,
    Lagged,
    Serving,
    Tail,
    TailItem,
    Watch,
)

__all__ = [
    "ChainInfo",
    "Engine",
    "EngineStatus",
    "Handler",
    "KvEntry",
    "KvEvent",
    "Lagged",
    "Serving",
    "Tail",
    "TailItem",
    "Watch",
]
