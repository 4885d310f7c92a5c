"""The root of the command line. Groups are named here with their one-line help and imported when used."""

from __future__ import annotations

import os
import sys
from typing import Any, Final, NoReturn

import click

from net_cli.core import CONTEXT, GLOBAL_OPTIONS, Group
from net_cli.exits import run

_GROUPS: Final = {
    "admin": "Command nodes: cordon, drain, maintenance; policy.",
    "audit": "Read and verify the ledger of signed commands.",
    "chain": "Create, append to, read and verify event chains.",
    "completion": "Print a completion script for your shell.",
    "config": "Show the settings and where each comes from.",
    "daemon": "Apply, list, restart, stop and remove daemons.",
    "demo": "A small cluster on this machine to try things on.",
    "identity": "Operator keys, and the registry of operators.",
    "logs": "Read and follow the log lines of the cluster.",
    "node": "Start, stop and look at nodes.",
    "version": "Show versions and features.",
}
LAZY: Final = {name: (f"net_cli.commands.{name}:{name}", text) for name, text in _GROUPS.items()}


class Root(Group):
    """`net` itself: its help page also explains the global options and the exit codes."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Commands first, then the options every command takes."""
        self.format_commands(ctx, formatter)
        rows = [_record(option, ctx) for option in (*self.params, *GLOBAL_OPTIONS)]
        rows.append(("-h, --help", "Show a page like this one and exit."))
        with formatter.section("Global options (before or after the verb, the later wins)"):
            formatter.write_dl(rows)
        with formatter.section("Exit codes"):
            codes = "0 ok  1 failure  2 invalid  3 not found  4 exists  5 denied\n6 not connected  7 timeout  8 refused  130 interrupted"
            for line in codes.split("\n"):
                formatter.write(f"{' ' * formatter.current_indent}{line}\n")


def _record(option: Any, ctx: click.Context) -> tuple[str, str]:
    if not option.hidden:
        shown = option.get_help_record(ctx)
        assert shown is not None
        return (shown[0], shown[1])
    names = ", ".join(option.opts)
    value = "" if option.is_flag or option.count else f" {option.make_metavar(ctx)}"
    return (names + value, option.help or "")


def _print_spec(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    from net_cli.output import dumps, write
    from net_cli.spec import specification

    write(dumps(specification(ctx)))
    ctx.exit()


def _print_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    from net_cli.output import write
    from substrate import __version__

    write(f"net {__version__}")
    ctx.exit()


root = Root(
    "net",
    lazy=LAZY,
    context_settings=dict(CONTEXT),
    help="Command a mesh of nodes: scriptable, stable, signed.",
    params=[
        click.Option(
            ["--spec"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_print_spec,
            help="Print the whole command line as JSON and exit.",
        ),
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_print_version,
            help="Print the version and exit.",
        ),
    ],
    examples=[
        "net node start --name a --operator alice --detach",
        "net node ls",
        "net admin drain --node b --drain-for 30s --reason 'new disk'",
        "net audit recent --json | jq '.[0].event_kind'",
    ],
)


def main() -> NoReturn:
    """The console script `net`."""
    instruction = os.environ.get("_NET_COMPLETE")
    if instruction:
        from net_cli.completing import answer

        sys.exit(answer(root, instruction))
    sys.exit(int(run(root, sys.argv[1:])))
