"""`net --spec`: the whole command line as one JSON document, for generators and checks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from net_cli.core import GLOBAL_OPTIONS, Group
from substrate.wire.errors import KINDS, Exit


def walk(command: click.Command, ctx: click.Context) -> Iterator[tuple[click.Command, click.Context]]:
    """The command and everything below it, in the order of the help pages."""
    yield command, ctx
    if isinstance(command, Group):
        for name in command.list_commands(ctx):
            child = command.get_command(ctx, name)
            assert child is not None
            yield from walk(child, click.Context(child, info_name=name, parent=ctx))


def specification(ctx: click.Context) -> dict[str, Any]:
    """Commands, global options, error kinds and exit codes."""
    from substrate import __version__

    return {
        "name": "net",
        "version": __version__,
        "global_options": [_parameter(option) for option in GLOBAL_OPTIONS],
        "commands": [_command(command, child) for command, child in walk(ctx.command, ctx)],
        "exit_codes": {str(int(code)): code.name.lower().replace("_", "-") for code in Exit},
        "error_kinds": {name: {"exit_code": int(kind.exit), "http": kind.http} for name, kind in KINDS.items()},
    }


def _command(command: click.Command, ctx: click.Context) -> dict[str, Any]:
    return {
        "path": ctx.command_path,
        "group": isinstance(command, click.Group),
        "help": (command.help or "").strip(),
        "examples": list(getattr(command, "examples", ())),
        "params": [_parameter(param) for param in command.params],
    }


def _parameter(param: click.Parameter) -> dict[str, Any]:
    document: dict[str, Any] = {
        "name": param.name,
        "kind": "option" if isinstance(param, click.Option) else "argument",
        "options": [*param.opts, *param.secondary_opts] if isinstance(param, click.Option) else [],
        "type": param.type.name,
        "required": param.required,
        "multiple": param.multiple or param.nargs == -1,
        "help": getattr(param, "help", None),
    }
    if isinstance(param.type, click.Choice):
        document["choices"] = list(param.type.choices)
    if isinstance(param, click.Option):
        document["flag"] = param.is_flag
        default = param.to_info_dict()["default"]
        document["default"] = default if isinstance(default, str | int | bool | list | tuple | None) else None
    return document
