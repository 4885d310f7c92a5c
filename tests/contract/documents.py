"""What every JSON document must obey (contract section 1), its schema, and the form in which it is pinned.

`obey` walks a document and demands the rules that hold for all of them, by the names of the keys. `check` validates it
against `docs/schemas/NAME.json`. `pin` replaces what differs from run to run by typed placeholders, so that the rest can
be compared byte for byte.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from tests.harness import REPO

SCHEMAS: Final = REPO / "docs" / "schemas"

_DIGITS: Final = re.compile(r"(0|[1-9][0-9]{0,19})")
_KEBAB: Final = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_ISO: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
_HEX: Final = re.compile(r"([0-9a-f]{2})+")

HEX_KEYS: Final = {
    "commit_id": 32, "cluster_id": 32, "nonce": 32, "hash": 64, "prev_hash": 64, "head_hash": 64, "admin_hash": 64,
    "public_key": 64, "blast_hash": 64, "token": 64, "signature": 128, "proof": 128, "signing_payload": None,
}  # fmt: skip
ID_KEYS: Final = frozenset(("session",))
ENUM_KEYS: Final = frozenset(
    ("state", "lifecycle", "maintenance", "outcome", "event_kind", "result", "restart", "level", "stream", "status")
)
MAX_JSON_INT: Final = 2**53


def walk(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every value of a document with its path, outermost first."""
    yield path, value
    if isinstance(value, dict):
        for key, item in value.items():
            yield from walk(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from walk(item, (*path, index))


def problems(document: Any) -> list[str]:
    """What in a document breaks the rules of contract section 1, as sentences; an opaque user payload is not looked into."""
    found: list[str] = []
    for path, value in walk(document):
        if "payload" in path[:-1]:  # a record's payload is the user's
            continue
        if isinstance(value, int) and abs(value) > MAX_JSON_INT:
            found.append(f"{path}: {value} is rounded by jq and JavaScript")
        if path and isinstance(path[-1], str):
            found += [f"{path}: {value!r} {problem}" for problem in _key_problems(path[-1], value)]
    return found


def _key_problems(key: str, value: Any) -> Iterator[str]:
    if value is None:
        return
    if key in HEX_KEYS:
        length = HEX_KEYS[key]
        if not (isinstance(value, str) and _HEX.fullmatch(value) and length in (None, len(value))):
            yield f"is not {length or 'any number of'} lowercase hex digits"
    elif (key == "id" or key.endswith("_id") or key in ID_KEYS) and not _is_digits(value):
        yield "is no id: a string of decimal digits"
    elif (key == "at" or key.endswith("_at")) and not (isinstance(value, str) and _ISO.fullmatch(value)):
        yield "is no ISO 8601 time with milliseconds and Z"
    elif key.endswith(("_ms", "_us", "_bytes")) and not _is_count(value):
        yield "is no whole number"
    elif key in ENUM_KEYS and isinstance(value, str) and not _KEBAB.fullmatch(value):
        yield "is not kebab-case"


def _is_digits(value: Any) -> bool:
    return isinstance(value, str) and bool(_DIGITS.fullmatch(value)) and int(value) < 2**64


def _is_count(value: Any) -> bool:
    if isinstance(value, dict):  # a setting of the policy or the configuration: `{"value": ..., "default": ...}`
        return _is_count(value.get("value"))
    return isinstance(value, int) and not isinstance(value, bool)


@cache
def _registry() -> Registry[Any]:
    resources = [(path.name, Resource.from_contents(json.loads(path.read_text()))) for path in SCHEMAS.glob("*.json")]
    return Registry().with_resources(resources)


@cache
def validator(name: str) -> Draft202012Validator:
    """The validator of `docs/schemas/NAME.json`, whose references are names of files beside it."""
    schema = json.loads((SCHEMAS / f"{name}.json").read_text())
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema, registry=_registry())


def check(name: str, document: Any) -> None:
    """Demand that a document is what its schema says and obeys the rules of all documents."""
    errors = [f"{error.json_path}: {error.message}" for error in validator(name).iter_errors(document)]
    errors += problems(document)
    assert not errors, f"{name}: " + "; ".join(errors)


# -- pinning --------------------------------------------------------------------------------------------------------

MEASURED: Final = {
    "rtt_us": "<us|null>",
    "rtt_age_ms": "<ms|null>",
    "load_age_ms": "<ms|null>",
    "last_seen_ms": "<ms|null>",
    "report_age_ms": "<ms|null>",
    "age_ms": "<ms|null>",
    "cpu_percent": "<number|null>",
    "load1": "<number|null>",
    "rss_bytes": "<bytes|null>",
    "mem_used_bytes": "<bytes|null>",
    "mem_total_bytes": "<bytes|null>",
    "disk_used_bytes": "<bytes|null>",
    "disk_total_bytes": "<bytes|null>",
    "fingerprint": "<fingerprint>",
    "pid": "<pid>",
    "guardian_pid": "<pid>",
    "detail": "<text>",
    "epoch": "<epoch>",
    "term": "<term>",
    "version": "<version>",
    "python": "<version>",
    "admin_seq": "<seq>",
    "control_seq": "<seq>",
    "head_seq": "<seq>",
    "first_seq": "<seq>",
    "folded_seq": "<seq>",
    "seq": "<seq>",
    "records": "<count>",
    "checkpoints": "<count>",
    "size_bytes": "<bytes>",
    "skew_ms": "<ms>",
    "uptime_ms": "<ms>",
    "elapsed_ms": "<ms>",
    "time_left_ms": "<ms|null>",
    "issued_at_ms": "<ms>",
    "expires_at_ms": "<ms>",
    "at_ms": "<ms>",
}
"""Keys whose values are never the same twice, and what stands for them."""

_INSIDE: Final = (
    (_ISO, "<iso>"),
    (re.compile(r"\b[0-9a-f]{128}\b"), "<hex128>"),
    (re.compile(r"\b[0-9a-f]{64}\b"), "<hex64>"),
    (re.compile(r"\b[0-9a-f]{32}\b"), "<hex32>"),
    (re.compile(r"\b[0-9a-f]{65,}\b"), "<hex>"),
    (re.compile(r"\b[0-9]{15,20}\b"), "<id>"),
    (re.compile(r"\b[0-9]+ s ago\b"), "<s> ago"),
    (re.compile(r"\bprocess [0-9]+\b"), "process <pid>"),
    (re.compile(r"\barch=\w+"), "arch=<arch>"),
)


def pin(value: Any, root: Path, hide: Collection[str] = ()) -> Any:
    """A document with placeholders: `MEASURED` keys, times, hex, ids, and the test's directory; `hide` names further keys
    whose values depend on the run (a node that was chosen)."""
    if isinstance(value, dict):
        return {key: _pin_item(key, item, root, hide) for key, item in value.items()}
    if isinstance(value, list):
        return [pin(item, root, hide) for item in value]
    if not isinstance(value, str):
        return value
    text = value.replace(str(root), "<home>")
    for pattern, placeholder in _INSIDE:
        text = pattern.sub(placeholder, text)
    return text


def _pin_item(key: str, value: Any, root: Path, hide: Collection[str]) -> Any:
    if key in hide:
        return f"<{key}>"
    if key in MEASURED and not isinstance(value, dict | list):
        return MEASURED[key]
    return pin(value, root, hide)
