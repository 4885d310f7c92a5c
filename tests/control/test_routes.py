"""The routes table, its match of paths, and the description in docs/openapi.yaml: the three say the same."""

from __future__ import annotations

import inspect
import json
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from substrate.control import ROUTES, ControlApi, Route
from substrate.control.params import LogsQuery
from substrate.control.routes import Match, match
from substrate.wire.errors import NetError
from tests.control.raw import Raw, get, post
from tests.control.sample import HEX16, SampleApi, Serving
from tests.harness import REPO

SPEC: dict[str, Any] = yaml.safe_load((REPO / "docs/openapi.yaml").read_text())
OPERATIONS = {
    operation["operationId"]: (method.upper(), path, operation)
    for path, methods in SPEC["paths"].items()
    for method, operation in methods.items()
}


def resolve(node: Any) -> Any:
    """A description's node with its own reference followed."""
    while isinstance(node, dict) and "$ref" in node:
        target: Any = SPEC
        for part in node["$ref"].removeprefix("#/").split("/"):
            target = target[part]
        node = target
    return node


def validator(schema: Any) -> Draft202012Validator:
    return Draft202012Validator({**schema, "components": SPEC["components"]})


def parameters(operation: dict[str, Any], place: str) -> dict[str, dict[str, Any]]:
    resolved = [resolve(parameter) for parameter in operation.get("parameters", [])]
    return {parameter["name"]: parameter for parameter in resolved if parameter["in"] == place}


# -- the table


def test_the_api_has_one_method_per_route_and_no_other() -> None:
    methods = {name for name, _ in inspect.getmembers(ControlApi, inspect.isfunction) if not name.startswith("_")}
    assert methods == {route.name for route in ROUTES}
    assert len({(route.method, route.path) for route in ROUTES}) == len(ROUTES)
    api: ControlApi = SampleApi()  # what the tests serve is a whole implementation
    assert all(inspect.iscoroutinefunction(getattr(api, name)) for name in methods)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
def test_every_route_is_found_by_its_path(route: Route) -> None:
    found = match(route.method, route.path.replace("{ref}", "a%2Fb").replace("{id}", "x"))
    assert isinstance(found, Match)
    assert found.route is route
    assert all(value in ("a/b", "x") for value in found.params.values())


@given(st.text(st.characters(categories=("L", "N", "P", "S")), min_size=1, max_size=60))
def test_any_printable_name_survives_the_path(name: str) -> None:
    if len(name.encode()) > 255 or not name.isprintable():
        return
    found = match("GET", "/v1/nodes/" + quote(name, safe=""))
    assert isinstance(found, Match)
    assert found.params == {"ref": name}


@given(st.text(max_size=80))
def test_any_path_matches_or_is_refused_with_a_kind(path: str) -> None:
    try:
        match("GET", path)
    except NetError as refused:
        assert refused.kind in ("route-not-found", "invalid-argument")


# -- the description against the table


def test_the_description_is_valid_and_has_exactly_the_routes() -> None:
    assert SPEC["openapi"].startswith("3.1")
    described = {(method, path, name, operation["summary"]) for name, (method, path, operation) in OPERATIONS.items()}
    assert described == {(route.method, route.path, route.name, route.summary) for route in ROUTES}
    for name, schema in SPEC["components"]["schemas"].items():
        Draft202012Validator.check_schema(schema)
        assert f'#/components/schemas/{name}"' in json.dumps(SPEC), f"{name} is used nowhere"


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
def test_path_query_and_body_are_described_field_by_field(route: Route) -> None:
    operation = OPERATIONS[route.name][2]
    in_path = {part[1:-1] for part in route.path.split("/") if part.startswith("{")}
    assert set(parameters(operation, "path")) == in_path
    assert all(parameter["required"] for parameter in parameters(operation, "path").values())
    query = {field.encode_name: field for field in msgspec.structs.fields(route.query)}
    described = parameters(operation, "query")
    assert set(described) == set(query)
    for name, field in query.items():
        assert described[name].get("required", False) is field.required, name
        compare(schema_of(route.query, name), described[name]["schema"], f"{route.name}.{name}")
    if route.body is None:
        assert "requestBody" not in operation
    else:
        schema = resolve(operation["requestBody"]["content"]["application/json"]["schema"])
        compare_struct(route.body, schema)


def schema_of(struct: type[msgspec.Struct], name: str) -> dict[str, Any]:
    (schema,), definitions = msgspec.json.schema_components([struct])
    body = definitions[schema["$ref"].rsplit("/", 1)[1]]
    found: dict[str, Any] = body["properties"][name]
    return found


