"""The client towards servers, over real sockets: what is kept, what is held up, and what is never sent twice."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest
import uvloop

from support.async_poll import until
from toolbox_dtma.gateway.upstream.client import MAX_KEPT, Patience, UpstreamClient
from toolbox_dtma.gateway.upstream.connection import HIGH_WATER, Answer, Connection, Origin
from toolbox_dtma.gateway.upstream.errors import Broken, ConnectFailed, Malformed, Silent

pytestmark = pytest.mark.component

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
ENDLESS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@dataclass
class Server:
    """Reads whole requests with a `Content-Length`, or none, and leaves the rest to `answer`."""

    origin: Origin
    requests: list[bytes] = field(default_factory=list[bytes])
    """First lines."""
    connections: int = 0
    closed: int = 0


Respond = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def respond_ok(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(OK)


@asynccontextmanager
async def serving(respond: Respond = respond_ok) -> AsyncGenerator[Server]:
    """A server on loopback that answers each request with `respond`."""

    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server.connections += 1
        writers.append(writer)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                server.requests.append(head.partition(b"\r\n")[0])
                length = next((line for line in head.split(b"\r\n") if line.startswith(b"Content-Length:")), b":0")
                await reader.readexactly(int(length.partition(b":")[2]))
                await respond(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()
        finally:
            server.closed += 1

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    server = Server(Origin("127.0.0.1", listening.sockets[0].getsockname()[1]))
    async with listening:
        yield server
        for writer in writers:
            writer.transport.abort()
        await until("every connection has ended", lambda: server.closed == server.connections)
        await asyncio.gather(*(writer.wait_closed() for writer in writers), return_exceptions=True)


@pytest.fixture
async def client() -> AsyncGenerator[UpstreamClient]:
    async with UpstreamClient(Patience(sweep=0.05)) as client:
        yield client


def ask(
    client: UpstreamClient, origin: Origin, method: str = "POST", *, body: bytes = b"{}", silence: float = 20.0
) -> Answer:
    return client.request(method, origin, "/mcp", {"Host": "a"}, body if method == "POST" else None, silence=silence)


async def whole(answer: Answer) -> bytes:
    await answer.head()
    body = bytearray()
    while part := await answer.read():
        body += part
    answer.close()
    return bytes(body)


async def test_a_kept_connection_carries_the_next_post(client: UpstreamClient) -> None:
    async with serving() as server:
        for _ in range(3):
            assert await whole(ask(client, server.origin)) == b"ok"
        assert (server.connections, server.requests) == (1, [b"POST /mcp HTTP/1.1"] * 3)


async def test_concurrent_requests_have_connections_of_their_own(client: UpstreamClient) -> None:
    async with serving() as server:
        answers = [ask(client, server.origin) for _ in range(MAX_KEPT + 5)]
        assert [await whole(answer) for answer in answers] == [b"ok"] * len(answers)
        assert server.connections == len(answers)
        await until("the connections beyond what is kept are closed", lambda: server.closed, lambda n: n == 5)


async def test_a_request_that_is_not_a_post_gets_a_fresh_connection(client: UpstreamClient) -> None:
    async with serving() as server:
        for method in ("POST", "GET", "DELETE", "OPTIONS"):
            assert await whole(ask(client, server.origin, method)) == b"ok"
        assert server.connections == 4


async def test_another_incarnation_at_the_same_address_gets_a_fresh_connection(client: UpstreamClient) -> None:
    async with serving() as server:
        await whole(ask(client, server.origin))
        await whole(ask(client, replace(server.origin, incarnation="2")))
        assert server.connections == 2


@pytest.mark.parametrize(
    "answer",
    [
        OK + b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nother",
        OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"),
        OK.replace(b"HTTP/1.1", b"HTTP/1.0"),
    ],
)
async def test_a_connection_that_may_be_out_of_step_is_not_used_again(client: UpstreamClient, answer: bytes) -> None:
    async def respond(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)

    async with serving(respond) as server:
        for _ in range(2):
            assert await whole(ask(client, server.origin)) == b"ok"
        assert server.connections == 2


async def test_bytes_that_nobody_asked_for_close_the_connection(client: UpstreamClient) -> None:
    go = asyncio.Event()

    async def respond(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK)
        await go.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nother")

    async with serving(respond) as server:
        await whole(ask(client, server.origin))
        go.set()
        await until("the connection is closed", lambda: server.closed)
        assert await whole(ask(client, server.origin)) == b"ok"


async def test_an_answer_before_the_whole_request_was_taken_ends_the_connection(client: UpstreamClient) -> None:
    size = 64 << 20
    taken: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def respond_at_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        count = 0
        with contextlib.suppress(ConnectionError):
            while part := await reader.read(1 << 16):
                count += len(part)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        taken.set_result(count)

    async with await asyncio.start_server(respond_at_once, "127.0.0.1", 0) as listening:
        origin = Origin("127.0.0.1", listening.sockets[0].getsockname()[1])
        assert await whole(ask(client, origin, body=b"x" * size)) == b"ok"
        assert client.kept == 0
        async with asyncio.timeout(10):
            assert await taken < size


async def test_an_unused_connection_is_closed_before_the_server_does_it() -> None:
    async with UpstreamClient(Patience(kept=0.2, sweep=0.05)) as client, serving() as server:
        await whole(ask(client, server.origin))
        assert client.kept == 1
        await until("the connection is closed", lambda: server.closed)
        assert client.kept == 0
        assert await whole(ask(client, server.origin)) == b"ok"


async def test_a_post_whose_connection_dies_is_not_sent_again(client: UpstreamClient) -> None:
    async def respond(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(server.requests) == 1:
            writer.write(OK)
        else:
            writer.transport.abort()

    async with serving(respond) as server:
        await whole(ask(client, server.origin))
        with pytest.raises(Broken):
            await whole(ask(client, server.origin))
        assert (server.connections, len(server.requests)) == (1, 2)


@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("sent", [b"", OK[:9], OK[:-1], ENDLESS + b"5\r\nhel"])
async def test_an_answer_that_breaks_off_is_broken(client: UpstreamClient, sent: bytes, reset: bool) -> None:
    async def respond(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(sent)
        await writer.drain()
        if reset:
            linger = bytes((1, 0, 0, 0, 0, 0, 0, 0))
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.close()

    async with serving(respond) as server:
        with pytest.raises(Broken):
            await whole(ask(client, server.origin))


async def test_an_answer_without_a_length_ends_with_its_connection(client: UpstreamClient) -> None:
    async def respond(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nall of it")
        writer.close()

    async with serving(respond) as server:
        assert await whole(ask(client, server.origin)) == b"all of it"


async def test_what_came_before_the_end_is_read_before_it_is_told(client: UpstreamClient) -> None:
    go = asyncio.Event()

    async def respond(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(ENDLESS + b"5\r\nhello\r\n")
        await go.wait()
        writer.write(b"nonsense\r\n")

    async with serving(respond) as server:
        answer = ask(client, server.origin)
        await until("the first chunk is there", lambda: answer.buffered)
        go.set()
        await until("the server is hung up on", lambda: server.closed)
        assert await answer.read() == b"hello"
        with pytest.raises(Malformed):
            await answer.read()


async def test_a_server_that_says_nothing_for_too_long_is_given_up(client: UpstreamClient) -> None:
    async def respond(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(ENDLESS + b"5\r\nhello\r\n")

    async with serving(respond) as server:
        answer = ask(client, server.origin, silence=0.2)
        begun = time.monotonic()
        with pytest.raises(Silent):
            await whole(answer)
        assert time.monotonic() - begun >= 0.2
        await until("the server is hung up on", lambda: server.closed)


async def test_a_server_is_held_up_while_nobody_reads(client: UpstreamClient) -> None:
    chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    sent = 0

    async def respond(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(ENDLESS)
        for _ in range(512):
            writer.write(chunk)
            await writer.drain()
            sent += 1
        writer.write(b"0\r\n\r\n")

    async with serving(respond) as server:
        answer = ask(client, server.origin)
        await answer.head()
        await until("the server stands still", lambda: (answer.buffered, sent), _is_still())
        assert sent < 512 and HIGH_WATER < answer.buffered < 2 << 20
        assert len(await whole(answer)) == 512 * 65536
        assert await whole(ask(client, server.origin)) != b""


def _is_still(times: int = 10) -> Callable[[object], bool]:
    """Whether a value was the same for so many looks."""
    seen: list[object] = []

    def still(value: object) -> bool:
        seen.append(value)
        return len(seen) > times and len(set(seen[-times:])) == 1

    return still


async def test_one_task_may_go_on_where_another_was_cancelled(client: UpstreamClient) -> None:
    go = asyncio.Event()

    async def respond(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await go.wait()
        writer.write(OK)

    async with serving(respond) as server:
        answer = ask(client, server.origin)
        first = asyncio.create_task(answer.head())
        await until("the request is there", lambda: server.requests)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        go.set()
        assert await whole(answer) == b"ok"


async def test_closing_an_answer_hangs_up_on_the_server(client: UpstreamClient) -> None:
    async def respond(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(ENDLESS)

    async with serving(respond) as server:
        answer = ask(client, server.origin)
        await answer.head()
        answer.close()
        await until("the server is hung up on", lambda: server.closed)
        with pytest.raises(Broken):
            await answer.read()


async def test_closing_an_answer_gives_up_a_connection_that_is_being_made(client: UpstreamClient) -> None:
    async with serving() as server:
        answer = ask(client, server.origin)
        answer.close()
        with pytest.raises(Broken):
            await answer.head()
        assert await whole(ask(client, server.origin)) == b"ok"
        assert server.requests == [b"POST /mcp HTTP/1.1"]


def test_a_connection_given_up_in_the_moment_in_which_it_is_made_is_not_waited_for() -> None:
    """On the loop that workers have."""

    async def scenario() -> None:
        async with serving() as server:
            client = UpstreamClient()
            answer: Answer | None = None
            made: list[Connection] = []
            opened = client.opened

            def given_up(connection: Connection) -> None:
                opened(connection)
                made.append(connection)
                assert answer is not None
                answer.close()

            client.opened = given_up
            answer = ask(client, server.origin)
            with pytest.raises(Broken):
                await answer.head()
            await until("a connection is made", lambda: made)
            async with asyncio.timeout(5):
                await client.close()

    uvloop.run(scenario())


async def test_a_server_that_does_not_listen_is_told_from_one_that_breaks_off(client: UpstreamClient) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectFailed):
            await ask(client, Origin("127.0.0.1", unused.getsockname()[1])).head()


async def test_a_server_that_takes_no_connection_is_given_up() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        # The kernel takes one; then the queue is full, and further attempts stay without an answer.
        with socket.create_connection(address):
            async with UpstreamClient(Patience(connect=0.3)) as client:
                with pytest.raises(ConnectFailed):
                    await ask(client, Origin(*address)).head()


async def test_closing_the_client_ends_everything() -> None:
    async def respond(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(ENDLESS)

    async with serving(respond) as server:
        async with UpstreamClient() as client:
            answer = ask(client, server.origin)
            await answer.head()
        with pytest.raises(Broken):
            await answer.read()
        await until("the server is hung up on", lambda: server.closed)
