"""Daemon specs: what an operator asks to be run (contract section 10)."""

from __future__ import annotations

from typing import Annotated, Any, Final

from substrate.wire.errors import NetError
from substrate.wire.ids import check_name
from substrate.wire.postcard import BOOL, DURATION, STRING, U64, mapping, option, sequence
from substrate.wire.structs import WireStruct

MAX_REPLICAS: Final = 1000
MAX_GRACE_MS: Final = 3_600_000
MAX_SPEC_BYTES: Final = 64 * 1024
RESTART_POLICIES: Final = ("always", "on-failure", "never")


class DaemonSpec(WireStruct, frozen=True):
    """One daemon as applied: a command with `replicas` instances, and where they may run.

    `requires` are labels a node must carry; `anti_affinity` are labels of daemons it must not share a node with; `essential`
    ones leave a draining node last; `grace_ms` is the time between SIGTERM and SIGKILL.
    """

    name: Annotated[str, STRING]
    command: Annotated[tuple[str, ...], sequence(STRING, 1024)]
    env: Annotated[dict[str, str], mapping(STRING)] = {}  # noqa: RUF012 - msgspec copies defaults
    cwd: Annotated[str | None, option(STRING)] = None
    labels: Annotated[tuple[str, ...], sequence(STRING, 64)] = ()
    requires: Annotated[tuple[str, ...], sequence(STRING, 64)] = ()
    anti_affinity: Annotated[tuple[str, ...], sequence(STRING, 64)] = ()
    essential: Annotated[bool, BOOL] = False
    grace_ms: Annotated[int, DURATION] = 30_000
    replicas: Annotated[int, U64] = 1
    restart: Annotated[str, STRING] = "always"

    def check(self) -> DaemonSpec:
        """Return the spec if it can be run as written, else raise `invalid-argument`."""
        check_name("daemon", self.name)
        problem: str | None = None
        texts = [*self.command, *self.env, *self.env.values(), self.cwd or ""]
        if not self.command or not self.command[0]:
            problem = "command must name a program"
        elif any("\0" in text for text in texts):
            problem = "command, env and cwd must not hold NUL bytes"
        elif any(not key or "=" in key for key in self.env):
            problem = "env keys must be non-empty and hold no '='"
        elif self.cwd is not None and not self.cwd.startswith("/"):
            problem = "cwd must be an absolute path"
        elif any(not label or len(label) > 128 for label in (*self.labels, *self.requires, *self.anti_affinity)):
            problem = "labels must be 1 to 128 characters long"
        elif not 1 <= self.replicas <= MAX_REPLICAS:
            problem = f"replicas must be 1 to {MAX_REPLICAS}"
        elif self.grace_ms > MAX_GRACE_MS:
            problem = "grace must be at most an hour"
        elif self.restart not in RESTART_POLICIES:
            problem = f"restart must be one of {', '.join(RESTART_POLICIES)}"
        elif len(self.to_bytes()) > MAX_SPEC_BYTES:
            problem = f"the spec is larger than {MAX_SPEC_BYTES} bytes"
        if problem:
            raise NetError("invalid-argument", f"daemon {self.name!r}: {problem}", details={"daemon": self.name})
        return self

    @classmethod
    def parse(cls, document: Any) -> DaemonSpec:
        """Build and check a spec from a JSON or TOML table; `grace` may stand for `grace_ms` as a duration text."""
        from substrate.wire.times import parse_duration_ms

        if isinstance(document, dict) and "grace" in document:
            document = dict(document)
            grace = document.pop("grace")
            document["grace_ms"] = parse_duration_ms(str(grace))
        name = document.get("name") if isinstance(document, dict) else None
        return cls.from_json(document, f"daemon {name!r}" if name else "daemon").check()
