"""Links between nodes on real sockets: requests, streams, limits, frozen and killed peers."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager

import pytest

from substrate.mesh import caller, channel
from substrate.mesh import peer as peer_module
from substrate.mesh.channel import Channel, cut
from substrate.mesh.handshake import ClientHandshake, PeerInfo
from substrate.mesh.peer import PeerServer
from substrate.mesh.pool import PeerAddress, PeerPool
from substrate.mesh.protocol import (
    MAX_IN_FLIGHT,
    MAX_PAYLOAD_BYTES,
    STREAM_WINDOW_BYTES,
    Fail,
    Hello,
    Message,
    Open,
    Ping,
    Refused,
    Request,
    Welcome,
    decode,
    encode,
)
from substrate.mesh.transport import UnixListener, check_peer_uid, connect_unix, pick_path
from substrate.wire.errors import NetError
from substrate.wire.frames import FrameDecoder
from tests.mesh.helpers import (
    CLUSTER,
    Counters,
    NodeProcess,
    add_handlers,
    address,
    ask,
    authorize,
    key,
    pool,
    socket_dir,
    until,
)

Body = Callable[[PeerServer, PeerPool, Counters], Awaitable[None]]
B = key("b").node_id


def run_pair(body: Body) -> None:
    """Run `body` with node b serving and node a calling, both in this process."""

    async def main() -> None:
        with socket_dir() as directory:
            path = f"{directory}/b.peer.sock"
            async with PeerServer(path, key("b"), CLUSTER, authorize) as server, pool("a", address("b", path)) as calls:
                await body(server, calls, add_handlers(server))

    asyncio.run(main())


async def refused(kind: str, call: Awaitable[object]) -> NetError:
    with pytest.raises(NetError) as caught:
        await call
    assert caught.value.kind == kind, caught.value
    return caught.value


# Requests


def test_request_reaches_the_handler_with_the_proved_peer() -> None:
    async def body(server: PeerServer, calls: PeerPool, _: Counters) -> None:
        assert await calls.request(B, "who", b"") == b"a"
        assert await calls.request(B, "echo", b"\x00\xff") == b"\x00\xff"
        assert len(server.links) == 1, "one link serves all calls"

    run_pair(body)


def test_largest_payload_passes_and_one_byte_more_is_refused_on_both_sides() -> None:
    async def body(server: PeerServer, calls: PeerPool, _: Counters) -> None:
        largest = os.urandom(MAX_PAYLOAD_BYTES)
        assert await calls.request(B, "echo", largest) == largest
        await refused("too-large", calls.request(B, "echo", largest + b"x"))
        await refused("too-large", calls.request(B, "too_much", b""))
        assert await calls.request(B, "echo", b"still") == b"still"

    run_pair(body)


def test_errors_of_handlers_travel_with_kind_hint_and_details() -> None:
    async def body(server: PeerServer, calls: PeerPool, _: Counters) -> None:
        error = await refused("daemon-not-found", calls.request(B, "refuse", b"web"))
        assert (error.hint, error.details) == ("net daemon ls", {"daemon": "web"})
        odd = await refused("conflict", calls.request(B, "odd_details", b""))
        assert odd.details == {}
        unknown = await refused("invalid-argument", calls.request(B, "no-such-method", b""))
        assert "no-such-method" in unknown.message
        await refused("invalid-argument", calls.request(B, "", b""))

    run_pair(body)


def test_fault_in_a_handler_is_internal_and_logged_and_leaves_the_link(caplog: pytest.LogCaptureFixture) -> None:
    async def body(server: PeerServer, calls: PeerPool, _: Counters) -> None:
        error = await refused("internal", calls.request(B, "broken", b""))
        assert "ZeroDivisionError" in error.message
        assert await calls.request(B, "echo", b"1") == b"1"
        assert len(server.links) == 1

    run_pair(body)
    assert "a fault in a handler" in caplog.text


def test_many_requests_at_once_each_get_their_own_answer() -> None:
    async def body(server: PeerServer, calls: PeerPool, _: Counters) -> None:
        answers = await asyncio.gather(*[calls.request(B, "echo", b"%d" % n) for n in range(2 * MAX_IN_FLIGHT)])
        assert answers == [b"%d" % n for n in range(2 * MAX_IN_FLIGHT)]
        assert len(server.links) == 1

    run_pair(body)


def test_timeout_ends_the_call_and_cancels_the_handler() -> None:
    async def body(server: PeerServer, calls: PeerPool, counters: Counters) -> None:
        start = time.monotonic()
        error = await refused("timeout", calls.request(B, "sleep", b"60", timeout_ms=200))
        assert 0.15 < time.monotonic() - start < 5
        assert error.exit_code == 7
        await until(lambda: counters.cancelled == 1, "the handler to be cancelled")
        assert await calls.request(B, "echo", b"1") == b"1"

    run_pair(body)


def test_cancelled_caller_cancels_the_handler() -> None:
    async def body(server: PeerServer, calls: PeerPool, counters: Counters) -> None:
        call = asyncio.create_task(calls.request(B, "sleep", b"60"))
        await until(lambda: counters.running == 1, "the handler to run")
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await until(lambda: counters.cancelled == 1, "the handler to be cancelled")

    run_pair(body)


def test_more_calls_than_the_link_takes_wait_their_turn() -> None:
    async def body(server: PeerServer, calls: PeerPool, counters: Counters) -> None:
        sleepers = [asyncio.create_task(calls.request(B, "sleep", b"60")) for _ in range(MAX_IN_FLIGHT)]
        await until(lambda: counters.running == MAX_IN_FLIGHT, "the link to be full")
        await refused("timeout", calls.request(B, "echo", b"", timeout_ms=100))
        for sleeper in sleepers[:1]:
            sleeper.cancel()
        assert await calls.request(B, "echo", b"room") == b"room"
        for sleeper in sleepers:
            sleeper.cancel()
        await asyncio.gather(*sleepers, return_exceptions=True)

    run_pair(body)


def test_node_nobody_knows_and_node_nobody_serves_are_unreachable() -> None:
    async def main() -> None:
        with socket_dir() as directory:
            async with pool("a", address("b", f"{directory}/none.sock")) as calls:
                assert (await refused("node-unreachable", calls.request(B, "echo", b""))).exit_code == 6
                await refused("node-unreachable", calls.request(key("c").node_id, "echo", b""))
                await refused("node-unreachable", anext(aiter(calls.stream(B, "count", ask(1)))))

    asyncio.run(main())


def test_endpoints_of_other_kinds_are_passed_over() -> None:
    assert pick_path(["tls:host:1", "unix:relative", "unix:/run/b.sock"]) == "/run/b.sock"
    with pytest.raises(NetError) as caught:
        pick_path(["tls:host:1"])
    assert caught.value.kind == "node-unreachable"
    assert "tls:host:1" in caught.value.message


# Removal, closing, renewal


def test_removed_node_is_cut_off_at_its_next_call() -> None:
    async def main() -> None:
        with socket_dir() as directory:
            path = f"{directory}/b.sock"
            admitted = [True]

            def admits(public_key: bytes) -> PeerInfo | None:
                return authorize(public_key) if admitted[0] else None

            async with PeerServer(path, key("b"), CLUSTER, admits) as server, pool("a", address("b", path)) as calls:
                add_handlers(server)
                assert await calls.request(B, "echo", b"1") == b"1"
                admitted[0] = False
                await refused("not-admitted", calls.request(B, "echo", b"2"))
                await until(lambda: not server.links, "the link to be cut")
                await refused("not-admitted", calls.request(B, "echo", b"3"))
                assert server.refused["not-admitted"] == 2

    asyncio.run(main())


def test_removed_node_with_only_an_open_stream_is_cut_off_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_module, "TICK_S", 0.05)

    async def main() -> None:
        with socket_dir() as directory:
            path = f"{directory}/b.sock"
            admitted = [True]

            def admits(public_key: bytes) -> PeerInfo | None:
                return authorize(public_key) if admitted[0] else None

            async with PeerServer(path, key("b"), CLUSTER, admits) as server, pool("a", address("b", path)) as calls:
                add_handlers(server)
                async with aclosing(calls.stream(B, "count", ask(1, hang=True))) as items:
                    await anext(items)
                    admitted[0] = False
                    await refused("not-admitted", anext(items))

    asyncio.run(main())


def test_drop_ends_calls_under_way_and_the_next_call_makes_a_new_link() -> None:
    async def body(server: PeerServer, calls: PeerPool, counters: Counters) -> None:
        call = asyncio.create_task(calls.request(B, "sleep", b"60"))
        await until(lambda: counters.running == 1, "the handler to run")
        calls.drop(B)
        error = await refused("node-unreachable", call)
        assert error.details["sent"] is True
        await until(lambda: counters.cancelled == 1, "the handler to be cancelled")
        assert await calls.request(B, "echo", b"new") == b"new"
        calls.drop(12345)  # nothing there: nothing happens

    run_pair(body)


def test_closed_pool_refuses_calls_also_those_that_wait_for_a_link() -> None:
    async def main() -> None:
        with socket_dir() as directory:
            listener = UnixListener(f"{directory}/b.sock")  # connects, but never answers
            calls = pool("a", address("b", listener.path))
            waiting = asyncio.create_task(calls.request(B, "echo", b""))
            await asyncio.sleep(0.05)
            await calls.close()
            await refused("node-unreachable", waiting)
            await refused("node-unreachable", calls.request(B, "echo", b""))
            await calls.close()
            listener.close()
            listener.close()

    asyncio.run(main())


def test_idle_link_is_closed_and_made_again_when_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caller, "TICK_S", 0.02)
    monkeypatch.setattr(caller, "IDLE_S", 0.1)

    async def body(server: PeerServer, calls: PeerPool, _: Counters) -> None:
        assert await calls.request(B, "echo", b"1") == b"1"
        await until(lambda: not server.links, "the idle link to be closed")
        assert await calls.request(B, "echo", b"2") == b"2"

    run_pair(body)


def test_silent_caller_is_dropped_by_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_module, "TICK_S", 0.02)
    monkeypatch.setattr(peer_module, "IDLE_S", 0.1)

    async def body(server: PeerServer, calls: PeerPool, _: Counters) -> None:
        assert await calls.request(B, "echo", b"1") == b"1"
        await until(lambda: not server.links, "the silent link to be closed")

    run_pair(body)


def test_pool_makes_room_by_closing_the_longest_unused_link(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("substrate.mesh.pool.MAX_LINKS", 1)

    async def main() -> None:
        with socket_dir() as directory:
            paths = {name: f"{directory}/{name}.sock" for name in "bc"}
            async with (
                PeerServer(paths["b"], key("b"), CLUSTER, authorize) as b,
                PeerServer(paths["c"], key("c"), CLUSTER, authorize) as c,
                pool("a", address("b", paths["b"]), address("c", paths["c"])) as calls,
            ):
                counters = add_handlers(b)
                add_handlers(c)
                assert await calls.request(B, "echo", b"1") == b"1"
                assert await calls.request(key("c").node_id, "echo", b"2") == b"2"
                await until(lambda: not b.links, "the unused link to be closed")
                calls.drop(key("c").node_id)
                busy = asyncio.create_task(calls.request(B, "sleep", b"60"))
                await until(lambda: counters.running == 1, "the handler to run")
                await refused("overloaded", calls.request(key("c").node_id, "echo", b"3"))
                busy.cancel()
                await asyncio.gather(busy, return_exceptions=True)

    asyncio.run(main())


# Streams


async def collect(items: AsyncGenerator[bytes, None]) -> list[bytes]:
    return [item.strip() async for item in items]


def test_stream_delivers_every_item_in_order_beyond_the_window() -> None:
    async def body(server: PeerServer, calls: PeerPool, counters: Counters) -> None:
        size = 10_000
        count = 5 * STREAM_WINDOW_BYTES // size
        assert await collect(calls.stream(B, "count", ask(count, size))) == [b"%d" % n for n in range(count)]
        assert await collect(calls.stream(B, "count", ask(0))) == []
        assert await collect(calls.stream(B, "count", ask(3, MAX_PAYLOAD_BYTES))) == [b"0", b"1", b"2"]
        assert await collect(calls.stream(B, "count", ask(20_000, 5))) == [b"%d" % n for n in range(20_000)]
        assert counters.streams_closed == 4

    run_pair(body)


def test_slow_reader_holds_the_sender_back_and_other_calls_go_on() -> None:
    async def body(server: PeerServer, calls: PeerPool, counters: Counters) -> None:
        size, count = 8192, 500
        async with aclosing(calls.stream(B, "count", ask(count, size))) as items:
            assert (await anext(items)).strip() == b"0"
            produced = -1
            while produced != counters.produced:  # the sender comes to rest
                produced = counters.produced
                for _ in range(20):
                    assert await calls.request(B, "echo", b"alive") == b"alive"
            assert counters.produced * size <= STREAM_WINDOW_BYTES + 2 * size
            rest = await collect(items)
        assert rest == [b"%d" % n for n in range(1, count)]

    run_pair(body)


def test_leaving_a_stream_closes_the_handler() -> None:
    async def body(server: PeerServer, calls: PeerPool, counters: Counters) -> None:
        for more in ({"hang": True}, {}):
            closed = counters.streams_closed
            async with aclosing(calls.stream(B, "count", ask(1000, 8192, **more))) as items:
                await anext(items)
            await until(lambda closed=closed: counters.streams_closed == closed + 1, "the handler to be closed")  # type: ignore[misc]
        assert counters.produced < 2000, "the sender was waiting for the reader"
        assert await calls.request(B, "echo", b"1") == b"1"

    run_pair(body)


def test_error_in_a_stream_comes_after_its_items() -> None:
    async def body(server: PeerServer, calls: PeerPool, _: Counters) -> None:
        items = calls.stream(B, "count", ask(2, fail=True))
        assert [(await anext(items)).strip(), (await anext(items)).strip()] == [b"0", b"1"]
        await refused("chain-not-found", anext(items))
        await refused("invalid-argument", anext(calls.stream(B, "no-such-stream", b"")))
        await refused("too-large", anext(calls.stream(B, "count", ask(1, 2 * MAX_PAYLOAD_BYTES))))

    run_pair(body)


# Peers that freeze and die


def test_frozen_peer_times_out_and_serves_again_after_it_wakes() -> None:
    async def main() -> None:
        with socket_dir() as directory, NodeProcess("b", f"{directory}/b.sock") as node:
            async with pool("a", address("b", node.path)) as calls, pool("c", address("b", node.path)) as others:
                assert await calls.request(B, "echo", b"1") == b"1"
                node.freeze()
                await refused("timeout", calls.request(B, "echo", b"2", timeout_ms=300))
                await refused("timeout", calls.ping(B, timeout_ms=100))
                # A new link: the kernel connects, the handshake hangs, sooner by the caller's limit or by its own.
                await refused("timeout", others.request(B, "echo", b"3", timeout_ms=100))
                start = time.monotonic()
                await refused("timeout", others.request(B, "echo", b"4", timeout_ms=20_000))
                assert time.monotonic() - start < 10, "the handshake has its own limit"
                node.thaw()
                assert await calls.request(B, "echo", b"5") == b"5"
                assert await others.request(B, "echo", b"6") == b"6"

    asyncio.run(main())


def test_frozen_peer_ends_a_stream_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caller, "TICK_S", 0.05)
    monkeypatch.setattr(caller, "QUIET_S", 0.1)
    monkeypatch.setattr(caller, "SILENCE_S", 0.5)

    async def main() -> None:
        with socket_dir() as directory, NodeProcess("b", f"{directory}/b.sock") as node:
            async with pool("a", address("b", node.path)) as calls:
                items = calls.stream(B, "count", ask(1, hang=True))
                assert (await anext(items)).strip() == b"0"
                waiting = asyncio.create_task(anext(items))
                await asyncio.sleep(1.5)  # longer than the silence allowed: the peer answers what it is asked
                assert not waiting.done()
                node.freeze()
                error = await refused("node-unreachable", waiting)
                assert "nothing heard" in error.message

    asyncio.run(main())


def test_full_backlog_of_a_frozen_peer_is_a_timeout() -> None:
    async def main() -> None:
        with socket_dir() as directory:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.bind(f"{directory}/b.sock")
            sock.listen(0)
            waiting = []
            with pytest.raises(TimeoutError):
                for _ in range(10):
                    async with asyncio.timeout(0.1):
                        waiting.append(await connect_unix(f"{directory}/b.sock"))
            async with pool("a", address("b", f"{directory}/b.sock")) as calls:
                await refused("timeout", calls.request(B, "echo", b"", timeout_ms=100))
            for each in (sock, *waiting):
                each.close()

    asyncio.run(main())


def test_killed_peer_is_unreachable_at_once_and_found_again_when_it_is_back() -> None:
    async def main() -> None:
        with socket_dir() as directory:
            path = f"{directory}/b.sock"
            async with pool("a", address("b", path)) as calls:
                with NodeProcess("b", path) as node:
                    items = calls.stream(B, "count", ask(1, hang=True))
                    assert (await anext(items)).strip() == b"0"
                    sleeping = asyncio.create_task(calls.request(B, "sleep", b"60", timeout_ms=60_000))
                    await calls.request(B, "echo", b"")
                    start = time.monotonic()
                    node.kill()
                    assert (await refused("node-unreachable", sleeping)).details["sent"] is True
                    await refused("node-unreachable", anext(items))
                    await refused("node-unreachable", calls.request(B, "echo", b""))
                    assert time.monotonic() - start < 5
                with NodeProcess("b", path):  # its socket's path was left behind by the killed one
                    assert await calls.request(B, "echo", b"back") == b"back"

    asyncio.run(main())


def test_ping_measures_a_real_round_trip() -> None:
    async def main() -> None:
        with socket_dir() as directory, NodeProcess("b", f"{directory}/b.sock") as node:
            async with pool("a", address("b", node.path)) as calls:
                start = time.perf_counter()
                rtt_ms = await calls.ping(B)
                whole_ms = (time.perf_counter() - start) * 1000
                assert 0 < rtt_ms <= whole_ms

    asyncio.run(main())


def test_unanswered_pings_are_limited() -> None:
    async def main() -> None:
        with socket_dir() as directory, NodeProcess("b", f"{directory}/b.sock") as node:
            async with pool("a", address("b", node.path)) as calls:
                await calls.ping(B)
                node.freeze()
                pings = [asyncio.create_task(calls.ping(B, timeout_ms=300)) for _ in range(30)]
                kinds = [error.kind for error in await asyncio.gather(*pings, return_exceptions=True)]  # type: ignore[union-attr]
                assert (kinds.count("timeout"), kinds.count("overloaded")) == (16, 14)

    asyncio.run(main())


# A peer that misbehaves on the wire


class RawLink:
    """A connection that sends whatever the test wants, after a true handshake as node a if wanted."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self._decoder = FrameDecoder()
        self._pending: list[bytes] = []

    def send(self, *messages: Message) -> None:
        self.writer.write(b"".join(encode(message) for message in messages))

    async def receive(self) -> Message | None:
        """The next message, None at the end of the connection."""
        async with asyncio.timeout(10):
            while not self._pending:
                try:
                    data = await self.reader.read(65536)
                except ConnectionResetError:
                    return None
                if not data:
                    return None
                self._pending += self._decoder.feed(data)
        return decode(self._pending.pop(0))

    async def shake(self) -> None:
        handshake = ClientHandshake(key("a"), CLUSTER, key("b").public_key)
        self.send(handshake.hello)
        welcome = await self.receive()
        assert isinstance(welcome, Welcome)
        self.send(handshake.prove(welcome))
        await self.receive()


