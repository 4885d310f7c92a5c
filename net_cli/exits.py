"""How a run ends: every failure becomes a document or two lines on stderr, and an exit code (contract sections 2, 3)."""

from __future__ import annotations

import os
import sys
from typing import Final

import click

from net_cli.context import App
from net_cli.output import ClosedPipe, abandon_stdout, dumps, tell, wants_color
from net_cli.table import printable
from substrate.wire.errors import Exit, NetError

_OUTPUTS: Final = ("pretty", "json")


def run(root: click.Group, argv: list[str]) -> int:
    """Run `net ARGV...` and return the exit code; nothing but SystemExit-free control flow leaves here."""
    app = App(argv)
    try:
        try:
            with root.make_context("net", list(argv), obj=app) as ctx:
                root.invoke(ctx)
        except BrokenPipeError:  # click's own help pages are written by click
            raise ClosedPipe from None
        return Exit.OK
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except ClosedPipe:
        abandon_stdout()
        return Exit.OK  # whoever read us has seen enough; what was commanded has happened
    except NetError as error:
        return report(app, error)
    except click.exceptions.NoArgsIsHelpError as error:
        if _wants_json(app):
            group = error.ctx.command_path if error.ctx else "net"
            return report(app, NetError("invalid-argument", "a command is missing", f"{group} --help"))
        tell(error.format_message())
        return Exit.INVALID
    except click.ClickException as error:
        return report(app, _usage_error(error))
    except (KeyboardInterrupt, click.Abort):
        return report(app, NetError("interrupted", "interrupted"))
    except ImportError as error:
        as_net_error = getattr(error, "as_net_error", None)  # substrate.wire.extras.MissingExtraError
        return report(app, as_net_error() if as_net_error else _internal(error))
    except Exception as error:  # the last line of defence: a note on disk, no traceback on the screen
        return report(app, _internal(error))


def report(app: App, error: NetError) -> int:
    """Tell the failure on stderr in the mode of the run; returns its exit code."""
    if _wants_json(app):
        tell(dumps(error.document()))
    else:
        color = wants_color(sys.stderr, bool(app.flags.get("no_color")))
        label = "\x1b[31merror:\x1b[0m" if color else "error:"
        tell(f"{label} {printable(error.message)}")
        if error.hint:
            tell(f"hint: {printable(error.hint)}")
    return int(error.exit_code)


def _wants_json(app: App) -> bool:
    # The failure may be in the very options or config that would say so: ask each source as far as it can be read.
    flags = app.flags.get("output") or _spelled_output(app.argv)
    if flags is None:
        try:
            flags = app.setting("output")
        except NetError:
            named = os.environ.get("NET_OUTPUT")
            flags = named if named in _OUTPUTS else None
    return flags == "json" if flags else not sys.stdout.isatty()


def _spelled_output(argv: list[str]) -> str | None:
    found = None
    for place, word in enumerate(argv):
        if word == "--":
            break
        if word == "--json":
            found = "json"
        elif word == "--output" and argv[place + 1 : place + 2] and argv[place + 1] in _OUTPUTS:
            found = argv[place + 1]
        elif word.startswith("--output=") and word[9:] in _OUTPUTS:
            found = word[9:]
    return found


def _usage_error(error: click.ClickException) -> NetError:
    ctx = getattr(error, "ctx", None)
    path = ctx.command_path if ctx else "net"
    message = error.format_message().rstrip(".")
    if isinstance(error, click.FileError):
        return NetError("file-not-found", message, "check the path")
    return NetError("invalid-argument", message[:1].lower() + message[1:], f"{path} --help")


def _internal(error: Exception) -> NetError:
    path = _crash_note(error)
    hint = f"a note for the developers is in {path}" if path else "run it again with -v"
    details = {"note": path} if path else {}
    return NetError("internal", f"net failed: {type(error).__name__}: {error}", hint, details)


def _crash_note(error: Exception) -> str | None:
    import tempfile
    import traceback

    from substrate.wire.paths import state_home

    text = "".join(traceback.format_exception(error))
    try:
        directory = os.path.join(state_home(), "crashes")
        os.makedirs(directory, mode=0o700, exist_ok=True)
        handle, path = tempfile.mkstemp(prefix="crash-", suffix=".txt", dir=directory)  # 0600
        with os.fdopen(handle, "w", errors="backslashreplace") as file:
            file.write(text)
    except OSError:
        return None  # no room for a note; the message still tells
    return path
