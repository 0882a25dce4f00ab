"""The attack table, clients' side: what is sent, and how it is refused. Data only; `test_attacks.py` runs it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from support.gateway.mcp_http import MODERN, call, request

CANARY = "forged"
"""In every text that an attacker chose: the log must never show it."""
VERSION = "io.modelcontextprotocol/protocolVersion"
TIME = call("get_time")
Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Attack:
    """One request and its refusal."""

    name: str
    status: int
    reason: str
    """The stable word of the audit line."""
    code: int | None = -32600
    """JSON-RPC code of the answer; None where it is no JSON-RPC."""
    body: Any = field(default_factory=lambda: TIME)
    """Bytes, or a document."""
    headers: Headers = ()
    """Further lines; `{name}` stands for a value of the scene."""
    as_: str = "limited"
    """Whose credential, and whose URL."""
    holder: bool = True
    """Whether the credential is a valid one, which the audit line must then name."""
    method: str = "POST"
    path: str | None = None
    """`{instance}` stands for the attacker's own; `{other}` for one that is not."""
    authorization: tuple[str, ...] = ("Bearer {token}",)
    host: tuple[str, ...] = ("{host}",)
    content_type: tuple[str, ...] = ("application/json",)
    length: bool = True
    """Whether a true Content-Length is sent."""
    version: str = "HTTP/1.1"


def raw(params: str, *, method: str = '"tools/call"') -> bytes:
    """A request with the text of `params` as it is."""
    return f'{{"jsonrpc":"2.0","id":1,"method":{method},"params":{params}}}'.encode()


def modern(method: str, **params: Any) -> dict[str, Any]:
    """A request of the revision without sessions."""
    return request(method, {"_meta": {VERSION: MODERN}, **params})


FORGED = call("get_forged")
M: Headers = (("MCP-Protocol-Version", MODERN),)
DEEP = "[" * 100 + "]" * 100
CHUNKED = (("Transfer-Encoding", "chunked"),)

CREDENTIALS = (
    Attack("no token", 401, "unauthorized", -32000, authorization=(), holder=False),
    Attack("a token nobody has", 401, "unauthorized", -32000, authorization=("Bearer forged",), holder=False),
    Attack("a token in the query", 401, "unauthorized", -32000, path="/servers/{instance}/mcp?access_token={token}",
           authorization=(), holder=False),
    Attack("a token in a cookie", 401, "unauthorized", -32000, headers=(("Cookie", "token={token}"),),
           authorization=(), holder=False),
    Attack("a token of another scheme", 401, "unauthorized", -32000, authorization=("Basic {token}",), holder=False),
    Attack("two tokens", 401, "unauthorized", -32000, authorization=("Bearer {token}", "Bearer forged"), holder=False),
    Attack("two tokens in one line", 401, "unauthorized", -32000, authorization=("Bearer {token}, Bearer forged",),
           holder=False),
    Attack("a revoked token", 401, "unauthorized", -32000, as_="revoked", holder=False),
    Attack("a token of an expired connection", 401, "unauthorized", -32000, as_="expired", holder=False),
    Attack("the old token after the grace of a rotation", 401, "unauthorized", -32000, as_="ended", holder=False),
    Attack("the old token after DTMA dropped it", 401, "unauthorized", -32000, as_="rotated", holder=False),
    Attack("a token of another server", 403, "other-instance", -32000, path="/servers/{other}/mcp"),
    Attack("a token of another server, which does not exist", 403, "other-instance", -32000,
           path="/servers/forged/mcp"),
)  # fmt: skip

