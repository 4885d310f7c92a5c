"""What the control API is answered with: one object, one room per noun."""

from __future__ import annotations

from typing import TYPE_CHECKING

from substrate.node.api_chains import ChainApi
from substrate.node.api_commits import CommitApi
from substrate.node.api_logs import LogApi
from substrate.node.api_reads import ReadApi

if TYPE_CHECKING:
    from substrate.node.runtime import Runtime


class NodeApi(ReadApi, CommitApi, ChainApi, LogApi):
    """Implements `substrate.control.api.ControlApi` for one node."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
