"""Measured round trips: the statistics alone, and the loop against real peers."""

from __future__ import annotations

import asyncio
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from substrate.mesh import proximity
from substrate.mesh.proximity import SAMPLES, UNKNOWN, Proximity, Rtt, RttStats
from tests.mesh.helpers import NodeProcess, address, key, pool, socket_dir, until

B, C = key("b").node_id, key("c").node_id


def test_nothing_measured_is_unknown() -> None:
    stats = RttStats()
    assert stats.rtt(100) == UNKNOWN == Rtt(None, None, 0, 0)
    stats.missed()
    assert stats.rtt(100) == Rtt(None, None, 0, 1)


def test_missed_pings_leave_the_median_and_let_it_age() -> None:
    stats = RttStats()
    stats.answered(2.0, 1000)
    stats.missed()
    stats.missed()
    assert stats.rtt(5000) == Rtt(2.0, 4000, 1, 2)
    stats.answered(4.0, 6000)
    assert stats.rtt(6000) == Rtt(3.0, 0, 2, 0)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50))
def test_median_of_the_last_samples(values: list[float]) -> None:
    stats = RttStats()
    for at, value in enumerate(values):
        stats.answered(value, at)
    found = stats.rtt(len(values) - 1)
    assert found.rtt_ms == round(statistics.median(values[-SAMPLES:]), 3)
    assert found.samples == min(len(values), SAMPLES)
    assert found.age_ms == 0


def test_real_peers_are_measured_and_a_frozen_one_delays_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proximity, "PING_TIMEOUT_MS", 300)

    async def main() -> None:
        with (
            socket_dir() as directory,
            NodeProcess("b", f"{directory}/b.sock") as b,
            NodeProcess("c", f"{directory}/c.sock") as c,
        ):
            targets = {B, C, 99}
            async with pool("a", address("b", b.path), address("c", c.path)) as calls:
                near = Proximity(
                    lambda node_id, timeout_ms: calls.ping(node_id, timeout_ms=timeout_ms), lambda: targets
                )
                loop = asyncio.create_task(near.run(0.05))
                await until(lambda: near.rtt(B).samples == SAMPLES and near.rtt(C).samples == SAMPLES, "8 samples each")
                for node_id in (B, C):
                    found = near.rtt(node_id)
                    assert found.rtt_ms is not None
                    assert 0 < found.rtt_ms < 1000
                    assert found.age_ms is not None
                    assert found.age_ms < 2000
                assert near.rtt(99).rtt_ms is None, "nobody is there, and no number is made up"
                assert near.failures["node-unreachable"] > 0
                c.freeze()
                await until(lambda: near.rtt(C).unanswered >= 2, "the frozen peer to be missed")
                assert near.failures["timeout"] >= 2
                frozen_age = near.rtt(C).age_ms
                assert frozen_age is not None
                assert frozen_age >= 300
                await until(lambda: (near.rtt(B).age_ms or 0) < 200, "the other to be measured meanwhile")
                assert near.rtt(C).rtt_ms is not None, "the last median stays, with its age"
                c.thaw()
                await until(lambda: near.rtt(C).unanswered == 0, "the woken peer to answer")
                targets.remove(C)
                await until(lambda: C not in near.all(), "the removed target to be forgotten")
                assert near.rtt(C) == UNKNOWN
                loop.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await loop

    asyncio.run(main())