PLACES = (
    Attack("an escaped dot in the path", 404, "path", None, path="/servers/%2e%2e/servers/{instance}/mcp"),
    Attack("dot segments", 404, "path", None, path="/servers/forged/../{instance}/mcp"),
    Attack("an escaped slash", 404, "path", None, path="/servers/{instance}%2Fmcp"),
    Attack("an escaped letter", 404, "path", None, path="/servers/{instance}/mc%70"),
    Attack("a double slash", 404, "path", None, path="//servers/{instance}/mcp"),
    Attack("an authority in the path", 404, "path", None, path="//forged.example.com/servers/{instance}/mcp"),
    Attack("a path parameter", 404, "path", None, path="/servers/{instance}/mcp;forged"),
    Attack("a slash at the end", 404, "path", None, path="/servers/{instance}/mcp/"),
    Attack("an escaped NUL", 404, "path", None, path="/servers/{instance}/mcp%00"),
    Attack("a fragment", 404, "path", None, path="/servers/{instance}/mcp#forged"),
    Attack("an absolute form", 404, "path", None, path="https://{host}/servers/{instance}/mcp"),
    Attack("an absolute form to elsewhere", 404, "path", None, path="http://forged.example.com/servers/{instance}/mcp"),
    Attack("a tunnel", 404, "path", None, method="CONNECT", path="forged.example.com:80", length=False, body=b""),
    Attack("resource metadata", 404, "path", None, method="GET", body=b"", length=False,
           path="/.well-known/oauth-protected-resource/servers/{instance}/mcp"),
    Attack("a log line in the path", 404, "path", None, path='/%0a{{"event":"forged"}}'),
    Attack("TRACE", 405, "method", -32000, method="TRACE", length=False, body=b""),
    Attack("PUT", 405, "method", -32000, method="PUT"),
    Attack("PATCH", 405, "method", -32000, method="PATCH"),
    Attack("HEAD", 405, "method", None, method="HEAD", length=False, body=b""),
    Attack("a method nobody knows", 400, "http", method="FORGED", holder=False),
    Attack("a method in lower case", 400, "http", method="post", holder=False),
    Attack("a rebound host", 421, "host", -32000, host=("forged.example.com",)),
    Attack("a host behind ours", 421, "host", -32000, host=("{host}@forged.example.com",)),
    Attack("a host before ours", 421, "host", -32000, host=("forged.example.com@{host}",)),
    Attack("a path in the host", 421, "host", -32000, host=("{host}/forged",)),
    Attack("no host at all", 421, "host", -32000, host=(), version="HTTP/1.0"),
    Attack("two hosts", 400, "http", host=("{host}", "forged.example.com"), holder=False),
    Attack("another site's page", 403, "origin", -32000, headers=(("Origin", "https://forged.example.com"),)),
    Attack("a page without origin", 403, "origin", -32000, headers=(("Origin", "null"),)),
    Attack("an origin that ours begins with", 403, "origin", -32000,
           headers=(("Origin", "https://console.example.com.forged.example.com"),)),
    Attack("two origins", 403, "origin", -32000,
           headers=(("Origin", "https://console.example.com"), ("Origin", "https://forged.example.com"))),
)  # fmt: skip

SESSIONS = (
    Attack("a session of another connection", 404, "session", -32001, headers=(("Mcp-Session-Id", "{session_open}"),)),
    Attack("a session of another server", 404, "session", -32001, as_="open",
           headers=(("Mcp-Session-Id", "{session_elsewhere}"),)),
    Attack("a session of the container before", 404, "session", -32001, as_="reborn",
           headers=(("Mcp-Session-Id", "{session_reborn}"),)),
    Attack("a session of a revoked connection", 404, "session", -32001, as_="open",
           headers=(("Mcp-Session-Id", "{session_revoked}"),)),
    Attack("the server's own session id", 404, "session", -32001, headers=(("Mcp-Session-Id", "{session_raw}"),)),
    Attack("a session id without its tag", 404, "session", -32001, headers=(("Mcp-Session-Id", "mt1.k1.forged."),)),
    Attack("an event id for a session id", 404, "session", -32001, headers=(("Mcp-Session-Id", "{event_limited}"),)),
    Attack("two session ids", 404, "session", -32001,
           headers=(("Mcp-Session-Id", "{session_limited}"), ("Mcp-Session-Id", "{session_limited}"))),
    Attack("closing the session of another", 404, "session", -32001, method="DELETE", body=b"", length=False,
           headers=(("Mcp-Session-Id", "{session_open}"),)),
    Attack("listening in the session of another", 404, "session", -32001, method="GET", body=b"", length=False,
           headers=(("Mcp-Session-Id", "{session_open}"),)),
    Attack("an event of another connection", 400, "event-id", method="GET", body=b"", length=False,
           headers=(("Mcp-Session-Id", "{session_limited}"), ("Last-Event-ID", "{event_open}"))),
    Attack("an event of another session of one's own", 400, "event-id", method="GET", body=b"", length=False,
           headers=(("Mcp-Session-Id", "{session_limited}"), ("Last-Event-ID", "{event_limited_2}"))),
    Attack("an event outside of its session", 400, "event-id", method="GET", body=b"", length=False,
           headers=(("Last-Event-ID", "{event_limited}"),)),
    Attack("the server's own event id", 400, "event-id", method="GET", body=b"", length=False,
           headers=(("Mcp-Session-Id", "{session_limited}"), ("Last-Event-ID", "1"))),
    Attack("an event of the container before", 404, "session", -32001, as_="reborn", method="GET", body=b"",
           length=False, headers=(("Mcp-Session-Id", "{session_reborn}"), ("Last-Event-ID", "{event_reborn}"))),
)  # fmt: skip

