"""`net config`: what the settings are and where each comes from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from net_cli.config import BY_NAME, CONFIG_VARIABLE, KEYS, PROFILE_VARIABLE, config_path
from net_cli.context import App, pass_app
from net_cli.core import group
from net_cli.output import screen_width
from net_cli.table import Column, duration, table

_TYPES: dict[str, dict[str, Any]] = {
    "text": {"type": "string", "minLength": 1},
    "name": {"type": "string", "pattern": "^[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?$"},
    "duration": {"type": ["string", "integer"], "description": "like 30s; a bare number is seconds"},
    "output": {"enum": ["pretty", "json"]},
    "count": {"type": "integer", "minimum": 1},
    "flag": {"type": "boolean"},
}


@group("config", examples=["net config show", "net config path", "net config schema > config.schema.json"])
def config() -> None:
    """Show the settings and where each comes from.

    A flag wins over a NET_* variable, that over the profile, that over [default] in config.toml.
    """


@config.command("show", examples=["net config show", "net config show --profile lab --json"])
@pass_app
def show(app: App) -> None:
    """Show every setting in force and its source."""
    path, _ = config_path(app.flags.get("config"))
    settings = {
        key.name: {"value": found.value, "source": found.source}
        for key in KEYS
        if (found := app.settings.get(key.name)) is not None
    }
    if "timeout" in settings:
        settings["timeout_ms"] = settings.pop("timeout")
    profile = app.flags.get("profile") or os.environ.get(PROFILE_VARIABLE) or None
    app.out.record({"config_file": path, "profile": profile, "settings": settings}, _view)


def _view(document: dict[str, Any]) -> Iterator[str]:
    yield f"config file: {document['config_file']}"
    yield f"profile: {document['profile'] or '-'}"
    rows = [{"name": name, **setting} for name, setting in document["settings"].items()]

    def value(row: dict[str, Any]) -> Any:
        return duration(row["value"]) if row["name"] == "timeout_ms" else row["value"]

    columns = (Column("SETTING", "name"), Column("VALUE", value), Column("SOURCE", "source"))
    yield from table(rows, columns, screen_width(), False)


@config.command("path", examples=["net config path --json | jq -r .config_file"])
@pass_app
def path(app: App) -> None:
    """Show where files live; works with a broken config file too."""
    from net_cli.config import check_cluster
    from substrate.wire.errors import NetError
    from substrate.wire.paths import cluster_dir, config_home, operator_directory, runtime_dir

    out = app.output(app.flags.get("output"))
    try:
        cluster, out = app.cluster, app.out
    except NetError:
        cluster = check_cluster(app.flags.get("cluster") or "default")  # paths must be found to mend the config
    file, _ = config_path(app.flags.get("config"))
    out.record(
        {
            "config_home": config_home(),
            "config_file": file,
            "config_exists": os.path.exists(file),
            "operator_dir": operator_directory(),
            "cluster": cluster,
            "state_dir": cluster_dir(cluster),
            "runtime_dir": runtime_dir(cluster),
        }
    )


@config.command("schema", examples=["net config schema | jq .properties.default"])
@pass_app
def schema(app: App) -> None:
    """Print the JSON Schema of config.toml."""
    properties = {
        name: {**_TYPES[key.kind], "description": f"{key.help} ({key.variable})"} for name, key in BY_NAME.items()
    }
    settings = {"type": "object", "properties": properties, "additionalProperties": False}
    app.output("json").record(
        {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": f"config.toml of net (or the file {CONFIG_VARIABLE} names)",
            "type": "object",
            "properties": {"default": settings, "profiles": {"type": "object", "additionalProperties": settings}},
            "additionalProperties": False,
        }
    )
