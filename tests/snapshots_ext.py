"""Snapshots as single files that people read: `snapshots/<kind>/<name>.<extension>`, named by the test.

Each assertion must be given `name=`; that name is the file's. Names are flat, so one directory shows every page.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

from syrupy.extensions.single_file import SingleFileSnapshotExtension, WriteMode
from syrupy.location import PyTestLocation
from syrupy.types import SnapshotIndex

ROOT = Path(__file__).resolve().parent.parent / "snapshots"


class TextSnapshot(SingleFileSnapshotExtension):
    """Text, written and compared exactly, under `snapshots/<kind>/`."""

    _write_mode = WriteMode.TEXT
    file_extension = "txt"
    kind: ClassVar[str] = "text"
    root: ClassVar[Path] = ROOT

    @classmethod
    def dirname(cls, *, test_location: PyTestLocation) -> str:
        """The kind's directory, whichever test asks."""
        return str(cls.root / cls.kind)

    @classmethod
    def get_snapshot_name(cls, *, test_location: PyTestLocation, index: SnapshotIndex = 0) -> str:
        """The name given in the assertion; a test without one is a mistake in the test."""
        if not isinstance(index, str):
            raise ValueError("a single-file snapshot needs a name: snapshot(name=...)")
        if index != cls._sanitize_filename(index) or index.startswith("."):
            raise ValueError(f"{index!r} is not a plain file name")
        return index

    def read_snapshot_data_from_location(
        self, *, snapshot_location: str, snapshot_name: str, session_id: str
    ) -> str | None:
        """The file's text without newline translation, so that a carriage return counts."""
        try:
            return Path(snapshot_location).read_bytes().decode()
        except FileNotFoundError:
            return None


class HelpSnapshot(TextSnapshot):
    """Pages of `--help`."""

    kind = "help"


class JsonSnapshot(TextSnapshot):
    """JSON documents: indented, keys in the order they were printed, non-ASCII kept."""

    kind = "json"
    file_extension = "json"

    def serialize(self, data: Any, **_: Any) -> str:
        """One indented document and a newline."""
        return json.dumps(data, indent=2, ensure_ascii=False) + "\n"
