"""What is refused, and what is not, of POST bodies."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolbox_dtma.gateway.parsing import (
    INVALID_REQUEST,
    PARSE_ERROR,
    PROTECTED,
    BodyRefused,
    Kind,
    check_content,
    parse_body,
    resembles_protected,
)

CALL = '"jsonrpc":"2.0","id":1,"method":"tools/call"'


def nested(levels: int) -> str:
    """A call whose whole body nests this deep."""
    inner = levels - 2
    return f'{{{CALL},"params":{{"name":"x","arguments":{"[" * (inner)}{"]" * (inner)}}}}}'


REFUSED: list[tuple[str, bytes, int]] = [
    ("nothing", b"", PARSE_ERROR),
    ("white space only", b" \n", PARSE_ERROR),
    ("a byte order mark", b"\xef\xbb\xbf{}", PARSE_ERROR),
    ("UTF-16 with its mark", "{}".encode("utf-16"), PARSE_ERROR),
    ("UTF-16 without a mark", "{}".encode("utf-16-le"), PARSE_ERROR),
    ("UTF-32", "{}".encode("utf-32-le"), PARSE_ERROR),
    ("Latin-1", '{"method":"é"}'.encode("latin-1"), PARSE_ERROR),
    ("an overlong encoding", b'{"method":"\xc0\xaf"}', PARSE_ERROR),
    ("an encoded surrogate", b'{"method":"\xed\xa0\x80"}', PARSE_ERROR),
    ("an escaped lone surrogate", f'{{{CALL},"params":{{"name":"\\ud800"}}}}'.encode(), PARSE_ERROR),
    ("surrogates in the wrong order", f'{{{CALL},"params":{{"name":"\\udc00\\ud800"}}}}'.encode(), PARSE_ERROR),
    ("a lone surrogate in a member name", f'{{{CALL},"params":{{"\\uDFFF":1}}}}'.encode(), PARSE_ERROR),
    ("a lone surrogate in an array", f'{{{CALL},"params":{{"a":["\\ud83d"]}}}}'.encode(), PARSE_ERROR),
    ("NaN", f'{{{CALL},"params":{{"a":NaN}}}}'.encode(), PARSE_ERROR),
    ("Infinity", f'{{{CALL},"params":{{"a":Infinity}}}}'.encode(), PARSE_ERROR),
    ("-Infinity", f'{{{CALL},"params":{{"a":-Infinity}}}}'.encode(), PARSE_ERROR),
    ("data after the document", f"{{{CALL}}}{{}}".encode(), PARSE_ERROR),
    ("a NUL after the document", f"{{{CALL}}}\0".encode(), PARSE_ERROR),
    ("two documents on two lines", f"{{{CALL}}}\n{{{CALL}}}".encode(), PARSE_ERROR),
    ("a document cut short", f"{{{CALL}".encode(), PARSE_ERROR),
    ("a raw control character", f'{{{CALL},"params":{{"name":"a\nb"}}}}'.encode(), PARSE_ERROR),
    ("single quotes", b"{'method':'ping'}", PARSE_ERROR),
    ("a comment", b'{/**/"method":"ping"}', PARSE_ERROR),
    ("a trailing comma", f"{{{CALL},}}".encode(), PARSE_ERROR),
    ("65 levels", nested(65).encode(), PARSE_ERROR),
    ("100,000 levels", b"[" * 100_000, PARSE_ERROR),
    ("100,000 closed levels", b"[" * 100_000 + b"]" * 100_000, PARSE_ERROR),
    ("a number", b"1", INVALID_REQUEST),
    ("null", b"null", INVALID_REQUEST),
    ("an empty batch", b"[]", INVALID_REQUEST),
    ("a batch in a batch", f"[[{{{CALL}}}]]".encode(), INVALID_REQUEST),
    ("a batch of 51", json.dumps([{"jsonrpc": "2.0", "method": "x"}] * 51).encode(), INVALID_REQUEST),
    ("method twice", f'{{{CALL},"method":"ping"}}'.encode(), INVALID_REQUEST),
    ("id twice", f'{{{CALL},"id":2}}'.encode(), INVALID_REQUEST),
    ("any member of the message twice", f'{{{CALL},"x":1,"x":1}}'.encode(), INVALID_REQUEST),
    ("the same name, once escaped", f'{{{CALL},"\\u006dethod":"ping"}}'.encode(), INVALID_REQUEST),
    ("name twice", f'{{{CALL},"params":{{"name":"a","name":"b"}}}}'.encode(), INVALID_REQUEST),
    ("any member of params twice", f'{{{CALL},"params":{{"a":1,"a":1}}}}'.encode(), INVALID_REQUEST),
    ("another case", f'{{{CALL},"Method":"ping"}}'.encode(), INVALID_REQUEST),
    ("another case in params", f'{{{CALL},"params":{{"name":"a","NAME":"b"}}}}'.encode(), INVALID_REQUEST),
    ("full-width letters", f'{{{CALL},"params":{{"ｎａｍｅ":"b"}}}}'.encode(), INVALID_REQUEST),
    ("a long s", f'{{{CALL},"paramſ":{{}}}}'.encode(), INVALID_REQUEST),
    ("a Kelvin sign", f'{{{CALL},"params":{{"tasKId":"b"}}}}'.encode(), INVALID_REQUEST),
    ("a NUL in a member", f'{{{CALL},"params":{{"name\\u0000":"b"}}}}'.encode(), INVALID_REQUEST),
    ("a zero-width space in a member", f'{{{CALL},"params":{{"na\\u200dme":"b"}}}}'.encode(), INVALID_REQUEST),
    ("another case of taskId", f'{{{CALL},"params":{{"taskid":"b"}}}}'.encode(), INVALID_REQUEST),
    ("method and result", f'{{{CALL},"result":{{}}}}'.encode(), INVALID_REQUEST),
    ("method and error", f'{{{CALL},"error":null}}'.encode(), INVALID_REQUEST),
    ("a method that is no string", b'{"jsonrpc":"2.0","id":1,"method":["tools/call"]}', INVALID_REQUEST),
    ("a method that is null", b'{"jsonrpc":"2.0","id":1,"method":null}', INVALID_REQUEST),
    ("a call without id", b'{"jsonrpc":"2.0","method":"tools/call"}', INVALID_REQUEST),
    ("a call with id null", b'{"jsonrpc":"2.0","id":null,"method":"tools/call"}', INVALID_REQUEST),
    ("a list without id in a batch", b'[{"jsonrpc":"2.0","method":"tools/list"}]', INVALID_REQUEST),
]


@pytest.mark.parametrize(("body", "code"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_a_body_that_parsers_read_differently_is_refused(body: bytes, code: int) -> None:
    with pytest.raises(BodyRefused) as refused:
        parse_body(body)
    assert refused.value.code == code


ACCEPTED: list[tuple[str, bytes]] = [
    ("64 levels", nested(64).encode()),
    ("a surrogate pair", f'{{{CALL},"params":{{"name":"\\ud83d\\ude00"}}}}'.encode()),
    ("an escaped backslash before ud800", f'{{{CALL},"params":{{"name":"\\\\ud800"}}}}'.encode()),
    ("members twice in arguments", f'{{{CALL},"params":{{"arguments":{{"a":1,"a":2,"Name":1}}}}}}'.encode()),
    ("numbers of any size", f'{{{CALL},"params":{{"a":[1e999,{"9" * 5000},-0.0]}}}}'.encode()),
    ("an id of any size", f'{{"id":{"9" * 5000},"method":"ping"}}'.encode()),
    ("white space around", f" \r\n\t{{{CALL}}}\n".encode()),
    ("a response", b'{"jsonrpc":"2.0","id":1,"result":{}}'),
    ("an error", b'{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":""}}'),
    ("an unknown notification", b'{"jsonrpc":"2.0","method":"notifications/x"}'),
    ("a batch of 50", json.dumps([{"jsonrpc": "2.0", "method": "x"}] * 50).encode()),
    ("unknown members", f'{{{CALL},"trace":1,"params":{{"methods":1,"names":2}}}}'.encode()),
    ("many containers side by side", f'{{{CALL},"params":{{"a":[{",".join(["{}"] * 500)}]}}}}'.encode()),
]


@pytest.mark.parametrize("body", [row[1] for row in ACCEPTED], ids=[row[0] for row in ACCEPTED])
def test_an_honest_body_is_not_refused(body: bytes) -> None:
    assert parse_body(body).messages


def test_messages_are_told_apart() -> None:
    body = parse_body(
        b'[{"id":"a","method":"ping"},{"method":"n"},{"id":1,"result":{}},{"id":null,"method":"vendor/x","params":[]}]'
    )
    assert [(m.kind, m.id, m.method) for m in body.messages] == [
        (Kind.REQUEST, "a", "ping"),
        (Kind.NOTIFICATION, None, "n"),
        (Kind.RESPONSE, 1, ""),
        (Kind.REQUEST, None, "vendor/x"),
    ]
    assert body.batch and body.has_requests


@pytest.mark.parametrize("id", ["x", 7, -1, 1.5, ""])
def test_the_refusal_names_the_id_of_its_message(id: object) -> None:
    with pytest.raises(BodyRefused) as refused:
        parse_body(json.dumps({"id": id, "method": "ping", "result": 1}).encode())
    assert refused.value.id == id


@pytest.mark.parametrize("id", ["[1]", "{}", "true", "null", "1e999", "9" * 5000])
def test_an_id_that_cannot_be_echoed_becomes_null(id: str) -> None:
    with pytest.raises(BodyRefused) as refused:
        parse_body(f'{{"id":{id},"method":"ping","result":1}}'.encode())
    assert refused.value.id is None


@pytest.mark.parametrize(
    "types",
    [
        [],
        ["text/plain"],
        ["application/json", "application/json"],
        ["application/json; charset=utf-16"],
        ["application/json;charset=latin-1"],
        ["application/jsonp"],
        ["application/json, text/plain"],
        [""],
    ],
)
def test_other_content_types_are_refused(types: list[str]) -> None:
    with pytest.raises(BodyRefused):
        check_content(types, [], [])


@pytest.mark.parametrize("type", ["application/json", 'Application/JSON ; Charset="UTF-8"', "application/json;v=1"])
def test_json_in_utf_8_is_accepted_however_it_is_spelled(type: str) -> None:
    check_content([type], [], [])


@pytest.mark.parametrize("encoding", ["gzip", "identity", "br"])
def test_any_content_encoding_is_refused(encoding: str) -> None:
    with pytest.raises(BodyRefused):
        check_content(["application/json"], [encoding], [])


@pytest.mark.parametrize("coding", [["chunked"], ["Chunked"], []])
def test_a_body_may_come_in_chunks(coding: list[str]) -> None:
    check_content(["application/json"], [], coding)


@pytest.mark.parametrize("coding", [["gzip, chunked"], ["gzip"], ["chunked", "chunked"], ["identity"]])
def test_any_other_transfer_coding_is_refused(coding: list[str]) -> None:
    with pytest.raises(BodyRefused):
        check_content(["application/json"], [], coding)


@pytest.mark.parametrize("name", sorted(PROTECTED))
def test_every_protected_name_has_lookalikes_that_are_found(name: str) -> None:
    wide = "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in name)
    for lookalike in (name.upper(), wide, name + "\0", "\x7f" + name, name[0] + "\u00ad" + name[1:]):
        assert resembles_protected(lookalike), ascii(lookalike)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=20,
)


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_no_bytes_bring_the_parser_down(raw: bytes) -> None:
    try:
        body = parse_body(raw)
    except BodyRefused as refused:
        assert refused.message
    else:
        assert body.messages


@given(JSON, st.booleans())
def test_what_is_accepted_reads_the_same_to_any_parser(arguments: Any, ascii_only: bool) -> None:
    document = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "a", "arguments": arguments}}
    try:
        raw = json.dumps(document, ensure_ascii=ascii_only).encode()
    except UnicodeEncodeError:
        return
    assert parse_body(raw).messages[0].params == json.loads(raw)["params"]