@asynccontextmanager
async def raw(server: PeerServer) -> AsyncGenerator[RawLink, None]:
    reader, writer = await asyncio.open_unix_connection(server.path)
    try:
        yield RawLink(reader, writer)
    finally:
        writer.transport.abort()


def test_calls_over_the_limit_are_refused_and_do_not_end_the_link() -> None:
    async def body(server: PeerServer, calls: PeerPool, counters: Counters) -> None:
        async with raw(server) as link:
            await link.shake()
            link.send(*[Request(n, "sleep", b"60", 60_000) for n in range(1, MAX_IN_FLIGHT + 2)])
            answer = await link.receive()
            assert isinstance(answer, Fail)
            assert (answer.id, answer.error.kind) == (MAX_IN_FLIGHT + 1, "overloaded")
            assert counters.running == MAX_IN_FLIGHT
        await until(lambda: counters.cancelled == MAX_IN_FLIGHT, "the handlers to be cancelled")

    run_pair(body)


@pytest.mark.parametrize(
    "bytes_sent",
    [
        encode(Hello(1, CLUSTER, bytes(32), bytes(32))),
        encode(Request(1, "sleep", b"60", 1000)) * 2,
        b"\x01\x00\x00\x00\xc1",
        b"\xff\xff\xff\xff",
        encode(Ping(1))[:-1] + b"\xa0",
    ],
    ids=["out of turn", "one id twice", "no message", "frame too large", "wrong type"],
)
def test_nonsense_ends_that_link_only(bytes_sent: bytes) -> None:
    async def body(server: PeerServer, calls: PeerPool, _: Counters) -> None:
        async with raw(server) as link:
            await link.shake()
            link.writer.write(bytes_sent)
            assert await link.receive() is None
        assert await calls.request(B, "echo", b"1") == b"1"

    run_pair(body)


