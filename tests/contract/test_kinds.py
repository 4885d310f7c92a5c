"""The one table of failures, walked: each kind has its place, and the code uses the kinds and no others (contract section 3)."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from substrate.wire.errors import KINDS, Exit, NetError
from tests.harness import REPO

SOURCES: Final = [path for room in ("substrate", "net_sdk", "net_cli") for path in sorted((REPO / room).rglob("*.py"))]
TABLE: Final = REPO / "substrate" / "wire" / "errors.py"

STATUS_OF: Final = {
    Exit.GENERIC: {422, 500, 501, 507},
    Exit.INVALID: {400, 413},
    Exit.NOT_FOUND: {404},
    Exit.EXISTS: {409},
    Exit.DENIED: {403},
    Exit.NOT_CONNECTED: {503},
    Exit.TIMEOUT: {504},
    Exit.REFUSED: {409},
    Exit.INTERRUPTED: {499},
}
"""Which HTTP statuses may stand beside an exit code."""

CONTRACT: Final = {
    Exit.GENERIC: "internal io-error corrupt-store ledger-tampered rejected drain-failed partial-result"
    " join-memory-exceeded not-yet-supported missing-feature",
    Exit.INVALID: "invalid-argument invalid-config ambiguous-name query-parse",
    Exit.NOT_FOUND: "node-not-found chain-not-found daemon-not-found identity-not-found task-not-found memory-not-found"
    " blob-not-found group-not-found migration-not-found proposal-not-found store-not-found",
    Exit.EXISTS: "identity-exists chain-exists task-exists out-exists node-running conflict",
    Exit.DENIED: "no-operator-key permissive-mode not-authorized signature-invalid insufficient-signatures"
    " envelope-expired envelope-from-future replayed consumed simulation-required simulation-stale ice-cooldown-active"
    " freeze-in-effect clock-skew cluster-changed peer-uid",
    Exit.NOT_CONNECTED: "not-connected node-unreachable engine-unavailable",
    Exit.TIMEOUT: "timeout wait-timeout",
}
"""The examples that section 3 names: fixed for ever."""

RESERVED: Final = {
    "task-not-found": "NetDB",
    "task-exists": "NetDB",
    "memory-not-found": "NetDB",
    "memory-exists": "NetDB",
    "query-parse": "MeshDB",
    "join-memory-exceeded": "MeshDB",
    "partial-result": "MeshDB",
    "blob-not-found": "Dataforts",
    "group-not-found": "nRPC",
    "migration-not-found": "MeshOS",
    "daemon-exists": "MeshOS",
    "consumed": "ICE",
    "ice-cooldown-active": "ICE",
}
"""Kinds of rooms that are still to come, and which."""


def literals(path: Path) -> Iterator[str]:
    """Every string constant of a file; of an f-string `f"{noun}-not-found"` the constant part."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def used_kinds() -> set[str]:
    """The kinds that some code outside the table names."""
    found = {text for path in SOURCES if path != TABLE for text in literals(path)}
    nouns = {"node", "daemon", "chain", "operator"}  # substrate.wire.ids.match_reference builds these
    assert "-not-found" in found, "match_reference builds NOUN-not-found no more: mend this test"
    return {kind for kind in KINDS if kind in found} | {f"{noun}-not-found" for noun in nouns}


def test_every_kind_has_a_status_that_fits_its_exit_code() -> None:
    wrong = {name: kind for name, kind in KINDS.items() if kind.http not in STATUS_OF[kind.exit]}
    assert not wrong


def test_every_exit_code_but_success_has_a_kind() -> None:
    assert {kind.exit for kind in KINDS.values()} == set(Exit) - {Exit.OK}
    assert sorted(int(code) for code in Exit) == [*range(9), 130]


@pytest.mark.parametrize("code", list(CONTRACT), ids=lambda code: code.name.lower())
def test_the_contract_s_kinds_keep_their_codes(code: Exit) -> None:
    assert {name: KINDS[name].exit for name in CONTRACT[code].split()} == dict.fromkeys(CONTRACT[code].split(), code)


def test_names_are_kebab_case_and_not_found_is_said_so() -> None:
    for name, kind in KINDS.items():
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", name), name
        assert name.endswith("-not-found") == (kind.exit is Exit.NOT_FOUND), name


def test_every_kind_is_used_or_reserved() -> None:
    used = used_kinds()
    assert set(KINDS) - used == set(RESERVED), "a kind nobody raises, or a reserved one that is raised by now"


def test_no_code_raises_a_kind_outside_the_table() -> None:
    unknown = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant)):
                continue
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            if name == "NetError" and node.args[0].value not in KINDS:
                unknown.append((str(path.relative_to(REPO)), node.lineno, node.args[0].value))
    assert not unknown


@pytest.mark.parametrize("kind", list(KINDS))
def test_an_error_survives_its_document(kind: str) -> None:
    error = NetError(kind, "what is wrong", "what mends it", {"seq": 3})
    again = NetError.from_document(error.document())
    assert (again.kind, again.message, again.hint, again.details) == (
        kind,
        "what is wrong",
        "what mends it",
        {"seq": 3},
    )
    assert again.exit_code == KINDS[kind].exit == error.document()["error"]["exit_code"]


def test_a_kind_of_a_newer_node_is_internal_here() -> None:
    document: dict[str, Any] = {
        "error": {"kind": "moon-not-found", "message": "no moon", "hint": None, "exit_code": 3, "details": {}}
    }
    assert NetError.from_document(document).kind == "internal"
