"""Event streams: ids are replaced, everything else stays, however the bytes are cut."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolbox_dtma.gateway.sse import (
    DENSE_LINES,
    MAX_ID_LINE,
    PORTION_BYTES,
    EventTooLarge,
    HeldEvent,
    SseRewriter,
    only_event,
    portions,
)


def cut(raw: bytes, sizes: list[int]) -> list[bytes]:
    """`raw` in chunks of these sizes, the rest as one."""
    chunks: list[bytes] = []
    for size in sizes:
        chunks.append(raw[:size])
        raw = raw[size:]
    return [*chunks, raw]


def wrapped(value: bytes) -> bytes:
    return b"<" + value + b">"


def rewritten(chunks: list[bytes], *, hold: bool) -> bytes:
    rewriter = SseRewriter(wrapped)
    pieces = [piece for chunk in chunks for piece in rewriter.feed(chunk, hold=hold)]
    return b"".join(piece.render() if isinstance(piece, HeldEvent) else piece for piece in pieces)


def reference(raw: bytes) -> bytes:
    """The whole stream at once, by the words of the specification; but that every mark at its beginning is gone."""
    lines: list[bytes] = []
    for line in re.split(rb"\r\n|\r|\n", re.sub(rb"\A(?:\xef\xbb\xbf)+", b"", raw)):
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field != b"id":
            lines.append(line)
        elif b"\0" not in value:
            lines.append(b"id: " + wrapped(value) if value else b"id")
    return b"\n".join(lines)


OTHER_BREAKS = re.compile("|".join("\v\f\x1c\x1d\x1e\x85\u2028\u2029").encode())


def keeps(line: bytes) -> bool:
    """Whether a line is left when it was held: not one in which some clients would see two."""
    field = line.partition(b":")[0]
    return bool(line) and (field in (b"data", b"id") or not OTHER_BREAKS.search(line))


ALPHABET = st.sampled_from(
    [b"id", b"id:", b"i", b"d", b":", b" ", b"\n", b"\r", b"\r\n", b"\n\n", b"data:", b"data: x", b"event: e", b": c",
     b"retry: 1", b"ident: 1", b"\xef\xbb\xbf", b"\xc3\xa9", b"\0"]
)  # fmt: skip
STREAMS = st.lists(ALPHABET, max_size=40).map(b"".join) | st.binary(max_size=60)
SIZES = st.lists(st.integers(0, 7), max_size=40)


@given(STREAMS, SIZES)
def test_passing_equals_the_reference_for_any_split(raw: bytes, sizes: list[int]) -> None:
    # The last line end decides whether the last line is complete; an unfinished `id` prefix is never sent.
    whole = reference(raw + b"\n\n")
    assert rewritten([*cut(raw, sizes), b"\n\n"], hold=False) == rewritten([raw + b"\n\n"], hold=False)
    out = rewritten([*cut(raw, sizes), b"\n\n"], hold=False)
    assert [line for line in out.split(b"\n") if line] == [line for line in whole.split(b"\n") if line]


@given(STREAMS, SIZES)
def test_holding_equals_passing_once_events_are_complete(raw: bytes, sizes: list[int]) -> None:
    held = rewritten([*cut(raw, sizes), b"\n\n"], hold=True)
    passed = rewritten([raw + b"\n\n"], hold=False)
    assert [line for line in held.split(b"\n") if line] == [line for line in passed.split(b"\n") if keeps(line)]


@given(STREAMS, SIZES, st.lists(st.booleans(), min_size=41, max_size=41))
def test_no_id_of_the_servers_leaves_when_holding_begins_or_ends_midway(
    raw: bytes, sizes: list[int], holds: list[bool]
) -> None:
    rewriter = SseRewriter(wrapped)
    out = b""
    for chunk, hold in zip([*cut(raw, sizes)[:40], b"\n\n"], holds, strict=False):
        for piece in rewriter.feed(chunk, hold=hold):
            out += piece.render() if isinstance(piece, HeldEvent) else piece
    ids = [line for line in out.split(b"\n") if line.partition(b":")[0] == b"id"]
    assert [line for line in ids if line != b"id" and not re.fullmatch(rb"id: <.+>", line, re.DOTALL)] == []


@pytest.mark.parametrize("hold", [False, True])
def test_ids_are_replaced_and_the_rest_stays(hold: bool) -> None:
    raw = b": hi\r\nid: 7\revent: message\ndata: {}\nid\nretry: 5\nidentity: 1\n\n"
    expected = b": hi\nid: <7>\nevent: message\ndata: {}\nid\nretry: 5\nidentity: 1\n\n"
    assert rewritten([raw], hold=hold) == expected


@pytest.mark.parametrize("hold", [False, True])
def test_an_id_too_long_to_be_carried_back_takes_the_place_to_resume_from_away(hold: bool) -> None:
    whole = b"id: " + b"x" * (MAX_ID_LINE - 4)
    assert rewritten([whole, b"\ndata: 1\n\n"], hold=hold).startswith(b"id: <xxx")
    for chunks in ([whole + b"x\ndata: 1\n\n"], [whole[:100], whole[100:], b"x" * 10_000, b"\ndata: 1\n\n"]):
        assert rewritten(chunks, hold=hold) == b"id\ndata: 1\n\n"


@pytest.mark.parametrize("hold", [False, True])
def test_an_id_that_the_wrapper_refuses_takes_the_place_to_resume_from_away(hold: bool) -> None:
    pieces = SseRewriter(lambda _: b"").feed(b"id: 7\ndata: 1\n\n", hold=hold)
    out = b"".join(piece.render() if isinstance(piece, HeldEvent) else piece for piece in pieces)
    assert out == b"id\ndata: 1\n\n"


@pytest.mark.parametrize("separator", ["\v", "\f", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"])
def test_no_second_line_is_hidden_in_a_held_one(separator: str) -> None:
    for field in (": c", "event: e", "retry: 1", "unknown"):
        raw = f"{field}{separator}data: 2\ndata: 1\n\n".encode()
        assert rewritten([raw], hold=True) == b"data: 1\n\n"
        assert rewritten([raw], hold=False) == raw


def test_bytes_of_a_long_line_pass_before_it_ends() -> None:
    rewriter = SseRewriter(wrapped)
    assert rewriter.feed(b"data: " + b"x" * 100, hold=False) == [b"data: " + b"x" * 100]
    assert rewriter.feed(b"y", hold=False) == [b"y"]


def test_data_lines_are_joined() -> None:
    (event,) = SseRewriter(wrapped).feed(b'data: {\ndata:"a"\ndata\ndata:  }\n\n', hold=True)
    assert isinstance(event, HeldEvent)
    assert event.data == b'{\n"a"\n\n }'
    assert event.render(b"{}") == b"data: {}\n\n"


def test_an_event_without_data_has_none() -> None:
    (event,) = SseRewriter(wrapped).feed(b": ping\n\n", hold=True)
    assert isinstance(event, HeldEvent)
    assert event.data is None and event.render() == b": ping\n\n"


def test_a_held_event_may_not_grow_without_end() -> None:
    rewriter = SseRewriter(wrapped, max_event_bytes=100)
    rewriter.feed(b"data: " + b"x" * 90 + b"\n\n", hold=True)
    rewriter.feed(b"data: " + b"x" * 90, hold=True)
    with pytest.raises(EventTooLarge):
        rewriter.feed(b"xxxxx", hold=True)


def test_an_unfinished_held_event_is_known() -> None:
    rewriter = SseRewriter(wrapped)
    assert rewriter.feed(b"data: {}\n\ndata: {", hold=True)
    assert rewriter.unterminated
    rewriter.feed(b"}\n\n", hold=True)
    assert not rewriter.unterminated


def test_holding_begins_with_the_next_event() -> None:
    rewriter = SseRewriter(wrapped)
    assert rewriter.feed(b"data: 1\n", hold=False) == [b"data: 1\n"]
    first, second = rewriter.feed(b"\ndata: 2\n\n", hold=True)
    assert first == b"\n"
    assert isinstance(second, HeldEvent) and second.data == b"2"


def test_many_short_lines_count_for_the_memory_they_take() -> None:
    rewriter = SseRewriter(wrapped, 1024 * 1024)
    with pytest.raises(EventTooLarge):
        rewriter.feed(b"x\n" * 100_000, hold=True)


@given(st.lists(st.sampled_from([b"\n", b"\r", b"data: x\n", b"x" * 700]), max_size=2000).map(b"".join))
def test_only_a_chunk_of_many_lines_is_read_in_small_portions(chunk: bytes) -> None:
    parts = list(portions(chunk))
    assert b"".join(parts) == chunk
    dense = chunk.count(b"\n") + chunk.count(b"\r") > DENSE_LINES
    assert all(len(part) <= PORTION_BYTES for part in parts) if dense else parts == [chunk]


@given(st.integers(0, 5), st.lists(st.integers(0, 4), max_size=8), st.booleans())
def test_what_leaves_never_begins_with_a_byte_order_mark(marks: int, sizes: list[int], hold: bool) -> None:
    """A client takes one away, and would read a field where policy saw a line without meaning."""
    raw = b"\xef\xbb\xbf" * marks + b"data: 1\n\n"
    assert rewritten(cut(raw, sizes), hold=hold) == b"data: 1\n\n"


@given(STREAMS)
def test_a_stream_told_to_be_one_plain_event_is_what_reading_it_by_lines_gives(raw: bytes) -> None:
    stream = raw + b"\n\n"
    event = only_event(stream)
    if event is not None:
        assert rewritten([stream], hold=False) == stream == event.render()
        (held,) = SseRewriter(wrapped).feed(stream, hold=True)
        assert isinstance(held, HeldEvent) and held.data == event.data


@pytest.mark.parametrize(
    "stream",
    [b"data: 1", b"data: 1\n", b"\n\n", b"data: 1\n\ndata: 2\n\n", b"data: 1\n\n\n", b"id: 1\ndata: 1\n\n",
     b"data: 1\nid\n\n", b"data: 1\r\n\r\n", b"\xef\xbb\xbfdata: 1\n\n", b"\ndata: 1\n\n"],
)  # fmt: skip
def test_anything_but_one_plain_event_is_read_by_lines(stream: bytes) -> None:
    assert only_event(stream) is None


def test_one_plain_event_is_told_with_its_data() -> None:
    stream = b"event: message\ndata: {\ndata:}\ndata\n: said\n\n"
    assert only_event(stream) == HeldEvent((b"event: message", b"data: {", b"data:}", b"data", b": said"), b"{\n}\n")
