"""substrate.wire.frames: any cut of the stream gives the same payloads, and the limit holds on the header."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from substrate.wire.errors import NetError
from substrate.wire.frames import HEADER_BYTES, FrameDecoder, encode_frame


@given(st.lists(st.binary(max_size=40)), st.lists(st.integers(1, 30), min_size=1))
def test_any_cut_of_the_stream_gives_the_payloads_back(payloads: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(map(encode_frame, payloads))
    decoder = FrameDecoder(limit_bytes=40)
    got: list[bytes] = []
    at = turn = 0
    while at < len(stream):
        step = cuts[turn % len(cuts)]
        got += decoder.feed(stream[at : at + step])
        at += step
        turn += 1
    assert got == payloads
    assert decoder.pending_bytes == 0


def test_an_unfinished_frame_is_visible() -> None:
    decoder = FrameDecoder()
    assert decoder.feed(encode_frame(b"whole") + encode_frame(b"cut")[:-1]) == [b"whole"]
    assert decoder.pending_bytes == HEADER_BYTES + 2
    assert decoder.feed(b"t") == [b"cut"]


def test_a_frame_over_the_limit_is_refused_on_its_header_and_for_good() -> None:
    decoder = FrameDecoder(limit_bytes=8)
    assert decoder.feed(encode_frame(b"x" * 8)) == [b"x" * 8]
    with pytest.raises(NetError) as first:
        decoder.feed(encode_frame(b"x" * 9)[:HEADER_BYTES])
    assert (first.value.kind, first.value.details) == ("too-large", {"size_bytes": 9, "limit_bytes": 8})
    assert decoder.pending_bytes == 0
    with pytest.raises(NetError):
        decoder.feed(encode_frame(b"fine"))


def test_an_over_long_payload_is_not_encoded() -> None:
    assert encode_frame(b"abc", limit_bytes=3) == b"\x03\0\0\0abc"
    with pytest.raises(NetError, match="over the limit of 3"):
        encode_frame(b"abcd", limit_bytes=3)
