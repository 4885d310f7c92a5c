"""What the demo runs: a spec file for people to read, two chains and what is in them."""

from __future__ import annotations

import json
from typing import Final

SPEC_FILE: Final = "daemons.toml"
INSTANCES: Final = 6
"""Daemon instances of `SPEC`."""
SPEC: Final = """\
# The daemons of the demo. Any program will do; these print a line now and then.

[[daemon]]
name = "web"
command = ["sh", "-c", 'while n=$((n+1)); do echo "GET / $n"; sleep 2; done']
replicas = 3
grace = "2s"

[[daemon]]
name = "worker"
command = ["sh", "-c", 'while n=$((n+1)); do echo "job $n done"; sleep 3; done']
replicas = 2
grace = "2s"

[[daemon]]
name = "db"
command = ["sh", "-c", '''
trap 'echo "SIGTERM: flushing"; sleep 0.5; echo "closed cleanly"; exit 0' TERM
echo "open"
while :; do sleep 1; done
''']
essential = true      # leaves a draining node last
grace = "5s"
"""
CHAINS: Final[dict[str, list[dict[str, object]]]] = {
    "demo/orders": [{"order": 1, "item": "tea"}, {"order": 2, "item": "cups"}, {"order": 3, "item": "sugar"}],
    "demo/visits": [{"path": "/"}, {"path": "/tea"}],
}
"""Chain name to its first records."""


def ndjson(records: list[dict[str, object]]) -> str:
    """The records one a line, as `net chain append NAME -` reads them."""
    return "".join(json.dumps(record) + "\n" for record in records)
