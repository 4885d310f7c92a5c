"""The engine of one machine: a broker process per cluster directory, and its clients."""

from substrate.engine.local.client import LocalEngine
from substrate.engine.local.launch import stop_broker

__all__ = ["LocalEngine", "stop_broker"]
