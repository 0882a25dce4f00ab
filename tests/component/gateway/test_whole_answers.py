"""Answers that are known to their end: written at once, and still HTTP for every client."""

from __future__ import annotations

import asyncio
import io
import socket
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime
from http.client import HTTPResponse
from typing import Any, cast

import pytest
from aiohttp import web

from toolbox_dtma.gateway.clients import Clients, Share
from toolbox_dtma.gateway.connection import Server
from toolbox_dtma.gateway.downstream import Whole
from toolbox_dtma.gateway.refusal import Refusal
from toolbox_dtma.gateway.settings import ClientBounds

pytestmark = pytest.mark.component

JSON = {"Content-Type": "application/json"}
BODY = b'{"jsonrpc":"2.0"}'
SECONDS = 10


def refused(_: web.BaseRequest, refusal: Refusal) -> web.StreamResponse:
    return refusal.response()


@asynccontextmanager
async def serving(status: int, headers: Mapping[str, str], body: bytes) -> AsyncGenerator[tuple[Server, int]]:
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        return Whole(status, headers, body)

    server = Server(answer, ClientBounds(), Clients(Share(100, 100)), refused)
    listening = await asyncio.get_running_loop().create_server(lambda: server.connection(lambda: None), "127.0.0.1", 0)
    async with listening:
        yield server, listening.sockets[0].getsockname()[1]
        await server.shutdown()


class _Received:
    """Bytes, as `HTTPResponse` wants a socket."""

    def __init__(self, raw: bytes):
        self._raw = raw

    def makefile(self, _mode: str) -> Any:
        return io.BytesIO(self._raw)


def parsed(raw: bytes) -> tuple[HTTPResponse, bytes]:
    response = HTTPResponse(cast("Any", _Received(raw)))
    response.begin()
    return response, response.read()


async def exchange(port: int, *requests: bytes) -> bytes:
    """Everything the server says to requests sent at once; it has to close the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"".join(requests))
    async with asyncio.timeout(SECONDS):
        raw = await reader.read()
    writer.close()
    return raw


LAST = b"GET /last HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
NEXT = b"GET /next HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize("status", [200, 400, 404, 599])
async def test_an_answer_has_its_length_its_headers_and_a_date(status: int) -> None:
    async with serving(status, {**JSON, "Mcp-Session-Id": "one"}, BODY) as (_, port):
        raw = await exchange(port, NEXT, LAST)
        first, second = raw.split(BODY)[:2]
        assert raw.count(BODY) == 2, "both requests of a connection are answered, in order"
        response, body = parsed(first + BODY)
        assert (response.status, body) == (status, BODY)
        assert response.headers["Content-Type"] == "application/json"
        assert response.headers["Mcp-Session-Id"] == "one"
        assert response.headers["Connection"] is None
        assert parsedate_to_datetime(response.headers["Date"]).tzinfo is not None
        assert b"Connection: close" in second


@pytest.mark.parametrize(
    ("status", "headers", "body"),
    [(204, {}, b""), (202, {}, b""), (200, {}, BODY), (200, JSON, b""), (304, JSON, b"")],
    ids=["204", "202 and empty", "no type", "empty", "304"],
)
async def test_what_is_no_common_case_is_still_whole(status: int, headers: dict[str, str], body: bytes) -> None:
    async with serving(status, headers, body) as (_, port):
        raw = await exchange(port, NEXT, LAST)
        assert raw.count(b"HTTP/1.1") == 2, raw
        response, found = parsed(raw)
        assert (response.status, found) == (status, body)


async def test_a_client_of_http_1_0_gets_its_connection_closed() -> None:
    async with serving(200, JSON, BODY) as (_, port):
        response, body = parsed(await exchange(port, b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n"))
        assert (response.version, response.status, body) == (10, 200, BODY)


async def test_a_worker_that_drains_closes_the_connection_with_the_answer() -> None:
    async with serving(200, JSON, BODY) as (server, port):
        server.draining = True
        response, body = parsed(await exchange(port, NEXT))
        assert body == BODY
        assert response.headers["Connection"] == "close"


async def test_a_client_that_takes_no_answers_is_not_answered_for_ever() -> None:
    size, many = 256 * 1024, 400
    answered = 0
    loop = asyncio.get_running_loop()
    async with serving(200, JSON, b"x" * size) as (server, port):
        with socket.socket() as client:
            client.setblocking(False)
            await loop.sock_connect(client, ("127.0.0.1", port))
            await loop.sock_sendall(client, NEXT * many)
            before = -1
            async with asyncio.timeout(SECONDS):
                while not answered or before != server.requests_count:
                    before = answered = server.requests_count
                    for _ in range(100):
                        await asyncio.sleep(0)
            assert 0 < answered < many / 2
