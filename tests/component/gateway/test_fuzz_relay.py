"""Through real workers: bytes arrive as they were sent, and none of any kind bring a worker down or get around it."""

from __future__ import annotations

import base64
import json
import random
import re
import socket
from collections.abc import Generator, Iterable
from typing import Any, cast

import httpx
import pytest
from aiohttp import web
from hypothesis import example, given
from hypothesis import strategies as st

from support.fuzz import examples
from support.gateway.mcp_http import call, request
from support.gateway.mcp_servers import Answer, ScriptedServer, Seen, accepted, raw_answer
from support.gateway.odd_json import bodies
from support.gateway.raw_http import head_of, talk
from support.gateway.tls import HOST
from support.gateway.world import World, restricted

pytestmark = pytest.mark.component

STREAM = "text/event-stream"


@pytest.fixture
def client(gateway: World) -> Generator[httpx.Client]:
    """A client that keeps its connection."""
    with httpx.Client(verify=gateway.tls.client_context(), timeout=30, trust_env=False) as http:
        yield http


def streamed(raw: bytes, seed: int) -> Answer:
    """An event stream in chunks of any size."""

    async def answer(incoming: web.BaseRequest, _seen: Seen) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": STREAM})
        await response.prepare(incoming)
        chance, rest = random.Random(seed), raw
        while rest:
            size = chance.choice([1, 2, 3, 7, 30, 500])
            await response.write(rest[:size])
            rest = rest[size:]
        return response

    return answer


def cut(raw: bytes, places: Iterable[int]) -> list[bytes]:
    """`raw` in pieces that begin at these places."""
    at = sorted({place % (len(raw) + 1) for place in places})
    return [raw[start:end] for start, end in zip([0, *at], [*at, len(raw)], strict=True) if start < end]


def test_the_server_sees_the_very_bytes_of_every_body(
    gateway: World, script: ScriptedServer, client: httpx.Client
) -> None:
    connection = gateway.connect(gateway.instance(script.port))

    @examples(40)
    @given(bodies())
    def check(raw: bytes) -> None:
        script.seen.clear()
        answer = client.post(connection.url, content=raw, headers=connection.headers)
        assert (answer.status_code, [seen.body for seen in script.seen]) == (202, [raw]), answer.text

    check()


def test_the_server_sees_the_very_bytes_however_the_request_is_cut(gateway: World, script: ScriptedServer) -> None:
    connection = gateway.connect(gateway.instance(script.port))
    context = gateway.tls.client_context()
    path = connection.url.removeprefix(gateway.base)

    @examples(20)
    @given(bodies(), st.lists(st.integers(0, 2000), max_size=6), st.none() | st.lists(st.integers(0, 400), max_size=4))
    def check(raw: bytes, places: list[int], chunks: list[int] | None) -> None:
        script.seen.clear()
        framing, body = ("Content-Length", str(len(raw))), raw
        if chunks is not None:
            framing = ("Transfer-Encoding", "chunked")
            body = b"".join(b"%X\r\n%s\r\n" % (len(chunk), chunk) for chunk in cut(raw, chunks)) + b"0\r\n\r\n"
        head = head_of(f"POST {path} HTTP/1.1".encode(), [("Host", HOST), *connection.headers.items(), framing])
        reply = talk(gateway, cut(head + body, places), context=context)
        assert (reply.status, [seen.body for seen in script.seen]) == (202, [raw])

    check()


def test_no_bytes_bring_a_worker_down(gateway: World, script: ScriptedServer, client: httpx.Client) -> None:
    connection = gateway.connect(gateway.instance(script.port))
    context = gateway.tls.client_context()
    path = connection.url.removeprefix(gateway.base)
    body = json.dumps(call("x")).encode()
    good = head_of(
        f"POST {path} HTTP/1.1".encode(),
        [("Host", HOST), *connection.headers.items(), ("Content-Length", str(len(body)))],
    )
    pids = {hello.pid for hello in gateway.dtma.workers}
    noise = st.binary(max_size=20) | st.sampled_from([b"\r\n", b"\n", b"\0", b": ", b"\r\n\r\n", b"\xff", b" HTTP/2.0"])

    @examples(40)
    @given(st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 5), noise), max_size=4), st.binary(max_size=30))
    def check(edits: list[tuple[int, int, bytes]], tail: bytes) -> None:
        raw = good + body
        for place, dropped, inserted in edits:
            at = place % len(raw)
            raw = raw[:at] + inserted + raw[at + dropped :]
        with (
            socket.create_connection((HOST, gateway.port), 30) as plain,
            context.wrap_socket(plain, server_hostname=HOST) as tls,
        ):
            tls.sendall(raw + tail)
        assert client.post(connection.url, json=request("ping"), headers=connection.headers).status_code == 202

    check()
    assert {hello.pid for hello in gateway.dtma.workers} == pids
    assert [line for line in gateway.log_lines() if line["event"] == "failed"] == []


