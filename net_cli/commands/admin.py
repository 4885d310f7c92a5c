"""`net admin`: the nine ordinary commands to nodes, and the policy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import click

from net_cli.context import App, pass_app
from net_cli.core import Command, group
from net_cli.options import PREVIEW, REASON, YES, choices, node_option, wait_option
from net_cli.params import POSITIVE_DURATION, REF, complete

MAINTENANCE_MS: Final = 600_000
"""Deadline of a maintenance that names none; the cluster's policy may say otherwise."""


@group(
    "admin",
    examples=["net admin cordon --node b --operator alice", "net admin drain --node b --drain-for 30s --wait"],
    lazy={"policy": ("net_cli.commands.policy:policy", "Show and change the cluster's policy.")},
)
def admin() -> None:
    """Command nodes: cordon, drain, maintenance; policy.

    Every command is signed by --operator, judged by the cluster and kept in the ledger.
    """


def _verb(
    name: str,
    help: str,
    examples: Sequence[str],
    *extra: click.Option,
    ask: bool = False,
    waits: bool = False,
) -> None:
    # The verbs differ in their fields, in whether they ask and whether they wait; everything else is one flow.
    @pass_app
    def run(app: App, /, **values: Any) -> None:
        from net_cli.signing import command

        chosen = choices(values)
        event: dict[str, Any] = {"kind": name} | {
            key: list(v) if isinstance(v, tuple) else v for key, v in values.items()
        }
        work_ms = event.get("drain_for_ms") or (MAINTENANCE_MS if waits else None)
        command(app, event, chosen, ask=ask, waits=waits, work_ms=work_ms)

    waiting = wait_option("waits on a terminal" if waits else "returns at once")
    admin.add_command(
        Command(
            name,
            callback=run,
            help=help,
            examples=examples,
            params=[node_option(), *extra, REASON, PREVIEW, YES, waiting],
        )
    )


_verb(
    "cordon",
    "Place nothing new on a node; what runs there stays.",
    ["net admin cordon --node b --reason 'flaky disk' --operator alice", "net admin cordon --node b --preview"],
    ask=True,
)
_verb(
    "uncordon",
    "Let a node take new work again.",
    ["net admin uncordon --node b --operator alice"],
)
_verb(
    "drain",
    """Cordon a node and move what it holds elsewhere, within a time.

    Ends as drained, or at the deadline as drain-failed with the reasons (exit 1); the node stays cordoned.""",
    [
        "net admin drain --node b --drain-for 30s --operator alice",
        "net admin drain --node b --drain-for 5m --wait --yes --json | jq .result",
        "net admin drain --node b --drain-for 5m --preview",
    ],
    click.Option(
        ["--drain-for", "drain_for_ms"],
        required=True,
        type=POSITIVE_DURATION,
        metavar="DURATION",
        help="The longest it may take: 30s, 5m.",
    ),
    ask=True,
    waits=True,
)
_verb(
    "enter-maintenance",
    "Drain a node, then isolate it until exit-maintenance.",
    ["net admin enter-maintenance --node b --drain-for 10m --reason 'kernel' --operator alice"],
    click.Option(
        ["--drain-for", "drain_for_ms"],
        type=POSITIVE_DURATION,
        metavar="DURATION",
        help="The longest the drain may take (the policy's time if unsaid).",
    ),
    ask=True,
    waits=True,
)
_verb(
    "exit-maintenance",
    "Take a node back into service; also cancels a drain in progress.",
    ["net admin exit-maintenance --node b --operator alice"],
)
_verb(
    "drop-replicas",
    "Make a node give up its copies of chains.",
    ["net admin drop-replicas --node b --chain app/orders --operator alice"],
    click.Option(
        ["--chain", "chains"],
        required=True,
        multiple=True,
        metavar="CHAIN",
        type=REF,
        shell_complete=complete("chain"),
        help="A chain; may be given more than once.",
    ),
    ask=True,
)
_verb(
    "invalidate-placement",
    "Score what a node holds anew and move what is badly placed.",
    ["net admin invalidate-placement --node b --operator alice"],
)
_verb(
    "restart-all-daemons",
    "Restart the daemons of a node gracefully, one by one.",
    ["net admin restart-all-daemons --node b --operator alice --wait"],
    ask=True,
)
_verb(
    "clear-avoid-list",
    "Empty the list of peers a node avoids.",
    ["net admin clear-avoid-list --node b --operator alice"],
)
