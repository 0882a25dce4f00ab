"""What a server of the SSE transport says, taken in any pieces, and what it is told."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from toolbox_dtma.broker.budget import Budget
from toolbox_dtma.broker.messages import read
from toolbox_dtma.broker.peer import Over
from toolbox_dtma.broker.sse import Deadlines, SseServer
from toolbox_dtma.gateway.skimming import run
from toolbox_dtma.gateway.upstream.client import UpstreamClient
from toolbox_dtma.gateway.upstream.connection import Answer, Origin
from toolbox_dtma.link.broker import Closing, Upstream

HERE = Upstream(address="10.0.0.2", port=3001, path="/sse")
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream;charset=utf-8\r\n\r\n"
EVENTS = (
    b"\xef\xbb\xbf:ok\n\nevent: message\ndata: too early\n\n"
    b"event: endpoint\r\ndata: /m?s=1\r\n\r\n"
    b'data: {"n":\ndata: 1}\n\n'
    b"event: ping\rdata: x\r\r"
    b'id: 7\nevent: message\nretry: 10\ndata:{"n":2}\n\n'
    b"event\ndata\n\nevent: endpoint\ndata: http://evil.example/\n\n"
    b'event: other\nevent:\ndata: {"n":3,"t":"\xe2\x80\xa8"}\n\n'
    b'data: {"n":4}\n'
)
DOCUMENTS = [b'{"n": 1}', b'{"n":2}', b'{"n":3,"t":"\xe2\x80\xa8"}']


class Scripted(UpstreamClient):
    """Answers a GET with pieces, one at each turn of the loop, and every POST with a status."""

    def __init__(self, pieces: Sequence[bytes], statuses: Sequence[int] = ()):
        super().__init__()
        self._pieces = pieces
        self._statuses = list(statuses)
        self.asked: list[tuple[str, str, Origin, Mapping[str, str], bytes | None]] = []
        self._feeding: set[asyncio.Task[None]] = set()

    def request(
        self, method: str, origin: Origin, path: str, headers: Mapping[str, str], body: bytes | None, *, silence: float
    ) -> Answer:
        self.asked.append((method, path, origin, headers, body))
        answer = Answer(asyncio.get_running_loop(), silence)
        if method == "POST":
            answer.received(b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % self._statuses.pop(0))
            return answer

        async def feed() -> None:
            for piece in self._pieces:
                answer.received(piece)
                await asyncio.sleep(0)
            answer.ended()

        task = asyncio.create_task(feed())
        self._feeding.add(task)
        task.add_done_callback(self._feeding.discard)
        return answer


def server(client: UpstreamClient, budget: Budget | None = None) -> SseServer:
    return SseServer(HERE, "session-1", "c-1", client, budget or Budget(), Deadlines())


async def said(pieces: Sequence[bytes]) -> tuple[list[bytes], Closing]:
    peer, found = server(Scripted(pieces)), list[bytes]()
    try:
        while True:
            found += await peer.receive()
    except Over as over:
        return found, over.why
    finally:
        peer.abort()
        await peer.ended()


@given(st.lists(st.integers(1, len(HEAD + EVENTS) - 1), max_size=12).map(sorted))
@example(list(range(1, len(HEAD + EVENTS))))
def test_messages_are_the_same_however_their_bytes_are_cut(cuts: list[int]) -> None:
    raw = HEAD + EVENTS
    pieces = [raw[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(raw)], strict=True) if begin < end]
    assert asyncio.run(said(pieces)) == (DOCUMENTS, Closing.ENDED)


async def test_what_is_held_is_the_event_that_has_begun() -> None:
    peer = server(Scripted([HEAD + b"event: endpoint\ndata: /m\n\n", b"data: 1234"]))
    while not peer.held:
        await peer.receive()
    assert peer.held == len(b"data: 1234")
    peer.abort()
    await peer.ended()


async def test_a_message_is_posted_to_the_containers_address_and_counted_until_it_is_answered() -> None:
    budget, client = Budget(), Scripted([HEAD + EVENTS], [202, 500])
    peer, lost = server(client, budget), list[str]()
    await peer.receive()
    heard = run(read(b'[{"jsonrpc":"2.0","id":1,"method":"ping"},{"jsonrpc":"2.0","id":2,"method":"ping"}]'))
    await peer.room()
    peer.write(heard.messages, lambda message, why: lost.append(f"{message.id}: {why}"), "2025-03-26")
    async with asyncio.timeout(5):
        await peer.room()
    _, *posts = client.asked
    assert [(method, path, body) for method, path, _, _, body in posts] == [
        ("POST", "/m?s=1", b'{"jsonrpc":"2.0","id":1,"method":"ping"}'),
        ("POST", "/m?s=1", b'{"jsonrpc":"2.0","id":2,"method":"ping"}'),
    ]
    for _, _, origin, headers, _ in client.asked:
        assert origin == Origin("10.0.0.2", 3001, "session-1") and headers["Host"] == "localhost:3001"
    assert {headers["MCP-Protocol-Version"] for _, _, _, headers, _ in posts} == {"2025-03-26"}
    assert lost == ["2: The server answered the message's POST with HTTP 500"]
    peer.abort()
    await peer.ended()
    assert budget.held == 0


@pytest.mark.parametrize("status", [200, 201, 202, 204])
async def test_any_success_means_that_a_message_was_taken(status: int) -> None:
    peer, lost = server(Scripted([HEAD + EVENTS], [status])), list[str]()
    await peer.receive()
    await peer.room()
    messages = run(read(b'{"jsonrpc":"2.0","id":1,"method":"ping"}')).messages
    peer.write(messages, lambda _message, why: lost.append(why), None)
    async with asyncio.timeout(5):
        await peer.room()
    assert lost == []
    peer.abort()
    await peer.ended()
