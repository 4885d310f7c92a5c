"""Settings of a cluster, changed only by signed `policy` events (contract section 6).

Tests lower times by committing a policy, so there are no hidden flags. All times are milliseconds.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from substrate.wire.errors import NetError


class Setting(NamedTuple):
    """One setting: its default, its allowed range, and what it governs."""

    default: int
    low: int
    high: int
    meaning: str


SETTINGS: Final[dict[str, Setting]] = {
    "commit_window_ms": Setting(60_000, 1_000, 3_600_000, "time to commit an envelope that one operator signs"),
    "cosign_window_ms": Setting(900_000, 1_000, 3_600_000, "time to commit an envelope that several operators sign"),
    "backoff_initial_ms": Setting(500, 1, 3_600_000, "first pause before a crashed daemon starts again"),
    "backoff_max_ms": Setting(60_000, 1, 3_600_000, "longest such pause; each is twice the one before"),
    "crash_window_ms": Setting(60_000, 1, 86_400_000, "span in which crashes are counted"),
    "crash_limit": Setting(5, 1, 1_000, "crashes within the span that make a crash loop"),
    "crash_cooldown_ms": Setting(300_000, 1, 86_400_000, "pause after a crash loop"),
    "stable_run_ms": Setting(60_000, 1, 86_400_000, "running time after which earlier crashes are forgotten"),
}


def defaults() -> dict[str, int]:
    """The settings of a new cluster."""
    return {name: setting.default for name, setting in SETTINGS.items()}


def check_changes(changes: dict[str, int]) -> None:
    """Raise `invalid-argument` if a change names no setting or leaves its range."""
    if not changes:
        raise NetError("invalid-argument", "a policy event changes at least one setting", "net admin policy show")
    for name, value in changes.items():
        setting = SETTINGS.get(name)
        if setting is None:
            raise NetError(
                "invalid-argument",
                f"there is no policy setting {name!r}",
                f"settings: {', '.join(SETTINGS)}",
                {"setting": name},
            )
        if not setting.low <= value <= setting.high:
            raise NetError(
                "invalid-argument",
                f"the policy setting {name} must be {setting.low} to {setting.high}, not {value}",
                "net admin policy show",
                {"setting": name, "low": setting.low, "high": setting.high},
            )
