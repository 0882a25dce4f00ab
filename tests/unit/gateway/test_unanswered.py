"""Whatever breaks off, each request of a stream is answered once: by its server, or in its place."""

from __future__ import annotations

import json
from typing import Any

import pytest

from toolbox_dtma.gateway.parsing import RpcId
from toolbox_dtma.gateway.sse import SseRewriter, message_event
from toolbox_dtma.gateway.unanswered import StreamUnanswered


def event(**members: Any) -> bytes:
    return message_event(json.dumps({"jsonrpc": "2.0", **members}).encode())


def seen(ids: list[RpcId], stream: bytes, *, hold: bool = False, step: int = 7) -> StreamUnanswered:
    """What is unanswered after a stream that came in steps of so many bytes."""
    owed, rewriter = StreamUnanswered(ids), SseRewriter(lambda id_: id_)
    for start in range(0, len(stream), step):
        for piece in rewriter.feed(stream[start : start + step], hold=hold):
            owed.event(piece)
    return owed


@pytest.mark.parametrize("hold", [False, True])
@pytest.mark.parametrize(
    ("ids", "stream", "left"),
    [
        ([1], b"", [1]),
        ([1], event(method="notifications/progress"), [1]),
        ([1], event(id=1, result={}), []),
        ([1], event(id=1, error={"code": 1, "message": "no"}), []),
        ([1], event(id=1, method="roots/list"), [1]),
        ([1], event(id="1", result={}), [1]),
        ([1], event(id=None, error={"code": 1, "message": "no"}), []),
        ([1, "b"], event(id=None, error={"code": 1, "message": "no"}), [1, "b"]),
        ([1, "b"], event(id="b", result={}), [1]),
        ([1, "b"], event(id="b", result={}) + b": a comment\n\n" + event(id=1, result={}), []),
        ([1], event(id=1, result={}).removesuffix(b"\n"), [1]),
    ],
)
def test_what_a_stream_answers_is_known_however_it_is_cut(
    ids: list[RpcId], stream: bytes, left: list[RpcId], hold: bool
) -> None:
    for step in (1, 7, len(stream) or 1):
        owed = seen(ids, stream, hold=hold, step=step)
        assert owed.is_over == (not left)
        assert owed.take_left() == left


def test_what_is_left_is_answered_with_errors_and_only_once() -> None:
    owed = seen([1, "b"], event(id=1, result={}))
    (told,) = owed.errors("It broke").split(b"\n\n")[:-1]
    error = {"code": -32000, "message": "It broke"}
    assert json.loads(told.removeprefix(b"event: message\ndata: ")) == {"jsonrpc": "2.0", "id": "b", "error": error}
    assert owed.errors("It broke") == b""


@pytest.mark.parametrize(
    ("sent", "hold", "within"),
    [
        (b"", False, False),
        (b"data: {}\n\n", False, False),
        (b"data: {}\n", False, True),
        (b"data", False, True),
        (b"data: {}\n\nda", False, True),
        # Nothing of an event that is held has left.
        (b"data: {}\n", True, False),
    ],
)
def test_nothing_is_said_in_the_middle_of_an_event(sent: bytes, hold: bool, within: bool) -> None:
    rewriter = SseRewriter(lambda id_: id_)
    rewriter.feed(sent, hold=hold)
    assert rewriter.within_event is within
