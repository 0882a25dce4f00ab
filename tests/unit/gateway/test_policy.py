"""Which messages a connection may send."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from toolbox_dtma.gateway.header_values import decode_header
from toolbox_dtma.gateway.methods import KNOWN_REQUESTS, VERSION_META
from toolbox_dtma.gateway.parsing import Body, parse_body
from toolbox_dtma.gateway.policy import (
    DENIED,
    HEADER_MISMATCH,
    INVALID_PARAMS,
    METHOD_NOT_FOUND,
    HeaderMismatch,
    RoutingHeaders,
    check_routing,
    decide,
    needs_filter,
)
from toolbox_dtma.gateway.view import View
from toolbox_dtma.link.messages import Surface
from toolbox_dtma.wire import Expose, NameFilter

OPEN = View.of((Expose(), Expose()), None)
SURFACE = Surface(
    tools=("get_time", "get_secret", "Get_Time"),
    prompts=("greet", "scold"),
    resources=("docs://one", "docs://secret", "docs://pages/{page}", "odd:a/../b"),
)


def limited(*filters: NameFilter, surface: Surface | None = SURFACE) -> View:
    """Tools behind several filters."""
    return View.of(tuple(Expose(tools=each) for each in filters), surface)


FILTERS = (NameFilter(allow=("get_*",)), NameFilter(deny=("*secret",)))
LIMITED = limited(*FILTERS)
ONLY_DOCS = View.of((Expose(resources=NameFilter(allow=("docs://*", "odd:*"))), Expose()), SURFACE)
NO_SECRETS = View.of((Expose(resources=NameFilter(deny=("*secret*",))), Expose()), SURFACE)
ONLY_GREET = View.of((Expose(prompts=NameFilter(allow=("gr*",))), Expose()), SURFACE)


def body(*messages: dict[str, Any], batch: bool = False) -> Body:
    document: Any = list(messages)
    return parse_body(json.dumps(document if batch or len(messages) > 1 else document[0]).encode())


def request(method: str, params: Any = None, id: Any = 1) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": id, "method": method, **({} if params is None else {"params": params})}


def codes(parsed: Body, view: View) -> list[int]:
    return [denial.code for denial in decide(parsed, view)]


def test_an_unrestricted_connection_may_call_and_ask_anything() -> None:
    for method in ("tools/call", "vendor/anything", "initialize", "completion/complete"):
        assert codes(body(request(method, {"name": "never probed"})), OPEN) == []


@pytest.mark.parametrize("name", ["get_time"])
def test_an_exposed_tool_of_the_surface_may_be_called(name: str) -> None:
    assert codes(body(request("tools/call", {"name": name})), LIMITED) == []


@pytest.mark.parametrize(
    "params",
    [
        {"name": "get_secret"},
        {"name": "get_weather"},
        {"name": "GET_TIME"},
        {"name": "get_time\u0000"},
        {"name": "get_time "},
        {"name": "ｇet_time"},
        {"name": "Get_Time"},
        {"name": ["get_time"]},
        {"name": None},
        {},
        None,
        ["get_time"],
        "get_time",
    ],
)
def test_any_other_name_is_denied(params: Any) -> None:
    assert codes(body(request("tools/call", params)), LIMITED) == [DENIED]


def test_before_the_first_probe_a_restricted_connection_calls_nothing() -> None:
    assert codes(body(request("tools/call", {"name": "get_time"})), limited(*FILTERS, surface=None)) == [DENIED]


def test_either_filter_alone_restricts() -> None:
    for filters in ((NameFilter(allow=("x",)), NameFilter()), (NameFilter(), NameFilter(allow=("x",)))):
        assert codes(body(request("tools/call", {"name": "get_time"})), limited(*filters)) == [DENIED]


def test_a_filter_that_allows_everything_in_other_words_still_needs_the_surface() -> None:
    tools = limited(NameFilter(allow=("*", "*")), NameFilter(), surface=Surface(tools=("a",)))
    assert codes(body(request("tools/call", {"name": "b"})), tools) == [DENIED]


@pytest.mark.parametrize(
    "method", ["vendor/x", "tools/Call", "tools/call ", "sampling/createMessage", "", "rpc.discover"]
)
def test_unknown_requests_are_for_unrestricted_connections(method: str) -> None:
    assert codes(body(request(method)), LIMITED) == [METHOD_NOT_FOUND]
    assert codes(body(request(method)), OPEN) == []


def test_notifications_and_responses_pass() -> None:
    rows: list[dict[str, Any]] = [{"method": "notifications/vendor"}, {"id": 1, "result": {}}, {"id": 1, "error": {}}]
    for message in rows:
        assert codes(body(message), LIMITED) == []


def test_the_list_of_tasks_is_refused_for_everyone() -> None:
    assert codes(body(request("tasks/list")), OPEN) == [METHOD_NOT_FOUND]
    assert codes(body(request("tasks/list")), LIMITED) == [METHOD_NOT_FOUND]


@pytest.mark.parametrize("method", sorted(set(KNOWN_REQUESTS) - {"tools/call", "tasks/list", "completion/complete"}))
def test_known_methods_pass(method: str) -> None:
    assert codes(body(request(method)), LIMITED) == []


@pytest.mark.parametrize(
    ("ref", "denied"),
    [
        ({"type": "ref/prompt", "name": "x"}, False),
        ({"type": "ref/resource", "uri": "x"}, False),
        ({"type": "ref/tool", "name": "get_secret"}, True),
        (None, True),
        ("ref/prompt", True),
    ],
)
def test_completion_reaches_no_tool(ref: Any, denied: bool) -> None:
    assert bool(codes(body(request("completion/complete", {"ref": ref})), LIMITED)) is denied


@pytest.mark.parametrize("method", ["resources/read", "resources/subscribe", "resources/unsubscribe"])
@pytest.mark.parametrize(
    ("view", "uri", "denied"),
    [
        (ONLY_DOCS, "docs://one", False),
        (ONLY_DOCS, "docs://pages/7", False),
        (ONLY_DOCS, "docs://pages/7?full=yes#top", False),
        (ONLY_DOCS, "odd:a/../b", False),
        (ONLY_DOCS, "odd:a/../c", True),
        (ONLY_DOCS, "odd:a/.", True),
        (ONLY_DOCS, "docs://pages/../secret", True),
        (ONLY_DOCS, "docs://../secret", True),
        (ONLY_DOCS, "docs://./secret", True),
        (ONLY_DOCS, "odd:../secret", True),
        (ONLY_DOCS, "odd:..", True),
        (ONLY_DOCS, "docs://.hidden/page", False),
        (ONLY_DOCS, "docs://pages/%2e%2e/secret", True),
        (ONLY_DOCS, "docs://pages//7", True),
        (ONLY_DOCS, "docs://pages\\7", True),
        (ONLY_DOCS, "docs://pages/7\n", True),
        (ONLY_DOCS, "docs://p\u00e4ges/7", True),
        (ONLY_DOCS, "DOCS://one", True),
        (ONLY_DOCS, "file:///etc/passwd", True),
        (ONLY_DOCS, "docs", True),
        (ONLY_DOCS, None, True),
        (ONLY_DOCS, ["docs://one"], True),
        (NO_SECRETS, "docs://one", False),
        (NO_SECRETS, "docs://secret", True),
        (NO_SECRETS, "docs://pages/7", True),
        (NO_SECRETS, "docs://SECRET", True),
        (LIMITED, "file:///anything", False),
    ],
)
def test_resources_are_read_by_a_uri_that_no_server_reads_as_another(
    method: str, view: View, uri: Any, denied: bool
) -> None:
    assert bool(codes(body(request(method, {"uri": uri})), view)) is denied


def test_before_the_first_probe_no_denied_resource_can_be_told_from_others() -> None:
    view = View.of((Expose(resources=NameFilter(deny=("*secret*",))),), None)
    assert codes(body(request("resources/read", {"uri": "docs://one"})), view) == [DENIED]


@pytest.mark.parametrize(("name", "denied"), [("greet", False), ("scold", True), ("Greet", True), ("grin", True)])
def test_prompts_are_used_by_a_listed_name(name: str, denied: bool) -> None:
    assert bool(codes(body(request("prompts/get", {"name": name})), ONLY_GREET)) is denied
    assert codes(body(request("prompts/get", {"name": name})), ONLY_DOCS) == []


@pytest.mark.parametrize(
    ("wanted", "denied"),
    [
        ({}, False),
        ({"toolsListChanged": True}, False),
        ({"resourceSubscriptions": []}, False),
        ({"resourceSubscriptions": ["docs://one"]}, False),
        ({"resourceSubscriptions": ["docs://one", "file:///x"]}, True),
        ({"resourceSubscriptions": "docs://one"}, True),
        (None, True),
        (["docs://one"], True),
    ],
)
def test_nobody_listens_for_changes_of_a_hidden_resource(wanted: Any, denied: bool) -> None:
    parsed = body(request("subscriptions/listen", {"notifications": wanted}))
    assert bool(codes(parsed, ONLY_DOCS)) is denied
    assert codes(parsed, ONLY_GREET) == []


@pytest.mark.parametrize(
    ("view", "ref", "denied"),
    [
        (ONLY_GREET, {"type": "ref/prompt", "name": "greet"}, False),
        (ONLY_GREET, {"type": "ref/prompt", "name": "scold"}, True),
        (ONLY_GREET, {"type": "ref/resource", "uri": "any://thing"}, False),
        (ONLY_DOCS, {"type": "ref/resource", "uri": "docs://pages/{page}"}, False),
        (ONLY_DOCS, {"type": "ref/resource", "uri": "file:///{path}"}, True),
        (NO_SECRETS, {"type": "ref/resource", "uri": "docs://pages/{page}"}, False),
        (NO_SECRETS, {"type": "ref/resource", "uri": "docs://secret"}, True),
    ],
)
def test_completion_is_for_what_may_be_used(view: View, ref: Any, denied: bool) -> None:
    assert bool(codes(body(request("completion/complete", {"ref": ref})), view)) is denied


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("completion/complete", {"ref": {"type": "ref/prompt", "name": "greet", "Name": "scold"}}),
        ("completion/complete", {"ref": {"type": "ref/prompt", "name": "greet", "n\u0061me\u200b": "scold"}}),
        ("completion/complete", {"ref": {"type": "ref/prompt", "name": "greet", "TYPE": "ref/resource", "uri": "a:b"}}),
        ("subscriptions/listen", {"notifications": {}, "Notifications": {"resourceSubscriptions": ["file:///x"]}}),
        ("subscriptions/listen", {"notifications": {"resourceSubscriptions": [], "resourcesubscriptions": ["a:b"]}}),
        ("subscriptions/listen", {"notifications": {"ｒesourceSubscriptions": ["a:b"]}}),
    ],
)
def test_a_lookalike_below_params_is_not_taken_for_nothing(method: str, params: dict[str, Any]) -> None:
    strict = View.of((Expose(resources=NameFilter(allow=("docs://*",)), prompts=NameFilter(allow=("gr*",))),), SURFACE)
    assert codes(body(request(method, params)), strict) == [DENIED]
    assert codes(body(request(method, params)), OPEN) == []


def test_one_denied_element_refuses_the_batch_and_every_request_is_told() -> None:
    parsed = body(
        request("tools/call", {"name": "get_time"}, "a"),
        {"method": "notifications/x"},
        request("tools/call", {"name": "get_secret"}, "b"),
        request("vendor/x", id="c"),
    )
    denials = decide(parsed, LIMITED)
    assert [(d.id, d.code, d.answerable) for d in denials] == [
        ("a", DENIED, True),
        (None, DENIED, False),
        ("b", DENIED, True),
        ("c", METHOD_NOT_FOUND, True),
    ]


def test_answers_to_lists_and_batches_are_filtered() -> None:
    assert needs_filter(body(request("tools/list")))
    assert needs_filter(body(request("ping"), batch=True))
    assert not needs_filter(body(request("tools/call", {"name": "x"})))


def routing(version: str | None = None, method: str | None = None, name: str | None = None) -> RoutingHeaders:
    return RoutingHeaders(*([] if value is None else [value] for value in (version, method, name)))


def modern(method: str, version: str = "2026-07-28", **params: Any) -> dict[str, Any]:
    return request(method, {"_meta": {VERSION_META: version}, **params})


CALL = request("tools/call", {"name": "get_time"})
M_CALL = modern("tools/call", name="get_time")
M = "2026-07-28"
MATCHING: list[tuple[str, dict[str, Any], RoutingHeaders, bool]] = [
    ("no headers", CALL, routing(), False),
    ("a handshake version", CALL, routing("2025-06-18"), False),
    ("headers that match before they are required", CALL, routing("2025-11-25", "tools/call", "get_time"), False),
    ("a new revision with everything", M_CALL, routing(M, "tools/call", "get_time"), True),
    ("a revision nobody knows yet", modern("ping", "2031-01-01"), routing("2031-01-01", "ping"), True),
    ("a wrapped name", modern("tools/call", name="é"), routing(M, "tools/call", "=?base64?w6k=?="), True),
    ("a method without a name", modern("tools/list"), routing(M, "tools/list"), True),
    ("a resource by uri", modern("resources/read", uri="a:b"), routing(M, "resources/read", "a:b"), True),
    ("a task by id, unasked", modern("tasks/get", taskId="t"), routing(M, "tasks/get", "t"), True),
    ("a notification of a new revision", {"method": "notifications/x"}, routing(M), True),
]


@pytest.mark.parametrize(("message", "headers", "is_modern"), [r[1:] for r in MATCHING], ids=[r[0] for r in MATCHING])
def test_headers_that_match_pass(message: dict[str, Any], headers: RoutingHeaders, is_modern: bool) -> None:
    assert check_routing(body(message), headers) is is_modern


MISMATCHING: list[tuple[str, dict[str, Any], RoutingHeaders]] = [
    ("another method", CALL, routing(None, "tools/list")),
    ("another case of the method", CALL, routing(None, "Tools/Call")),
    ("another name", CALL, routing(None, "tools/call", "get_secret")),
    ("a name wrapped wrongly", CALL, routing(None, None, "=?base64?!!?=")),
    ("a name wrapped in another spelling", modern("tools/call", name="é"), routing(M, "tools/call", "=?base64?w6l=?=")),
    ("a name for a method without one", request("ping"), routing(None, "ping", "x")),
    ("two versions", CALL, RoutingHeaders(["2025-06-18", "2025-06-18"], [], [])),
    ("two methods", CALL, RoutingHeaders([], ["tools/call", "tools/call"], [])),
    ("two names", CALL, RoutingHeaders([], [], ["get_time", "get_time"])),
    ("a new revision without method", M_CALL, routing(M, None, "get_time")),
    ("a new revision without name", M_CALL, routing(M, "tools/call")),
    ("a new revision without the version header", M_CALL, routing(None, "tools/call", "get_time")),
    ("two revisions", M_CALL, routing("2025-11-25", "tools/call", "get_time")),
    ("a version that is no string", request("ping", {"_meta": {VERSION_META: 1}}), routing(M, "ping")),
    ("a method header on a response", {"id": 1, "result": {}}, routing(None, "tools/call")),
]


@pytest.mark.parametrize(("message", "headers"), [r[1:] for r in MISMATCHING], ids=[r[0] for r in MISMATCHING])
def test_headers_and_body_that_disagree_are_refused(message: dict[str, Any], headers: RoutingHeaders) -> None:
    with pytest.raises(HeaderMismatch):
        check_routing(body(message), headers)


@pytest.mark.parametrize("params", [{}, {"_meta": {}}], ids=["no _meta", "an empty _meta"])
def test_a_new_revision_without_the_version_in_the_body_has_invalid_params(params: dict[str, Any]) -> None:
    with pytest.raises(HeaderMismatch) as refused:
        check_routing(body(request("ping", params)), routing(M, "ping"))
    assert refused.value.code == INVALID_PARAMS
    with pytest.raises(HeaderMismatch) as refused:
        check_routing(body(modern("ping")), routing(None, "ping"))
    assert refused.value.code == HEADER_MISMATCH


def test_a_version_that_is_there_twice_equals_nothing() -> None:
    raw = f'{{"id":1,"method":"ping","params":{{"_meta":{{"{VERSION_META}":"{M}","{VERSION_META}":"{M}"}}}}}}'
    with pytest.raises(HeaderMismatch):
        check_routing(parse_body(raw.encode()), routing(M, "ping"))


@pytest.mark.parametrize("meta", [f'"{VERSION_META}":1', f'"{VERSION_META}":"{M}","{VERSION_META}":"2025-11-25"'])
def test_no_header_does_not_equal_a_version_that_cannot_be_read(meta: str) -> None:
    raw = f'{{"id":1,"method":"ping","params":{{"_meta":{{{meta}}}}}}}'
    with pytest.raises(HeaderMismatch):
        check_routing(parse_body(raw.encode()), routing(None, "ping"))


@pytest.mark.parametrize("message", [{"method": "notifications/x"}, {"id": 1, "result": {}}])
def test_a_message_without_answer_needs_no_version_but_two_must_agree(message: dict[str, Any]) -> None:
    assert check_routing(body(message), routing(M)) is True
    named = {**message, "params": {"_meta": {VERSION_META: M}}}
    assert check_routing(body(named), routing(M)) is True
    with pytest.raises(HeaderMismatch):
        check_routing(body(named), routing("2031-01-01"))


@pytest.mark.parametrize("headers", [routing(M), routing(None, "ping"), routing(None, None, "x")])
def test_a_batch_cannot_have_a_method_or_a_new_revision(headers: RoutingHeaders) -> None:
    with pytest.raises(HeaderMismatch):
        check_routing(body(request("ping"), batch=True), headers)


def test_a_wrapped_header_value_is_read() -> None:
    wrapped = base64.b64encode("zeit/日".encode()).decode()
    assert decode_header(f"=?base64?{wrapped}?=") == "zeit/日"
    assert decode_header("plain") == "plain"
    assert decode_header("=?base64?/w==?=") is None
