"""HTTP as bytes, to either side of a gateway: what no client and no server library would send."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from support.gateway.threads import LoopThread
from support.gateway.tls import HOST
from support.gateway.world import World


@dataclass(frozen=True)
class Reply:
    """What came back."""

    status: int
    head: bytes
    body: bytes
    cut: bool
    """Whether the connection broke before the answer was whole."""

    @property
    def raw(self) -> bytes:
        """Everything that a client could read."""
        return self.head + b"\r\n\r\n" + self.body

    def header(self, name: str) -> list[str]:
        """Every value of a header."""
        lines = self.head.decode("latin-1").split("\r\n")[1:]
        return [value.strip() for key, _, value in (line.partition(":") for line in lines) if key.lower() == name]


def head_of(request_line: bytes, headers: Sequence[tuple[str, str]]) -> bytes:
    """A head, its lines taken as they are."""
    lines = [request_line, *(f"{name}: {value}".encode() for name, value in headers)]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def talk(
    world: World,
    pieces: Sequence[bytes],
    *,
    context: ssl.SSLContext | None = None,
    source: str = HOST,
    head_only: bool = False,
    seconds: float = 30,
) -> Reply:
    """Send pieces on a connection of their own and read one answer, until it is whole or the connection ends.

    `source` is the address the client connects from: any of 127.0.0.0/8.
    """
    context = context or world.tls.client_context()
    with (
        socket.create_connection((HOST, world.port), seconds, source_address=(source, 0)) as plain,
        context.wrap_socket(plain, server_hostname=HOST) as tls,
    ):
        tls.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            for piece in pieces:
                tls.sendall(piece)
        except OSError:
            # The gateway refused by the part it has; its answer is still there to be read.
            pass
        return _reply(tls, head_only=head_only)


def _reply(tls: socket.socket, *, head_only: bool) -> Reply:
    raw = b""
    while not _is_whole(raw, head_only=head_only):
        try:
            more = tls.recv(65536)
        except OSError as error:
            if isinstance(error, TimeoutError):
                raise AssertionError(f"no whole answer in time: {raw!r}") from error
            more = b""
        if not more:
            break
        raw += more
    head, _, body = raw.partition(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1]) if head.startswith(b"HTTP/1.") else 0
    whole = _is_whole(raw, head_only=head_only)
    return Reply(status, head, _dechunked(body) if b"chunked" in head.lower() else body, cut=not whole)


def _is_whole(raw: bytes, *, head_only: bool) -> bool:
    head, end, body = raw.partition(b"\r\n\r\n")
    if not end:
        return False
    lowered = head.lower()
    if head_only or b" 204 " in head.split(b"\r\n")[0]:
        return True
    if b"transfer-encoding: chunked" in lowered:
        return body.endswith(b"0\r\n\r\n")
    _, _, length = lowered.partition(b"content-length:")
    return bool(length) and len(body) >= int(length.split(b"\r\n")[0])


def _dechunked(body: bytes) -> bytes:
    out = b""
    while body:
        size, _, rest = body.partition(b"\r\n")
        length = int(size or b"0", 16)
        out += rest[:length]
        body = rest[length + 2 :] if length else b""
    return out


def answer(
    body: bytes = b"", *headers: tuple[str, str], status: str = "200 OK", type: str | None = "application/json"
) -> bytes:
    """A server's whole answer."""
    kind = [("Content-Type", type)] if type is not None else []
    return (
        head_of(
            f"HTTP/1.1 {status}".encode(),
            [*kind, ("Content-Length", str(len(body))), ("Connection", "close"), *headers],
        )
        + body
    )


@contextmanager
def raw_server(replies: Sequence[bytes]) -> Generator[tuple[int, list[bytes]]]:
    """A server on loopback that answers every request with the same pieces and hangs up.

    Gives its port and the heads of the requests it got.
    """
    threads = LoopThread()
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            heads.append(head)
            _, _, length = head.lower().partition(b"content-length:")
            if length:
                await reader.readexactly(int(length.split(b"\r\n")[0]))
            for piece in replies:
                writer.write(piece)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            # The gateway had seen enough.
            return
        finally:
            writer.close()

    async def start() -> asyncio.Server:
        return await asyncio.start_server(serve, HOST, 0)

    server = threads.call(start())

    async def stop() -> None:
        server.close()

    try:
        yield server.sockets[0].getsockname()[1], heads
    finally:
        threads.call(stop())
        threads.close()
