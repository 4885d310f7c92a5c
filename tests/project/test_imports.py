"""Who imports whom: the contracts bite, and what starts fast really loads little."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import REPO, clean_environment

# -- the contracts of pyproject.toml ------------------------------------------------------------------------------


def lint_imports(tree: Path, contract: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-logo", "--no-cache", "--contract", contract],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture(scope="module")
def skeleton(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's contracts over a tree of empty packages; one line in one module decides."""
    tree = tmp_path_factory.mktemp("skeleton")
    shutil.copy(REPO / "pyproject.toml", tree)
    rooms = [path.name for path in sorted((REPO / "substrate").iterdir()) if (path / "__init__.py").exists()]
    for package in ["net_cli", "net_sdk", "substrate", *(f"substrate/{room}" for room in rooms)]:
        (tree / package).mkdir()
        (tree / package / "__init__.py").touch()
    (tree / "substrate/operator").mkdir(exist_ok=True)
    (tree / "substrate/operator/__init__.py").touch()
    return tree


@pytest.mark.parametrize(
    ("module", "line", "contract", "broken"),
    [
        ("net_cli/x.py", "def f(): import net_sdk", "packages", False),
        ("net_sdk/x.py", "import net_cli", "packages", True),
        ("substrate/wire/x.py", "def f(): import net_sdk", "packages", True),
        ("substrate/operator/x.py", "import substrate.wire", "rooms", False),
        ("substrate/wire/x.py", "def f(): import substrate.operator", "rooms", True),
        ("substrate/wire/x.py", "import substrate.cellar", "rooms", True),
        ("net_sdk/x.py", "import substrate.wire, substrate.identity", "sdk", False),
        ("net_sdk/x.py", "def f(): import substrate.operator", "sdk", True),
        ("net_cli/x.py", "def f(): import substrate.operator.verify", "cli", False),
        ("net_cli/x.py", "def f(): import substrate.operator", "cli", True),
        ("net_cli/x.py", "import socket", "light", False),
        ("net_cli/x.py", "def f(): import asyncio", "light", True),
    ],
)
def test_a_contract_refuses_what_it_should_and_only_that(
    skeleton: Path, module: str, line: str, contract: str, broken: bool
) -> None:
    extra = [skeleton / module, skeleton / "substrate/operator/verify.py"]
    if "cellar" in line:
        (skeleton / "substrate/cellar").mkdir()
        extra.append(skeleton / "substrate/cellar/__init__.py")
    try:
        for path in extra:
            path.touch()
        (skeleton / module).write_text(line + "\n")
        done = lint_imports(skeleton, contract)
    finally:
        for path in extra:
            path.unlink()
        if "cellar" in line:
            shutil.rmtree(skeleton / "substrate/cellar")
    assert done.returncode == int(broken), done.stdout + done.stderr
    assert ("1 broken" in done.stdout) is broken, done.stdout


# -- what stands at module scope ----------------------------------------------------------------------------------

SLOW = {"asyncio", "concurrent", "email", "http", "multiprocessing", "ssl", "tomllib", "unittest", "urllib"}
"""Modules of the standard library that cost milliseconds; a command imports them when it needs them."""


def module_scope_imports(path: Path) -> Iterator[str]:
    """Modules a file imports when it is loaded: not inside functions, not under `if TYPE_CHECKING`."""

    def walk(nodes: list[ast.stmt]) -> Iterator[str]:
        for node in nodes:
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: relative imports hide who imports whom"
                yield str(node.module)
            elif isinstance(node, ast.If):
                if "TYPE_CHECKING" not in ast.unparse(node.test):
                    yield from walk(node.body)
                yield from walk(node.orelse)
            elif isinstance(node, ast.Try):
                yield from walk([*node.body, *node.orelse, *node.finalbody])
                for handler in node.handlers:
                    yield from walk(handler.body)
            elif isinstance(node, (ast.ClassDef, ast.With)):
                yield from walk(node.body)

    yield from walk(ast.parse(path.read_text()).body)


def may_load(name: str) -> bool:
    """Whether a module of the command line may import this when it is loaded."""
    top = name.partition(".")[0]
    if top in ("click", "net_cli", "__future__"):
        return True
    return name == "substrate.wire.errors" or (top in sys.stdlib_module_names and top not in SLOW)


def test_command_modules_load_only_click_themselves_and_the_error_table() -> None:
    modules = sorted((REPO / "net_cli").rglob("*.py"))
    found = {
        str(path.relative_to(REPO)): [n for n in module_scope_imports(path) if not may_load(n)] for path in modules
    }
    assert {path: names for path, names in found.items() if names} == {}


def test_deck_imports_only_the_sdk() -> None:
    deck = REPO / "net_deck"
    if not deck.exists():
        pytest.skip("there is no Deck yet")
    for path in sorted(deck.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [str(node.module)]
            assert not [name for name in names if name.partition(".")[0] in ("substrate", "net_cli")], path


# -- what is in memory after a start -------------------------------------------------------------------------------

HEAVY = ["asyncio", "cryptography", "nacl", "apsw", "h11", "psutil", "textual", "rich", "nats", "duckdb", "msgspec"]
CLIENT_MAY_NOT = ["asyncio", "http", "email", "ssl", "cryptography", "nacl", "apsw", "h11", "psutil", "click"]

REPORT = """
import atexit, json, os, sys
@atexit.register
def report():
    with open(os.environ["REPORT"], "w") as file:
        json.dump(sorted({name.partition(".")[0] for name in sys.modules} | set(sys.modules)), file)
"""


def loaded_after(code: str, directory: Path) -> tuple[set[str], subprocess.CompletedProcess[str]]:
    report = directory / "modules.json"
    done = subprocess.run(
        [sys.executable, "-c", REPORT + code],
        env=clean_environment(directory, {"REPORT": str(report)}),
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert report.exists(), done.stderr
    return set(json.loads(report.read_text())), done


def run_cli(*args: str) -> str:
    return f"sys.argv = ['net', *{list(args)!r}]\nfrom net_cli.main import main\nsys.exit(main())\n"


@pytest.mark.parametrize("args", [("--help",), ("version",)], ids=" ".join)
def test_help_and_version_load_nothing_heavy(args: tuple[str, ...], tmp_path: Path) -> None:
    loaded, done = loaded_after(run_cli(*args), tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert loaded & {*HEAVY, "net_sdk.client", "platformdirs"} == set()


def test_a_read_verb_loads_no_event_loop_and_no_keys(tmp_path: Path) -> None:
    loaded, done = loaded_after(run_cli("node", "status", "--json"), tmp_path)
    assert done.returncode == 6, f"there is no node to ask: {done.stdout}{done.stderr}"
    assert loaded & set(HEAVY) == set()


def test_the_sync_client_needs_only_the_standard_library(tmp_path: Path) -> None:
    loaded, done = loaded_after("import net_sdk.client", tmp_path)
    assert done.returncode == 0, done.stderr
    assert loaded & set(CLIENT_MAY_NOT) == set()
