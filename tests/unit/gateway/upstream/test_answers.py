"""Answers of servers, however their bytes are cut, and whatever they are."""

from __future__ import annotations

from dataclasses import dataclass, replace

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolbox_dtma.gateway.upstream.answers import MAX_INTERIM, MAX_SIZE_LINE, MAX_TRAILER_BYTES, AnswerReader
from toolbox_dtma.gateway.upstream.errors import Broken, Malformed, UpstreamError
from toolbox_dtma.gateway.upstream.heads import MAX_HEAD_BYTES


@dataclass(frozen=True)
class Outcome:
    """How a reader ended."""

    status: int | None
    body: bytes
    complete: bool
    surplus: bool
    error: type[UpstreamError] | None


def read(*pieces: bytes, closed: bool = False) -> Outcome:
    reader, body, error = AnswerReader(), b"", None
    try:
        for piece in pieces:
            body += reader.feed(piece)
        if closed:
            reader.end()
    except UpstreamError as raised:
        error = type(raised)
    status = reader.head.status if reader.head is not None else None
    return Outcome(status, body, reader.complete, reader.surplus, error)


def cut(raw: bytes, sizes: list[int]) -> list[bytes]:
    """`raw` in pieces of these sizes, the rest as one."""
    pieces: list[bytes] = []
    for size in sizes:
        pieces.append(raw[:size])
        raw = raw[size:]
    return [*pieces, raw]


COUNTED = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\n\r\nhello"
SIZES = st.lists(st.integers(1, 9), max_size=60)
TOKENS = st.sampled_from(
    [b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.0 200 OK\r\n", b"Content-Length: 5\r\n",
     b"Transfer-Encoding: chunked\r\n", b"\r\n", b"\n", b"\r", b"5\r\n", b"hello", b"0\r\n", b"0\r\n\r\n", b"a;x=y\r\n",
     b"0123456789", b"Trailer: 1\r\n", b" ", b"Connection: close\r\n", b"F", b"f\r\n"]
)  # fmt: skip
TAILS = st.lists(TOKENS, max_size=14).map(b"".join)
HEADS = st.sampled_from([CHUNKED, COUNTED[:-5], UNTIL_CLOSE[:-5], b"HTTP/1.1 100 Continue\r\n\r\n" + CHUNKED])
RAW = TAILS | st.binary(max_size=80) | st.tuples(HEADS, TAILS).map(b"".join)


@given(RAW, SIZES, st.booleans())
def test_how_bytes_are_cut_changes_nothing(raw: bytes, sizes: list[int], closed: bool) -> None:
    found, whole = read(*cut(raw, sizes), closed=closed), read(raw, closed=closed)
    if whole.error is not None:
        # Pieces before the one that is wrong have left already; what shares it with the error has not.
        assert found.body.startswith(whole.body)
        found = replace(found, body=whole.body)
    assert found == whole


@given(
    st.lists(st.binary(min_size=1, max_size=40), max_size=8),
    st.sampled_from([b"", b";a", b' ;a="b"']),
    st.sampled_from([b"", b"X: y\r\n", b"X: y\r\nZ:\r\n"]),
    SIZES,
)
def test_chunks_are_taken_out_of_their_coding(
    parts: list[bytes], extra: bytes, trailer: bytes, sizes: list[int]
) -> None:
    coded = b"".join(b"%x%b\r\n%b\r\n" % (len(part), extra, part) for part in parts)
    raw = CHUNKED + coded + b"0" + extra + b"\r\n" + trailer + b"\r\n"
    assert read(*cut(raw, sizes)) == Outcome(200, b"".join(parts), True, False, None)
    assert read(*cut(raw[:-1], sizes), closed=True).error is Broken
    assert read(*cut(raw + b"H", sizes)).surplus


@given(RAW, SIZES)
def test_what_passes_is_read_by_another_reader_in_the_same_way(raw: bytes, sizes: list[int]) -> None:
    ours = read(*cut(raw, sizes), closed=True)
    if ours.error is not None or ours.status is None:
        return
    theirs = h11.Connection(h11.CLIENT)
    theirs.send(h11.Request(method="POST", target="/", headers=[("Host", "a")]))
    theirs.send(h11.EndOfMessage())
    theirs.receive_data(raw)
    if not ours.surplus:
        theirs.receive_data(b"")
    body, status = b"", None
    while not isinstance(event := theirs.next_event(), h11.EndOfMessage):
        if isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            body += event.data
        else:
            assert isinstance(event, h11.InformationalResponse)
    assert (status, body) == (ours.status, ours.body)


@pytest.mark.parametrize("raw", [COUNTED, CHUNKED + b"5\r\nhello\r\n0\r\n\r\n"])
def test_every_beginning_of_an_answer_that_tells_its_end_is_broken_off(raw: bytes) -> None:
    assert read(raw) == Outcome(200, b"hello", True, False, None)
    for length in range(len(raw)):
        assert read(raw[:length], closed=True).error is Broken


def test_an_answer_without_a_length_ends_with_the_connection() -> None:
    assert not read(UNTIL_CLOSE).complete
    assert read(UNTIL_CLOSE, closed=True) == Outcome(200, b"hello", True, False, None)


def test_bytes_after_an_answer_are_not_part_of_it() -> None:
    assert read(COUNTED + b"!") == Outcome(200, b"hello", True, True, None)
    assert read(COUNTED, b"!") == Outcome(200, b"hello", True, True, None)
    assert read(b"HTTP/1.1 204 No Content\r\n\r\n", b"x").surplus


def test_interim_answers_are_skipped_up_to_a_limit() -> None:
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    assert read(interim * MAX_INTERIM + COUNTED) == read(COUNTED)
    assert read(interim * (MAX_INTERIM + 1)).error is Malformed


def test_switching_protocols_is_the_end_of_http() -> None:
    assert read(b"HTTP/1.1 101 Switching Protocols\r\n\r\nbinary") == Outcome(101, b"", True, True, None)


@pytest.mark.parametrize(
    "coded",
    [b"\r\n", b"x\r\n", b"-1\r\n", b"+1\r\n", b"0x1\r\n", b" 1\r\n", b"1 \r\n", b"1\n", b"1\r\r\n", b"1;\0\r\n",
     b"1;a\rb\r\n", b"1000000000000000\r\n", b"1\r\nab\r\n", b"1\r\na\n", b"1\r\na\r\r\n", b"1\r\na0\r\n",
     b"0\r\nX\r\n", b"0\r\n X: y\r\n", b"0\r\nX: y\n", b"0\r\n\n"],
)  # fmt: skip
def test_a_chunk_that_can_be_read_in_two_ways_is_malformed(coded: bytes) -> None:
    assert read(CHUNKED + coded).error is Malformed


def test_nothing_is_gathered_without_a_limit() -> None:
    assert read(b"HTTP/1.1 200 OK\r\nA: " + b"b" * MAX_HEAD_BYTES).error is Malformed
    assert read(*[b"b" * 100] * (MAX_HEAD_BYTES // 100 + 1)).error is Malformed
    assert read(CHUNKED + b"1;" + b"a" * MAX_SIZE_LINE).error is Malformed
    assert read(CHUNKED + b"0\r\n" + b"X: " + b"y" * MAX_TRAILER_BYTES).error is Malformed
    assert read(CHUNKED + b"0\r\n" + b"X: y\r\n" * (MAX_TRAILER_BYTES // 6 + 1)).error is Malformed
