"""Bytes of a process, in whatever pieces they come."""

from __future__ import annotations

import itertools
import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolbox_dtma.broker.framing import (
    LAST_LINE_CHARACTERS,
    TAIL_BYTES,
    Frames,
    Lines,
    LineTooLong,
    Stream,
    Tail,
    Unframed,
    as_line,
)


def frame(number: int, payload: bytes) -> bytes:
    """One frame of Docker's attach stream."""
    return struct.pack(">BxxxI", number, len(payload)) + payload


def cut(data: bytes, at: list[int]) -> list[bytes]:
    """The same bytes in pieces."""
    ends = sorted({min(each, len(data)) for each in at} | {0, len(data)})
    return [data[start:end] for start, end in itertools.pairwise(ends)]


CUTS = st.lists(st.integers(0, 200), max_size=20)
FRAMES = st.lists(st.tuples(st.sampled_from([0, 1, 2, 3]), st.binary(max_size=40)), max_size=8)


@given(FRAMES, CUTS)
def test_frames_hold_the_same_however_they_are_cut(frames: list[tuple[int, bytes]], at: list[int]) -> None:
    reader = Frames()
    found: dict[Stream, bytes] = {Stream.OUTPUT: b"", Stream.ERRORS: b""}
    for piece in cut(b"".join(frame(*each) for each in frames), at):
        for stream, payload in reader.feed(piece):
            found[stream] += payload
    assert found[Stream.OUTPUT] == b"".join(payload for number, payload in frames if number == 1)
    assert found[Stream.ERRORS] == b"".join(payload for number, payload in frames if number != 1)


@given(st.binary(min_size=4, max_size=8), CUTS)
def test_what_is_no_frame_is_refused_however_it_is_cut(head: bytes, at: list[int]) -> None:
    data = head.ljust(8, b"\0")
    valid = data[0] in (0, 1, 2, 3) and data[1:4] == b"\0\0\0"
    reader = Frames()
    try:
        for piece in cut(data, at):
            reader.feed(piece)
    except Unframed:
        assert not valid
    else:
        assert valid


@given(st.lists(st.binary(max_size=30).map(lambda line: line.replace(b"\n", b"")), max_size=10), CUTS)
def test_lines_are_the_same_however_they_are_cut_and_blank_ones_are_left_out(lines: list[bytes], at: list[int]) -> None:
    reader = Lines()
    found = [line for piece in cut(b"".join(line + b"\n" for line in lines), at) for line in reader.feed(piece)]
    assert found == [line for line in lines if line.strip()]
    assert reader.held == 0


@given(CUTS)
def test_a_line_may_be_as_long_as_the_limit_and_no_longer_with_or_without_its_end(at: list[int]) -> None:
    good = Lines(most=100)
    assert [line for piece in cut(b"x" * 100 + b"\n", at) for line in good.feed(piece)] == [b"x" * 100]
    for end in (b"", b"\n", b"\nnext\n"):
        bad = Lines(most=100)
        with pytest.raises(LineTooLong):
            for piece in cut(b"first\n" + b"x" * 101 + end, at):
                bad.feed(piece)


def test_what_has_no_end_yet_is_known() -> None:
    reader = Lines()
    assert reader.feed(b"whole\nbegun") == [b"whole"]
    assert reader.held == 5
    assert reader.feed(b" and ended\n") == [b"begun and ended"]
    assert reader.held == 0


@given(st.recursive(st.none() | st.integers() | st.text(max_size=9), lambda inner: st.lists(inner, max_size=4)))
def test_a_message_is_one_line_and_means_the_same(document: object) -> None:
    for text in (json.dumps(document, indent=2), json.dumps(document, separators=(",\r\n", ":\r"))):
        line = as_line(text.encode())
        assert line.count(b"\n") == 1 and line.endswith(b"\n") and b"\r" not in line
        assert json.loads(line) == json.loads(text)


def test_a_message_without_line_ends_is_written_as_it_is() -> None:
    message = '{"jsonrpc" : "2.0",\t"method":"é\u2028\\n","params":{"x":1.50}}'.encode()
    assert as_line(message) == message + b"\n"


@given(st.lists(st.binary(max_size=60), max_size=6))
def test_of_standard_error_what_is_shown_is_short_and_printable(pieces: list[bytes]) -> None:
    tail = Tail()
    for piece in pieces:
        tail.feed(piece)
    shown = tail.last_line()
    assert len(shown) <= LAST_LINE_CHARACTERS and (not shown or shown.isprintable())


def test_the_last_line_of_standard_error_is_the_last_with_anything_on_it() -> None:
    tail = Tail()
    assert tail.last_line() == ""
    tail.feed(b"first\nKeyError: 'HO")
    tail.feed(b"ME'\x1b[0m \xff\n \n\n")
    assert tail.last_line() == "KeyError: 'HOME'[0m \ufffd"
    tail.feed(b"x" * (TAIL_BYTES + 5))
    assert tail.last_line() == "x" * LAST_LINE_CHARACTERS
