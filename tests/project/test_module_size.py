"""One concept a module: the limits of the house, and its folders."""

from __future__ import annotations

import pytest

from tests.harness import REPO

LIMITS = {"substrate": 400, "net_sdk": 400, "net_cli": 300}


@pytest.mark.parametrize("package", sorted(LIMITS))
def test_no_module_is_longer_than_its_room_allows(package: str) -> None:
    modules = sorted((REPO / package).rglob("*.py"))
    assert modules
    lengths = {str(path.relative_to(REPO)): len(path.read_text().splitlines()) for path in modules}
    assert {name: count for name, count in lengths.items() if count > LIMITS[package]} == {}


@pytest.mark.parametrize("top", ["substrate", "net_sdk", "net_cli", "tests", "bench"])
def test_every_folder_with_python_in_it_is_a_package(top: str) -> None:
    """Else two test files of one name clash, and a folder is silently left out of the wheel."""
    folders = {path.parent for path in (REPO / top).rglob("*.py")}
    assert [str(folder.relative_to(REPO)) for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []
