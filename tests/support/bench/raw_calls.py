"""MCP over HTTP at the cost of a system call or two, so that what is measured is not the client.

Blocking sockets, kept alive; one object is one connection, for one thread.
"""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

SESSION = "mcp-session-id"
PROTOCOL = "2025-11-25"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a server's MCP is, directly or through a gateway."""

    url: str
    token: str | None = None
    ca: str | None = None
    host: str | None = None
    """The Host header, where it is not the address."""
    unix: str | None = None
    """Path of a unix socket, where it is not the address that is connected to."""
    connection: str | None = None
    """The connection that a gateway's worker would name."""

    @staticmethod
    def of_secret(secret: Mapping[str, str]) -> Endpoint:
        """What a connection's Secret says."""
        return Endpoint(secret["url"], secret["token"], secret.get("ca.crt"))


@dataclass(frozen=True, slots=True)
class Answer:
    """Status, headers in lower case, and body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def message(method: str, params: Mapping[str, Any] | None = None, id: int | None = 1) -> bytes:
    """A JSON-RPC request; a notification without `id`."""
    body: dict[str, Any] = {"jsonrpc": "2.0", "method": method}
    if id is not None:
        body["id"] = id
    if params is not None:
        body["params"] = params
    return json.dumps(body).encode()


INITIALIZE = message(
    "initialize", {"protocolVersion": PROTOCOL, "capabilities": {}, "clientInfo": {"name": "bench", "version": "1"}}
)


def call(tool: str, **arguments: Any) -> bytes:
    """A `tools/call`."""
    return message("tools/call", {"name": tool, "arguments": arguments})


class RawConnection:
    """One connection. Raises `OSError` when it breaks."""

    def __init__(self, endpoint: Endpoint, *, seconds: float = 30.0) -> None:
        parts = urlsplit(endpoint.url)
        assert parts.hostname is not None
        if endpoint.unix is not None:
            plain = socket.socket(socket.AF_UNIX)
            plain.settimeout(seconds)
            plain.connect(endpoint.unix)
        else:
            plain = socket.create_connection((parts.hostname, parts.port or 443), timeout=seconds)
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket: socket.socket = plain
        if parts.scheme == "https":
            context = ssl.create_default_context(cadata=endpoint.ca)
            self._socket = context.wrap_socket(plain, server_hostname=parts.hostname)
        self._file = self._socket.makefile("rb")
        self._path = parts.path
        head = [f"Host: {endpoint.host or parts.netloc}"]
        head += ["Content-Type: application/json", "Accept: application/json, text/event-stream"]
        if endpoint.token is not None:
            head.append(f"Authorization: Bearer {endpoint.token}")
        if endpoint.connection is not None:
            head.append(f"Mcp-Toolbox-Connection: {endpoint.connection}")
        self._head = "\r\n".join(head)

    def adopt(self, session: str | None) -> None:
        """Send further requests within a session."""
        self._head += f"\r\nMCP-Protocol-Version: {PROTOCOL}"
        if session is not None:
            self._head += f"\r\nMcp-Session-Id: {session}"

    def open_session(self) -> str | None:
        """Initialise, and go on within the session; its id."""
        answer = self.post(INITIALIZE)
        assert answer.status == 200, answer
        session = answer.headers.get(SESSION)
        self.adopt(session)
        done = self.post(message("notifications/initialized", id=None))
        assert done.status == 202, done
        return session

    def post(self, body: bytes) -> Answer:
        """Send a message and read the whole answer."""
        self._send("POST", body)
        return self._answer()

    def delete(self) -> Answer:
        """End the session."""
        self._send("DELETE", b"")
        return self._answer()

    def _answer(self) -> Answer:
        status, headers = self._read_head()
        if "transfer-encoding" in headers:
            return Answer(status, headers, b"".join(self.chunks()))
        return Answer(status, headers, self._file.read(int(headers.get("content-length", "0"))))

    def chunks(self) -> Generator[bytes]:
        """The chunks of a streamed answer to its end."""
        while size := int(self._file.readline(), 16):
            yield self._file.read(size)
            self._file.readline()
        self._file.readline()

    def stream(self, body: bytes) -> int:
        """Send a message and read only the head of the answer; its status. `next_line` goes on."""
        self._send("POST", body)
        return self._read_head()[0]

    def next_line(self) -> bytes:
        """The next line of a streamed answer; empty at its end."""
        return self._file.readline()

    def _send(self, method: str, body: bytes) -> None:
        head = f"{method} {self._path} HTTP/1.1\r\n{self._head}\r\nContent-Length: {len(body)}\r\n\r\n"
        self._socket.sendall(head.encode() + body)

    def _read_head(self) -> tuple[int, dict[str, str]]:
        line = self._file.readline()
        if not line:
            raise ConnectionError("closed without an answer")
        headers: dict[str, str] = {}
        while (field := self._file.readline().rstrip()) != b"":
            name, _, value = field.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        return int(line.split()[1]), headers

    def close(self) -> None:
        """Close it."""
        self._file.close()
        self._socket.close()
