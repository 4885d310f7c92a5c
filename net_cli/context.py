"""What every command gets: the global options, the resolved settings, the output, and the way to a node."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeVar

import click

from net_cli.config import Value, resolve
from net_cli.output import Output
from substrate.wire.errors import NetError

if TYPE_CHECKING:
    from net_sdk.client import Client
    from substrate.identity.keyfile import KeyFile

T = TypeVar("T")


class App:
    """One run of `net`. `flags` collects the global options as they are parsed, before and after the verb."""

    def __init__(self, argv: list[str]) -> None:
        self.argv = argv
        self.flags: dict[str, Any] = {}
        self._settings: dict[str, Value] | None = None
        self._out: Output | None = None

    @property
    def settings(self) -> dict[str, Value]:
        """The merged settings; raises `invalid-config`, `profile-not-found`."""
        if self._settings is None:
            self._settings = resolve(self.flags)
        return self._settings

    def setting(self, name: str) -> Any:
        """The value of one setting, or None."""
        found = self.settings.get(name)
        return found.value if found else None

    @property
    def out(self) -> Output:
        """Where results go."""
        if self._out is None:
            self._out = self.output(self.setting("output"))
        return self._out

    def output(self, mode: str | None) -> Output:
        """An output in `mode`, or in the one that suits stdout."""
        return Output(
            mode or ("pretty" if sys.stdout.isatty() else "json"),
            no_color=bool(self.flags.get("no_color")),
            quiet=bool(self.flags.get("quiet")),
            verbose=self.flags.get("verbose", 0),
        )

    @property
    def cluster(self) -> str:
        """The cluster's name on this machine."""
        return str(self.setting("cluster"))

    @property
    def timeout_s(self) -> float:
        """The longest wait for one answer, in seconds."""
        return float(self.setting("timeout")) / 1000

    @property
    def wait_timeout_ms(self) -> int | None:
        """The --timeout of this command line; a profile's timeout is for answers, not for waits."""
        value = self.flags.get("timeout")
        return int(value) if value is not None else None

    def attach(self) -> Client:
        """A client of the node the settings name, else of the first live one; raises `not-connected`, `node-not-found`."""
        from net_sdk.discovery import attach

        via, socket = self.settings.get("via"), self.settings.get("socket")
        if via and socket:  # the nearer source wins; --via before --socket where both are as near (contract section 10)
            if socket.rank > via.rank:
                via = None
            else:
                socket = None
        client = attach(
            self.cluster,
            via=via.value if via else None,
            socket=socket.value if socket else None,
            timeout_s=self.timeout_s,
        )
        self.out.detail(f"attached to {client.socket_path}")
        return client

    def refuse_if_read_only(self) -> None:
        """Raise `read-only` if the settings forbid writes."""
        found = self.settings.get("read_only")
        if found and found.value:
            raise NetError(
                "read-only",
                f"this session is read-only ({found.source})",
                "choose another profile, or set read_only to false",
                {"source": found.source},
            )

    def key(self) -> KeyFile:
        """The key that signs; raises `no-operator-key` where none is named: never a throw-away key."""
        name = self.setting("operator")
        if not name:
            raise NetError(
                "no-operator-key",
                "this command is signed, and no operator identity is named",
                "give --operator NAME, set NET_OPERATOR, or create one: net identity generate NAME",
            )
        from substrate.identity.keyfile import load
        from substrate.wire.paths import operator_directory

        return load(operator_directory(), name)


pass_app = click.make_pass_decorator(App)
