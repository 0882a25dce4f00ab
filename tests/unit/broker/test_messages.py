"""What the broker reads of a message."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolbox_dtma.broker.messages import MAX_BATCH, Heard, NotAMessage, read
from toolbox_dtma.gateway.parsing import Kind
from toolbox_dtma.gateway.skimming import run

VALUES = st.sampled_from(
    [None, True, 0, -7, 2**60, 1.5, 1e300, "", "a", "1", '"\\ \n', "\U0001f600", [], {}, [1, ["id"]], {"id": 3}]
)
PARAMS = VALUES | st.fixed_dictionaries(
    {}, optional={"progressToken": VALUES, "requestId": VALUES, "_meta": VALUES, "other": VALUES}
)
MESSAGES = st.fixed_dictionaries(
    {"jsonrpc": st.just("2.0")},
    optional={
        "id": VALUES,
        "method": st.sampled_from(["tools/call", "notifications/progress", "notifications/cancelled"]),
        "params": PARAMS | st.fixed_dictionaries({"_meta": st.fixed_dictionaries({"progressToken": VALUES})}),
        "result": VALUES,
        "error": VALUES,
    },
)


def heard(document: Any) -> Heard:
    """Read a document as it is usually written."""
    return run(read(json.dumps(document).encode()))


def plain_id(value: Any) -> Any:
    """What can name a request."""
    return value if isinstance(value, str | int | float) and not isinstance(value, bool) else None


def inside(value: Any, *names: str) -> Any:
    """A member of a member."""
    for name in names:
        value = cast("dict[str, Any]", value).get(name) if isinstance(value, dict) else None
    return value


def same(one: Any, other: Any) -> bool:
    """Equal, and of a kind."""
    return one == other and isinstance(one, str) == isinstance(other, str)


@given(MESSAGES)
def test_a_message_is_read_as_a_decoder_would(document: dict[str, Any]) -> None:
    (message,) = heard(document).messages
    params = document.get("params")
    if "method" not in document:
        assert message.kind is Kind.RESPONSE and same(message.id, plain_id(document.get("id")))
        assert message.failed == ("error" in document)
    elif "id" in document:
        assert message.kind is Kind.REQUEST and same(message.id, plain_id(document["id"]))
        assert same(message.token, plain_id(inside(params, "_meta", "progressToken")))
    else:
        progress, cancelled = (document["method"] == f"notifications/{name}" for name in ("progress", "cancelled"))
        assert message.kind is Kind.NOTIFICATION
        assert same(message.token, plain_id(inside(params, "progressToken")) if progress else None)
        assert same(message.cancels, plain_id(inside(params, "requestId")) if cancelled else None)


@given(st.lists(MESSAGES, min_size=1, max_size=5), st.sampled_from([None, 1]))
def test_each_message_of_a_batch_is_read_alone(documents: list[dict[str, Any]], indent: int | None) -> None:
    batch = run(read(json.dumps(documents, indent=indent).encode()))
    assert batch.batch
    assert [json.loads(message.raw) for message in batch.messages] == json.loads(json.dumps(documents))
    for message, document in zip(batch.messages, documents, strict=True):
        (alone,) = heard(document).messages
        assert (message.kind, message.id, message.token) == (alone.kind, alone.id, alone.token)


@pytest.mark.parametrize(
    "raw",
    [
        b"Listening on port 8080",
        b"{",
        b'{"a":1}x',
        b'{"a":1}{"b":2}',
        b"1",
        b'"text"',
        b"null",
        b"[]",
        b"[1]",
        b"[[{}]]",
        b'{"method":7,"id":1}',
        b'{"id":1,"result":NaN}',
        b'{"id":1,"result":"\xff"}',
        b'\xef\xbb\xbf{"id":1}',
        b"[" + b",".join([b"{}"] * (MAX_BATCH + 1)) + b"]",
        b"[" * 100_000,
    ],
)
def test_what_is_no_message_is_refused(raw: bytes) -> None:
    with pytest.raises(NotAMessage):
        run(read(raw))


def test_a_whole_number_is_the_same_id_however_it_is_written_and_text_is_not() -> None:
    ids = [run(read(b'{"id":%b,"result":{}}' % written)).messages[0].id for written in (b"1", b"1.0", b"1e0", b'"1"')]
    assert ids[0] == ids[1] == ids[2] != ids[3]
