"""Every request that came over HTTP+SSE is answered on the stream, once, and by its own id."""

from __future__ import annotations

import json
from typing import Any

import pytest

from toolbox_dtma.gateway.http_sse.answers import Awaited, endpoint_event, negotiated
from toolbox_dtma.gateway.refusal import errors
from toolbox_dtma.gateway.sse import message_event


def raw(**members: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", **members}).encode()


RESULT = raw(id=1, result={"content": []})
FAILED = {"code": -32000, "message": "no", "data": {"retryAfterMs": 1000}}


def passed(awaited: Awaited, status: int, body: bytes) -> list[Any]:
    return [json.loads(document) for document in awaited.document(status, body)]


def test_events_are_framed_as_the_transport_has_them() -> None:
    assert endpoint_event("/m?x=1") == b"event: endpoint\ndata: /m?x=1\n\n"
    assert message_event(b'{\r\n"a":\n1}') == b'event: message\ndata: {  "a": 1}\n\n'


def test_a_json_answer_is_passed_on_as_it_is() -> None:
    awaited = Awaited([1])
    assert awaited.document(200, RESULT) == [RESULT]
    assert awaited.is_over


@pytest.mark.parametrize("status", [200, 400])
def test_an_error_without_an_id_gets_that_of_the_request(status: int) -> None:
    awaited = Awaited(["a"])
    (error,) = passed(awaited, status, raw(id=None, error=FAILED))
    assert error == {"jsonrpc": "2.0", "id": "a", "error": FAILED}
    assert awaited.is_over


def test_an_http_error_with_a_json_rpc_error_answers_each_request_of_a_batch() -> None:
    awaited = Awaited([1, "b"])
    assert [(error["id"], error["error"]) for error in passed(awaited, 503, raw(id=None, error=FAILED))] == [
        (1, FAILED),
        ("b", FAILED),
    ]
    assert awaited.is_over


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b'{"error":"not found"}',
        raw(id=1, error={"code": "x", "message": "y"}),
        raw(id=1, error={"code": True, "message": "y"}),
        raw(id=1, result={}),
        b"[]",
    ],
)
def test_an_http_error_that_is_no_json_rpc_error_says_nothing(body: bytes) -> None:
    awaited = Awaited([1])
    assert awaited.document(500, body) == []
    assert awaited.take_left() == [1] and awaited.is_over


def test_a_json_answer_to_another_request_is_not_passed_on() -> None:
    """It was not filtered: only answers to those who ask for lists are."""
    awaited = Awaited([1])
    assert awaited.document(200, raw(id=2, result={"tools": [{"name": "hidden"}]})) == []
    assert awaited.take_left() == [1]


@pytest.mark.parametrize(
    ("asked", "answered", "same"), [(1, 1.0, True), (1, "1", False), ("1", 1, False), (0, "", False)]
)
def test_ids_are_compared_as_json_has_them(asked: Any, answered: Any, same: bool) -> None:
    awaited = Awaited([asked])
    awaited.event(raw(id=answered, result={}))
    assert awaited.is_over is same


def test_what_a_server_says_besides_answers_nothing() -> None:
    awaited = Awaited([1])
    for event in (raw(method="notifications/progress", params={}), raw(id=1, method="ping"), raw(id=7, result={})):
        assert awaited.event(event) == event
        assert not awaited.is_over
    assert awaited.event(RESULT) == RESULT and awaited.is_over


def test_a_batch_is_over_once_each_of_its_requests_is_answered() -> None:
    awaited = Awaited([1, 2])
    awaited.event(RESULT)
    assert not awaited.is_over
    assert awaited.take_left() == [2]


def test_a_whole_batch_may_come_in_one_document() -> None:
    awaited = Awaited([1, 2])
    body = b"[" + RESULT + b"," + raw(id=2, result={}) + b"]"
    assert awaited.document(200, body) == [body] and awaited.is_over


@pytest.mark.parametrize("first", [True, False], ids=["id before", "id behind"])
def test_a_large_answer_counts_wherever_its_id_stands(first: bool) -> None:
    text = b'"result":{"content":[{"type":"text","text":"' + b"x" * 100_000 + b'"}]}'
    body = b'{"id":1,' + text + b"}" if first else b"{" + text + b',"id":1}'
    awaited = Awaited([1])
    assert awaited.document(200, body) == [body] and awaited.is_over
    awaited = Awaited([1])
    assert awaited.event(body) == body and awaited.is_over


def test_a_large_answer_that_begins_with_another_id_is_not_passed_on() -> None:
    awaited = Awaited([1])
    body = b'{"id":2,"result":{"tools":[],"text":"' + b"x" * 100_000 + b'"}}'
    assert awaited.document(200, body) == [] and not awaited.is_over


def test_errors_of_the_gateway_s_own_name_their_requests() -> None:
    assert [json.loads(error) for error in errors([1, "b"], "why", {"k": 1})] == [
        {"jsonrpc": "2.0", "id": id, "error": {"code": -32000, "message": "why", "data": {"k": 1}}} for id in (1, "b")
    ]


@pytest.mark.parametrize(
    ("answer", "version"),
    [
        (raw(id=1, result={"protocolVersion": "2024-11-05"}), "2024-11-05"),
        (raw(id=1, result={"protocolVersion": "2025-11-25"}), "2025-11-25"),
        (raw(id=1, result={"protocolVersion": "2024-10-07"}), None),
        (raw(id=1, result={"protocolVersion": 1}), None),
        (raw(id=1, error=FAILED), None),
        (b"[]", None),
        (b"", None),
    ],
)
def test_the_revision_is_the_one_the_server_settled_on(answer: bytes, version: str | None) -> None:
    assert negotiated(answer) == version
