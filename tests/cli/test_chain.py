"""Chains on the command line: what is appended is exactly what was given, in batches that a retry cannot double."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from net_cli.appending import MAX_BATCH_RECORDS, MAX_RECORD_BYTES, batches
from substrate.wire.errors import NetError
from tests.cli.conftest import Net, Terminal
from tests.cli.smallnode import SmallNode
from tests.procs import wait_until

NAME = "app/orders"


def test_ndjson_from_a_pipe(net: Net, node: SmallNode) -> None:
    lines = [b'{"id":1,"big":12345678901234567890123}', b'{ "spaced" : true }', b'"text"']
    done = net("chain", "append", NAME, "-", stdin=b"\n".join(lines) + b"\n\n")
    assert (done.document["first_seq"], done.document["head_seq"], done.document["count"]) == (1, 3, 3)
    assert node.chains_[NAME] == lines, "the bytes of each line, not another spelling of them"


def test_a_file_in_many_batches(net: Net, node: SmallNode, tmp_path: Path) -> None:
    lines = [json.dumps({"n": n, "pad": "x" * 400}).encode() for n in range(2 * MAX_BATCH_RECORDS + 7)]
    file = tmp_path / "in.ndjson"
    file.write_bytes(b"\r\n".join(lines))
    assert net("chain", "append", NAME, str(file)).document["count"] == len(lines)
    assert node.chains_[NAME] == lines


def test_text_raw_and_data(net: Net, node: SmallNode) -> None:
    net("chain", "append", NAME, "-", "--text", stdin="plain\n\nünïcode")
    net("chain", "append", NAME, "-", "--raw", stdin=b"\x00\xff\n")
    net("chain", "append", NAME, "--data", "[1]")
    assert node.chains_[NAME] == [b"plain", b"", "ünïcode".encode(), b"\x00\xff\n", b"[1]"]


def test_lines_of_a_slow_pipe_are_appended_as_they_come(net: Net, node: SmallNode) -> None:
    command = [sys.executable, "-m", "net_cli", "chain", "append", NAME, "-"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(b"1\n2\n")
        process.stdin.flush()
        wait_until(lambda: node.chains_[NAME] == [b"1", b"2"], 20, "the lines to arrive before the pipe is closed")
        out, _ = process.communicate(b"3\n", timeout=20)
        assert json.loads(out)["head_seq"] == 3


def test_a_bad_line_is_named_with_what_was_durable_before(net: Net, node: SmallNode) -> None:
    text = "\n".join(["1"] * MAX_BATCH_RECORDS + ["2", "{oops"])
    error = net("chain", "append", NAME, "-", stdin=text).error
    assert (error["kind"], error["exit_code"]) == ("invalid-argument", 2)
    assert f"line {MAX_BATCH_RECORDS + 2}" in error["message"] and "--text" in error["hint"]
    assert error["details"]["appended"] == len(node.chains_[NAME]) >= MAX_BATCH_RECORDS


@pytest.mark.parametrize("line", [b"NaN", b"{'a':1}", b"\xff", b"[" * 100_000])
def test_what_is_no_json(net: Net, node: SmallNode, line: bytes) -> None:
    assert net("chain", "append", NAME, "-", stdin=line).error["kind"] == "invalid-argument"
    assert node.chains_[NAME] == []


def test_nothing_to_append(net: Net, node: SmallNode) -> None:
    assert net("chain", "append", NAME, "-", stdin="\n").error["kind"] == "invalid-argument"
    assert net("chain", "append", NAME, "/nowhere").error["kind"] == "file-not-found"


def test_compare_and_append(net: Net, node: SmallNode) -> None:
    assert net("chain", "append", NAME, "-", "--expect", "0", stdin="1\n2").document["head_seq"] == 2
    error = net("chain", "append", NAME, "--data", "3", "--expect", "0").error
    assert (error["kind"], error["exit_code"]) == ("conflict", 4)
    assert error["details"]["head"]["seq"] == 2 and error["details"]["appended"] == 0


def test_a_lost_answer_appends_once(net: Net, node: SmallNode) -> None:
    node.lose_answers = 2
    assert net("chain", "append", NAME, "--data", "7").document["count"] == 1
    assert node.chains_[NAME] == [b"7"]
    node.lose_answers = 3
    error = net("chain", "append", NAME, "--data", "8").error
    assert (error["kind"], error["exit_code"]) == ("unknown-outcome", 7)


def test_reading(net: Net, node: SmallNode, terminal: Callable[..., Terminal]) -> None:
    node.chains_[NAME] = [b'{"n":%d}' % n for n in range(1, 2501)]
    assert net("chain", "ls").document[0]["name"] == NAME
    assert net("chain", "show", NAME).document["holders"][0]["node_name"] == "a"
    assert [row["seq"] for row in net("chain", "inspect", NAME, "-n", "2").document] == [2499, 2500]
    assert [row["seq"] for row in net("chain", "inspect", NAME, "--since", "5", "-n", "2").document] == [6, 7]
    lines = net("chain", "tail", NAME, "--since", "0").out.splitlines()
    assert [json.loads(line)["seq"] for line in lines] == list(range(1, 2501)), "page after page"
    assert len(net("chain", "tail", NAME, "-n", "3").out.splitlines()) == 3
    assert net("chain", "verify", NAME).document["ok"]
    assert net("chain", "show", "none").error["kind"] == "chain-not-found"
    screen = terminal("chain", "inspect", NAME, "-n", "1")
    assert screen.end() == 0 and '{"n":2500}' in screen.screen


def test_head_ends_a_long_tail(node: SmallNode, net: Net) -> None:
    node.chains_[NAME] = [b"%d" % n for n in range(5000)]
    command = f"set -o pipefail; {sys.executable} -m net_cli chain tail {NAME} --since 0 | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, timeout=30, check=False)
    assert (done.returncode, done.stderr, done.stdout.count(b"\n")) == (0, b"", 1)


def test_signed_commands_about_chains(net: Net, node: SmallNode, alice: str) -> None:
    created = net("chain", "create", "app/new", "--replicas", "2", "--operator", alice).document
    assert created["event_kind"] == "chain-create"
    assert net("chain", "create", "app/x").error["kind"] == "no-operator-key"
    assert net("chain", "set-replicas", NAME, "0", "--operator", alice).error["kind"] == "invalid-argument"


@given(st.lists(st.binary(max_size=50).filter(lambda line: b"\n" not in line and not line.endswith(b"\r"))), st.data())
def test_every_line_comes_through_once(lines: list[bytes], data: st.DataObject) -> None:
    lines = [line.hex().encode() for line in lines] + [b"last"]
    found = list(batches(BytesIO(b"\n".join(lines)), text=True, raw=False))
    assert [payload for batch in found for payload in batch.payloads] == lines
    place = 1
    for batch in found:
        assert batch.payloads and batch.line == place
        place += len(batch.payloads)


def test_a_record_may_not_be_huge() -> None:
    whole = b'"' + b"x" * (MAX_RECORD_BYTES - 2) + b'"'
    assert [len(b.payloads) for b in batches(BytesIO(whole + b"\n1"), text=False, raw=False)] == [1, 1]
    for raw in (False, True):
        with pytest.raises(NetError) as caught:
            list(batches(BytesIO(whole + b"y"), text=True, raw=raw))
        assert caught.value.kind == "too-large"
