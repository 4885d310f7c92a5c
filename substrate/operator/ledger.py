"""What one record of the `admin` chain holds.

The signed envelope travels as the exact bytes that were signed, so whoever reads the ledger verifies signatures over what
operators saw. The record's own seq, time and hashes are those of the chain (`substrate.wire.records`); its seal is the
gateway's signature over the hash.
"""

from __future__ import annotations

from typing import Annotated, Final

from substrate.identity.verify import OperatorSignature
from substrate.wire.envelope import Envelope, commit_id_of
from substrate.wire.postcard import BYTES, ID, STRING, U64, Codec, Reader, fixed, option, sequence
from substrate.wire.structs import WireStruct, struct

ADMIN_CHAIN: Final = "admin"
CONTROL_CHAIN: Final = "control"
RESERVED_CHAINS: Final = frozenset((ADMIN_CHAIN, CONTROL_CHAIN))
RULES_VERSION: Final = 1

_SIGNATURE_BYTES: Final = fixed(64)


def _write_signature(out: bytearray, value: OperatorSignature) -> None:
    ID.write(out, value.operator_id)
    _SIGNATURE_BYTES.write(out, value.signature)


def _read_signature(reader: Reader) -> OperatorSignature:
    return OperatorSignature(ID.read(reader), _SIGNATURE_BYTES.read(reader))


SIGNATURE: Final = Codec(
    "signature {operator id, 64 bytes}",
    _write_signature,
    _read_signature,
    lambda v: {"operator_id": str(v.operator_id), "signature": v.signature.hex()},
    lambda v: OperatorSignature(ID.from_json(v["operator_id"]), _SIGNATURE_BYTES.from_json(v["signature"])),
)


class Refusal(WireStruct, frozen=True):
    """Why a commit was rejected."""

    kind: Annotated[str, STRING]
    message: Annotated[str, STRING]


class LedgerBody(WireStruct, frozen=True):
    """The payload of an `admin` record. `refusal` is None when the commit was accepted."""

    rules_version: Annotated[int, U64]
    gateway: Annotated[int, ID]
    payload: Annotated[bytes, BYTES]
    signatures: Annotated[tuple[OperatorSignature, ...], sequence(SIGNATURE, 64)]
    warnings: Annotated[tuple[str, ...], sequence(STRING, 64)]
    refusal: Annotated[Refusal | None, option(struct(Refusal))]

    def envelope(self) -> Envelope:
        """The signed envelope; raises `PostcardError`."""
        return Envelope.parse(self.payload)

    def commit_id(self) -> bytes:
        """16 bytes."""
        return commit_id_of(self.payload)
