"""Forgetting the last pin removes its file and lock; nobody who waits for the lock meanwhile loses a pin."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from net_sdk.discovery import forget, pin, pinned

ID = "ab" * 16


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NET_CONFIG_HOME", str(tmp_path / "c"))
    return tmp_path / "c"


def test_the_last_pin_takes_its_files_along(config: Path) -> None:
    pin("one", ID)
    pin("two", ID)
    forget("one")
    assert (pinned("one"), pinned("two")) == (None, ID)
    forget("two")
    assert pinned("two") is None
    assert list(config.iterdir()) == []
    forget("two")  # nothing to forget: nothing is made
    assert list(config.iterdir()) == []


def test_pins_made_while_others_are_forgotten_stay(config: Path) -> None:
    """Each thread pins and forgets its own name many times, so the files come and go under the others' hands."""
    lost: list[str] = []

    def churn(name: str) -> None:
        for _ in range(60):
            pin(name, ID)
            if pinned(name) != ID:
                lost.append(name)
            forget(name)
        pin(name, ID)

    threads = [threading.Thread(target=churn, args=(f"n{place}",)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lost == []
    assert [pinned(f"n{place}") for place in range(4)] == [ID] * 4