def test_caller_that_never_reads_is_cut_off() -> None:
    async def body(server: PeerServer, calls: PeerPool, _: Counters) -> None:
        async with raw(server) as link:
            await link.shake()
            pings = encode(Ping(1)) * 100_000
            try:
                while True:
                    async with asyncio.timeout(20):
                        link.writer.write(pings)
                        await link.writer.drain()
            except ConnectionError:
                pass
            await until(lambda: not server.links, "the link to be cut")

    run_pair(body)


def test_stream_to_a_caller_that_never_reads_comes_to_rest() -> None:
    async def body(server: PeerServer, calls: PeerPool, counters: Counters) -> None:
        async with raw(server) as link:
            await link.shake()
            # A window beyond the protocol's is not believed.
            link.send(Open(1, "count", ask(10_000, 1000), 1 << 40))
            await until(lambda: counters.produced > 100, "the stream to begin")
            assert await calls.request(B, "echo", b"1") == b"1"
            assert counters.produced <= STREAM_WINDOW_BYTES // 1000 + 2
        await until(lambda: counters.streams_closed == 1, "the handler to be closed")

    run_pair(body)


def test_caller_ends_a_link_whose_server_sends_more_than_was_granted() -> None:
    async def main() -> None:
        from substrate.mesh.handshake import ServerHandshake
        from substrate.mesh.protocol import Item, Proof, Ready

        async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            link = RawLink(reader, writer)
            handshake = ServerHandshake(key("b"), CLUSTER, authorize)
            hello = await link.receive()
            assert isinstance(hello, Hello)
            link.send(handshake.welcome(hello))
            proof = await link.receive()
            assert isinstance(proof, Proof)
            handshake.finish(proof)
            link.send(Ready())
            opened = await link.receive()
            assert isinstance(opened, Open)
            for _ in range(10):
                link.send(Item(opened.id, bytes(STREAM_WINDOW_BYTES // 4)))
            await link.receive()
            writer.transport.abort()

        with socket_dir() as directory:
            path = f"{directory}/b.sock"
            server = await asyncio.start_unix_server(flood, path)
            async with pool("a", address("b", path)) as calls:
                items = calls.stream(B, "count", b"")
                await anext(items)
                await asyncio.sleep(0.2)  # everything the server sent is in
                with pytest.raises(NetError) as caught:
                    async for _ in items:
                        pass
                assert "more than was granted" in caught.value.message
            server.close()

    asyncio.run(main())


# The socket


def test_socket_is_private_and_its_path_is_taken_away_at_the_end() -> None:
    async def main() -> None:
        with socket_dir() as directory:
            path = f"{directory}/run/b.sock"
            async with PeerServer(path, key("b"), CLUSTER, authorize):
                assert stat.S_IMODE(os.lstat(path).st_mode) == 0o600
                assert stat.S_IMODE(os.stat(f"{directory}/run").st_mode) == 0o700
                assert stat.S_IMODE(os.stat(f"{path}.lock").st_mode) == 0o600
                with pytest.raises(NetError) as caught:
                    await PeerServer(path, key("b"), CLUSTER, authorize).start()
                assert caught.value.kind == "conflict"
                assert os.path.exists(path), "the loser leaves the winner's socket alone"
            assert not os.path.exists(path)

    asyncio.run(main())


def test_what_is_in_the_way_is_removed_only_if_it_is_a_socket() -> None:
    with socket_dir() as directory:
        left_over = socket.socket(socket.AF_UNIX)
        left_over.bind(f"{directory}/b.sock")
        left_over.close()
        UnixListener(f"{directory}/b.sock").close()
        with open(f"{directory}/c.sock", "w") as file:
            file.write("precious")
        os.symlink(f"{directory}/c.sock", f"{directory}/d.sock")
        for name in "cd":
            with pytest.raises(NetError) as caught:
                UnixListener(f"{directory}/{name}.sock")
            assert caught.value.kind == "invalid-config"
        assert os.path.islink(f"{directory}/d.sock")
        os.chmod(directory, 0o755)
        with pytest.raises(NetError) as caught:
            UnixListener(f"{directory}/e.sock")
        assert caught.value.kind == "permissive-mode"
        with pytest.raises(NetError) as caught:
            UnixListener(f"{directory}/{'x' * 120}")
        assert caught.value.kind == "invalid-config"


def test_socket_whose_path_somebody_removed_closes_quietly() -> None:
    with socket_dir() as directory:
        listener = UnixListener(f"{directory}/b.sock")
        os.unlink(listener.path)
        listener.close()


def test_too_many_links_are_refused_as_overloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_module, "MAX_LINKS", 1)

    async def body(server: PeerServer, calls: PeerPool, _: Counters) -> None:
        assert await calls.request(B, "echo", b"1") == b"1"
        async with pool("c", address("b", server.path)) as others:
            await refused("overloaded", others.request(B, "echo", b"2"))
        assert await calls.request(B, "echo", b"3") == b"3"

    run_pair(body)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_process_of_another_user_is_refused() -> None:
    child = """
import os, socket, sys
os.setuid(65534)
sock = socket.socket(fileno=int(sys.argv[1]))
sock.connect(sys.argv[2])
sock.settimeout(10)
print(sock.recv(65536).hex(), flush=True)
"""

    async def body(server: PeerServer, calls: PeerPool, _: Counters) -> None:
        # Let the stranger through the file modes: the credentials must stop it by themselves.
        os.chmod(server.path, 0o666)
        os.chmod(os.path.dirname(server.path), 0o755)
        sock = socket.socket(socket.AF_UNIX)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", child, str(sock.fileno()), server.path,
            pass_fds=[sock.fileno()], stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, _err = await process.communicate()
        sock.close()
        [payload] = FrameDecoder().feed(bytes.fromhex(out.decode()))
        message = decode(payload)
        assert isinstance(message, Refused)
        assert message.error.kind == "peer-uid"
        assert server.refused["peer-uid"] == 1

    run_pair(body)


def test_same_user_passes_the_credentials_check() -> None:
    ours, theirs = socket.socketpair()
    assert check_peer_uid(ours) == os.getpid()
    ours.close()
    theirs.close()


# Channel details


def test_channel_ends_for_whoever_waits() -> None:
    async def body(server: PeerServer, calls: PeerPool, _: Counters) -> None:
        async with raw(server) as link:
            await until(lambda: len(server.links) == 1, "the link to be accepted")
            [served] = server.links
            link.writer.transport.abort()
            assert (await served.closed).kind == "node-unreachable"
            assert isinstance(served, Channel)
            await refused("node-unreachable", served.receive())
            await refused("node-unreachable", served.writable())
            served.send(Ping(1))  # nothing happens
            served.finish(cut("again"))
            assert not server.refused, "a caller that leaves is not refused"

    run_pair(body)


def test_handshake_that_never_ends_is_cut_after_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_module, "HANDSHAKE_LIMIT_S", 0.1)
    assert channel.HANDSHAKE_LIMIT_S == 2.0

    async def body(server: PeerServer, calls: PeerPool, _: Counters) -> None:
        async with raw(server) as link:
            message = await link.receive()
            assert isinstance(message, Refused)
            assert message.error.kind == "timeout"
            assert await link.receive() is None

    run_pair(body)


def test_address_is_a_value() -> None:
    assert address("b", "/x") == PeerAddress(B, "b", key("b").public_key, ("unix:/x",))
