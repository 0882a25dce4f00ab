"""Lists are recognised by shape; nothing else is touched."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolbox_dtma.gateway.filtering import Listing, Undecidable, listings
from toolbox_dtma.gateway.filtering import filter_lists as filter_in_steps
from toolbox_dtma.gateway.skimming import run
from toolbox_dtma.gateway.view import View
from toolbox_dtma.wire import Expose, NameFilter

VIEW = View.of((Expose(tools=NameFilter(allow=("get_*",))),), None)
ONLY_GET = listings(VIEW)


def filter_lists(raw: bytes, hidden: tuple[Listing, ...]) -> bytes:
    return run(filter_in_steps(raw, hidden))


def shown(document: Any) -> Any:
    return json.loads(filter_lists(json.dumps(document).encode(), ONLY_GET))


def answer(*names: str, **more: Any) -> dict[str, Any]:
    tools: list[dict[str, Any]] = [{"name": name, "inputSchema": {}} for name in names]
    return {"jsonrpc": "2.0", "id": 1, "result": {"tools": tools, **more}}


def names(message: dict[str, Any]) -> list[str]:
    return [tool["name"] for tool in message["result"]["tools"]]


def test_hidden_tools_are_cut_out() -> None:
    assert names(shown(answer("get_a", "drop", "get_b"))) == ["get_a", "get_b"]
    assert names(shown(answer("drop"))) == []
    assert names(shown(answer())) == []


def test_cursors_and_unknown_members_stay() -> None:
    result = shown(answer("drop", nextCursor="c", _meta={"a": [1.0]}))["result"]
    assert result == {"tools": [], "nextCursor": "c", "_meta": {"a": [1.0]}}


def test_what_remains_is_the_server_s_own_text() -> None:
    raw = b'{"id": 1.0, "result":{"tools":[ {"name":"get_a", "x": 1e400, "y": 12345678901234567890} ,{"name":"b"}]}}'
    assert filter_lists(raw, ONLY_GET) == (
        b'{"id": 1.0, "result":{"tools":[{"name":"get_a", "x": 1e400, "y": 12345678901234567890}]}}'
    )


def test_every_message_of_a_batch_is_looked_at_whatever_its_id() -> None:
    batch = shown([answer("drop", "get_a"), {"id": 2, "result": {}}, {**answer("drop"), "id": None}])
    assert names(batch[0]) == ["get_a"] and batch[1] == {"id": 2, "result": {}} and names(batch[2]) == []


@pytest.mark.parametrize(
    "document",
    [
        {"result": {"tools": "drop"}},
        {"result": {"tools": {"name": "drop"}}},
        {"result": ["tools"]},
        {"method": "tools/list", "params": {"tools": [{"name": "drop"}]}},
        {"result": {"content": [{"tools": [{"name": "drop"}]}]}},
        "tools",
        ["tools", 1, None],
    ],
)
def test_other_shapes_stay_byte_for_byte(document: Any) -> None:
    raw = json.dumps(document).encode()
    assert filter_lists(raw, ONLY_GET) == raw


@pytest.mark.parametrize("element", ["drop", None, 1, [], {}, {"name": 1}, {"name": None}, {"title": "get_a"}])
def test_what_is_not_a_named_tool_is_cut_out(element: Any) -> None:
    assert shown({"result": {"tools": [element, {"name": "get_a"}]}})["result"]["tools"] == [{"name": "get_a"}]


def test_a_tool_with_two_names_is_cut_out() -> None:
    raw = b'{"result":{"tools":[{"name":"drop","name":"get_a"}]}}'
    assert json.loads(filter_lists(raw, ONLY_GET))["result"]["tools"] == []


def test_escapes_hide_nothing() -> None:
    raw = b'{"result":{"\\u0074ools":[{"n\\u0061me":"dr\\u006fp"},{"name":"\\u0067et_a"}]}}'
    assert names(json.loads(filter_lists(raw, ONLY_GET))) == ["get_a"]


@pytest.mark.parametrize(
    "raw",
    [
        b'{"result":{"tools":[{"name":"drop"}]},"result":{}}',
        b'{"result":{"tools":[{"name":"drop"}],"tools":[]}}',
        b'{"result":{"tools":[]}} {"result":{"tools":[{"name":"drop"}]}}',
        b'{"result":{"tools":[',
        b'{"result":{"tools":[{"name":"drop"}}',
        b"tools",
        '{"result":{"tools":[{"name":"drop"}]}}'.encode("utf-16"),
        '{"result":{"tools":[{"name":"drop"}]}}'.encode("utf-16-be"),
        '{"result":{"tools":[{"name":"drop"}]}}'.encode("utf-32-le"),
        b'\xff{"result":{"tools":[]}}',
        b'{"result":{"tools":[NaN]}}',
        b'{"result":{"tools":' + b"[" * 5000 + b"]" * 5000 + b"}}",
        b'\xef\xbb\xbf{"result":{"tools":[{"name":"drop"}]}}',
    ],
)
def test_what_cannot_be_decided_does_not_leave(raw: bytes) -> None:
    with pytest.raises(Undecidable):
        filter_lists(raw, ONLY_GET)


@pytest.mark.parametrize(
    ("given_", "ttl"),
    [({"ttlMs": 60_000, "cacheScope": "public"}, 5000), ({"ttlMs": 10}, 10), ({"cacheScope": "public"}, 0),
     ({"resultType": "complete"}, 0), ({"ttlMs": -1}, 0), ({"ttlMs": "x"}, 0), ({"ttlMs": True}, 0)],
)  # fmt: skip
def test_a_filtered_result_is_private_and_short_lived(given_: dict[str, Any], ttl: int) -> None:
    result = shown(answer("get_a", **given_))["result"]
    assert (result["cacheScope"], result["ttlMs"]) == ("private", ttl)


def test_a_result_of_an_older_revision_gets_no_caching_members() -> None:
    assert shown(answer("get_a"))["result"].keys() == {"tools"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["get_a", "drop", "tools", "name"]) | st.text(max_size=4),
    lambda children: st.lists(children, max_size=4)
    | st.dictionaries(st.sampled_from(["result", "tools", "name", "id"]) | st.text(max_size=3), children, max_size=4),
    max_leaves=25,
)  # fmt: skip


def members(value: Any) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def expected(message: Any) -> Any:
    result = members(members(message).get("result"))
    tools = result.get("tools")
    if not isinstance(tools, list):
        return message
    kept = [
        tool
        for tool in cast("list[Any]", tools)
        if isinstance(name := members(tool).get("name"), str) and name.startswith("get_")
    ]
    return {**members(message), "result": {**result, "tools": kept}}


@given(JSON | JSON.map(lambda value: {"id": 1, "result": {"tools": [value]}}), st.integers(0, 3))
def test_filtering_equals_filtering_the_parsed_document(document: Any, indent: int) -> None:
    raw = json.dumps(document, indent=indent or None, ensure_ascii=indent == 2)
    want = [expected(m) for m in cast("list[Any]", document)] if isinstance(document, list) else expected(document)
    assert json.loads(filter_lists(raw.encode(errors="replace"), ONLY_GET)) == json.loads(json.dumps(want)) or any(
        0xD800 <= ord(c) <= 0xDFFF for c in raw
    )


@given(st.binary(max_size=80), st.integers(0, 60))
def test_no_bytes_bring_the_filter_down(noise: bytes, at: int) -> None:
    raw = json.dumps(answer("get_a", "drop")).encode()
    try:
        filter_lists(raw[:at] + noise + raw[at:], ONLY_GET)
    except Undecidable as error:
        assert str(error)


KINDS = {
    "tools": ("name", Expose(tools=NameFilter(allow=("a*",)))),
    "prompts": ("name", Expose(prompts=NameFilter(allow=("a*",)))),
    "resources": ("uri", Expose(resources=NameFilter(allow=("a*",)))),
    "resourceTemplates": ("uriTemplate", Expose(resources=NameFilter(allow=("a*",)))),
}


@pytest.mark.parametrize("member", KINDS)
def test_each_kind_is_cut_by_its_own_filter_and_the_others_stay(member: str) -> None:
    name, expose = KINDS[member]
    kept = {kind: [{key: "b"}] for kind, (key, own) in KINDS.items() if own != expose}
    document = {"id": 1, "result": {member: [{name: "b"}, {name: "a1", "x": 1}, {"other": "a"}, 1], **kept}}
    found = json.loads(filter_lists(json.dumps(document).encode(), listings(View.of((expose,), None))))
    assert found == {"id": 1, "result": {member: [{name: "a1", "x": 1}], **kept}}


def test_a_name_is_looked_for_in_the_member_of_its_kind_only() -> None:
    document = {"result": {"resources": [{"name": "a", "uri": "b"}, {"uri": "a", "name": "b"}]}}
    found = json.loads(filter_lists(json.dumps(document).encode(), listings(View.of((KINDS["resources"][1],), None))))
    assert found["result"]["resources"] == [{"uri": "a", "name": "b"}]


@pytest.mark.parametrize("member", KINDS)
def test_a_list_that_is_there_twice_is_undecidable(member: str) -> None:
    raw = json.dumps({"result": {member: []}})[:-2] + f',"{member}":[{{}}]}}}}'
    with pytest.raises(Undecidable):
        filter_lists(raw.encode(), listings(View.of((KINDS[member][1],), None)))
