"""Headers that repeat arguments, compared with them."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp.shared.inbound import encode_header_value, mcp_param_headers, validate_mcp_param_headers, x_mcp_header_map

from toolbox_dtma.broker.param_headers import MAX_PARAMS, Param, mismatch, page, params_of
from toolbox_dtma.gateway.skimming import run

REGION = {"type": "string", "x-mcp-header": "Region"}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "region": REGION,
        "size": {"type": "integer", "x-mcp-header": "Size"},
        "dry": {"type": "boolean", "x-mcp-header": "Dry-Run"},
        "where": {"type": "object", "properties": {"zone": {"type": "string", "x-mcp-header": "Zone"}}},
        "query": {"type": "string", "default": {"x-mcp-header": "data, not a schema"}},
    },
}


def listed(*tools: Any, **members: Any) -> bytes:
    """An answer to tools/list."""
    return json.dumps({"jsonrpc": "2.0", "id": 1, "result": {"tools": tools, **members}}).encode()


def compared(arguments: Any, headers: dict[str, str], schema: Any = SCHEMA) -> str | None:
    """What is wrong with a call."""
    body = json.dumps({"id": 1, "method": "tools/call", "params": {"name": "t", "arguments": arguments}}).encode()
    return run(mismatch(body, params_of(schema), {name.lower(): [value] for name, value in headers.items()}))


def test_marked_parameters_are_found_with_their_paths() -> None:
    assert {param.path: param.header for param in params_of(SCHEMA)} == {
        ("region",): "Region",
        ("size",): "Size",
        ("dry",): "Dry-Run",
        ("where", "zone"): "Zone",
    }


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"a": {"type": "number", "x-mcp-header": "A"}}},
        {"properties": {"a": {"x-mcp-header": "A"}}},
        {"properties": {"a": {"type": "string", "x-mcp-header": ""}}},
        {"properties": {"a": {"type": "string", "x-mcp-header": "A B"}}},
        {"properties": {"a": {"type": "string", "x-mcp-header": "A\r\nB"}}},
        {"properties": {"a": {"type": "string", "x-mcp-header": 7}}},
        {"properties": {"a": REGION, "b": {"type": "string", "x-mcp-header": "rEGION"}}},
        {"properties": {"a": {"type": "array", "items": REGION}}},
        {"properties": {"a": REGION, "b": {"anyOf": [{"type": "string", "x-mcp-header": "B"}]}}},
        {"properties": {"a": REGION}, "$defs": {"b": {"type": "string", "x-mcp-header": "B"}}},
        {"type": "string", "x-mcp-header": "Root"},
        {"properties": {f"p{n}": {"type": "string", "x-mcp-header": f"P{n}"} for n in range(MAX_PARAMS + 1)}},
        "no schema",
        None,
    ],
)
def test_a_schema_with_a_mark_where_none_may_be_marks_nothing(schema: Any) -> None:
    assert params_of(schema) == ()


def test_a_page_names_every_tool_and_where_the_next_one_is() -> None:
    tools = [{"name": "a", "inputSchema": SCHEMA}, {"name": "b", "inputSchema": {"type": "object"}}, {"name": "c"}, 7]
    found = run(page(listed(*tools, nextCursor="more")))
    assert found.tools.keys() == {"a", "b", "c"} and found.cursor == "more"
    assert found.tools["a"] == params_of(SCHEMA) and found.tools["b"] == found.tools["c"] == ()
    escaped = json.dumps({"properties": {"r": REGION}}).replace("x-mcp", "\\u0078-mcp")
    spelled = b'{"id":1,"result":{"tools":[{"inputSchema":%b,"name":"s"}]}}' % escaped.encode()
    assert run(page(spelled)).tools == {"s": (Param(("r",), "Region"),)}


@pytest.mark.parametrize("answer", [b'{"id":1,"error":{"code":1}}', b'{"id":1,"result":[]}', b"[]", b"{", listed()])
def test_what_lists_nothing_marks_nothing(answer: bytes) -> None:
    found = run(page(answer))
    assert not found.tools and found.cursor is None


GOOD = {"Mcp-Param-Region": "eu", "Mcp-Param-Size": "42", "Mcp-Param-Dry-Run": "true", "Mcp-Param-Zone": "z"}
ARGUMENTS = {"region": "eu", "size": 42, "dry": True, "where": {"zone": "z"}, "query": "q"}


def test_headers_that_say_what_the_body_says_are_right() -> None:
    assert compared(ARGUMENTS, GOOD) is None
    assert compared(ARGUMENTS, {**GOOD, "mcp-param-REGION": "eu", "Mcp-Param-Unknown": "x"}) is None
    assert compared({"region": None}, {}) is compared({}, {}) is compared(None, {}) is None
    wrapped = "=?base64?" + base64.b64encode("日".encode()).decode() + "?="
    assert compared({"region": "日"}, {"Mcp-Param-Region": wrapped}) is None
    # Numbers are compared as numbers.
    for said, value in (("42.0", 42), ("42", 42.0), ("9007199254740993", 9007199254740993), ("1e2", 100)):
        assert compared({"size": value}, {"Mcp-Param-Size": said}) is None


@pytest.mark.parametrize(
    ("arguments", "headers", "problem"),
    [
        ({"region": "eu"}, {}, "missing"),
        ({"region": "eu"}, {"Mcp-Param-Region": "EU"}, "match"),
        ({"region": "eu"}, {"Mcp-Param-Region": "=?base64?ZX?="}, "match"),
        ({}, {"Mcp-Param-Region": "eu"}, "is not"),
        ({"region": None}, {"Mcp-Param-Region": ""}, "is not"),
        ({"region": {}}, {"Mcp-Param-Region": "{}"}, "is not"),
        (None, {"Mcp-Param-Zone": "z"}, "is not"),
        ({"where": {"zone": "a"}}, {"Mcp-Param-Zone": "b"}, "match"),
        ({"size": 42}, {"Mcp-Param-Size": "43"}, "match"),
        ({"size": 9007199254740993}, {"Mcp-Param-Size": "9007199254740992"}, "match"),
        ({"size": 42}, {"Mcp-Param-Size": "0x2a"}, "match"),
        ({"dry": True}, {"Mcp-Param-Dry-Run": "True"}, "match"),
        ({"dry": True}, {"Mcp-Param-Dry-Run": "1"}, "match"),
        ({"region": "1"}, {"Mcp-Param-Region": "1.0"}, "match"),
    ],
)
def test_headers_that_say_something_else_are_named(arguments: Any, headers: dict[str, str], problem: str) -> None:
    found = compared(arguments, headers)
    assert found is not None and found.startswith("Mcp-Param-") and problem in found


def test_what_is_there_twice_is_refused() -> None:
    params = params_of(SCHEMA)
    body = b'{"params":{"arguments":{"region":"eu"}}}'
    assert "more than once" in str(run(mismatch(body, params, {"mcp-param-region": ["eu", "eu"]})))
    body = b'{"params":{"arguments":{"region":"eu","region":"us"}}}'
    assert "more than once" in str(run(mismatch(body, params, {"mcp-param-region": ["us"]})))


VALUES = st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(max_size=8)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "region": VALUES,
            "size": VALUES,
            "dry": VALUES,
            "where": st.none() | st.fixed_dictionaries({}, optional={"zone": VALUES}),
        },
    ),
    st.data(),
)
def test_it_agrees_with_the_sdk_about_what_clients_of_the_sdk_send(
    arguments: dict[str, Any], data: st.DataObject
) -> None:
    headers = mcp_param_headers(x_mcp_header_map(SCHEMA), arguments)
    assert compared(arguments, headers) is None
    if headers:
        changed = data.draw(st.sampled_from(sorted(headers)))
        headers[changed] = encode_header_value(data.draw(st.text(max_size=3)))
    theirs = validate_mcp_param_headers(SCHEMA, arguments, headers)
    assert (compared(arguments, headers) is None) == (theirs is None)
