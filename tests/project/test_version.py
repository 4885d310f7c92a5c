"""One source of the version: `substrate/__init__.py`."""

from __future__ import annotations

import re
from importlib import metadata

import pytest

import substrate
from substrate.wire.extras import DISTRIBUTION
from tests.harness import REPO, ClusterHarness


def test_the_installed_metadata_has_the_version_of_the_source() -> None:
    try:
        installed = metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        pytest.skip("run from the source tree, not installed (make setup installs it)")
    assert installed == substrate.__version__


def test_the_command_says_the_version_of_the_source(cluster: ClusterHarness) -> None:
    assert cluster.ok("version")["version"] == substrate.__version__


def test_the_changelog_begins_with_the_version() -> None:
    changelog = (REPO / "CHANGELOG.md").read_text()
    heading = re.search(r"^## (\d+\.\d+\.\d+)", changelog, re.MULTILINE)
    assert heading is not None
    assert heading[1] == substrate.__version__


def test_the_version_is_written_down_in_one_place() -> None:
    assert 'dynamic = ["version"]' in (REPO / "pyproject.toml").read_text()
    number = re.compile(rf"\b{re.escape(substrate.__version__)}\b")
    found = [
        str(path.relative_to(REPO))
        for package in ("net_cli", "net_sdk", "substrate")
        for path in sorted((REPO / package).rglob("*.py"))
        if number.search(path.read_text())
    ]
    assert found == ["substrate/__init__.py"]
