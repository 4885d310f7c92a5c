"""What this installation can do: the optional extras, and why one is missing."""

from __future__ import annotations

from typing import Any

from substrate.wire.extras import features


def features_document() -> dict[str, Any]:
    """extra -> `{present, reason}`."""
    return {name: {"present": reason is None, "reason": reason} for name, reason in features().items()}
