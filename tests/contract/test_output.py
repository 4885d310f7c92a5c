"""Output rules of contract section 2 on real terminals, pipes and signals."""

from __future__ import annotations

import json
import re
import signal
import subprocess

import pytest

from net_cli.table import width_of
from tests.contract.documents import check
from tests.contract.terminal import Screen, run
from tests.contract.wire import get
from tests.harness import ClusterHarness

PRETTY = (
    "node ls", "node show b", "node status", "node health", "daemon ls", "daemon show web", "logs show -n 5",
    "audit recent", "audit verify --online", "chain ls", "chain show app/log", "chain inspect app/log", "chain verify app/log",
    "identity ls", "identity show alice", "identity fingerprint alice", "identity registry ls", "identity registry threshold",
    "admin policy show", "admin cordon --node b --preview", "config show", "config path", "version",
)  # fmt: skip
ESCAPE = re.compile(r"\x1b\[[0-9;]*m")
NASTY = "\x1b[31mred\x1b[0m \x07 line\nbreak \u202egnirts ☂ 雨 naïve"


@pytest.mark.parametrize("args", PRETTY)
def test_pretty_fits_the_screen_and_declines_colour(calm: ClusterHarness, args: str) -> None:
    code, plain = run(calm, *args.split(), env={"NO_COLOR": "1"})
    assert code == 0, plain
    assert plain.strip()
    assert "\x1b" not in plain
    for line in plain.splitlines():
        whole = max((width_of(word) for word in line.split()), default=0)  # a key, a hash or a path is never cut
        assert width_of(line) <= 80 or whole > 40, plain
    assert not plain.lstrip().startswith(("{", "[")), "a terminal gets no JSON unless asked"


def test_colour_only_where_it_is_wanted(calm: ClusterHarness) -> None:
    assert ESCAPE.search(run(calm, "node", "ls")[1])
    for args, env in ((["--no-color"], {}), ([], {"TERM": "dumb"}), ([], {"NO_COLOR": "1"})):
        shown = run(calm, "node", "ls", *args, env=env)[1]
        assert "alive" in shown
        assert "\x1b" not in shown
    assert "\x1b" not in calm.run("node", "ls", "--output", "pretty", check=0).out


def test_the_mode_follows_the_terminal_and_the_flag_wins(calm: ClusterHarness) -> None:
    assert isinstance(json.loads(calm.run("chain", "ls", check=0).out), list)
    assert json.loads(run(calm, "chain", "ls", "--json")[1])
    assert not calm.run("--json", "chain", "ls", "--output", "pretty", check=0).out.startswith("[")
    assert calm.run("--output", "pretty", "chain", "ls", "--json", check=0).out.startswith("[")


def test_errors_for_people_are_two_lines(calm: ClusterHarness) -> None:
    code, shown = run(calm, "node", "show", "nowhere", "--no-color")
    assert (code, shown) == (3, "error: there is no node 'nowhere'\nhint: known: a, b, c\n")
    result = calm.run("node", "show", "nowhere", "--output", "pretty")
    assert (result.out, result.err) == ("", shown)


def test_a_reason_is_kept_exactly_and_shown_safely(calm: ClusterHarness) -> None:
    """What a reason contains reaches the ledger as it is, and no terminal as it is."""
    commit = calm.ok("admin", "uncordon", "--node", "b", "--operator", "alice", "--reason", NASTY)
    assert commit["reason"] == NASTY
    assert get(calm, "/v1/audit?limit=1")[0]["reason"] == NASTY
    raw = calm.run("audit", "recent", "-n", "1", "--json", check=0).out
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202e]", raw)
    assert "☂ 雨 naïve" in raw, "what is harmless stays readable"
    for args in (["audit", "recent", "-n", "1"], ["audit", "show", commit["commit_id"]]):
        code, shown = run(calm, *args, "--no-color", columns=200)
        assert code == 0
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202e]", shown), shown
        assert "\\x1b[31mred" in shown
        assert "line\\nbreak" in shown


def test_nasty_log_lines_are_shown_safely(calm: ClusterHarness) -> None:
    calm.run(
        "daemon", "run", "--name", "nasty", "--restart", "never", "--wait", "--operator", "alice", "--",
        "sh", "-c", r"printf '\033[31mred\033[0m\a\n'", check=0,
    )  # fmt: skip
    try:
        shown = calm.run("logs", "show", "--daemon", "nasty", "--output", "pretty", check=0).out
        assert "\\x1b[31mred\\x1b[0m\\x07" in shown
        assert "\x1b" not in shown
    finally:
        calm.ok("daemon", "rm", "nasty", "--operator", "alice", "--wait")


