"""What `make` needs of a machine: the set-up finds a good interpreter, says so when there is none, works once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import REPO
from tools import setup_venv


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the set-up script alone, in a folder with a space in its name, beside an empty PATH directory."""
    tools = tmp_path / "a tree" / "tools"
    tools.mkdir(parents=True)
    shutil.copy(REPO / "tools/setup.sh", tools)
    (tmp_path / "bin").mkdir()
    return tmp_path


def interpreter(tree: Path, name: str, body: str) -> None:
    path = tree / "bin" / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def setup(tree: Path, **env: str) -> subprocess.CompletedProcess[str]:
    if not (tree / "bin" / "dirname").exists():
        (tree / "bin" / "dirname").symlink_to(str(shutil.which("dirname")))
    return subprocess.run(
        ["/bin/sh", tree / "a tree/tools/setup.sh"],
        env={"PATH": str(tree / "bin"), **env},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


GOOD = """case "$*" in *setup_venv.py) echo "$(/bin/pwd)|$0|$*";; esac"""


def test_without_a_python_it_says_what_is_needed(tree: Path) -> None:
    done = setup(tree)
    assert done.returncode == 1
    assert "Python 3.11 or newer" in done.stderr
    assert "PYTHON=" in done.stderr


def test_an_interpreter_that_refuses_is_passed_over(tree: Path) -> None:
    interpreter(tree, "python3", "exit 1")
    interpreter(tree, "python3.12", GOOD)
    done = setup(tree)
    assert done.returncode == 0, done.stderr
    directory, program, arguments = done.stdout.strip().split("|")
    assert Path(directory) == tree / "a tree"
    assert (Path(program).name, arguments) == ("python3.12", "-I tools/setup_venv.py")


def test_one_that_cannot_make_environments_is_passed_over_unless_uv_can(tree: Path) -> None:
    interpreter(tree, "python3", 'case "$*" in *ensurepip*) exit 1;; esac\n' + GOOD)
    assert setup(tree).returncode == 1
    interpreter(tree, "uv", "exit 0")
    assert setup(tree).returncode == 0


def test_the_one_the_user_names_is_taken_or_nothing(tree: Path) -> None:
    interpreter(tree, "python3", GOOD)
    interpreter(tree, "my python", GOOD)
    assert "my python" in setup(tree, PYTHON=str(tree / "bin/my python")).stdout
    assert setup(tree, PYTHON=str(tree / "bin/absent")).returncode == 1


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree with what the stamp looks at, and a finished environment made of this very interpreter."""
    (tmp_path / "substrate").mkdir()
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    (tmp_path / "substrate/__init__.py").write_text('__version__ = "1"\n')
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/pyvenv.cfg").touch()
    (tmp_path / ".venv/bin/python").symlink_to(sys.executable)
    monkeypatch.setattr(setup_venv, "TREE", tmp_path)
    monkeypatch.setattr(setup_venv, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(setup_venv, "STAMP", tmp_path / ".venv/net-setup.json")
    setup_venv.STAMP.write_text(json.dumps(setup_venv.stamp()))
    return tmp_path


def test_a_finished_environment_is_left_as_it_is(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.devnull)
    before = setup_venv.STAMP.stat().st_mtime_ns
    assert setup_venv.main() == 0
    assert setup_venv.STAMP.stat().st_mtime_ns == before


@pytest.mark.parametrize("changed", ["pyproject.toml", "substrate/__init__.py"])
def test_a_changed_project_is_set_up_again_in_place(project: Path, changed: str) -> None:
    (project / changed).write_text("changed\n")
    assert setup_venv.read_stamp() != setup_venv.stamp()
    assert setup_venv.reusable(setup_venv.stamp())


def test_an_environment_that_moved_or_does_not_start_is_made_anew(project: Path) -> None:
    wanted = setup_venv.stamp()
    assert not setup_venv.reusable(wanted | {"tree": "/elsewhere"})
    (project / ".venv/bin/python").unlink()
    assert not setup_venv.runs()
    assert not setup_venv.reusable(wanted)
    setup_venv.remove_venv()
    assert not (project / ".venv").exists()


def test_a_folder_that_is_no_environment_is_not_removed(project: Path) -> None:
    (project / ".venv/pyvenv.cfg").unlink()
    with pytest.raises(SystemExit, match="no virtual environment"):
        setup_venv.remove_venv()
    assert (project / ".venv/bin").exists()


def test_a_stamp_that_was_cut_short_counts_as_none(project: Path) -> None:
    setup_venv.STAMP.write_text('{"pyproject"')
    assert setup_venv.read_stamp() is None
