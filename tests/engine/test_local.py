"""The local engine under the conformance suite, and what is particular to it: its broker process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.engine.conformance import EngineConformance, EngineHarness
from tests.engine.local_harness import LocalHarness


@pytest.fixture
def harness() -> Iterator[EngineHarness]:
    made = LocalHarness()
    yield made
    made.close()


class TestLocalEngine(EngineConformance):
    """Everything `conformance` demands."""
