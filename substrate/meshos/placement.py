"""Which node an instance should run on. Pure and deterministic.

Hard rules: the node is alive and takes new work, carries every required label, and no anti-affinity label stands between
the daemon and those already there, in either direction. Among the rest the node with the fewest instances of the same daemon wins,
then the one with the fewest instances at all, then the first by name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import msgspec

from substrate.meshos.decisions import Key
from substrate.wire.specs import DaemonSpec


class Host(msgspec.Struct):
    """A node as placement sees it. `blocked` says why it takes nothing new, or is None."""

    node: int
    name: str
    session: int
    labels: frozenset[str]
    blocked: str | None
    instances: dict[Key, DaemonSpec]


class Refusals(msgspec.Struct):
    """Why no node fits: node name -> reason."""

    reasons: dict[str, str]

    def text(self) -> str:
        """One sentence for people."""
        if not self.reasons:
            return "there is no other node"
        return "; ".join(f"{name}: {reason}" for name, reason in sorted(self.reasons.items()))


def choose(spec: DaemonSpec, key: Key, hosts: Iterable[Host], exclude: Collection[int] = ()) -> Host | Refusals:
    """The best node for an instance, or why there is none."""
    reasons: dict[str, str] = {}
    best: tuple[tuple[int, int, str], Host] | None = None
    for host in hosts:
        if host.node in exclude:
            continue
        reason = why_not(spec, key, host)
        if reason is not None:
            reasons[host.name] = reason
            continue
        others = [other for other in host.instances if other != key]
        score = (sum(1 for other in others if other[0] == key[0]), len(others), host.name)
        if best is None or score < best[0]:
            best = (score, host)
    return best[1] if best else Refusals(reasons)


def why_not(spec: DaemonSpec, key: Key, host: Host) -> str | None:
    """The hard rule that keeps the instance off the node, or None."""
    if host.blocked is not None:
        return host.blocked
    missing = [label for label in spec.requires if label not in host.labels]
    if missing:
        return f"lacks {', '.join(missing)}"
    return _conflict(spec, key, host.instances)


def _conflict(spec: DaemonSpec, key: Key, instances: Mapping[Key, DaemonSpec]) -> str | None:
    for other_key, other in instances.items():
        if other_key == key:
            continue
        clash = set(spec.anti_affinity) & set(other.labels) or set(other.anti_affinity) & set(spec.labels)
        if clash:
            return f"runs {other.name}, kept apart by {', '.join(sorted(clash))}"
    return None
