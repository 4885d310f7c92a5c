"""Optional parts of an installation: which package an extra brings, and a clear word when it is missing.

In Python a missing extra is an `ImportError` that names it; in the command line the same failure is the kind
`missing-feature` (contract section 3, exit 1).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

from substrate.wire.errors import NetError

if TYPE_CHECKING:
    from types import ModuleType

DISTRIBUTION: Final = "net-mesh"
"""Name under which this project is installed."""

EXTRAS: Final[dict[str, tuple[str, ...]]] = {
    "analytics": ("duckdb",),
    "jetstream": ("nats", "nkeys"),
    "tui": ("textual",),
}
"""Extra of the installation -> the top-level modules it brings. `pyproject.toml` has the same names."""


class MissingExtraError(ImportError):
    """A module is not installed because its extra was not asked for. `extra` is the extra's name."""

    def __init__(self, extra: str, module: str) -> None:
        super().__init__(f"{module} is not installed; it comes with: {install_command(extra)}", name=module)
        self.extra = extra

    def as_net_error(self) -> NetError:
        """The same failure for the command line: kind `missing-feature`, the install command as its hint."""
        return NetError(
            "missing-feature",
            f"this needs the extra '{self.extra}', which is not installed",
            install_command(self.extra),
            {"extra": self.extra, "module": self.name},
        )

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str]]:
        return (type(self), (self.extra, str(self.name)))


def install_command(extra: str) -> str:
    """What a user types to get an extra."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"


def require(extra: str, module: str) -> ModuleType:
    """Import `module` (dotted, from a package of `EXTRAS[extra]`) and return it.

    Raises `MissingExtraError` when the package itself is not installed. A package that is there but fails to import
    something of its own raises that failure unchanged: naming the extra would send the user the wrong way.
    """
    package = module.partition(".")[0]
    assert package in EXTRAS[extra], f"{package} is not part of the extra {extra}"
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name == package:
            raise MissingExtraError(extra, module) from error
        raise


def features() -> dict[str, str | None]:
    """Every extra by name -> None when it is installed, else the reason it is not usable. Imports nothing."""
    from importlib.util import find_spec  # 2 ms that only `net version` and the tests need

    result: dict[str, str | None] = {}
    for extra, packages in sorted(EXTRAS.items()):
        missing = [package for package in packages if find_spec(package) is None]
        result[extra] = f"{missing[0]} is not installed: {install_command(extra)}" if missing else None
    return result
