"""What reaches the screen: tables that fit, nothing a terminal would obey, pipes that close quietly."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from net_cli.output import dumps
from net_cli.table import Column, fields, plain, shorten, size, table, width_of
from tests.cli.conftest import Net, Terminal

CELLS = st.text(max_size=60)


@given(st.lists(st.tuples(CELLS, CELLS, CELLS), min_size=1, max_size=6), st.integers(40, 120))
def test_tables_fit_and_obey_nothing(rows: list[tuple[str, str, str]], width: int) -> None:
    columns = [Column("A", "a"), Column("B", "b", right=True), Column("LONGER", "c")]
    lines = list(table([dict(zip("abc", row, strict=True)) for row in rows], columns, width, color=False))
    assert len(lines) == len(rows) + 1
    for line in lines:
        assert width_of(line) <= width
        assert not re.search("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", line)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | CELLS, lambda inner: st.lists(inner) | st.dictionaries(CELLS, inner)
    )
)
def test_json_is_one_safe_line_and_says_the_same(value: object) -> None:
    line = dumps(value)
    assert "\n" not in line and not re.search("[\x00-\x1f\x7f-\x9f\u202a-\u202e]", line)
    line.encode()
    assert json.loads(line) == value


@given(CELLS, st.integers(2, 40))
def test_shortening_keeps_the_width(text: str, width: int) -> None:
    short = shorten(plain(text), width)
    assert width_of(short) <= width
    assert short == plain(text) or short.endswith("…")


def test_wide_characters_count_double() -> None:
    assert width_of("日本") == 4
    assert width_of("e\u0301") == 1
    lines = list(
        table([{"a": "日本", "b": "x"}, {"a": "abcd", "b": "y"}], [Column("A", "a"), Column("B", "b")], 80, False)
    )
    assert [width_of(line) for line in lines] == [7, 7, 7]


def test_columns_keep_short_values_whole() -> None:
    row = {"name": "node-1", "text": "x" * 200}
    lines = list(table([row], [Column("NAME", "name"), Column("TEXT", "text")], 80, False))
    assert lines[1].startswith("node-1  xxx") and lines[1].endswith("…") and len(lines[1]) == 80


def test_fields_and_sizes() -> None:
    lines = list(fields({"id": "1", "missing": None, "on": True, "inner": {"x": [1, 2]}, "rows": [{"a": 1, "b": 2}]}))
    assert lines == ["id:      1", "missing: -", "on:      yes", "inner:", "  x: 1, 2", "rows:", "  - a: 1", "    b: 2"]
    assert [size(n) for n in (None, 0, 1023, 1024, 5 * 1024**3)] == ["-", "0 B", "1023 B", "1.0 KiB", "5.0 GiB"]


def test_json_when_piped_pretty_on_a_terminal(net: Net, terminal: Callable[..., Terminal]) -> None:
    assert net("version").document["version"]
    screen = terminal("version")
    assert screen.end() == 0
    assert screen.screen.startswith("net ")
    forced = terminal("version", "--json")
    assert forced.end() == 0
    assert json.loads(forced.screen)["version"]


@pytest.mark.parametrize(
    ("args", "env"), [((), {"NO_COLOR": "1"}), ((), {"TERM": "dumb"}), (("--no-color",), {}), (("--json",), {})]
)
def test_colour_can_be_declined(terminal: Callable[..., Terminal], args: tuple[str, ...], env: dict[str, str]) -> None:
    colourful = terminal("node", "ls")
    assert colourful.end() == 6
    assert "\x1b[31merror:" in colourful.screen
    plainly = terminal("node", "ls", *args, env=env)
    assert plainly.end() == 6
    assert "\x1b" not in plainly.screen


@pytest.mark.parametrize("args", [("--help",), ("--spec",), ("completion", "bash"), ("config", "schema"), ("version",)])
def test_a_reader_that_leaves_is_no_error(net: Net, args: tuple[str, ...]) -> None:
    read, write = os.pipe()
    os.close(read)  # gone before the first byte, which is the hardest case
    with os.fdopen(write, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "net_cli", *args], stdout=closed, stderr=subprocess.PIPE, timeout=30, check=False
        )
    assert (done.returncode, done.stderr) == (0, b"")


def test_head_takes_one_line(net: Net) -> None:
    command = f"set -o pipefail; {sys.executable} -m net_cli completion zsh | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, timeout=30, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"#compdef net\n", b"")


def test_a_terminal_that_is_not_utf8(net: Net) -> None:
    done = net("config", "show", "--socket", "/tmp/é", env={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert done.code == 0, done.err
    assert "/tmp/\\xe9" in done.out
