"""Tools as a server sends them, out of any answer in any chunks."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolbox_dtma.gateway import shown_tools
from toolbox_dtma.gateway.definitions import OPAQUE_PREFIX, define, opaque
from toolbox_dtma.gateway.shown_tools import ShownTools

TOOLS: list[dict[str, Any]] = [{"name": "a", "description": "one", "title": "t"}, {"name": "b", "inputSchema": {}}]
DOCUMENT = json.dumps({"jsonrpc": "2.0", "id": 1, "result": {"tools": TOOLS}}).encode()
HASHES = [("a", define(json.dumps(TOOLS[0])).hash), ("b", define(json.dumps(TOOLS[1])).hash)]


def found(body: bytes, kind: str = "application/json", cuts: tuple[int, ...] = ()) -> list[tuple[str, str]]:
    shown = ShownTools()
    read = shown.reader(kind)
    start = 0
    for cut in (*sorted(cuts), len(body)):
        read(body[start:cut], False)
        start = max(start, cut)
    read(b"", True)
    return [(tool.name, tool.hash) for tool in shown.found]


def test_every_tool_is_hashed_from_its_own_text() -> None:
    assert found(DOCUMENT) == HASHES
    events = b": hello\nid: 7\nevent: message\ndata: " + DOCUMENT + b"\n\n"
    assert found(events, "text/event-stream; charset=utf-8") == HASHES


@given(st.lists(st.integers(0, 200), max_size=5).map(tuple))
def test_chunks_make_no_difference(cuts: tuple[int, ...]) -> None:
    head, tail = DOCUMENT.split(b" ", 1)
    events = b"data: " + head + b"\r\ndata: " + tail + b"\r\n\r\n"
    assert found(events, "text/event-stream", cuts) == HASHES
    assert found(DOCUMENT, cuts=cuts) == HASHES


def test_a_tool_counts_in_whatever_message_it_comes_and_once() -> None:
    other = {"jsonrpc": "2.0", "id": "not asked for", "result": {"tools": [TOOLS[0], {**TOOLS[0], "description": "x"}]}}
    events = b"data: " + DOCUMENT + b"\n\ndata: " + json.dumps([other]).encode() + b"\n\n"
    assert found(events, "text/event-stream") == [*HASHES, ("a", define('{"name":"a","description":"x"}').hash)]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"<html>",
        b"\xff\xfe",
        b'{"result":{"tools":"a"}}',
        b'{"method":"x","params":{"tools":[{"name":"a"}]}}',
        b'{"result":{"tools":[{"title":"a"},1,null,{"name":1}]}}',
        b'{"result":{"tools":[{"name":"\\ud800"}]}}',
        b'{"result":{"tools":[{"name":"a","name":"b"}]}}',
    ],
)
def test_what_is_no_list_of_named_tools_shows_none(body: bytes) -> None:
    assert found(body) == []
    assert found(b"data: " + body + b"\n\n", "text/event-stream") == []


def test_a_tool_without_canonical_form_is_known_by_its_text_and_the_reason() -> None:
    text = '{"name": "a", "inputSchema": {"maximum": 9223372036854775807}}'
    shown = ShownTools()
    shown.reader("application/json")(b'{"result":{"tools":[' + text.encode() + b"]}}", False)
    read = shown.reader("application/json")
    read(b'{"result":{"tools":[' + text.encode() + b"]}}", False)
    read(b"", True)
    (tool,) = shown.found
    assert (tool.name, tool.hash) == ("a", opaque(text)) and tool.hash.startswith(OPAQUE_PREFIX)
    assert tool.problem is not None and "9223372036854775807" in tool.problem


def test_an_endless_event_shows_nothing_more() -> None:
    first, endless = b"data: " + DOCUMENT + b"\n\n", b"data: " + b"x" * (5 << 20) + b"\n\n"
    more = b'data: {"result":{"tools":[{"name":"c"}]}}\n\n'
    cuts = (len(first), len(first + endless))
    assert found(first + endless + more, "text/event-stream", cuts) == HASHES


def test_more_than_can_be_hashed_in_one_conversation_is_not_approved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shown_tools, "MAX_CHARACTERS", len(json.dumps(TOOLS[0])))
    assert [hash_.startswith("sha256:") for _, hash_ in found(DOCUMENT)] == [True, False]
