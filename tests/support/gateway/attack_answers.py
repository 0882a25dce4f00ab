"""The attack table, servers' side: what a hostile server answers, and what becomes of it. Data only."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass, replace
from typing import Any

from support.gateway.mcp_http import call, request
from support.gateway.raw_http import answer, head_of

HIDDEN = b"get_forged"
LIST = {"jsonrpc": "2.0", "id": 1, "result": {"tools": [{"name": "get_forged"}, {"name": "get_time"}]}}
LISTED = json.dumps(LIST).encode()
SHOWN = b'"tools":[{"name": "get_time"}]'
STREAM = "text/event-stream"
PONG = b'{"jsonrpc":"2.0","id":1,"result":{}}'
ASK_LIST = request("tools/list")
ASK_TIME = call("get_time")


@dataclass(frozen=True)
class Hostile:
    """One answer and its fate."""

    name: str
    reply: tuple[bytes, ...]
    status: int = 200
    audit: tuple[str, str] | None = None
    """Event and reason of the one line in the log; None where the answer is passed on, made harmless."""
    cut: bool = False
    """Whether the client must notice that the answer is not whole."""
    ask: Any = None
    """The document that is posted; None: a stream is asked for with GET."""
    never: tuple[bytes, ...] = (HIDDEN,)
    """What no byte of the client's answer may show."""
    shows: bytes = b""
    as_: str = "limited"


def events(raw: bytes, type: str = STREAM, *headers: tuple[str, str]) -> tuple[bytes, ...]:
    """An event stream that ends with its connection."""
    return (head_of(b"HTTP/1.1 200 OK", [("Content-Type", type), ("Connection", "close"), *headers]), raw)


def data(document: bytes) -> bytes:
    """One event."""
    return b"data: " + document + b"\n\n"


def refused(name: str, reason: str, *reply: bytes, **more: Any) -> Hostile:
    """An answer of which nothing is passed on."""
    return replace(Hostile(name, reply, 502, ("refused", reason), ask=ASK_TIME, shows=b'"code":-32000'), **more)


def cut(name: str, reason: str, raw: bytes, **more: Any) -> Hostile:
    """A stream that is broken off before what cannot be decided."""
    return Hostile(name, events(raw), 200, ("cut", reason), cut=True, **more)


LISTS = (
    Hostile("a list on a stream that nobody asked for", events(data(LISTED)), shows=SHOWN),
    Hostile("a list in the stream of a call", events(data(LISTED)), ask=ASK_TIME, shows=SHOWN),
    Hostile("a list with another id", events(data(LISTED.replace(b'"id": 1', b'"id": "x"'))), ask=ASK_TIME,
            shows=SHOWN),
    Hostile("a list in a batch", (answer(b"[" + LISTED + b"]"),), ask=ASK_LIST, shows=SHOWN),
    Hostile("a list in the answer to a batch", (answer(LISTED),), ask=[ASK_TIME], shows=SHOWN),
    Hostile("a list in a batch on a stream", events(data(b"[" + LISTED + b"," + LISTED + b"]")), shows=SHOWN),
    Hostile("a list on several lines", events(b"".join(b"data: " + line + b"\r" for line in json.dumps(
        LIST, indent=1).encode().splitlines()) + b"\r\n"), shows=b'"tools":[{     "name": "get_time"    }]'),
    Hostile("a list in escapes", events(data(
        b'{"id":1,"result":{"t\\u006fols":[{"n\\u0061me":"\\u0067et_forged"},{"name": "get_time"}]}}')),
        shows=SHOWN, never=(HIDDEN, b"et_forged")),
    Hostile("a list with an error's status", (answer(LISTED, status="500 Oops"),), 500, ask=ASK_LIST, shows=SHOWN),
    Hostile("a page instead of a list, with an error's status",
            (answer(LISTED, status="404 Not Found", type="text/html"),), 404, ask=ASK_LIST),
    Hostile("a list behind a separator in a comment", events(b": x\xe2\x80\xa8data: " + LISTED + b"\n\n"), never=(
        HIDDEN, b"\xe2\x80\xa8")),
    Hostile("a list behind a separator in a field", events(b"event: x\x0bdata: " + LISTED + b"\n\n"), never=(HIDDEN,)),
    Hostile("a list in another charset", events(data(b"+AHsAIgBpAGQAIgA6ADEAfQ-"), f"{STREAM}; charset=utf-7"),
            never=(b"utf-7",)),
    cut("two results in a message", "undecidable", data(LISTED[:-1] + b',"result":{}}')),
    cut("a list twice in a result", "undecidable", data(LISTED[:-2] + b',"tools":[]}}')),
    cut("a list in UTF-16", "undecidable", data(LISTED.decode().encode("utf-16-le"))),
    cut("a list behind a byte order mark", "undecidable", data(b"\xef\xbb\xbf" + LISTED)),
    cut("a list that is not JSON", "undecidable", data(LISTED + b"x")),
    cut("a list without its end", "unterminated", b"data: " + LISTED + b"\n"),
    cut("an event without end", "undecidable", b"data: " + b"x" * (4 * 1024 * 1024 + 1)),
    refused("a list of no type", "undecidable", answer(LISTED, type=None), ask=ASK_LIST),
    refused("a list of another type", "undecidable", answer(LISTED, type="text/plain"), ask=ASK_LIST),
    refused("a list that never ends", "undecidable", answer(LISTED + b" " * (4 * 1024 * 1024)), ask=ASK_LIST),
    refused("a zipped list that does not say so", "undecidable", answer(gzip.compress(LISTED) + b"\0tools"),
            ask=ASK_LIST),
    refused("a zipped list", "upstream-encoded", answer(gzip.compress(LISTED), ("Content-Encoding", "gzip")),
            ask=ASK_LIST),
    refused("a list zipped by the second word", "upstream-encoded",
            answer(LISTED, ("Content-Encoding", "identity"), ("Content-Encoding", "gzip"))),
)  # fmt: skip

