"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from net_cli.params import REF, complete
from net_cli.signing import Choices

F = TypeVar("F", bound=Callable[..., Any])

REASON = click.Option(["--reason"], default="", metavar="TEXT", help="Why; kept in the ledger.")
PREVIEW = click.Option(["--preview"], is_flag=True, help="Show what it would do; commit nothing.")
YES = click.Option(["--yes"], is_flag=True, help="Do not ask.")
OUT = click.Option(["--out"], metavar="FILE", help="Write the unsigned proposal to FILE, for co-signing.")


def wait_option(default: str) -> click.Option:
    """`--wait/--detach`, neither by default."""
    return click.Option(["--wait/--detach"], default=None, help=f"Wait for the end, or return at once ({default}).")


def node_option(help: str = "The node it is about.") -> click.Option:
    """`--node NODE`, required."""
    return click.Option(["--node"], required=True, metavar="NODE", type=REF, shell_complete=complete("node"), help=help)


def decorate(*params: click.Parameter) -> Callable[[F], F]:
    """Attach ready-made parameters to a command function, in this order."""

    def attach(function: F) -> F:
        known: list[click.Parameter] = getattr(function, "__click_params__", [])
        # Click reverses what decorators collected, as they run from the bottom up.
        function.__click_params__ = known + list(reversed(params))  # type: ignore[attr-defined]
        return function

    return attach


def argument(name: str, kind: str, help: str, **settings: Any) -> click.Argument:
    """A positional NAME of a node, daemon, chain, operator or identity, with completion."""
    return click.Argument(
        [name],
        metavar=name.upper(),
        type=settings.pop("type", REF),
        shell_complete=complete(kind),
        help=help,
        **settings,
    )


def choices(values: dict[str, Any]) -> Choices:
    """Take the signing options out of a command's parameters."""
    return Choices(**{name: values.pop(name) for name in Choices._fields if name in values})