@pytest.mark.parametrize("method", ["tools/list", "tools/call"])
def test_an_unrestricted_client_sees_the_very_bytes_of_every_answer(
    gateway: World, script: ScriptedServer, client: httpx.Client, method: str
) -> None:
    connection = gateway.connect(gateway.instance(script.port))

    @examples(40)
    @given(bodies() | st.binary(min_size=1, max_size=200), st.sampled_from([200, 400, 404, 500]))
    def check(raw: bytes, status: int) -> None:
        script.answer = raw_answer(raw, "application/json", status=status)
        answer = client.post(connection.url, json=request(method, {"name": "x"}), headers=connection.headers)
        assert (answer.status_code, answer.content) == (status, raw)

    check()


LINES = st.sampled_from(
    [b"data: {}", b"data:x", b"data", b"data:  y", b"event: e", b"id: 7", b"id:8", b"id", b"id: a\0b", b"retry: 10",
     b": c", b":",
     b"unknown: \xc3\xa9", b"ident: 1", b"id : 1", b" id: 1", b"data: \xe2\x80\xa8", b"\xef\xbb\xbfdata: b"]
)  # fmt: skip
ENDS = st.sampled_from([b"\n", b"\r", b"\r\n", b"\n\n", b"\r\r", b"\r\n\r\n"])


def unwrapped(stream: bytes) -> bytes:
    """A stream with the server's own ids again."""
    payload = re.compile(rb"^id: me1\.[^.]+\.([^.]+)\.\S+$", re.MULTILINE)
    return payload.sub(lambda m: b"id: " + base64.urlsafe_b64decode(m[1] + b"=" * (-len(m[1]) % 4)), stream)


def test_an_unrestricted_client_sees_every_line_of_a_stream_but_for_its_ids(
    gateway: World, script: ScriptedServer, client: httpx.Client
) -> None:
    connection = gateway.connect(gateway.instance(script.port))

    @examples(40)
    @given(st.lists(st.tuples(LINES, ENDS), max_size=12), st.integers(0, 1000))
    def check(lines: list[tuple[bytes, bytes]], seed: int) -> None:
        raw = b"".join(line + end for line, end in lines) + b"\n"
        script.answer = streamed(raw, seed)
        answer = client.post(connection.url, json=request("ping"), headers=connection.headers)
        # Line ends leave as LF; an id with a NUL has no effect, and one with a space before its colon is no id.
        wanted = re.split(rb"\r\n|\r|\n", raw.removeprefix(b"\xef\xbb\xbf"))
        wanted = [re.sub(rb"^id: ?(?=.)", b"id: ", line) for line in wanted if not re.match(rb"id:.*\0", line)]
        assert unwrapped(answer.content) == b"\n".join(wanted)
        assert b"id: 7" not in answer.content and b"id: 8" not in answer.content

    check()


SHOWN, HIDDEN = {"name": "shown", "inputSchema": {"x": [1, "\u2028"]}}, {"name": "hidden", "description": "\n"}
LIST: dict[str, Any] = {"jsonrpc": "2.0", "id": 1, "result": {"tools": [HIDDEN, SHOWN, HIDDEN], "nextCursor": "c"}}
PLAIN = json.dumps(LIST)
DECIDABLE = st.sampled_from(
    [PLAIN, json.dumps(LIST, indent=1), json.dumps([LIST, LIST]), PLAIN.replace("tools", "t\\u006fols"),
     PLAIN.replace("hidden", "hidd\\u0065n"), PLAIN.replace('"result"', '"re\\u0073ult"'), "{}", "[]", "x", "",
     PLAIN.replace('"id": 1', '"id": "\u2028data: x"')]
)  # fmt: skip
UNDECIDABLE = st.sampled_from(
    [PLAIN[:-1] + ',"result":{}}', PLAIN.replace('"jsonrpc"', '"result": {}, "jsonrpc"'), PLAIN[:-2] + ',"tools":[]}}',
     "\ufeff" + PLAIN, PLAIN + PLAIN, PLAIN + "\0", "\ud7ff" + PLAIN, PLAIN.replace("[{", "[\u2028{", 1),
     PLAIN.replace(" ", "\u00a0")]
)  # fmt: skip
BREAKS = st.sampled_from([*"\v\f\x1c\x1d\x1e\x85\u2028\u2029", "\r", "\n", "\0", "\t"])
FIELDS = st.sampled_from(["data", "data ", " data", "Data", "\ufeffdata", "data\0", "event", "id", "retry", "", "x"])


