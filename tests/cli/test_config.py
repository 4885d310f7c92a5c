"""Settings: where they come from, which wins, and how mistakes are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.cli.conftest import Net

CONFIG = """
[default]
cluster = "blue"
timeout = "10s"
[profiles.lab]
cluster = "lab"
operator = "carol"
read_only = true
timeout = 7
"""


@pytest.fixture
def config(home: Path) -> Path:
    path = home / "config" / "config.toml"
    path.parent.mkdir()
    path.write_text(CONFIG)
    return path


def settings(net: Net, *args: str, env: dict[str, str] | None = None) -> dict[str, tuple[Any, str]]:
    done = net("config", "show", *args, env=env)
    assert done.code == 0, done.err
    return {name: (item["value"], item["source"]) for name, item in done.document["settings"].items()}


def test_without_a_file_the_defaults_hold(net: Net) -> None:
    assert settings(net) == {
        "cluster": ("default", "built in"),
        "timeout_ms": (30_000, "built in"),
        "read_only": (False, "built in"),
    }


def test_each_source_beats_the_next(net: Net, config: Path) -> None:
    assert settings(net)["cluster"] == ("blue", f"{config} [default]")
    assert settings(net, "--profile", "lab")["cluster"] == ("lab", f"{config} [profiles.lab]")
    assert settings(net, "--profile", "lab")["timeout_ms"][0] == 7_000
    assert settings(net, env={"NET_PROFILE": "lab"})["operator"][0] == "carol"
    env = {"NET_CLUSTER": "green", "NET_PROFILE": "lab"}
    assert settings(net, env=env)["cluster"] == ("green", "NET_CLUSTER")
    assert settings(net, "--cluster", "red", env=env)["cluster"] == ("red", "--cluster")


def test_every_variable_is_read(net: Net) -> None:
    env = {
        "NET_SOCKET": "/s",
        "NET_CLUSTER": "c",
        "NET_VIA": "n",
        "NET_OPERATOR": "o",
        "NET_TIMEOUT": "1m",
        "NET_OUTPUT": "json",
        "NET_NETDB": "/db",
        "NET_ICE_SIGNATURE_THRESHOLD": "2",
        "NET_READ_ONLY": "yes",
    }
    found = settings(net, env=env)
    assert {name: value for name, (value, _) in found.items()} == {
        "socket": "/s",
        "cluster": "c",
        "via": "n",
        "operator": "o",
        "timeout_ms": 60_000,
        "output": "json",
        "netdb": "/db",
        "ice_signature_threshold": 2,
        "read_only": True,
    }


@pytest.mark.parametrize("place", ["before", "between", "after"])
@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (("--cluster", "x"), "cluster", "x"),
        (("--socket=/tmp/s",), "socket", "/tmp/s"),
        (("--via", "a"), "via", "a"),
        (("--operator", "o"), "operator", "o"),
        (("--timeout", "5m"), "timeout_ms", 300_000),
        (("--output", "json"), "output", "json"),
        (("--json",), "output", "json"),
    ],
)
def test_global_options_stand_anywhere(net: Net, place: str, words: tuple[str, ...], name: str, value: Any) -> None:
    order = {"before": (*words, "config", "show"), "between": ("config", *words, "show")}
    done = net(*order.get(place, ("config", "show", *words)))
    assert done.code == 0, done.err
    assert done.document["settings"][name]["value"] == value


def test_the_later_option_wins(net: Net) -> None:
    assert settings(net, "--cluster", "late", env={})["cluster"][0] == "late"
    done = net("--cluster", "early", "config", "--cluster", "middle", "show", "--cluster", "late")
    assert done.document["settings"]["cluster"]["value"] == "late"
    done = net("--output", "pretty", "config", "show", "--json")
    assert done.document["settings"]["output"]["value"] == "json"
    done = net("--json", "config", "show", "--output", "pretty")
    assert done.out.startswith("config file: ")
    assert net("config", "show", "--output", "pretty", "--json").document
    assert net("config", "show", "--json", "--output", "pretty").out.startswith("config file: ")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[default]\nclustr = 'x'\n", ["clustr", "[default]"]),
        ("[profiles.p]\ncolor = 'red'\n", ["color", "[profiles.p]"]),
        ("[other]\n", ["other"]),
        ("cluster = 'x'\n", ["cluster"]),
        ("[default]\ntimeout = 'soon'\n", ["timeout", "soon"]),
        ("[default]\ntimeout = 1.5\n", ["timeout"]),
        ("[default]\nread_only = 'yes'\n", ["read_only", "true or false"]),
        ("[default]\noutput = 'yaml'\n", ["output"]),
        ("[default]\nice_signature_threshold = 0\n", ["ice_signature_threshold"]),
        ("[default]\nice_signature_threshold = true\n", ["ice_signature_threshold"]),
        ("[default]\ncluster = '../x'\n", ["cluster"]),
        ("[default\n", ["config.toml"]),
        ("profiles = 1\n", ["profiles"]),
        ("[profiles]\np = 1\n", ["'p'"]),
    ],
)
def test_a_mistake_in_the_file_is_named(net: Net, config: Path, text: str, words: list[str]) -> None:
    config.write_text(text)
    error = net("config", "show").error
    assert error["kind"] == "invalid-config"
    assert error["exit_code"] == 2
    assert str(config) in error["message"]
    for word in words:
        assert word in error["message"]
    assert net("config", "path").document["config_file"] == str(config), "the way to the file must stay open"
    assert net("--help").code == 0


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("NET_TIMEOUT", "-5"),
        ("NET_OUTPUT", "xml"),
        ("NET_READ_ONLY", "perhaps"),
        ("NET_ICE_SIGNATURE_THRESHOLD", "0"),
        ("NET_CLUSTER", "../etc"),
    ],
)
def test_a_mistake_in_a_variable_is_named(net: Net, variable: str, value: str) -> None:
    error = net("config", "show", env={variable: value}).error
    assert error["kind"] == "invalid-config"
    assert variable in error["message"]


def test_unknown_profile(net: Net, config: Path) -> None:
    error = net("config", "show", "--profile", "nope").error
    assert (error["kind"], error["exit_code"]) == ("profile-not-found", 3)
    assert "lab" in error["hint"]


def test_named_files_must_be_readable(net: Net, home: Path) -> None:
    assert net("config", "show", "--config", str(home / "none.toml")).error["kind"] == "invalid-config"
    assert net("config", "show", env={"NET_CONFIG": str(home)}).error["kind"] == "invalid-config"
    binary = home / "bad.toml"
    binary.write_bytes(b"\xff\xfe")
    assert net("config", "show", "--config", str(binary)).error["kind"] == "invalid-config"


def test_cluster_flag_is_checked(net: Net) -> None:
    assert net("config", "show", "--cluster", "../x").error["kind"] == "invalid-argument"


def test_read_only_refuses_writes_before_anything_else(net: Net, config: Path) -> None:
    for args in (
        ("admin", "cordon", "--node", "b"),
        ("chain", "append", "c", "--data", "1"),
        ("chain", "create", "c"),
        ("daemon", "run", "--", "true"),
        ("node", "stop", "--all"),
        ("node", "token"),
        ("identity", "rotate", "carol"),
        ("identity", "registry", "add", "x", "--public-key", "00" * 32, "--proof", "00" * 64),
    ):
        error = net("--profile", "lab", *args).error
        assert (error["kind"], error["exit_code"]) == ("read-only", 5), args
        assert "profiles.lab" in error["message"]


def test_schema_accepts_what_we_accept(net: Net) -> None:
    import tomllib

    schema = net("config", "schema").document
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(tomllib.loads(CONFIG), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"default": {"clustr": "x"}}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"default": {"ice_signature_threshold": 0}}, schema)
