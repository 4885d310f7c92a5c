"""Who gets a link: the mutual proof of keys, against impostors, replays and reflections."""

from __future__ import annotations

import asyncio
import os

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from substrate.identity.keys import Keypair
from substrate.identity.verify import verify_strict
from substrate.mesh.handshake import Authorize, ClientHandshake, PeerInfo, ServerHandshake
from substrate.mesh.peer import PeerServer
from substrate.mesh.protocol import Hello, Message, Proof, Ready, Refused, Welcome, decode, encode, transcript
from substrate.wire.errors import NetError
from substrate.wire.frames import FrameDecoder
from tests.mesh.helpers import CLUSTER, add_handlers, address, authorize, key, pool, socket_dir

OTHER_CLUSTER = bytes(16)
B = key("b").node_id


def client(name: str = "a", cluster_id: bytes = CLUSTER, expected: str = "b") -> ClientHandshake:
    return ClientHandshake(key(name), cluster_id, key(expected).public_key)


def server(name: str = "b", admits: Authorize = authorize) -> ServerHandshake:
    return ServerHandshake(key(name), CLUSTER, admits)


def refuses(kind: str, call: object, *args: object) -> NetError:
    assert callable(call)
    with pytest.raises(NetError) as caught:
        call(*args)
    assert caught.value.kind == kind, caught.value
    return caught.value


# The steps, without sockets


def test_both_sides_learn_whom_they_talk_to() -> None:
    ours, theirs = client(), server()
    peer = theirs.finish(ours.prove(theirs.welcome(ours.hello)))
    assert peer == PeerInfo(key("a").node_id, "a", key("a").public_key)


def test_key_that_is_not_admitted_is_refused_before_anything_is_signed() -> None:
    refuses("not-admitted", server().welcome, client("mallory").hello)


def test_impostor_with_an_admitted_key_it_does_not_own() -> None:
    theirs = server()
    hello = msgspec.structs.replace(client("mallory").hello, public_key=key("a").public_key)
    welcome = theirs.welcome(hello)
    forged = key("mallory").sign(transcript("client", hello, welcome.public_key, welcome.nonce))
    refuses("not-admitted", theirs.finish, Proof(forged))
    refuses("not-admitted", theirs.finish, Proof(b""))


def test_server_that_is_another_admitted_node_is_not_the_one_meant() -> None:
    ours = client()
    refuses("not-admitted", ours.prove, server("c").welcome(ours.hello))


def test_server_with_the_right_key_but_no_right_to_it() -> None:
    ours = client()
    welcome = server("c").welcome(ours.hello)
    refuses("not-admitted", ours.prove, msgspec.structs.replace(welcome, public_key=key("b").public_key))


def test_replayed_client_is_refused() -> None:
    ours, first = client(), server()
    hello = ours.hello
    proof = ours.prove(first.welcome(hello))
    assert first.finish(proof).name == "a"
    second = server()
    second.welcome(hello)
    refuses("not-admitted", second.finish, proof)


def test_replayed_server_is_refused() -> None:
    first, theirs = client(), server()
    welcome = theirs.welcome(first.hello)
    first.prove(welcome)
    refuses("not-admitted", client().prove, welcome)


def test_own_greeting_and_own_signature_sent_back_are_refused() -> None:
    ours = client()
    hello = ours.hello
    mirrored = Welcome(hello.version, hello.cluster_id, hello.public_key, hello.nonce, bytes(64))
    refuses("not-admitted", ours.prove, mirrored)
    refuses("not-admitted", server().welcome, client("b").hello)
    # The server's own signature over the same handshake is no proof of the client: the role is signed too.
    theirs = server()
    welcome = theirs.welcome(hello)
    refuses("not-admitted", theirs.finish, Proof(welcome.signature))


def test_nodes_of_other_clusters_are_told_so() -> None:
    error = refuses("cluster-changed", server().welcome, client(cluster_id=OTHER_CLUSTER).hello)
    assert error.exit_code == 5
    ours = client(cluster_id=OTHER_CLUSTER)
    welcome = server().welcome(msgspec.structs.replace(ours.hello, cluster_id=CLUSTER))
    refuses("cluster-changed", ours.prove, welcome)


