"""How a call ended, by what the server sent."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolbox_dtma.gateway.outcomes import LOOK_BYTES, UNKNOWN_ID, Ended, EventsLook, Look, outcome_of
from toolbox_dtma.gateway.sse import HeldEvent
from toolbox_dtma.wire import CallOutcome

OK, TOOL_ERROR, RPC_ERROR = CallOutcome.OK, CallOutcome.TOOL_ERROR, CallOutcome.RPC_ERROR


def answer(result: Any, id: Any = 1) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": id, "result": result}


def error(id: Any = 1) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": id, "error": {"code": -32602, "message": "no"}}


def seen(raw: bytes, *, chunks: int = 1) -> list[Ended]:
    look = Look()
    size = max(1, len(raw) // chunks)
    for start in range(0, len(raw), size):
        look.feed(raw[start : start + size])
    return look.ended()


@pytest.mark.parametrize(
    ("message", "outcome"),
    [
        (answer({"content": []}), OK),
        (answer({"content": [], "isError": False}), OK),
        (answer({"content": [], "isError": True}), TOOL_ERROR),
        (answer({"resultType": "complete", "content": []}), OK),
        (answer({"resultType": "input_required", "inputRequests": {}}), CallOutcome.INPUT_REQUIRED),
        (answer({"resultType": "task", "taskId": "t"}), CallOutcome.TASK),
        (answer({"task": {"taskId": "t", "status": "working"}}), CallOutcome.TASK),
        (error(), RPC_ERROR),
        ({"jsonrpc": "2.0", "id": 1, "result": "text"}, None),
        ({"jsonrpc": "2.0", "id": 1, "method": "sampling/createMessage", "params": {}}, None),
        ({"jsonrpc": "2.0", "method": "notifications/progress"}, None),
        ([], None),
        (None, None),
    ],
)
def test_a_message_says_how_the_call_ended_or_nothing(message: object, outcome: CallOutcome | None) -> None:
    assert outcome_of(message) is outcome


@pytest.mark.parametrize("raw", [b"", b"<html>", b'{"jsonrpc"', b"[" * 100_000, b"\xff"])
def test_what_is_no_json_says_nothing(raw: bytes) -> None:
    assert seen(raw) == []


def test_every_answer_of_a_batch_is_seen() -> None:
    raw = json.dumps([answer({"isError": True}, 1), error("b"), answer({}, 3)]).encode()
    assert seen(raw, chunks=7) == [(1, TOOL_ERROR), ("b", RPC_ERROR), (3, OK)]


LARGE = "x" * (3 * LOOK_BYTES)


@pytest.mark.parametrize("chunks", [1, 5, 500])
@pytest.mark.parametrize(
    ("message", "outcome"),
    [
        (answer({"content": [{"type": "text", "text": LARGE}]}), OK),
        (answer({"content": [{"type": "text", "text": LARGE}], "isError": False}), OK),
        (answer({"content": [{"type": "text", "text": LARGE}], "isError": True}), TOOL_ERROR),
        (answer({"isError": True, "content": [{"type": "text", "text": LARGE}]}), TOOL_ERROR),
        (
            {"result": {"content": [LARGE], "isError": True, "_meta": {"a": 1}}, "jsonrpc": "2.0", "id": "x"},
            TOOL_ERROR,
        ),
        # Said by the tool's own data, in a string and in a deeper object, not by the result.
        (answer({"content": [{"type": "text", "text": LARGE + '"isError":true}}'}]}), OK),
        (answer({"content": [LARGE], "structuredContent": {"isError": True}}), OK),
        ({"jsonrpc": "2.0", "id": 1, "error": {"code": 1, "message": "m", "data": LARGE}}, RPC_ERROR),
    ],
)
def test_a_large_document_is_judged_by_its_beginning_and_its_end(
    message: dict[str, Any], outcome: CallOutcome, chunks: int
) -> None:
    ((_, found),) = seen(json.dumps(message).encode(), chunks=chunks)
    assert found is outcome


def test_a_large_document_whose_id_is_at_its_end_has_an_unknown_one() -> None:
    raw = json.dumps({"result": {"content": [LARGE]}, "jsonrpc": "2.0", "id": 7}).encode()
    assert seen(raw) == [(UNKNOWN_ID, OK)]


def test_of_a_large_batch_the_first_answers_are_seen() -> None:
    raw = json.dumps([answer({}, 1), error(2), answer({"text": LARGE}, 3)]).encode()
    assert seen(raw) == [(1, OK), (2, RPC_ERROR)]


STREAM = (
    b": hello\n\n"
    b'id: 1\ndata: {"jsonrpc":"2.0","method":"notifications/progress"}\n\n'
    b'event: message\ndata: {"jsonrpc":"2.0","id":1,\ndata: "result":{"isError":true}}\n\n'
    b'data: {"jsonrpc":"2.0","id":2,"result":{}}\n\n'
)


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_a_stream_says_the_same_however_it_is_cut(cuts: list[int]) -> None:
    look, found = EventsLook(), list[Ended]()
    places = [0, *sorted(cuts), len(STREAM)]
    for start, end in itertools.pairwise(places):
        for piece in STREAM[start:end].splitlines(keepends=True):
            found += look.feed(piece)
    assert found == [(1, TOOL_ERROR), (2, OK)]


def test_a_stream_with_an_event_id_can_be_resumed() -> None:
    look = EventsLook()
    for piece in (b"id\n", b"data: x\n", b"\n"):
        look.feed(piece)
    assert not look.resumable
    look.feed(b"id: mt1.x\n")
    assert look.resumable


def test_a_held_event_counts_like_its_pieces_and_an_empty_id_resumes_nothing() -> None:
    look = EventsLook()
    data = json.dumps(answer({})).encode()
    assert look.held(HeldEvent((b"id", b"data: " + data), data)) == [(1, OK)]
    assert not look.resumable
    assert look.held(HeldEvent((b"id: mt1.x",), None)) == []
    assert look.resumable


def test_an_event_that_never_ends_says_nothing() -> None:
    assert EventsLook().feed(b'data: {"jsonrpc":"2.0","id":1,"result":{}}\n') == []
