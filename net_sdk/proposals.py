"""What an operator signs: derived here from what was asked and shown, and compared with the node's proposal.

Nobody signs bytes they did not derive (contract section 5).
"""

from __future__ import annotations

from typing import Any, Final, Protocol

from substrate.wire.errors import NetError
from substrate.wire.ids import parse_id

MAX_WINDOW_MS: Final = 3_600_000
"""No envelope may live longer (contract section 5)."""
_NOUNS: Final = {
    "node": "node",
    "daemon": "daemon",
    "operator": "operator",
    "chain": "chain",
    "victim": "node",
    "target": "node",
}
_REQUIRED: Final = object()


class Signer(Protocol):
    """An operator's key: `substrate.identity.keys.Keypair` is one."""

    @property
    def operator_id(self) -> int:
        """The operator's u64 id."""

    def sign(self, payload: bytes) -> bytes:
        """The 64-byte ed25519 signature over `payload`."""


def verify_proposal(
    asked: dict[str, Any], reason: str, proposal: dict[str, Any], cluster_id: str | None = None
) -> bytes:
    """The signing payload, derived from the proposal's visible fields, if the proposal is what was asked for.

    `asked` is the event as proposed, its references still names; `cluster_id` (hex) is the pinned one. Raises
    `signature-invalid` when the node's bytes are not what its document shows, `cluster-changed` for a foreign cluster.
    """
    from substrate.wire.envelope import Envelope
    from substrate.wire.events import decode_event

    try:
        shown = {
            key: proposal[key] for key in ("event", "reason", "cluster_id", "nonce", "signing_payload", "commit_id")
        }
        issued, expires = int(proposal["issued_at_ms"]), int(proposal["expires_at_ms"])
        blast_hash = proposal.get("blast_hash")
        event = decode_event(shown["event"])
        envelope = Envelope(
            bytes.fromhex(shown["cluster_id"]),
            issued,
            expires,
            bytes.fromhex(shown["nonce"]),
            event,
            shown["reason"],
            bytes.fromhex(blast_hash) if blast_hash and event.kind in _ice_kinds() else None,
        )
        payload = envelope.payload()
    except (KeyError, TypeError, ValueError, NetError) as failure:
        raise _refuse(f"the proposal cannot be read: {failure}") from None
    if cluster_id is not None and shown["cluster_id"] != cluster_id:
        raise NetError(
            "cluster-changed",
            f"the proposal is for cluster {shown['cluster_id']}, not {cluster_id}",
            "nothing was signed; see known_clusters in the configuration directory",
            {"cluster_id": shown["cluster_id"], "known_as": cluster_id},
        )
    if len(envelope.cluster_id) != 16 or len(envelope.nonce) != 16:
        raise _refuse("the proposal's cluster id or nonce is not 16 bytes long")
    if not 0 < expires - issued <= MAX_WINDOW_MS:
        raise _refuse("the proposal's window is not within an hour")
    if shown["reason"] != reason:
        raise _refuse("the proposal gives another reason")
    _compare(asked, event, proposal.get("target") or {})
    if payload.hex() != shown["signing_payload"] or envelope.commit_id().hex() != shown["commit_id"]:
        raise _refuse("the bytes to sign are not what the proposal shows")
    return payload


def sign(signer: Signer, payload: bytes) -> dict[str, str]:
    """The signature document `{operator_id, signature}` over a verified payload."""
    return {"operator_id": str(signer.operator_id), "signature": signer.sign(payload).hex()}


def commit_body(proposal: dict[str, Any], signatures: list[dict[str, str]]) -> dict[str, Any]:
    """What `POST /v1/commits` takes: the signed part of the proposal and the signatures."""
    from substrate.wire.events import decode_event

    part = {key: proposal[key] for key in ("event", "reason", "issued_at_ms", "expires_at_ms", "nonce", "cluster_id")}
    if decode_event(proposal["event"]).kind in _ice_kinds():
        part["blast_hash"] = proposal["blast_hash"]
    return {"proposal": part, "signatures": signatures}


def _refuse(message: str) -> NetError:
    return NetError("signature-invalid", message, "nothing was signed; the node's software may be of another version")


def _ice_kinds() -> frozenset[str]:
    from substrate.wire.events import ICE_KINDS

    return ICE_KINDS


def _compare(asked: dict[str, Any], event: Any, target: dict[str, Any]) -> None:
    """Refuse an event that is not the asked one with its references resolved and its defaults filled in."""
    if asked.get("kind") != event.kind:
        raise _refuse(f"asked for {asked.get('kind')}, the proposal is for {event.kind}")
    fields = {name: value for name, value in asked.items() if name != "kind"}
    layout = dict(event.layout())
    if "changes" in layout and "changes" not in fields:
        fields = {"changes": fields}  # policy: the changed settings are named side by side
    for name in fields:
        if name not in layout:
            raise _refuse(f"the proposal leaves out the field {name!r}")
    resolved = event.to_json()
    for name, codec in layout.items():
        if name not in fields:
            default = _default(type(event), name)
            if default is _REQUIRED or default != getattr(event, name):
                raise _refuse(f"the proposal fills in {name!r}, which was not asked for")
        elif name in _NOUNS and isinstance(fields[name], str):
            if not _means(fields[name], resolved[name], target, _NOUNS[name]):
                raise _refuse(f"asked for {name} {fields[name]!r}, the proposal is for {name} {resolved[name]}")
        elif name == "chains":
            rows = {str(row.get("chain_id")): row for row in target.get("chains", ())}
            if len(fields[name]) != len(resolved[name]) or not all(
                _means(reference, chain, rows.get(chain, {}), "chain")
                for reference, chain in zip(fields[name], resolved[name], strict=True)
            ):
                raise _refuse("the proposal is for other chains")
        else:
            try:
                same = _decoded(name, codec, fields[name]) == getattr(event, name)
            except (ValueError, NetError):
                same = False
            if not same:
                raise _refuse(f"the proposal has another {name!r} than was asked for")


def _decoded(name: str, codec: Any, value: Any) -> Any:
    if name == "spec":  # may say `grace` for `grace_ms`
        from substrate.wire.specs import DaemonSpec

        return DaemonSpec.parse(value)
    return codec.from_json(value)


def _default(event: type[Any], name: str) -> Any:
    import msgspec

    for field in msgspec.structs.fields(event):
        if field.name == name and not field.required:
            return field.default_factory() if field.default is msgspec.NODEFAULT else field.default
    return _REQUIRED


def _means(reference: str, identity: str, target: dict[str, Any], noun: str) -> bool:
    """Whether `reference` (an id, a name or the beginning of one) can mean the thing `identity` that `target` shows."""
    if parse_id(reference) == int(identity):
        return True
    name = target.get(f"{noun}_name") or target.get(noun)
    return (
        target.get(f"{noun}_id") == identity
        and bool(reference)
        and isinstance(name, str)
        and name.startswith(reference)
    )