STREAMS = (
    ("audit-record", "audit stream --since 0"),
    ("chain-record", "chain tail app/log -f --since 0"),
    ("log-line", "logs tail -f"),
    ("log-line", "daemon logs web -f"),
)


def line_of(calm: ClusterHarness, process: subprocess.Popen[str], args: str) -> str:
    """The first line of a stream; a log stream begins with what comes, so something is made to come."""
    if "logs" in args:
        calm.ok("daemon", "restart", "web", "--operator", "alice", "--wait")
    assert process.stdout is not None
    return process.stdout.readline()


def rest_of(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What comes until the end; unlike `communicate` it knows what was read ahead."""
    assert process.stdout is not None and process.stderr is not None
    process.wait(15)
    with process.stdout, process.stderr:
        return process.stdout.read(), process.stderr.read()


@pytest.mark.parametrize(("schema", "args"), STREAMS, ids=[args for _, args in STREAMS])
def test_a_stream_ends_quietly_with_sigint(calm: ClusterHarness, schema: str, args: str) -> None:
    process = calm.popen(*args.split(), "--json")
    try:
        row = json.loads(line_of(calm, process, args))
        check(schema, row)
        process.send_signal(signal.SIGINT)
        out, err = rest_of(process)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, err) == (0, "")
    for line in out.splitlines():
        check(schema, json.loads(line))


def test_a_closed_pipe_ends_a_stream_quietly(calm: ClusterHarness) -> None:
    """`net audit stream | head -1`: exit 0 and no word about a broken pipe."""
    process = calm.popen("audit", "stream", "--since", "0", "--json")
    assert process.stdout is not None and process.stderr is not None
    try:
        check("audit-record", json.loads(process.stdout.readline()))
        process.stdout.close()
        calm.ok("admin", "uncordon", "--node", "b", "--operator", "alice")  # the next row finds nobody
        assert process.wait(15) == 0
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_a_closed_pipe_ends_a_list_quietly(calm: ClusterHarness) -> None:
    for args in ("--spec", "audit recent", "--help", "chain tail app/log"):
        process = calm.popen(*args.split())
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.wait(15) == 0, args
        assert process.stderr.read() == "", args
        process.stderr.close()


def test_sigint_of_a_wait_is_130_and_says_how_to_go_on(calm: ClusterHarness) -> None:
    """The commit stands: the error names it, and the drain goes on until it is taken back."""
    calm.run(
        "daemon", "run", "--name", "pinned", "--require", "node=b", "--wait", "--operator", "alice", "--", "sleep", "9999",
        check=0,
    )  # fmt: skip
    drain = ("admin", "drain", "--node", "b", "--drain-for", "60s", "--wait", "--yes", "--operator", "alice", "--json")
    process = calm.popen(*drain)
    try:
        assert process.stderr is not None
        assert "drain b: running" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        out, err = rest_of(process)
        assert (process.returncode, out) == (130, "")
        error = json.loads(err.splitlines()[-1])["error"]
        assert error["kind"] == "interrupted"
        commit = calm.ok("audit", "show", error["details"]["commit_id"])
        assert (commit["event_kind"], commit["outcome"]) == ("drain", "accepted")
        assert get(calm, "/v1/nodes/b")["maintenance"] == "draining"
    finally:
        process.kill()
        process.wait()
        calm.ok("admin", "exit-maintenance", "--node", "b", "--operator", "alice")
        calm.ok("daemon", "rm", "pinned", "--operator", "alice", "--wait")


def test_progress_is_on_stderr_and_quiet_silences_it(calm: ClusterHarness) -> None:
    args = ("admin", "drain", "--node", "c", "--drain-for", "30s", "--wait", "--operator", "alice", "--json")
    try:
        result = calm.run(*args, check=0)
        check("commit-waited", result.json)
        assert "drain c: done" in result.err
        assert calm.run(*args, "--quiet", check=0).err == ""
    finally:
        calm.ok("admin", "exit-maintenance", "--node", "c", "--operator", "alice")


def test_on_a_terminal_a_drain_shows_the_radius_asks_and_waits(calm: ClusterHarness) -> None:
    with Screen(
        calm, "admin", "drain", "--node", "c", "--drain-for", "30s", "--operator", "alice", "--no-color"
    ) as screen:
        shown = screen.read_until("Type YES to confirm: ")
        assert "drain c\n  nodes: " in shown
        screen.type("YES\n")
        assert screen.end() == 0
    assert "drain c: accepted, drained after" in screen.output
    calm.ok("admin", "exit-maintenance", "--node", "c", "--operator", "alice")
