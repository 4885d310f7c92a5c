"""Every help page is pinned byte for byte, explains itself and shows an example."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib import import_module

import click
import pytest
from syrupy.assertion import SnapshotAssertion

from net_cli.core import GLOBAL_NOTE, GLOBAL_OPTIONS, Command, Group
from net_cli.main import LAZY, root
from net_cli.spec import walk
from tests.cli.conftest import ROOT, Net


def slug(path: str) -> str:
    """The file of a page: `net admin drain` is admin-drain."""
    return path.removeprefix("net ").replace(" ", "-")


def pages() -> Iterator[tuple[str, click.Command, click.Context]]:
    ctx = click.Context(root, info_name="net", **root.context_settings)
    for command, child in walk(root, ctx):
        yield child.command_path, command, child


PAGES = {path: (command, ctx) for path, command, ctx in pages()}
GROUPS = {path: command for path, (command, _) in PAGES.items() if isinstance(command, Group)}


@pytest.mark.parametrize("path", PAGES)
def test_page_is_pinned(path: str, help_snapshot: SnapshotAssertion) -> None:
    _, ctx = PAGES[path]
    assert ctx.get_help() + "\n" == help_snapshot(name=slug(path))


def test_no_page_is_left_over() -> None:
    kept = {file.stem for file in (ROOT / "snapshots" / "help").glob("*.txt")}
    assert kept == {slug(path) for path in PAGES}


@pytest.mark.parametrize("path", PAGES)
def test_page_has_help_and_examples_that_parse(path: str) -> None:
    command, ctx = PAGES[path]
    assert isinstance(command, Command | Group)
    assert command.help and command.help.strip()
    assert command.examples
    page = ctx.get_help()
    assert "\nExamples:\n  " in page
    assert (GLOBAL_NOTE in page) == (path != "net")
    assert any(re.search(rf"\b{path}\b", example) for example in command.examples), "no example uses the command itself"
    for example in command.examples:
        for words in re.findall(r"net ((?:[a-z][a-z-]* ?)+)", example.split("#")[0]):
            _resolve(words.split(), example)


def _resolve(words: list[str], example: str) -> None:
    path = "net"
    for word in words:
        if f"{path} {word}" not in PAGES:
            break
        path = f"{path} {word}"
    assert path in PAGES and (path not in GROUPS or path == "net" or words == path.split()[1:]), example


@pytest.mark.parametrize("path", [path for path in PAGES if path not in GROUPS])
def test_every_parameter_is_explained(path: str) -> None:
    command, _ = PAGES[path]
    for param in command.params:
        assert getattr(param, "help", None), f"{path}: {param.name} has no help"


@pytest.mark.parametrize("path", [path for path in PAGES if path not in GROUPS])
def test_leaf_page_is_about_the_leaf(path: str) -> None:
    page = PAGES[path][1].get_help()
    for option in GLOBAL_OPTIONS:
        assert not re.search(rf"^  {re.escape(option.opts[-1])}\b", page, re.M), f"{path} repeats {option.opts[-1]}"
    assert all(len(line) <= 80 or line.startswith("  net ") or "net " in line for line in page.splitlines())


def test_root_lists_each_group_in_the_words_of_the_group() -> None:
    for name, (target, text) in LAZY.items():
        module, attribute = target.split(":")
        command: click.Command = getattr(import_module(module), attribute)
        assert command.name == name
        assert command.help is not None
        assert command.help.strip().splitlines()[0] == text


def test_spec_describes_every_command(net: Net) -> None:
    done = net("--spec")
    assert done.code == 0 and done.err == ""
    spec = done.document
    assert [command["path"] for command in spec["commands"]] == list(PAGES)
    drain = next(command for command in spec["commands"] if command["path"] == "net admin drain")
    by_name = {param["name"]: param for param in drain["params"]}
    assert by_name["drain_for_ms"]["required"] and by_name["drain_for_ms"]["options"] == ["--drain-for"]
    assert spec["exit_codes"]["5"] == "denied"
    assert spec["error_kinds"]["drain-failed"]["exit_code"] == 1
    assert {option["name"] for option in spec["global_options"]} >= {"config", "profile", "cluster", "socket", "via"}
    assert json.dumps(spec)