def compare_struct(struct: type[msgspec.Struct], schema: dict[str, Any]) -> None:
    fields = {field.encode_name: field for field in msgspec.structs.fields(struct)}
    assert set(schema.get("properties", {})) == set(fields), struct.__name__
    assert set(schema.get("required", [])) == {name for name, field in fields.items() if field.required}
    assert schema["additionalProperties"] is False
    for field in fields.values():
        for inner in (field.type, *getattr(field.type, "__args__", ())):
            if isinstance(inner, type) and issubclass(inner, msgspec.Struct):
                described = resolve(schema["properties"][field.encode_name])
                compare_struct(inner, resolve(described.get("items", described)))


LIMITS = ("minimum", "maximum", "minLength", "maxLength", "pattern", "enum")


def compare(ours: dict[str, Any], described: dict[str, Any], where: str) -> None:
    """The limits a field has in code stand in the description (u64 bounds and the null of absence aside)."""
    ours = next((option for option in ours["anyOf"] if option.get("type") != "null"), ours) if "anyOf" in ours else ours
    described = resolve(described)
    for limit in LIMITS:
        have, want = described.get(limit), ours.get(limit)
        if limit == "enum" and want is not None:
            have, want = sorted(have or []), sorted(value for value in want if value is not None)
        if limit == "maximum" and want is not None and want >= 2**53:
            continue
        assert have == want, f"{where}: {limit}"


def test_the_comparison_of_limits_can_fail() -> None:
    with pytest.raises(AssertionError):
        compare(schema_of(LogsQuery, "limit"), {"type": "integer", "minimum": 1, "maximum": 5}, "limit")


# -- what is served, against the description

CALLS: dict[str, bytes] = {
    route.name: get(route.path.replace("{ref}", "sensors%2Ftemp").replace("{id}", HEX16))
    for route in ROUTES
    if route.method == "GET"
} | {
    "names": get("/v1/names?kind=chain"),
    "node_stop": post("/v1/node/stop", b"{}"),
    "propose": post("/v1/proposals", b'{"event":{"kind":"cordon","node":"a"}}'),
    "commit_post": post(
        "/v1/commits",
        json.dumps(
            {
                "proposal": {
                    "event": {"kind": "cordon"},
                    "reason": "",
                    "issued_at_ms": 1,
                    "expires_at_ms": 2,
                    "nonce": HEX16,
                    "cluster_id": HEX16,
                },
                "signatures": [{"operator_id": "5", "signature": "0c" * 64}],
            }
        ).encode(),
    ),
    "chain_append": post("/v1/chains/sensors%2Ftemp/records", b'{"records":[1,{"a":"b"}]}'),
}


def test_every_operation_answers_as_described() -> None:
    assert set(CALLS) == set(OPERATIONS)
    with Serving() as serving, Raw(serving.path) as raw:
        for name in ("chain_append", *(name for name in CALLS if name != "chain_append")):
            raw.send(CALLS[name])
            status, _, document = raw.response()
            assert status == 200, (name, document)
            content = OPERATIONS[name][2]["responses"]["200"]["content"]
            validator(content["application/json"]["schema"]).validate(document)


@pytest.mark.parametrize("name", [route.name for route in ROUTES if route.stream])
def test_every_stream_yields_rows_as_described(name: str) -> None:
    method, path, operation = OPERATIONS[name]
    assert method == "GET"
    schema = operation["responses"]["200"]["content"]["application/x-ndjson"]["schema"]
    target = path.replace("{ref}", "sensors%2Ftemp").replace("{id}", HEX16) + "?follow=true"
    from net_sdk.client import Client

    with Serving() as serving, Client(serving.path) as client:
        client.post("/v1/chains/sensors%2Ftemp/records", {"records": ["x"]})
        rows = client.stream(target)
        row = next(rows)
        validator(schema).validate(row)
        rows.close()  # type: ignore[attr-defined]


def test_streams_and_only_they_are_described_as_such() -> None:
    for route in ROUTES:
        content = OPERATIONS[route.name][2]["responses"]["200"]["content"]
        assert ("application/x-ndjson" in content) is route.stream, route.name
        assert route.stream is ("follow" in parameters(OPERATIONS[route.name][2], "query"))


def test_errors_are_as_described() -> None:
    schema = {"$ref": "#/components/schemas/Error"}
    with Serving() as serving, Raw(serving.path) as raw:
        for request in (get("/nowhere"), get("/v1/nodes/none"), get("/v1/logs?limit=0"), post("/v1/nodes", b"")):
            raw.send(request)
            status, _, document = raw.response()
            assert status >= 400
            validator(schema).validate(document)
    assert all("default" in operation["responses"] for _, _, operation in OPERATIONS.values())
