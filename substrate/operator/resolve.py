"""From what a client asks for to an event with ids: names and prefixes are resolved on the folded ledger."""

from __future__ import annotations

from typing import Any, Final

from substrate.operator.state import LedgerState
from substrate.wire import events
from substrate.wire.errors import NetError
from substrate.wire.ids import match_reference
from substrate.wire.postcard import invalid_field

_REFERENCES: Final = {"node": "node", "daemon": "daemon", "operator": "operator", "chain": "chain"}


def resolve_reference(state: LedgerState, noun: str, reference: str) -> int:
    """The id a name, prefix or id means; raises `NOUN-not-found` or `ambiguous-name`."""
    known = {
        "node": state.node_names,
        "daemon": state.daemon_names,
        "operator": state.operator_names,
        "chain": state.chain_names,
    }[noun]()
    return match_reference(noun, reference, known)


def resolve_event(state: LedgerState, document: Any) -> events.Event:
    """The event of a proposal request, in which nodes, daemons, operators and chains may be named."""
    if not isinstance(document, dict):
        raise invalid_field("event", "value", "must be an object")
    resolved = dict(document)
    kind = resolved.get("kind")
    for field, noun in _REFERENCES.items():
        if field in resolved and kind not in ("force-restart-daemon", "genesis"):
            resolved[field] = str(resolve_reference(state, noun, _text(field, resolved[field])))
    if "chains" in resolved and isinstance(resolved["chains"], list):
        resolved["chains"] = [
            str(resolve_reference(state, "chain", _text("chains", item))) for item in resolved["chains"]
        ]
    if kind == "daemon-apply":
        _fill_spec(resolved)
    return events.decode_event(resolved)


def _fill_spec(resolved: dict[str, Any]) -> None:
    from substrate.wire.specs import DaemonSpec

    if "spec" in resolved:
        resolved["spec"] = DaemonSpec.parse(resolved["spec"]).to_json()


def _text(field: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise invalid_field("event", field, "must be a name or an id as a string")
    return value


def target_document(state: LedgerState, event: Any) -> dict[str, Any]:
    """What the event is about, with names: the `target` of commit documents."""
    target: dict[str, Any] = {}
    if hasattr(event, "node"):
        node = state.nodes.get(event.node)
        target |= {"node_id": str(event.node), "node_name": node.name if node else None}
    if isinstance(event, events.DaemonEvent):
        daemon = state.daemons.get(event.daemon)
        name = daemon.spec.name if daemon else state.former_names.get(event.daemon)
        target |= {"daemon_id": str(event.daemon), "daemon_name": name}
    elif isinstance(event, events.DaemonApply):
        name = event.spec.name
        target |= {"daemon_id": str(state.daemon_id(name)), "daemon_name": name}
    elif isinstance(event, events.ChainCreate):
        target |= {"chain_id": str(state.chain_id(event.name)), "chain_name": event.name}
    elif isinstance(event, events.Genesis):
        target |= {"cluster": event.cluster}
    target |= _people_target(state, event)
    return target


def _people_target(state: LedgerState, event: Any) -> dict[str, Any]:
    from substrate.identity import ids

    if isinstance(event, events.RegistryAdd):
        return {"operator_id": str(ids.operator_id(event.public_key)), "operator": event.name}
    if isinstance(event, events.RegistryRemove | events.RegistryRotate):
        operator = state.operators.get(event.operator)
        target = {"operator_id": str(event.operator), "operator": operator.name if operator else None}
        if isinstance(event, events.RegistryRotate):
            target["new_operator_id"] = str(ids.operator_id(event.public_key))
        return target
    if isinstance(event, events.NodeJoin):
        return {"node_id": str(ids.node_id(event.public_key)), "node_name": event.name}
    return {}


def check_supported(document: Any) -> None:
    """Refuse verbs without an object to act on before anything about them is resolved."""
    from substrate.operator.state import SUPPORTED

    kind = document.get("kind") if isinstance(document, dict) else None
    if kind in events.ADMIN_EVENTS.by_kind and kind not in SUPPORTED:
        raise NetError(
            "not-yet-supported",
            f"{kind} has nothing to act on yet in this version",
            "see `net version` for what this version can do",
            {"event_kind": kind},
        )
