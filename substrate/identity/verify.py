"""Strict verification: malleable signatures and small-order keys never pass (contract section 5).

libsodium (through PyNaCl) refuses non-canonical S, small-order points and non-canonical encodings; plain OpenSSL does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import msgspec
from nacl import bindings as sodium
from nacl.exceptions import CryptoError

from substrate.wire.errors import NetError


class OperatorSignature(msgspec.Struct, frozen=True, array_like=True):
    """One operator's signature (64 bytes) over an envelope's payload."""

    operator_id: int
    signature: bytes


@lru_cache(maxsize=4096)  # a gateway judges a commit, perhaps again after a lost race, and folds it: one verification
def verify_strict(public_key: bytes, payload: bytes, signature: bytes) -> bool:
    """Whether `signature` is the key's over `payload`; never raises for bad input."""
    if len(public_key) != 32 or len(signature) != 64:
        return False
    try:
        # The combined form: verification and message recovery are one call in libsodium's public binding.
        sodium.crypto_sign_open(signature + payload, public_key)
    except (CryptoError, ValueError):
        return False
    return True


def check_public_key(public_key: bytes) -> None:
    """Refuse what is no point of the main subgroup (small-order keys among them) with `invalid-argument`."""
    if len(public_key) != 32 or not sodium.crypto_core_ed25519_is_valid_point(public_key):
        raise NetError(
            "invalid-argument", "this is no usable ed25519 public key", "generate one with: net identity generate NAME"
        )


def check_signatures(
    payload: bytes, signatures: Sequence[OperatorSignature], keys: Mapping[int, bytes], threshold: int
) -> list[int]:
    """The distinct operators who validly signed `payload`, in order.

    Every signature must be by a known operator and verify. Distinct means by id and by key. Raises `not-authorized`,
    `signature-invalid`, `insufficient-signatures` (details: got, required).
    """
    signers: list[int] = []
    used_keys: set[bytes] = set()
    for item in signatures:
        key = keys.get(item.operator_id)
        if key is None:
            raise NetError(
                "not-authorized",
                f"operator {item.operator_id} is not in this cluster's registry",
                "an operator of the cluster can add it: net identity registry add",
                {"operator_id": str(item.operator_id)},
            )
        if not verify_strict(key, payload, item.signature):
            raise NetError(
                "signature-invalid",
                f"the signature of operator {item.operator_id} does not match what was committed",
                "sign exactly the proposal that is committed",
                {"operator_id": str(item.operator_id)},
            )
        if item.operator_id not in signers and key not in used_keys:
            signers.append(item.operator_id)
            used_keys.add(key)
    required = max(1, threshold)
    if len(signers) < required:
        raise NetError(
            "insufficient-signatures",
            f"{len(signers)} of {required} signatures",
            "collect signatures of more operators: --out FILE, registry sign, registry commit",
            {"got": len(signers), "required": required},
        )
    return signers