@pytest.mark.parametrize("field", ["cluster_id", "public_key", "nonce"])
def test_fields_of_wrong_size_are_refused(field: str) -> None:
    hello = client().hello
    for value in (getattr(hello, field)[:-1], getattr(hello, field) + b"\0", b""):
        refuses("not-admitted", server().welcome, msgspec.structs.replace(hello, **{field: value}))


def test_other_versions_are_refused() -> None:
    hello = msgspec.structs.replace(client().hello, version=2)
    assert "version 2" in refuses("not-admitted", server().welcome, hello).message


def test_node_removed_during_the_handshake_is_refused() -> None:
    answers = iter([PeerInfo(1, "a", key("a").public_key), None])
    ours, theirs = client(), server(admits=lambda _: next(answers))
    proof = ours.prove(theirs.welcome(ours.hello))
    refuses("not-admitted", theirs.finish, proof)


def test_signed_bytes_are_those_of_the_protocol() -> None:
    hello = Hello(1, CLUSTER, b"c" * 32, b"n" * 32)
    expected = b"net-node:peer-v1" + b"client" + CLUSTER + b"n" * 32 + b"m" * 32 + b"c" * 32 + b"s" * 32
    assert transcript("client", hello, b"s" * 32, b"m" * 32) == expected
    assert len(transcript("server", hello, b"s" * 32, b"m" * 32)) == len(expected), "fields have one place each"


@given(st.integers(0, 63), st.integers(1, 255))
def test_any_changed_byte_of_a_signature_is_refused(position: int, change: int) -> None:
    ours, theirs = client(), server()
    proof = ours.prove(theirs.welcome(ours.hello))
    broken = bytearray(proof.signature)
    broken[position] ^= change
    refuses("not-admitted", theirs.finish, Proof(bytes(broken)))


def test_small_order_key_proves_nothing() -> None:
    weak = bytes(32)
    assert not verify_strict(weak, b"anything", bytes(64))
    theirs = server(admits=lambda public_key: PeerInfo(1, "weak", public_key))
    theirs.welcome(msgspec.structs.replace(client().hello, public_key=weak))
    refuses("not-admitted", theirs.finish, Proof(bytes(64)))


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_a_message_or_a_clear_error(payload: bytes) -> None:
    try:
        message = decode(payload)
    except NetError as error:
        assert error.kind == "invalid-argument"
    else:
        assert decode(encode(message)[4:]) == message


# The same on real sockets


async def talk(path: str, *messages: Message) -> list[Message]:
    """Send, then read until the end of the connection or until the server waits for more."""
    reader, writer = await asyncio.open_unix_connection(path)
    decoder, answers = FrameDecoder(), list[Message]()
    writer.write(b"".join(encode(message) for message in messages))
    async with asyncio.timeout(10):
        while data := await reader.read(65536):
            answers += [decode(payload) for payload in decoder.feed(data)]
    writer.close()
    return answers


def test_refusals_reach_the_caller_as_errors() -> None:
    async def main() -> None:
        with socket_dir() as directory:
            path = f"{directory}/b.sock"
            async with PeerServer(path, key("b"), CLUSTER, authorize) as peer_server:
                add_handlers(peer_server)
                at = address("b", path)
                cases = [
                    ("not-admitted", pool("mallory", at)),
                    ("cluster-changed", pool("a", at, cluster_id=OTHER_CLUSTER)),
                    ("not-admitted", pool("a", address("b", path, public_key=key("c").public_key))),
                    ("not-admitted", pool("b", at)),
                ]
                for kind, calls in cases:
                    async with calls:
                        with pytest.raises(NetError) as caught:
                            await calls.request(B, "echo", b"")
                        assert caught.value.kind == kind
                async with pool("a", at) as calls:
                    assert await calls.request(B, "echo", b"fine") == b"fine"
                assert peer_server.refused == {"not-admitted": 2, "cluster-changed": 1}

    asyncio.run(main())