STREAM = "/servers/{instance}/sse"
MESSAGES = "/servers/{instance}/messages?sessionId="
SSE = (
    Attack("a stream without a token", 401, "unauthorized", -32000, method="GET", path=STREAM, body=b"", length=False,
           authorization=(), holder=False),
    Attack("a stream of another server", 403, "other-instance", -32000, method="GET", path="/servers/{other}/sse",
           body=b"", length=False),
    Attack("a stream's door with a slash at the end", 404, "path", None, method="GET", path=STREAM + "/", body=b"",
           length=False),
    Attack("a message to a stream's door", 405, "method", -32000, path=STREAM),
    Attack("listening at the door for messages", 405, "method", -32000, method="GET", body=b"", length=False,
           path=MESSAGES + "{stream_limited}"),
    Attack("a stream asked for by another site's page", 403, "origin", -32000, method="GET", path=STREAM, body=b"",
           length=False, headers=(("Origin", "https://forged.example.com"),)),
    Attack("a message without a token", 401, "unauthorized", -32000, path=MESSAGES + "{stream_limited}",
           authorization=(), holder=False),
    Attack("a message with a token nobody has", 401, "unauthorized", -32000, path=MESSAGES + "{stream_limited}",
           authorization=("Bearer forged",), holder=False),
    Attack("a message with a token in the query", 401, "unauthorized", -32000,
           path=MESSAGES + "{stream_limited}&access_token={token}", authorization=(), holder=False),
    Attack("a message from an address of one's own choice", 401, "unauthorized", -32000, holder=False,
           path=MESSAGES + "{stream_limited}", authorization=(), headers=(("Mcp-Toolbox-Source", "forged"),)),
    Attack("a message to a stream of another connection", 404, "session", -32001, path=MESSAGES + "{stream_open}"),
    Attack("a message to a stream of another server", 404, "session", -32001, as_="open",
           path=MESSAGES + "{stream_elsewhere}"),
    Attack("a message to a stream of a revoked connection", 404, "session", -32001, as_="open",
           path=MESSAGES + "{stream_revoked}"),
    Attack("a message to another server, by one's own stream", 403, "other-instance", -32000,
           path="/servers/{other}/messages?sessionId={stream_limited}"),
    Attack("a message to no stream", 404, "session", -32001, path="/servers/{instance}/messages"),
    Attack("a message to two streams", 404, "session", -32001,
           path=MESSAGES + "{stream_limited}&sessionId={stream_limited}"),
    Attack("a message to a stream that was altered", 404, "session", -32001, path=MESSAGES + "{stream_limited}A"),
    Attack("a message to a stream without a tag", 404, "session", -32001, path=MESSAGES + "mt1.k1.forged."),
    Attack("a session id for a stream", 404, "session", -32001, path=MESSAGES + "{session_limited}"),
    Attack("a stream for a session id", 404, "session", -32001, headers=(("Mcp-Session-Id", "{stream_limited}"),)),
    Attack("a message that two parsers could read differently", 400, "body", path=MESSAGES + "{stream_limited}",
           body=raw('{"name":"get_time","Name":"get_forged"}')),
    Attack("a message that is no JSON by its type", 400, "body", path=MESSAGES + "{stream_limited}",
           content_type=("text/plain",)),
    Attack("a message too large", 413, "too-large", -32000, path=MESSAGES + "{stream_limited}",
           body=b" " * (4 * 1024 * 1024 + 1)),
)  # fmt: skip

