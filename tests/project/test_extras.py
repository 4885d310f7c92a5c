"""What a user sees when an extra is missing."""

from __future__ import annotations

import pickle
import sys
import tomllib
from pathlib import Path

import pytest

from substrate.wire.extras import DISTRIBUTION, EXTRAS, MissingExtraError, features, require
from tests.harness import REPO


def pyproject() -> dict[str, dict[str, object]]:
    return tomllib.loads((REPO / "pyproject.toml").read_text())


def test_the_table_names_the_extras_of_the_installation() -> None:
    project = pyproject()["project"]
    extras = project["optional-dependencies"]
    assert isinstance(extras, dict)
    assert sorted(EXTRAS) == sorted(set(extras) - {"dev"})
    assert project["name"] == DISTRIBUTION


def test_the_readme_lists_every_extra() -> None:
    readme = (REPO / "README.md").read_text()
    for extra in EXTRAS:
        assert f"`{extra}`" in readme, extra


@pytest.fixture
def only_fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for stand-in packages, with the real ones of every extra out of reach."""
    for packages in EXTRAS.values():
        for package in packages:
            for loaded in [name for name in sys.modules if name.partition(".")[0] == package]:
                monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    return tmp_path


@pytest.mark.parametrize("extra", sorted(EXTRAS))
def test_a_missing_extra_is_named(extra: str, only_fakes: Path) -> None:
    with pytest.raises(ImportError, match=rf"pip install '{DISTRIBUTION}\[{extra}\]'") as caught:
        require(extra, EXTRAS[extra][0])
    error = caught.value
    assert isinstance(error, MissingExtraError)
    assert error.extra == extra
    shown = error.as_net_error()
    assert (shown.kind, int(shown.exit_code)) == ("missing-feature", 1)
    assert shown.hint == f"pip install '{DISTRIBUTION}[{extra}]'"
    assert features()[extra] == f"{EXTRAS[extra][0]} is not installed: {shown.hint}"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_an_extra_that_is_there_is_imported(only_fakes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (only_fakes / "duckdb.py").write_text("answer = 42\n")
    assert require("analytics", "duckdb").answer == 42
    assert features()["analytics"] is None
    monkeypatch.delitem(sys.modules, "duckdb")


def test_a_package_that_is_there_but_broken_keeps_its_own_error(only_fakes: Path) -> None:
    (only_fakes / "duckdb.py").write_text("import something_else_that_is_missing\n")
    with pytest.raises(ModuleNotFoundError, match="something_else_that_is_missing") as caught:
        require("analytics", "duckdb")
    assert not isinstance(caught.value, MissingExtraError)
