"""`net version`: versions and features of this installation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from net_cli.context import App, pass_app
from net_cli.core import Command

BUILT_IN: Final = ("identity", "ledger", "chains", "daemons", "control-api")
LATER: Final = ("ice", "netdb", "meshdb", "blobs", "deck")
WIRE: Final = {"api": 1, "envelope": 1, "record": 1, "key-file": 1}


def features() -> dict[str, dict[str, Any]]:
    """Each feature with `present`, and the `reason` where it is missing."""
    from substrate.wire.extras import features as extras

    found: dict[str, dict[str, Any]] = {name: {"present": True, "reason": None} for name in BUILT_IN}
    reasons = dict.fromkeys(LATER, "not part of this version yet") | extras()
    return found | {name: {"present": reason is None, "reason": reason} for name, reason in reasons.items()}


@pass_app
def _version(app: App) -> None:
    from substrate import __version__

    app.out.record({"version": __version__, "wire": WIRE, "features": features()}, _view)


def _view(document: dict[str, Any]) -> Iterator[str]:
    yield f"net {document['version']}"
    yield "wire: " + ", ".join(f"{name} {number}" for name, number in document["wire"].items())
    for name, feature in document["features"].items():
        yield f"  {name}: " + ("present" if feature["present"] else f"{feature['reason']}")


version = Command(
    "version",
    callback=_version,
    help="Show versions and features.",
    examples=["net version", "net version --json | jq .features"],
)