BODIES = (
    Attack("UTF-16", 400, "body", -32700, body=json.dumps(FORGED).encode("utf-16")),
    Attack("UTF-16 without its mark", 400, "body", -32700, body=json.dumps(FORGED).encode("utf-16-le")),
    Attack("UTF-32", 400, "body", -32700, body=json.dumps(FORGED).encode("utf-32-be")),
    Attack("a byte order mark", 400, "body", -32700, body=b"\xef\xbb\xbf" + json.dumps(TIME).encode()),
    Attack("a body that claims to be zipped", 400, "body", headers=(("Content-Encoding", "gzip"),)),
    Attack("a zipped transfer", 400, "body", headers=(("Transfer-Encoding", "gzip, chunked"),), length=False,
           body=b"2\r\n{}\r\n0\r\n\r\n"),
    Attack("a charset", 400, "body", content_type=("application/json; charset=utf-7",)),
    Attack("a form", 400, "body", content_type=("text/plain",)),
    Attack("no type", 400, "body", content_type=()),
    Attack("two types", 400, "http", holder=False, content_type=("application/json", "text/plain")),
    Attack("method twice", 400, "body", body=b'{"id":1,"method":"ping","method":"tools/call","params":{"name":"get_f'
           b'orged"}}'),
    Attack("name twice", 400, "body", body=raw('{"name":"get_time","name":"get_forged"}')),
    Attack("name twice, once escaped", 400, "body", body=raw('{"name":"get_time","\\u006eame":"get_forged"}')),
    Attack("name in another case", 400, "body", body=raw('{"name":"get_time","Name":"get_forged"}')),
    Attack("name in full width", 400, "body", body=raw('{"name":"get_time","ｎａｍｅ":"get_forged"}')),
    Attack("name with a NUL", 400, "body", body=raw('{"name":"get_time","name\\u0000":"get_forged"}')),
    Attack("name with a zero-width space", 400, "body", body=raw('{"name":"get_time","na\\u200bme":"get_forged"}')),
    Attack("params in another case", 400, "body",
           body=b'{"id":1,"method":"tools/call","params":{"name":"get_time"},"Params":{"name":"get_forged"}}'),
    Attack("a lone surrogate", 400, "body", -32700, body=raw('{"name":"get_time\\ud800forged"}')),
    Attack("NaN", 400, "body", -32700, body=raw('{"name":"get_time","arguments":{"forged":NaN}}')),
    Attack("a second document", 400, "body", -32700, body=json.dumps(TIME).encode() + json.dumps(FORGED).encode()),
    Attack("a depth bomb", 400, "body", -32700, body=raw(f'{{"name":"get_time","arguments":{DEEP}}}')),
    Attack("100,000 levels", 400, "body", -32700, body=b"[" * 100_000),
    Attack("a request that is also a response", 400, "body", body={**TIME, "result": {}}),
    Attack("a call as a notification", 400, "body", body={"jsonrpc": "2.0", "method": "tools/call",
           "params": {"name": "get_forged"}}),
    Attack("a call with a null id", 400, "body", body={**FORGED, "id": None}),
    Attack("a batch of 51", 400, "body", body=[TIME] * 51),
    Attack("a batch in a batch", 400, "body", body=[[FORGED]]),
    Attack("a call without id in a batch", 400, "body", body=[TIME, {"jsonrpc": "2.0", "method": "tools/call"}]),
    Attack("a body too large", 413, "too-large", -32000, body=b" " * (4 * 1024 * 1024 + 1)),
)  # fmt: skip

