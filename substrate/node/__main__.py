"""`python -m substrate.node`: the process behind `net node start --detach`. Its settings come in `NET_NODE_SETTINGS`.

The environment, unlike the arguments, is not shown to other users; a join token may be among the settings.
"""

from __future__ import annotations

import os
import sys

import msgspec

from substrate.node.detach import ReadyPipe
from substrate.node.main import run
from substrate.node.settings import NodeSettings
from substrate.node.start import SETTINGS_VARIABLE
from substrate.wire.errors import NetError


def main() -> int:
    """Run the node, telling the waiting parent whether it came up."""
    pipe = ReadyPipe.from_environment()
    settings = msgspec.json.decode(os.environ.pop(SETTINGS_VARIABLE), type=NodeSettings)
    try:
        return run(settings, pipe.ready)
    except NetError as error:
        pipe.fail(error)
        return int(error.exit_code)


if __name__ == "__main__":
    sys.exit(main())
