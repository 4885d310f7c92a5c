"""The cluster's policy as the settings of this node's supervisor."""

from __future__ import annotations

from collections.abc import Mapping

from substrate.meshos.instance_types import SupervisorSettings
from substrate.meshos.restart import RestartSettings


def supervisor_settings(policy: Mapping[str, int]) -> SupervisorSettings:
    """Back-off and crash-loop times from the policy's settings."""
    restart = RestartSettings(
        first_backoff_ms=policy["backoff_initial_ms"],
        max_backoff_ms=policy["backoff_max_ms"],
        crash_limit=policy["crash_limit"],
        crash_window_ms=policy["crash_window_ms"],
        crash_loop_ms=policy["crash_cooldown_ms"],
        stable_run_ms=policy["stable_run_ms"],
    )
    return SupervisorSettings(restart=restart)