TYPES = (
    *(refused(f"a stream that only some take for one: {type}", "upstream-type", *events(data(LISTED), type))
      for type in (f"{STREAM}, application/json", f"application/json, {STREAM}", f"{STREAM}s", f"x/y; z={STREAM}")),
    refused("a stream of two types", "upstream-type",
            *events(data(LISTED), "application/json", ("Content-Type", STREAM))),
)  # fmt: skip

HEADS = (
    refused("a challenge", "upstream-401", answer(b"", ("WWW-Authenticate", "Basic forged"), status="401 No"),
            never=(b"forged", b"WWW-Authenticate")),
    *(refused(f"a redirect: {status}", f"upstream-{status}", answer(
        b"", ("Location", "http://forged.example.com/"), status=f"{status} Go"), never=(b"forged",))
      for status in (301, 302, 303, 304, 307, 308)),
    refused("a switch of protocols", "upstream-101",
            head_of(b"HTTP/1.1 101 Go", [("Upgrade", "forged"), ("Connection", "upgrade")]), never=(b"forged",)),
    refused("two session ids", "upstream-session", answer(PONG, ("Mcp-Session-Id", "a"), ("Mcp-Session-Id", "b"))),
    refused("a session id with a space", "upstream-session", answer(PONG, ("Mcp-Session-Id", "a forged b")),
            never=(b"forged",)),
    refused("a session id beyond ASCII", "upstream-session", answer(PONG, ("Mcp-Session-Id", "ä"))),
    refused("a huge session id", "upstream-session", answer(PONG, ("Mcp-Session-Id", "x" * 1025))),
    refused("an empty session id", "upstream-session", answer(PONG, ("Mcp-Session-Id", ""))),
    Hostile("early hints", (head_of(b"HTTP/1.1 103 Early Hints", [("Link", "</forged>")]), answer(PONG)), ask=ASK_TIME,
            never=(b"forged", b" 103 "), shows=PONG),
    Hostile("cookies, permissions and names of its own", (answer(
        PONG, ("Set-Cookie", "forged=1"), ("Access-Control-Allow-Origin", "*"), ("Server", "forged"),
        ("Access-Control-Allow-Headers", "Authorization"), ("Link", "<http://forged>"), ("Clear-Site-Data", '"*"'),
        ("Strict-Transport-Security", "max-age=0"), ("Location", "http://forged"), ("Refresh", "0; url=http://forged"),
        ("Mcp-Toolbox-Connection", "forged"), ("Alt-Svc", 'forged=":1"'), ("Proxy-Authenticate", "forged")),),
            ask=ASK_TIME, never=(b"forged", b"access-control", b"clear-site", b"strict-", b"mcp-toolbox"), shows=PONG),
    *(Hostile(f"caching for everybody: {caching}", (answer(PONG, ("Cache-Control", caching)),), ask=ASK_TIME,
              never=(b"public", b"maxage", b"must-"), shows=b"no-store")
      for caching in ("public, max-age=600", "s-maxage=600", "max-age=600, must-revalidate")),
    Hostile("event ids of its own", events(b"id: forged-1\n\nid:forged-2\rdata: {}\r\r"), never=(b"forged",),
            as_="open"),
    Hostile("an event id for everybody", events(b"id: a\0forged\ndata: {}\n\n"), never=(b"forged",), as_="open"),
    Hostile("an event id too long to be carried back", events(b"id: " + b"forged" * 1000 + b"\ndata: {}\n\n"),
            never=(b"forged",), as_="open"),
)  # fmt: skip

JSON = ("Content-Type", "application/json")
TWO_LENGTHS = head_of(b"HTTP/1.1 200 OK", [JSON, ("Content-Length", "36"), ("Content-Length", "5")])
CHUNKS_TOO = head_of(b"HTTP/1.1 200 OK", [JSON, ("Content-Length", "36"), ("Transfer-Encoding", "chunked")])
TOO_SHORT = head_of(b"HTTP/1.1 200 OK", [JSON, ("Content-Length", "100")])
FRAMING = (
    refused("two lengths", "upstream-malformed", TWO_LENGTHS + PONG, never=(b"result",)),
    refused("length and chunks", "upstream-malformed", CHUNKS_TOO + PONG, never=(b"result",)),
    refused("no HTTP at all", "upstream-malformed", b"forged\r\n\r\n", never=(b"forged",)),
    refused("nothing", "upstream-broken"),
    refused("half a list", "upstream-broken", TOO_SHORT + LISTED[:50], ask=ASK_LIST),
    Hostile("half an answer", (TOO_SHORT + PONG,), ask=ASK_TIME, cut=True),
    Hostile("a second answer behind the first", (answer(PONG) + answer(LISTED),), ask=ASK_TIME, shows=PONG),
)

ANSWERS = (*LISTS, *TYPES, *HEADS, *FRAMING)
