"""How failures are told: one document or two lines on stderr, the code of the kind, never a traceback."""

from __future__ import annotations

import re
import stat
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from net_cli.core import Group, group
from net_cli.exits import run
from substrate.wire.errors import KINDS, NetError
from tests.cli.conftest import Net, Terminal


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("nope",), "no such command 'nope'"),
        (("node", "lss"), "no such command 'lss'"),
        (("node", "ls", "--bogus"), "no such option"),
        (("node", "ls", "extra"), "unexpected extra argument"),
        (("admin", "drain", "--node", "b"), "--drain-for"),
        (("admin", "drain", "--drain-for", "5m"), "--node"),
        (("admin", "drain", "--node", "b", "--drain-for", "soon"), "'soon' is no duration"),
        (("admin", "drain", "--node", "b", "--drain-for", "-5s"), "no duration"),
        (("admin", "drain", "--node", "b", "--drain-for", "0"), "longer than 0"),
        (("admin", "drain", "--node", "b", "--drain-for", "999999999999d"), "longer than a year"),
        (("node", "ls", "--timeout", "never"), "'never' is no duration"),
        (("audit", "recent", "-n", "0"), "0 is not in the range"),
        (("audit", "recent", "--from", "2026-13-01T00:00Z"), "no time"),
        (("audit", "recent", "--outcome", "maybe"), "'maybe'"),
        (("node", "stop"), "give either --name NAME or --all"),
        (("chain", "append", "x"), "give either FILE"),
        (("identity", "registry", "add", "x", "--public-key", "00" * 32), "belong together"),
        (("identity", "registry", "add", "x", "--public-key", "zz"), "32 bytes in hex"),
        (("daemon", "run", "--env", "=x", "--", "true"), "KEY=VALUE"),
        (("admin", "policy", "set", "nonsense"), "KEY=VALUE"),
        (("audit", "verify", "--online", "--node", "b"), "excludes"),
    ],
)
def test_wrong_arguments(net: Net, args: tuple[str, ...], words: str) -> None:
    error = net(*args, "--operator", "alice", "--json").error if "nope" not in args else net(*args).error
    assert (error["kind"], error["exit_code"]) in {("invalid-argument", 2), ("identity-not-found", 3)}
    assert error["kind"] == "invalid-argument", error
    assert words in error["message"], error
    assert error["hint"]


def test_pretty_errors_are_two_lines(net: Net) -> None:
    done = net("node", "ls", "--output", "pretty")
    assert (done.code, done.out) == (6, "")
    assert re.fullmatch(r"error: .+\nhint: .*net node start.*\n", done.err)


def test_a_missing_command_shows_the_page(net: Net) -> None:
    assert net("node").error["kind"] == "invalid-argument"
    done = net("node", "--output", "pretty")
    assert done.code == 2 and done.out == ""
    bare = net("--output", "pretty", "node")
    assert bare.code == 2 and "Commands:" in bare.err


def test_help_and_version_succeed_on_stdout(net: Net) -> None:
    for args in (("--help",), ("-h",), ("node", "-h"), ("admin", "drain", "--help")):
        done = net(*args)
        assert (done.code, done.err) == (0, "") and done.out.startswith("Usage: net")
    assert re.fullmatch(r"net \d+\.\d+\.\d+\n", net("--version").out)


def test_no_operator_named(net: Net) -> None:
    error = net("admin", "cordon", "--node", "b").error
    assert (error["kind"], error["exit_code"]) == ("no-operator-key", 5)
    assert "net identity generate" in error["hint"] and "--operator" in error["hint"]


def test_unknown_operator_named(net: Net) -> None:
    error = net("admin", "cordon", "--node", "b", "--operator", "ghost").error
    assert (error["kind"], error["exit_code"]) == ("identity-not-found", 3)


def test_nothing_runs(net: Net) -> None:
    for args in (("node", "status"), ("audit", "recent"), ("node", "ls", "--via", "a"), ("logs", "tail", "-f")):
        error = net(*args).error
        assert error["exit_code"] in (3, 6), args


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_ends_with_its_code(kind: str, capsys: pytest.CaptureFixture[str], home: Path) -> None:
    root = _root(NetError(kind, "it \x1b[31mfailed", "mend it"))
    assert run(root, ["fail", "--json"]) == KINDS[kind].exit
    captured = capsys.readouterr()
    assert captured.out == "" and f'"kind":"{kind}"' in captured.err
    assert run(root, ["fail", "--output", "pretty"]) == KINDS[kind].exit
    assert capsys.readouterr().err == "error: it \\x1b[31mfailed\nhint: mend it\n"


def _root(error: BaseException) -> Group:
    @group("net", examples=["net fail"])
    def root() -> None:
        """A root."""

    @root.command("fail")
    def fail() -> None:
        raise error

    return root


def test_interruption_and_abort(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    for error in (KeyboardInterrupt(), click.Abort()):
        assert run(_root(error), ["fail", "--json"]) == 130
        assert '"kind":"interrupted"' in capsys.readouterr().err


def test_a_defect_leaves_a_note_and_no_traceback(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    assert run(_root(ZeroDivisionError("oops")), ["fail", "--output", "pretty"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: net failed: ZeroDivisionError: oops\nhint: ") and "Traceback" not in err
    (note,) = (home / "state" / "crashes").iterdir()
    assert str(note) in err
    assert "Traceback" in note.read_text()
    assert stat.S_IMODE(note.stat().st_mode) == 0o600


def test_no_room_for_the_note(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    (home / "state").write_text("a file where a directory should be")
    assert run(_root(ZeroDivisionError("oops")), ["fail", "--json"]) == 1
    assert '"details":{}' in capsys.readouterr().err


def test_error_mode_follows_what_was_asked(net: Net, terminal: Callable[..., Terminal]) -> None:
    assert net("node", "ls", "--bogus", "--output", "pretty").err.startswith("error: ")
    assert net("node", "ls", "--bogus", env={"NET_OUTPUT": "pretty"}).err.startswith("error: ")
    on_terminal = terminal("node", "ls", "--bogus")
    assert on_terminal.end() == 2 and "error:" in on_terminal.screen
