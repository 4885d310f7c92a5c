"""Click classes of this project: global options on every level, examples on every help page, groups loaded when used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import click
from click.core import ParameterSource

from net_cli.context import App
from net_cli.params import DURATION, complete

GLOBAL_NOTE: Final = "Global options: see net --help"
CONTEXT: Final = {"help_option_names": ["-h", "--help"], "terminal_width": 80, "max_content_width": 80}
"""Help pages are 80 columns wide everywhere, so that they can be pinned byte for byte."""


def _remember(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    # Levels are parsed from the left, so the later one wins.
    if param.name and ctx.get_parameter_source(param.name) is ParameterSource.COMMANDLINE:
        app = ctx.find_object(App)
        if app is not None:
            app.flags[param.name] = value
    return value


def _global(*names: str, **settings: Any) -> click.Option:
    return click.Option(list(names), expose_value=False, callback=_remember, hidden=True, **settings)


GLOBAL_OPTIONS: Final[tuple[click.Option, ...]] = (
    _global("--config", metavar="FILE", help="Read this file, not the default config.toml."),
    _global("--profile", metavar="NAME", help="Use [profiles.NAME] of the file.", shell_complete=complete("profile")),
    _global("--cluster", metavar="NAME", help='Cluster on this machine, "default" if unsaid.'),
    _global("--socket", metavar="PATH", help="Attach to the node behind this socket."),
    _global("--via", metavar="NODE", help="Attach to this node.", shell_complete=complete("node")),
    _global("--operator", metavar="NAME", help="Identity that signs.", shell_complete=complete("identity")),
    _global("--timeout", metavar="DURATION", type=DURATION, help="Longest wait: 30s, 5m (30s if unsaid)."),
    _global(
        "--output",
        type=click.Choice(["pretty", "json"]),
        help="Tables or JSON; without it JSON unless stdout is a terminal.",
    ),
    _global("--json", "output", flag_value="json", help="Short for --output json."),
    _global("--no-color", is_flag=True, default=None, help="No colours (as do NO_COLOR and TERM=dumb)."),
    _global("-q", "--quiet", is_flag=True, default=None, help="No remarks on stderr; errors stay."),
    _global("-v", "--verbose", count=True, help="More remarks on stderr."),
)


class _Page(click.Command):
    """What all our commands share: `examples`, and the global options."""

    examples: Sequence[str] = ()

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Own parameters, then the global ones an own one does not replace."""
        own = super().get_params(ctx)
        taken = {name for param in own for name in param.opts}
        return own + [option for option in GLOBAL_OPTIONS if not taken.intersection(option.opts)]

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The examples, verbatim."""
        with formatter.section("Examples"):
            for example in self.examples:
                formatter.write(f"{' ' * formatter.current_indent}{example}\n")
        if ctx.parent is not None:
            formatter.write(f"\n{GLOBAL_NOTE}\n")


class Command(_Page):
    """A verb."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples


class Group(_Page, click.Group):
    """A group of verbs. `lazy` maps a name to ("module:attribute", one-line help); its module is imported when used."""

    command_class = Command

    def __init__(
        self, *args: Any, examples: Sequence[str] = (), lazy: dict[str, tuple[str, str]] | None = None, **kwargs: Any
    ) -> None:
        kwargs.setdefault("no_args_is_help", True)
        super().__init__(*args, **kwargs)
        self.examples = examples
        self.lazy = lazy or {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Own and lazy names, sorted."""
        return sorted({*self.commands, *self.lazy})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now if it has not been."""
        if cmd_name in self.lazy and cmd_name not in self.commands:
            from importlib import import_module

            module, attribute = self.lazy[cmd_name][0].split(":")
            command: click.Command = getattr(import_module(module), attribute)
            self.commands[cmd_name] = command
        return super().get_command(ctx, cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does; an unknown name is refused with all names, lazy ones too, as suggestions."""
        name = args[0]
        if not ctx.resilient_parsing and not name.startswith("-") and self.get_command(ctx, name) is None:
            raise click.exceptions.NoSuchCommand(name, possibilities=self.list_commands(ctx), ctx=ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Names and one-line helps, without importing lazy groups."""
        rows = []
        for name in self.list_commands(ctx):
            if name in self.lazy:
                rows.append((name, self.lazy[name][1]))
            elif (command := self.commands[name]) and not command.hidden:
                rows.append((name, command.get_short_help_str(80)))
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)


def group(
    name: str, *, examples: Sequence[str], lazy: dict[str, tuple[str, str]] | None = None
) -> Callable[[Callable[[], None]], Group]:
    """Decorator that makes a group of a function's name and docstring."""

    def decorate(function: Callable[[], None]) -> Group:
        return Group(name, help=function.__doc__, examples=examples, lazy=lazy, callback=function)

    return decorate
