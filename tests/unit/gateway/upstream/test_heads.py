"""Heads of answers are read strictly, those of requests written safely."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolbox_dtma.gateway.upstream.errors import Malformed
from toolbox_dtma.gateway.upstream.heads import MAX_FIELDS, Framing, Head, parse_head, request_head


def head(*fields: str, status: str = "HTTP/1.1 200 OK") -> Head:
    return parse_head("\r\n".join((status, *fields)).encode("latin-1"))


def test_status_and_fields_are_read() -> None:
    got = head("Content-Type: text/plain", "X-Empty:", "x-padded: \t a b \t", "Content-Length: 12")
    assert (got.status, got.framing, got.length, got.reusable) == (200, Framing.LENGTH, 12, True)
    assert list(got.headers.items()) == [
        ("Content-Type", "text/plain"),
        ("X-Empty", ""),
        ("x-padded", "a b"),
        ("Content-Length", "12"),
    ]


@pytest.mark.parametrize("status", ["HTTP/1.1 200", "HTTP/1.1 200 ", "HTTP/1.1 200 Grüß Gott"])
def test_a_reason_phrase_is_anything_or_nothing(status: str) -> None:
    assert head(status=status).status == 200


@pytest.mark.parametrize(
    "status",
    ["", "HTTP/1.1", "HTTP/1.1 20", "HTTP/1.1 2000", "HTTP/1.1 099", "HTTP/1.1  200", "HTTP/2 200", "HTTP/1.2 200",
     "http/1.1 200 OK", " HTTP/1.1 200 OK", "HTTP/1.1 200\0", "HTTP/1.1 200 O\rK", "HTTP/1.1 200 O\nK", "ICY 200 OK",
     "HTTP/1.1 +20"],
)  # fmt: skip
def test_another_status_line_is_malformed(status: str) -> None:
    with pytest.raises(Malformed):
        head(status=status)


@pytest.mark.parametrize(
    "field",
    ["no colon", ": no name", "Name : x", " Name: x", "\tfolded", "Na me: x", "Näme: x", "Name: a\0b", "Name: a\rb",
     "Name: a\nOther: b", "Name: a\x7fb", "Name: a\x01b", "", "Name: a\n"],
)  # fmt: skip
def test_a_field_that_can_be_read_in_two_ways_is_malformed(field: str) -> None:
    with pytest.raises(Malformed):
        head("A: 1", field)
    with pytest.raises(Malformed):
        head(field, "A: 1")


@pytest.mark.parametrize(
    "fields",
    [
        ("Content-Length: 1", "Content-Length: 2"),
        ("Content-Length: 1", "content-length: 1"),
        ("Content-Length: 1, 1",),
        ("Content-Length: +1",),
        ("Content-Length: -1",),
        ("Content-Length: 0x1",),
        ("Content-Length: 1_0",),
        ("Content-Length: \xb2",),
        ("Content-Length: 1 2",),
        ("Content-Length:",),
        ("Content-Length: " + "9" * 16,),
        ("Content-Length: 1", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding: gzip",),
        ("Transfer-Encoding: gzip, chunked",),
        ("Transfer-Encoding: chunked, chunked",),
        ("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding: xchunked",),
        ("Transfer-Encoding: \x0bchunked",),
        ("Transfer-Encoding: chunked;a",),
        ("Transfer-Encoding: identity",),
        ("Transfer-Encoding:",),
    ],
)
def test_a_body_whose_end_is_not_certain_is_malformed(fields: tuple[str, ...]) -> None:
    with pytest.raises(Malformed):
        head(*fields)


def test_a_transfer_coding_before_http_1_1_is_malformed() -> None:
    with pytest.raises(Malformed):
        head("Transfer-Encoding: chunked", status="HTTP/1.0 200 OK")


@pytest.mark.parametrize(
    ("fields", "status", "framing", "length"),
    [
        (("Content-Length: 0",), 200, Framing.LENGTH, 0),
        (("Content-Length: 007",), 200, Framing.LENGTH, 7),
        (("Transfer-Encoding: Chunked",), 200, Framing.CHUNKED, None),
        ((), 200, Framing.CLOSE, None),
        (("Content-Length: 5",), 204, Framing.LENGTH, 0),
        (("Content-Length: 5",), 304, Framing.LENGTH, 0),
        (("Transfer-Encoding: chunked",), 304, Framing.LENGTH, 0),
        ((), 100, Framing.LENGTH, 0),
        ((), 101, Framing.LENGTH, 0),
    ],
)
def test_the_end_of_a_body_is_told_by(
    fields: tuple[str, ...], status: int, framing: Framing, length: int | None
) -> None:
    got = head(*fields, status=f"HTTP/1.1 {status} x")
    assert (got.framing, got.length) == (framing, length)


@pytest.mark.parametrize(
    ("status", "fields", "reusable"),
    [
        ("HTTP/1.1 200 OK", ("Content-Length: 1",), True),
        ("HTTP/1.1 200 OK", ("Content-Length: 1", "Connection: Keep-Alive"), True),
        ("HTTP/1.1 200 OK", ("Content-Length: 1", "Connection: close"), False),
        ("HTTP/1.1 200 OK", ("Content-Length: 1", "Connection: keep-alive, CLOSE"), False),
        ("HTTP/1.1 200 OK", ("Content-Length: 1", "Connection: keep-alive", "Connection: close"), False),
        ("HTTP/1.1 200 OK", ("Content-Length: 1", "Connection: upgrade"), False),
        ("HTTP/1.1 200 OK", (), False),
        ("HTTP/1.1 101 Switching Protocols", (), False),
        ("HTTP/1.0 200 OK", ("Content-Length: 1", "Connection: keep-alive"), False),
    ],
)
def test_a_connection_is_reused_only_if_both_sides_must_agree(
    status: str, fields: tuple[str, ...], reusable: bool
) -> None:
    assert head(*fields, status=status).reusable is reusable


def test_too_many_fields_are_malformed() -> None:
    assert len(head(*["A: 1"] * MAX_FIELDS).headers) == MAX_FIELDS
    with pytest.raises(Malformed):
        head(*["A: 1"] * (MAX_FIELDS + 1))


@given(st.binary(max_size=200) | st.binary(max_size=100).map(lambda tail: b"HTTP/1.1 200 OK\r\n" + tail))
def test_any_bytes_are_a_head_or_malformed(raw: bytes) -> None:
    try:
        got = parse_head(raw)
    except Malformed:
        return
    assert raw.startswith(b"HTTP/1.") and got.status == int(raw[9:12])
    assert len(got.headers) == raw.count(b"\n") == raw.count(b"\r")


def test_a_request_is_written_as_it_is() -> None:
    assert request_head("POST", "/a%2Fb?x=1", {"Host": "localhost:1", "Mcp-Name": "a"}, 3) == (
        b"POST /a%2Fb?x=1 HTTP/1.1\r\nHost: localhost:1\r\nMcp-Name: a\r\nContent-Length: 3\r\n\r\n"
    )
    assert request_head("GET", "/mcp", {}, None) == b"GET /mcp HTTP/1.1\r\n\r\n"


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/a b", {}),
        ("/a\r\nX: y", {}),
        ("/", {"A": "b\r\nC: d"}),
        ("/", {"A": "b\nC: d"}),
        ("/", {"A\r\n": "b"}),
        ("/", {"A": "\0"}),
        ("/", {"A": "\u0130"}),
    ],
)
def test_a_request_that_would_be_another_one_is_never_written(path: str, headers: dict[str, str]) -> None:
    with pytest.raises(ValueError):
        request_head("POST", path, headers, 0)
