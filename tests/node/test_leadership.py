"""Who leads: the lease and the term belong together, on a real engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from substrate.engine import Engine, Lagged
from substrate.identity.keys import Keypair
from substrate.meshos.control_copy import ControlCopy
from substrate.meshos.decide import World
from substrate.node.leadership import KEY, Leadership
from substrate.operator.index import LedgerIndex
from substrate.operator.ledger import CONTROL_CHAIN
from substrate.operator.state import LedgerState
from substrate.redex import Store
from tests.engine.local_harness import LocalHarness

KEYS = {keys.node_id: keys for keys in (Keypair(b"a" * 32), Keypair(b"b" * 32))}
LIMIT_S = 20.0


@pytest.fixture
def harness() -> Iterator[LocalHarness]:
    made = LocalHarness()
    yield made
    made.close()


def public_key(node: int) -> bytes | None:
    return KEYS[node].public_key if node in KEYS else None


class Candidate:
    """A node as far as leading goes. It runs for the lead only within `campaigning`."""

    def __init__(self, engine: Engine, keys: Keypair, store: Store, index: LedgerIndex) -> None:
        self.control = ControlCopy(store, index, public_key)
        self.lead = Leadership(engine, keys, self.control, lambda: keys.node_id, self._world)
        self._engine = engine

    def _world(self) -> World:
        return World(LedgerState(), self.control.state, {}, 0)

    async def follow(self) -> None:
        async for batch in self._engine.tail(CONTROL_CHAIN, 1):
            assert not isinstance(batch, Lagged)
            await self.control.advance(batch)

    @asynccontextmanager
    async def campaigning(self) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self.lead.campaign()), asyncio.create_task(self.lead.decide())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)


@asynccontextmanager
async def candidate(harness: LocalHarness, place: Path, keys: Keypair) -> AsyncIterator[Candidate]:
    engine = await harness.connect()
    place.mkdir()
    with Store.open(place / "ledger.db") as store:
        index = LedgerIndex(place / "audit.db")
        made = Candidate(engine, keys, store, index)
        following = asyncio.create_task(made.follow())
        try:
            yield made
        finally:
            following.cancel()
            await asyncio.wait([following])
            await engine.close()
            index.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0.02)


def test_a_leader_whose_term_was_followed_by_another_opens_a_new_one(harness: LocalHarness, tmp_path: Path) -> None:
    """The engine forgets the lease twice; in between another node led. Holding the lease alone is not leading."""

    async def scenario() -> None:
        first, second = KEYS.values()
        async with candidate(harness, tmp_path / "a", first) as a, candidate(harness, tmp_path / "b", second) as b:
            keeper = await harness.connect()
            async with a.campaigning():
                await until(lambda: a.lead.leading)
            await keeper.kv_delete(KEY)  # as a restart of the engine does
            async with b.campaigning():
                await until(lambda: b.lead.leading)
            await keeper.kv_delete(KEY)
            await until(lambda: a.control.state.leader == second.node_id)
            assert not a.lead.leading
            async with a.campaigning():
                await until(lambda: a.lead.leading)
                await until(lambda: b.control.state.leader == first.node_id)
                assert not b.lead.leading
                assert (a.control.state.term, b.control.state.term) == (3, 3)
            await keeper.close()

    asyncio.run(scenario())


def test_one_of_two_leads_until_it_resigns(harness: LocalHarness, tmp_path: Path) -> None:
    async def scenario() -> None:
        first, second = KEYS.values()
        async with candidate(harness, tmp_path / "a", first) as a, candidate(harness, tmp_path / "b", second) as b:
            parts = {one: one.campaigning() for one in (a, b)}
            for part in parts.values():
                await part.__aenter__()
            await until(lambda: a.lead.leading != b.lead.leading)
            leader, other = (a, b) if a.lead.leading else (b, a)
            assert (await holder(harness)).startswith(str(leader.control.state.leader))
            await parts[leader].__aexit__(None, None, None)
            await leader.lead.resign()
            await until(lambda: other.lead.leading)
            assert not leader.lead.leading
            await parts[other].__aexit__(None, None, None)

    asyncio.run(scenario())


async def holder(harness: LocalHarness) -> str:
    """What the leader's key says."""
    engine = await harness.connect()
    try:
        entry = await engine.kv_get(KEY)
        assert entry is not None
        return entry.value.decode()
    finally:
        await engine.close()
