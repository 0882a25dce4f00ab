"""Attaching to a container over a raw connection, so that its streams can be handed to another process.

Docker answers `POST /containers/{id}/attach` with an upgrade (RFC 9110, 7.8), after which the connection carries the
streams themselves: what is written goes to stdin, and output comes in frames (a byte for the stream, three zeros, the
length in four bytes big-endian, and that many bytes).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from urllib.parse import urlsplit

from toolbox_dtma.engine.failures import DockerRefused, Failure
from toolbox_dtma.wire import InstanceReason

_END = b"\r\n\r\n"
_MAX_HEAD = 16 * 1024
_MAX_REFUSAL = 16 * 1024


async def attached(url: str, container: str) -> socket.socket:
    """Attach to `container` (`v1.41/containers/ID`): a non-blocking socket on which nothing but its streams follows.

    The caller owns the socket and sets the deadline. Raises `DockerRefused`, `OSError`, and `Failure` where the
    engine is reached in a way that has no plain socket to hand on.
    """
    connection = await _connected(url)
    with contextlib.ExitStack() as unless_done:
        unless_done.callback(connection.close)
        lines = (
            f"POST /{container}/attach?stream=1&stdin=1&stdout=1&stderr=1 HTTP/1.1",
            *("Host: docker", "Connection: Upgrade", "Upgrade: tcp", "Content-Length: 0"),
        )
        await asyncio.get_running_loop().sock_sendall(connection, "\r\n".join(lines).encode() + _END)
        answer = await _head(connection)
        status = _status(answer)
        if status != 101:
            raise DockerRefused(status, await _refusal(connection))
        unless_done.pop_all()
    return connection


async def _connected(url: str) -> socket.socket:
    parts = urlsplit(url)
    if parts.scheme == "unix":
        family, address = socket.AF_UNIX, parts.path
    elif parts.scheme in {"tcp", "http"} and parts.hostname:
        family, address = socket.AF_INET, (parts.hostname, parts.port or 2375)
    else:
        raise Failure(
            InstanceReason.CREATE_FAILED,
            f"A stdio server needs the Docker Engine on a unix socket, not on {parts.scheme}://; change --docker-url.",
        )
    connection = socket.socket(family, socket.SOCK_STREAM)
    connection.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(connection, address)
    except BaseException:
        connection.close()
        raise
    return connection


async def _head(connection: socket.socket) -> bytes:
    """The head of the answer, and not a byte more: what follows it belongs to whoever gets the socket."""
    head = b""
    while not head.endswith(_END):
        if len(head) > _MAX_HEAD:
            raise DockerRefused(0, "the Docker Engine sent an endless head")
        await _readable(connection)
        seen = connection.recv(_MAX_HEAD, socket.MSG_PEEK)
        if not seen:
            raise ConnectionResetError("the Docker Engine hung up")
        at = (head + seen).find(_END)
        head += connection.recv(len(seen) if at < 0 else at + len(_END) - len(head))
    return head


async def _readable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(connection, lambda: None if ready.done() else ready.set_result(None))
    try:
        await ready
    finally:
        loop.remove_reader(connection)


def _status(head: bytes) -> int:
    words = head.split(b"\r\n", 1)[0].split()
    if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
        raise DockerRefused(0, "the Docker Engine did not answer in HTTP")
    return int(words[1])


async def _refusal(connection: socket.socket) -> str:
    """What the body of a refusal says; Docker keeps the connection open, so the first piece has to do."""
    body = await asyncio.get_running_loop().sock_recv(connection, _MAX_REFUSAL)
    return body.decode(errors="replace")
