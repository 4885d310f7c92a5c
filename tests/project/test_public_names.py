"""Public names: what `__all__` says is there, what is there is said, and everything is documented."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator

import pytest

from tests.harness import REPO


def walk(package: str) -> Iterator[str]:
    """Dotted names of every module under a package, from the files: nothing is imported while tests are collected."""
    for path in (REPO / package).rglob("*.py"):
        yield ".".join(path.relative_to(REPO).with_suffix("").parts).removesuffix(".__init__")


def source_of(name: str) -> ast.Module:
    path = REPO.joinpath(*name.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(path.read_text())


ALL = sorted(name for package in ("substrate", "net_sdk", "net_cli") for name in walk(package))
PACKAGES = [name for name in ALL if REPO.joinpath(*name.split(".")).is_dir()]
RUNS_WHEN_IMPORTED = {name for name in ALL if name.endswith(".__main__")}


def has_all(name: str) -> bool:
    return any(
        isinstance(target, ast.Name) and target.id == "__all__"
        for node in source_of(name).body
        if isinstance(node, (ast.Assign, ast.AnnAssign))
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
    )


@pytest.mark.parametrize("name", [name for name in ALL if name not in RUNS_WHEN_IMPORTED])
def test_every_module_can_be_imported_by_itself_and_says_what_it_is(name: str) -> None:
    assert (importlib.import_module(name).__doc__ or "").strip(), f"{name} has no docstring"


@pytest.mark.parametrize("name", [name for name in ALL if has_all(name)])
def test_all_names_exactly_what_the_module_gives(name: str) -> None:
    module = importlib.import_module(name)
    declared: list[str] = module.__all__
    assert len(declared) == len(set(declared)), "a name stands twice"
    missing = [entry for entry in declared if not hasattr(module, entry)]
    assert missing == []
    if name in PACKAGES:  # what a package re-exports is what it promises: nothing hidden, nothing extra
        assert sorted(reexported(name)) == sorted(declared)


def reexported(name: str) -> Iterator[str]:
    """Public names an `__init__` brings in from its own package, or defines."""
    for node in source_of(name).body:
        if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] == name.partition(".")[0]:
            yield from (alias.asname or alias.name for alias in node.names)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and node.name[0] != "_":
            yield node.name


@pytest.mark.parametrize("name", [name for name in PACKAGES if list(reexported(name))])
def test_a_package_that_re_exports_declares_it(name: str) -> None:
    assert has_all(name), f"{name}/__init__.py re-exports names without __all__"


def test_public_classes_and_functions_have_docstrings() -> None:
    """ruff's D1 checks what a file defines; this checks what a reader of `help()` gets, inherited texts included."""
    bare: list[str] = []
    for name in ALL:
        if name in RUNS_WHEN_IMPORTED:
            continue
        module = importlib.import_module(name)
        for entry, value in vars(module).items():
            ours = getattr(value, "__module__", None) == name and not entry.startswith("_")
            if ours and (inspect.isclass(value) or inspect.isfunction(value)) and not inspect.getdoc(value):
                bare.append(f"{name}.{entry}")
    assert bare == []
