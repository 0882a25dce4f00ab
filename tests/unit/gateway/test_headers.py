"""Only named headers pass."""

from __future__ import annotations

import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from toolbox_dtma.gateway.headers import HeaderRefused, downstream_headers, media_type, unreadable, upstream_headers


def proxied(*items: tuple[str, str]) -> CIMultiDictProxy[str]:
    return CIMultiDictProxy(CIMultiDict(items))


def up(*items: tuple[str, str], session: str | None = None) -> dict[str, str]:
    return dict(upstream_headers(proxied(*items), connection="uid", port=3001, session=session))


FIXED = {"Accept-Encoding": "identity", "Host": "localhost:3001", "Mcp-Toolbox-Connection": "uid"}


@pytest.mark.parametrize(
    "name",
    [
        "Authorization",
        "Cookie",
        "Origin",
        "Referer",
        "Host",
        "Accept-Encoding",
        "Mcp-Toolbox-Connection",
        "Mcp-Toolbox-Probe",
        "Mcp-Session-Id",
        "Last-Event-ID",
        "Content-Length",
        "Transfer-Encoding",
        "Connection",
        "X-Forwarded-For",
        "Forwarded",
        "User-Agent",
        "X-Anything",
    ],
)
def test_a_header_that_is_not_named_does_not_go_up(name: str) -> None:
    assert up((name, "client's value")) == FIXED


def test_the_session_broker_has_no_port() -> None:
    headers = upstream_headers(proxied(("Mcp-Toolbox-Probe", "client's")), connection="uid", port=0, session=None)
    assert dict(headers) == {**FIXED, "Host": "localhost"}


def test_the_session_broker_is_told_by_which_route_a_request_comes() -> None:
    asked = proxied(("Mcp-Toolbox-Route", "client's"))
    headers = upstream_headers(asked, connection="uid", port=0, session=None, route="r-1")
    assert headers.getall("Mcp-Toolbox-Route") == ["r-1"]
    assert "Mcp-Toolbox-Route" not in upstream_headers(asked, connection="uid", port=3001, session=None)


@pytest.mark.parametrize(
    "name",
    [
        "Content-Type",
        "Accept",
        "MCP-Protocol-Version",
        "Mcp-Method",
        "Mcp-Name",
        "Mcp-Param-Region",
        "traceparent",
        "tracestate",
    ],
)
def test_a_named_header_goes_up(name: str) -> None:
    assert up((name, "value")) == {**FIXED, name: "value"}


def test_the_server_gets_its_own_session_id() -> None:
    assert up(("Mcp-Session-Id", "mt1.signed"), session="own") == {**FIXED, "Mcp-Session-Id": "own"}


@pytest.mark.parametrize("value", ["é", "a\x7f", "\udcff"])
def test_a_value_that_is_no_plain_text_is_refused(value: str) -> None:
    with pytest.raises(HeaderRefused):
        up(("Mcp-Name", value))


def test_only_named_headers_come_down() -> None:
    received = proxied(
        ("Content-Type", "application/json"),
        ("Set-Cookie", "a=b"),
        ("Mcp-Session-Id", "own"),
        ("Allow", "POST"),
        ("Retry-After", "3"),
        ("Cache-Control", "no-cache"),
        ("WWW-Authenticate", "Basic"),
        ("Access-Control-Allow-Origin", "*"),
        ("Location", "http://elsewhere"),
        ("Server", "x"),
    )
    assert dict(downstream_headers(received, session="signed")) == {
        "Content-Type": "application/json",
        "Cache-Control": "no-cache",
        "Allow": "POST",
        "Retry-After": "3",
        "Mcp-Session-Id": "signed",
    }


@pytest.mark.parametrize("type", ["Text/Event-Stream", "text/event-stream; charset=utf-7", "text/event-stream;\tx"])
def test_an_event_stream_has_no_charset_but_its_own(type: str) -> None:
    assert dict(downstream_headers(proxied(("Content-Type", type)), session=None)) == {
        "Content-Type": "text/event-stream"
    }


@pytest.mark.parametrize("value", ["public, max-age=60", "PUBLIC", "s-maxage=9", "max-age=60, must-revalidate"])
def test_no_shared_cache_may_keep_an_answer(value: str) -> None:
    assert downstream_headers(proxied(("Cache-Control", value)), session=None)["Cache-Control"] == "no-store"


def test_a_header_that_is_there_twice_is_dropped() -> None:
    assert not downstream_headers(proxied(("Content-Type", "a/b"), ("Content-Type", "c/d")), session=None)


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ([], None),
        ([("Content-Type", "application/json; charset=utf-8"), ("Content-Encoding", "Identity")], None),
        ([("Content-Type", "Text/Event-Stream;charset=utf-8")], None),
        ([("Content-Encoding", "gzip")], "upstream-encoded"),
        ([("Content-Encoding", "identity"), ("Content-Encoding", "gzip")], "upstream-encoded"),
        ([("Content-Type", "text/event-stream, application/json")], "upstream-type"),
        ([("Content-Type", "text/event-streams")], "upstream-type"),
        ([("Content-Type", "application/json; x=TEXT/EVENT-STREAM")], "upstream-type"),
        ([("Content-Type", "application/json"), ("Content-Type", "text/event-stream")], "upstream-type"),
        ([("Content-Type", "text/event-stream"), ("Content-Type", "text/event-stream")], "upstream-type"),
    ],
)
def test_an_answer_that_clients_could_take_for_another_type_is_named(
    headers: list[tuple[str, str]], reason: str | None
) -> None:
    assert unreadable(proxied(*headers)) == reason


def test_the_media_type_is_read_without_parameters() -> None:
    assert media_type(proxied(("Content-Type", "Text/Event-Stream ; charset=utf-8"))) == "text/event-stream"
    assert media_type(proxied()) == ""