CALLS = (
    Attack("a hidden tool", 200, "denied", -32602, body=FORGED),
    Attack("a hidden tool in a batch", 200, "denied", -32602, body=[TIME, FORGED]),
    Attack("a hidden tool behind notifications in a batch", 200, "denied", -32602,
           body=[{"jsonrpc": "2.0", "method": "notifications/x"}, TIME, FORGED, TIME]),
    Attack("a tool's name in another case", 200, "denied", -32602, body=call("Get_Time")),
    Attack("a tool's name in full width", 200, "denied", -32602, body=call("ｇet_time")),
    Attack("a tool's name with a NUL", 200, "denied", -32602, body=call("get_time\0")),
    Attack("a tool's name with a zero-width joiner", 200, "denied", -32602, body=call("get_\u200dtime")),
    Attack("a tool's name decomposed", 200, "denied", -32602, body=call("get_tıme")),
    Attack("a tool's name with a space", 200, "denied", -32602, body=call("get_time ")),
    Attack("a tool nobody probed, of an allowed name", 200, "denied", -32602, body=call("get_other")),
    Attack("a tool's name in a list", 200, "denied", -32602, body=raw('{"name":["get_forged"]}')),
    Attack("params by position", 200, "denied", -32602, body=raw('["get_forged"]')),
    Attack("a tool by completion", 200, "denied", -32602,
           body=request("completion/complete", {"ref": {"type": "ref/tool", "name": "get_forged"}})),
    Attack("a prompt by completion, in another case", 200, "denied", -32602, as_="narrow",
           body=request("completion/complete", {"ref": {"type": "ref/prompt", "name": "greet", "Name": "forged"}})),
    Attack("a hidden prompt", 200, "denied", -32602, as_="narrow", body=request("prompts/get", {"name": "forged"})),
    Attack("a hidden resource", 200, "denied", -32602, as_="narrow",
           body=request("resources/read", {"uri": "docs://forged"})),
    Attack("a resource by another path", 200, "denied", -32602, as_="narrow",
           body=request("resources/read", {"uri": "docs://o/../forged"})),
    Attack("a resource, escaped", 200, "denied", -32602, as_="narrow",
           body=request("resources/read", {"uri": "docs://o%2f..%2fforged"})),
    Attack("watching a hidden resource", 200, "denied", -32602, as_="narrow",
           body=request("resources/subscribe", {"uri": "docs://forged"})),
    Attack("watching a hidden resource, without a session", 400, "denied", -32602, as_="narrow",
           headers=(*M, ("Mcp-Method", "subscriptions/listen")),
           body=modern("subscriptions/listen", notifications={"resourceSubscriptions": ["docs://forged"]})),
    Attack("watching in another case", 200, "denied", -32602, as_="narrow",
           body=request("subscriptions/listen", {"notifications": {}, "Notifications": {
               "resourceSubscriptions": ["docs://forged"]}})),
    Attack("the tasks of everybody", 200, "denied", -32601, as_="open", body=request("tasks/list")),
    Attack("the tasks of everybody, without a session", 404, "denied", -32601, as_="open",
           body=modern("tasks/list"), headers=(*M, ("Mcp-Method", "tasks/list"))),
    Attack("a call under a method nobody knows", 200, "denied", -32601,
           body=request("forged/call", {"name": "get_forged"})),
    Attack("a call under a method in another case", 200, "denied", -32601,
           body=request("Tools/Call", {"name": "get_forged"})),
    Attack("a call with a space behind its method", 200, "denied", -32601,
           body=request("tools/call ", {"name": "get_forged"})),
    Attack("an unknown request with a null id", 200, "denied", -32601, body=request("forged/call", {}, None)),
)  # fmt: skip

