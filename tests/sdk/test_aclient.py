"""The async client against the real server: the sync client's surface, a bounded pool, streams that resume."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from net_sdk.aclient import AsyncClient, quote
from net_sdk.client import Client
from substrate.control import Limits
from substrate.wire.errors import NetError
from tests.control.sample import SampleApi, Serving
from tests.procs import wait_until
from tests.sdk.proxy import Relay

RECORDS = f"/v1/chains/{quote('sensors/temp')}/records"


@pytest.fixture
def serving() -> Iterator[Serving]:
    with Serving() as running:
        yield running


def with_client(path: str, body: Callable[[AsyncClient], Coroutine[Any, Any, None]], **options: Any) -> None:
    async def run() -> None:
        async with asyncio.timeout(30), AsyncClient(path, **options) as client:
            await body(client)

    asyncio.run(run())


def test_documents_errors_and_reuse(serving: Serving) -> None:
    async def body(client: AsyncClient) -> None:
        assert (await client.get("/v1/status"))["node_name"] == "a"
        with pytest.raises(NetError) as caught:
            await client.get("/v1/nodes/none")
        assert (caught.value.kind, caught.value.details) == ("node-not-found", {"node": "none"})
        assert (await client.post(RECORDS, {"records": ["ä"]}))["count"] == 1
        assert (await client.get(RECORDS, tail=1))[0]["payload"] == "ä"
        assert len((await client.get("/v1/nodes/big"))["name"]) == 4_000_000
        assert serving.server.connections == 1

    with_client(serving.path, body)


def test_the_pool_is_bounded_and_everybody_gets_a_turn(serving: Serving) -> None:
    async def body(client: AsyncClient) -> None:
        most = 0

        async def one(n: int) -> str:
            nonlocal most
            name: str = (await client.get(f"/v1/nodes/n{n}"))["name"]
            most = max(most, serving.server.connections)
            return name

        assert await asyncio.gather(*(one(n) for n in range(200))) == [f"n{n}" for n in range(200)]
        assert 1 < most <= 3

    with_client(serving.path, body, max_connections=3)


def test_a_pooled_connection_the_node_closed_is_replaced() -> None:
    async def body(client: AsyncClient) -> None:
        await client.get("/v1/version")
        async with asyncio.timeout(5):
            while idle.server.connections:
                await asyncio.sleep(0.02)
        assert (await client.get("/v1/version"))["api"] == 1

    with Serving(Limits(idle_s=0.2)) as idle:
        with_client(idle.path, body)


def test_timeouts_and_nobody_there(serving: Serving, tmp_path: Path) -> None:
    async def slow(client: AsyncClient) -> None:
        with pytest.raises(NetError) as caught:
            await client.get("/v1/nodes/slow")
        assert caught.value.kind == "timeout"
        assert (await client.get("/v1/version"))["api"] == 1  # the late answer does not come out here
        with pytest.raises(NetError) as caught:
            async for _ in client.stream(RECORDS, timeout_s=0.3, follow=True):
                pass
        assert caught.value.kind == "timeout"

    async def nobody(client: AsyncClient) -> None:
        for call in (client.get("/v1/version"), anext(client.stream("/v1/audit", follow=True))):
            with pytest.raises(NetError) as caught:
                await call
            assert (caught.value.kind, caught.value.details["sent"]) == ("not-connected", False)

    with_client(serving.path, slow, timeout_s=0.3)
    serving.call(serving.api.release.set)
    with_client(str(tmp_path / "none.sock"), nobody)


def test_streams_end_fail_and_are_left(serving: Serving) -> None:
    async def body(client: AsyncClient) -> None:
        assert [row.get("seq") async for row in client.stream("/v1/logs", follow=True)] == [1, None, 10]
        assert [row["seq"] async for row in client.stream("/v1/logs")] == [1]
        seen = []
        with pytest.raises(NetError) as caught:
            async for row in client.stream("/v1/audit", follow=True, kind="fails"):
                seen.append(row)  # noqa: PERF401 - those before the failure count
        assert (len(seen), caught.value.kind) == (1, "corrupt-store")
        await client.post(RECORDS, {"records": ["x"]})
        async with aclosing(client.stream(RECORDS, follow=True)) as rows:
            assert (await anext(rows))["seq"] == 1
            await client.post(RECORDS, {"records": ["y"]})
            assert (await anext(rows))["payload"] == "y"

    with_client(serving.path, body)
    wait_until(lambda: not serving.api.followers, 5, "the stream to be given up")


def test_a_cut_stream_is_an_error_or_resumed_without_gap_or_repeat(serving: Serving) -> None:
    async def body(client: AsyncClient) -> None:
        await client.post(RECORDS, {"records": list(range(100))})
        relay.cut_after = 3000
        with pytest.raises(NetError) as caught:
            async for _ in client.stream(RECORDS, follow=True):
                pass
        assert caught.value.kind == "not-connected"
        relay.cut_after = 9000
        seen = []
        async with aclosing(client.stream(RECORDS, resume=True, follow=True)) as rows:
            async for row in rows:
                seen.append(row["seq"])
                if len(seen) == 100:
                    break
        assert seen == list(range(1, 101))
        assert relay.lost == 2

    with Relay(serving.path) as relay:
        with_client(relay.path, body)


def test_a_stream_outlives_its_node(serving: Serving) -> None:
    path, api = serving.path, SampleApi()

    async def body(client: AsyncClient) -> None:
        await client.post(RECORDS, {"records": ["x", "y"]})
        async with aclosing(client.stream(RECORDS, resume=True, follow=True)) as rows:
            seen = [(await anext(rows))["seq"] for _ in range(2)]
            await asyncio.to_thread(serving.stop)
            api.records = [*serving.api.records]
            with Serving(api=api, path=path):
                with Client(path) as sync:
                    await asyncio.to_thread(sync.post, RECORDS, {"records": ["z"]})
                seen.append((await anext(rows))["seq"])
        assert seen == [1, 2, 3]

    with_client(path, body)


def test_attach_finds_pins_and_connects(serving: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NET_CONFIG_HOME", str(tmp_path / "c"))

    async def run() -> None:
        async with await AsyncClient.attach(socket=serving.path) as client:
            assert client.cluster_id == SampleApi.cluster_id
            assert (await client.get("/v1/version"))["api"] == 1

    asyncio.run(run())
    assert (tmp_path / "c" / "known_clusters").exists()