@st.composite
def hostile_events(draw: st.DrawFn) -> list[str]:
    """Lines of an event that holds a list, one way or another."""
    match draw(st.integers(0, 5)):
        case 0:
            return [draw(FIELDS) + ": x" + draw(BREAKS) + "data: " + PLAIN]
        case 1:
            return [draw(FIELDS) + draw(st.sampled_from([":", ": ", ":  ", ""])) + draw(DECIDABLE)]
        case 2:
            document, at = draw(DECIDABLE), draw(st.integers(0, 400))
            parts = [document[:at], document[at:]]
        case 3:
            parts = draw(DECIDABLE).replace("[", f"[{draw(BREAKS)}", 1).split("\n")
        case 4:
            parts = [draw(UNDECIDABLE)]
        case _:
            parts = draw(DECIDABLE).split("\n")
    return ["data: " + part for part in parts]


@st.composite
def hostile_streams(draw: st.DrawFn) -> bytes:
    """Events whose lists are cut, spelled and placed where it hurts."""
    lines: list[str] = []
    for _ in range(draw(st.integers(1, 3))):
        lines += [*draw(hostile_events()), draw(st.sampled_from(["", "", "", "id: 5", ": c", "data", "\v"]))]
    text = "".join(line + draw(st.sampled_from(["\n", "\r", "\r\n"])) for line in lines)
    end = draw(st.sampled_from([b"", b"\n", b"data: {"]))
    return draw(st.sampled_from([b"", b"\xef\xbb\xbf"])) + text.encode() + end


def first_wins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return dict(reversed(pairs))


def documents_in(stream: bytes, *, lenient: bool) -> list[Any]:
    """Every JSON document that a client finds, by the specification or by all line ends that Python knows."""
    text = stream.decode(errors="replace").removeprefix("\ufeff")
    lines = text.splitlines() if lenient else re.split(r"\r\n|\r|\n", text)
    found: list[Any] = []
    held: list[str] = []
    # What has no end yet is looked at as well: some clients do.
    for line in [*lines, ""]:
        field, _, value = line.partition(":")
        if field == "data":
            held.append(value.removeprefix(" "))
        elif not line and held:
            for reader in (dict, first_wins):
                try:
                    found.append(json.loads("\n".join(held), strict=False, object_pairs_hook=reader))
                except ValueError:
                    continue
            held = []
    return found


def tools_in(document: Any) -> list[Any]:
    messages = cast("list[Any]", document) if isinstance(document, list) else [document]
    results = [cast("dict[str, Any]", m).get("result") for m in messages if isinstance(m, dict)]
    lists = [cast("dict[str, Any]", r).get("tools") for r in results if isinstance(r, dict)]
    return [tool for each in lists if isinstance(each, list) for tool in cast("list[Any]", each)]


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_no_stream_shows_a_hidden_tool_to_any_client(
    gateway: World, script: ScriptedServer, client: httpx.Client, method: str
) -> None:
    connection = gateway.connect(gateway.instance(script.port, surface=("shown",)), expose=restricted("shown"))
    seen = 0

    @examples(60)
    @given(hostile_streams(), st.integers(0, 1000))
    @example(f"data: {PLAIN}\n\n".encode(), 0)
    def check(raw: bytes, seed: int) -> None:
        nonlocal seen
        script.answer = streamed(raw, seed)
        got = b""
        body = request("tools/call", {"name": "shown"}) if method == "POST" else None
        try:
            with client.stream(method, connection.url, json=body, headers=connection.headers) as answer:
                for chunk in answer.iter_raw():
                    got += chunk
        except httpx.TransportError:
            # Cut before what could not be decided.
            pass
        for lenient in (False, True):
            tools = [tool for document in documents_in(got, lenient=lenient) for tool in tools_in(document)]
            assert all(tool == SHOWN for tool in tools)
            seen += len(tools)

    check()
    assert seen, "some lists were shown, without what is hidden"


def test_after_all_that_the_gateway_still_answers(gateway: World, script: ScriptedServer, client: httpx.Client) -> None:
    script.answer = accepted
    connection = gateway.connect(gateway.instance(script.port))
    assert client.post(connection.url, json=request("ping"), headers=connection.headers).status_code == 202