MIRRORS = (
    Attack("another method in the header", 400, "headers", -32020, headers=(("Mcp-Method", "tools/list"),)),
    Attack("another name in the header", 400, "headers", -32020,
           headers=(("Mcp-Method", "tools/call"), ("Mcp-Name", "get_forged"))),
    Attack("another name in the header, wrapped", 400, "headers", -32020,
           headers=(("Mcp-Name", "=?base64?Zm9yZ2Vk?="),)),
    Attack("a name wrapped in another spelling", 400, "headers", -32020,
           headers=(("Mcp-Name", "=?base64?Z2V0X3RpbWV=?="),)),
    Attack("two names in the header", 400, "headers", -32020,
           headers=(("Mcp-Name", "get_time"), ("Mcp-Name", "get_forged"))),
    Attack("a new revision in the header only", 400, "headers", -32602, headers=M),
    Attack("a new revision in the body only", 400, "headers", -32020, body=modern("tools/call", name="get_time"),
           headers=(("Mcp-Method", "tools/call"), ("Mcp-Name", "get_time"))),
    Attack("two revisions", 400, "headers", -32020, body=modern("tools/call", name="get_time"),
           headers=(("MCP-Protocol-Version", "2025-11-25"),)),
    Attack("a revision that is no string, and no header", 400, "headers", -32020,
           body=request("ping", {"_meta": {VERSION: 1}}), headers=(("Mcp-Method", "ping"),)),
    Attack("a method header without a body", 400, "headers", -32020, method="GET", body=b"", length=False,
           headers=(("Mcp-Method", "tools/call"),)),
    Attack("a batch under a method header", 400, "headers", -32020, body=[TIME],
           headers=(("Mcp-Method", "tools/call"),)),
    Attack("a tab in a parameter for the server", 400, "headers", headers=(("Mcp-Param-X", "a\tforged"),)),
    Attack("a line of Unicode in a parameter for the server", 400, "headers",
           headers=(("Mcp-Param-X", "a\u2028forged: b"),)),
)  # fmt: skip

FRAMING = (
    Attack("length and chunks", 400, "http", headers=CHUNKED, holder=False, body=b"0\r\n\r\nforged"),
    Attack("two lengths", 400, "http", headers=(("Content-Length", "0"),), holder=False),
    Attack("a list of lengths", 400, "http", headers=(("Content-Length", "2, 2"),), length=False, holder=False),
    Attack("a signed length", 400, "http", headers=(("Content-Length", "+2"),), length=False, body=b"{}", holder=False),
    Attack("chunked, but not last", 400, "http", headers=(("Transfer-Encoding", "chunked, identity"),), length=False,
           body=b"2\r\n{}\r\n0\r\n\r\n", holder=False),
    Attack("a transfer nobody knows", 400, "http", headers=(("Transfer-Encoding", "xchunked"),), length=False,
           body=b"2\r\n{}\r\n0\r\n\r\n", holder=False),
    Attack("a chunk size that is no number", 400, "http", headers=CHUNKED, length=False, body=b"0x2\r\n{}\r\n0\r\n\r\n",
           holder=False),
    Attack("a chunk size that overflows", 400, "http", headers=CHUNKED, length=False,
           body=b"f" * 17 + b"\r\n{}\r\n0\r\n\r\n", holder=False),
    Attack("a chunk extension with a bare line feed", 400, "http", headers=CHUNKED, length=False,
           body=b"2;forged\n{}\r\n0\r\n\r\n", holder=False),
    Attack("a bare line feed", 400, "http", headers=(("X", "a\nforged: b"),), holder=False),
    Attack("a bare carriage return", 400, "http", headers=(("X", "a\rforged: b"),), holder=False),
    Attack("a folded line", 400, "http", headers=(("X", "a\r\n forged: b"),), holder=False),
    Attack("a space before the colon", 400, "http", headers=(("Content-Length ", "0"),), holder=False),
    Attack("a NUL in a header", 400, "http", headers=(("Mcp-Param-X", "a\0forged"),), holder=False),
    Attack("a name that is no token", 400, "http", headers=(("X(forged)", "a"),), holder=False),
    Attack("the preface of HTTP/2", 400, "http", method="PRI", path="*", version="HTTP/2.0", holder=False),
    Attack("a space in the path", 400, "http", path="/servers/{instance}/mcp forged", holder=False),
    Attack("a head too long", 400, "http", headers=(("X", "forged" * 2000),), holder=False),
    Attack("too many headers", 400, "http", headers=tuple((f"X-{n}", "forged") for n in range(200)), holder=False),
    Attack("a path too long", 400, "http", path="/servers/{instance}/mcp?" + "forged" * 2000, holder=False),
)  # fmt: skip

ATTACKS = (*CREDENTIALS, *PLACES, *SESSIONS, *SSE, *BODIES, *CALLS, *MIRRORS, *FRAMING)