def test_recorded_handshake_played_again_is_refused() -> None:
    async def main() -> None:
        with socket_dir() as directory:
            front, back = f"{directory}/front.sock", f"{directory}/b.sock"
            recorded = bytearray()

            async def record(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                """A relay that keeps what the caller sends."""
                back_reader, back_writer = await asyncio.open_unix_connection(back)

                async def forward(source: asyncio.StreamReader, sink: asyncio.StreamWriter, keep: bool) -> None:
                    while data := await source.read(65536):
                        if keep:
                            recorded.extend(data)
                        sink.write(data)
                    sink.close()

                await asyncio.gather(forward(reader, back_writer, True), forward(back_reader, writer, False))

            async with PeerServer(back, key("b"), CLUSTER, authorize) as peer_server:
                add_handlers(peer_server)
                relay = await asyncio.start_unix_server(record, front)
                async with pool("a", address("b", front)) as calls:
                    assert await calls.request(B, "echo", b"secret") == b"secret"
                relay.close()
                said = [decode(payload) for payload in FrameDecoder().feed(bytes(recorded))]
                assert [type(message).__name__ for message in said] == ["Hello", "Proof", "Request"]
                answers = await talk(back, *said)
                assert isinstance(answers[0], Welcome)
                assert isinstance(answers[1], Refused)
                assert answers[1].error.kind == "not-admitted"
                assert len(answers) == 2

    asyncio.run(main())


@pytest.mark.parametrize(
    "messages",
    [
        [Ready()],
        [Proof(bytes(64))],
        [Hello(1, CLUSTER, key("a").public_key, os.urandom(32))] * 2,
        [Hello(1, CLUSTER, key("a").public_key, os.urandom(32))] + [Proof(bytes(64))] * 20,
    ],
    ids=["not a greeting", "proof first", "greeting twice", "too early"],
)
def test_messages_out_of_turn_end_the_handshake(messages: list[Message]) -> None:
    async def main() -> None:
        with socket_dir() as directory:
            async with PeerServer(f"{directory}/b.sock", key("b"), CLUSTER, authorize) as peer_server:
                answers = await talk(peer_server.path, *messages)
                assert not any(isinstance(answer, Ready) for answer in answers)
                assert not peer_server.links

    asyncio.run(main())


def test_fault_in_authorize_closes_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    def broken(public_key: bytes) -> PeerInfo | None:
        raise ZeroDivisionError("a fault in authorize")

    async def main() -> None:
        with socket_dir() as directory:
            async with PeerServer(f"{directory}/b.sock", key("b"), CLUSTER, broken) as peer_server:
                [answer] = await talk(peer_server.path, client().hello)
                assert isinstance(answer, Refused)
                assert answer.error.kind == "internal"

    asyncio.run(main())
    assert "a fault in authorize" in caplog.text


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (encode(Ready()), "not-admitted"),
        (b"\x01\x00\x00\x00\xc1", "invalid-argument"),
        (b"", "node-unreachable"),
    ],
    ids=["out of turn", "no message", "closes at once"],
)
def test_false_server_gets_no_call(answer: bytes, kind: str) -> None:
    async def main() -> None:
        heard = bytearray()

        async def pretend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            heard.extend(await reader.read(65536))
            writer.write(answer)
            writer.close()

        with socket_dir() as directory:
            path = f"{directory}/b.sock"
            false_server = await asyncio.start_unix_server(pretend, path)
            async with pool("a", address("b", path)) as calls:
                with pytest.raises(NetError) as caught:
                    await calls.request(B, "echo", b"secret")
                assert caught.value.kind == kind
            assert b"secret" not in heard
            false_server.close()

    asyncio.run(main())


def test_unproved_server_cannot_make_a_node_report_anything_it_likes() -> None:
    async def main() -> None:
        from substrate.mesh.protocol import ErrorBody

        async def pretend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(65536)
            writer.write(encode(Refused(ErrorBody("ledger-tampered", "panic"))))
            writer.close()

        with socket_dir() as directory:
            path = f"{directory}/b.sock"
            false_server = await asyncio.start_unix_server(pretend, path)
            async with pool("a", address("b", path)) as calls:
                with pytest.raises(NetError) as caught:
                    await calls.request(B, "echo", b"")
                assert caught.value.kind == "node-unreachable"
            false_server.close()

    asyncio.run(main())


def test_keypair_fits_the_signer_protocol() -> None:
    assert verify_strict(key("a").public_key, b"x", Keypair(key("a").seed()).sign(b"x"))
