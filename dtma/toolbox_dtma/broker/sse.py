"""A server of the SSE transport as a session's peer (MCP 2024-11-05, "HTTP with SSE").

What it says are events of one GET; what it is told is a POST for each message, to where its first event of the kind
`endpoint` says. The server is a container that may be hostile: nothing that it sends decides where we connect to.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from toolbox_dtma.broker.budget import Budget
from toolbox_dtma.broker.endpoint import NAME, BadEndpoint, message_path
from toolbox_dtma.broker.messages import Message
from toolbox_dtma.broker.peer import Lost, Over
from toolbox_dtma.gateway.headers import CONNECTION, EVENT_STREAM, media_type, unreadable
from toolbox_dtma.gateway.sse import EventTooLarge, HeldEvent, SseRewriter, portions
from toolbox_dtma.gateway.upstream.client import UpstreamClient
from toolbox_dtma.gateway.upstream.connection import Answer, Origin
from toolbox_dtma.gateway.upstream.errors import ConnectFailed, UpstreamError
from toolbox_dtma.link.broker import Closing, Upstream

MAX_POSTS = 32
"""Of one session that are not answered yet."""
MAX_POST_BYTES = 8 * 1024 * 1024
"""Of their bodies together, but that one more may begin while there is less."""
MAX_ANSWER_BYTES = 64 * 1024
"""Of the answer to a POST, which says nothing: what is read of it only keeps the connection."""
VERSION = "MCP-Protocol-Version"

_ENDED = "The server ended its event stream"
_BROKE_OFF = "The server's event stream broke off"
_GONE = frozenset({404, 410})
_TYPE_CHARACTERS = 64


@dataclass(frozen=True, slots=True)
class Deadlines:
    """In seconds."""

    endpoint: float = 8.0
    """From the first attempt to connect to the endpoint event. Less than a whole probe has, which is to tell of it."""
    turn: float = 1.0
    """How long a message waits for the answer to the POST before it."""
    post: float = 900.0
    """For the answer to a POST. Some servers give it only once they have dealt with the message, which is a call's
    own time: the gateway waits as long for it."""
    rest: float = 0.5
    """For the rest of an answer whose status is known."""


class SseServer:
    """A `Peer`."""

    full = "the server takes no messages"
    not_a_message = "The server sent what is no message in its event stream"

    def __init__(
        self,
        upstream: Upstream,
        session: str,
        connection: str,
        client: UpstreamClient,
        budget: Budget,
        deadlines: Deadlines,
    ):
        """`session` is DTMA's word for it; `connection` is the UID of whose it is, empty for a probe."""
        self._upstream = upstream
        # TCP connections of one session are not used for another one.
        self._origin = Origin(upstream.address, upstream.port, session)
        self._connection = connection
        self._client = client
        self._budget = budget
        self._deadlines = deadlines
        self._stream: Answer | None = None
        self._rewriter = SseRewriter(lambda _: b"")
        self._portions: Iterator[bytes] = iter(())
        self._path: str | None = None
        """Where messages go; None before the endpoint event."""
        self._room = asyncio.Event()
        """Set while a message may be sent."""
        self._takes_turns = True
        """Whether POSTs wait for one another. Not with a server that answers only after it has dealt with a message:
        it may be waiting for the next one."""
        self._posts: set[asyncio.Task[None]] = set()
        self._posted = 0
        """Bytes of those."""
        self._sending: asyncio.Task[None] | None = None
        self._over: Over | None = None
        """What a POST has shown; told by `receive`."""

    @property
    def held(self) -> int:
        """See `Peer`."""
        return self._rewriter.held

    # What the server says.

    async def receive(self) -> Sequence[bytes]:
        """See `Peer`."""
        if self._stream is None:
            return await self._begin()
        try:
            return self._messages(await self._events(self._stream))
        except UpstreamError:
            raise self._over or Over(Closing.ENDED, _BROKE_OFF) from None

    async def _begin(self) -> list[bytes]:
        """Open the stream and read on to the endpoint event; messages that came right after it. Raises `Over`."""
        path, seconds = self._upstream.path, self._deadlines.endpoint
        missing = f"The server did not answer GET {path} within {seconds:g} s"
        headers = self._headers(Accept=EVENT_STREAM, **{"Cache-Control": "no-store"})
        # The session's own time bounds the stream: it may be silent for as long as nobody waits for anything.
        stream = self._client.request("GET", self._origin, path, headers, None, silence=math.inf)
        self._stream = stream
        try:
            async with asyncio.timeout(seconds):
                await stream.head()
                self._check_head(stream)
                missing = f"The server sent no endpoint event within {seconds:g} s"
                messages: list[bytes] = []
                while self._path is None:
                    messages = self._messages(await self._events(stream))
        except TimeoutError:
            raise Over(Closing.PROTOCOL, missing) from None
        except ConnectFailed as failed:
            if failed.refused:
                raise Over(Closing.UNREACHABLE, "Nothing listens on the server's port") from None
            raise Over(Closing.PROTOCOL, "The server cannot be connected to") from None
        except UpstreamError:
            raise Over(Closing.PROTOCOL, "The server broke off its answer before an endpoint event") from None
        self._room.set()
        return messages

    def _check_head(self, stream: Answer) -> None:
        """Raises `Over`."""
        status = stream.status
        if status != 200:
            problem = f"HTTP {_described(status)}"
        elif unreadable(stream.headers) == "upstream-encoded":
            problem = "a content encoding that was not asked for"
        elif unreadable(stream.headers) is not None or media_type(stream.headers) != EVENT_STREAM:
            problem = f"{_shown(media_type(stream.headers)) or 'no media type'} in place of an event stream"
        else:
            return
        raise Over(Closing.PROTOCOL, f"The server answered GET {self._upstream.path} with {problem}")

    async def _events(self, stream: Answer) -> list[HeldEvent]:
        """The next events, or none. Raises `UpstreamError`, `Over`."""
        portion = next(self._portions, None)
        if portion is not None:
            # Others are not to wait until so many lines are read.
            await asyncio.sleep(0)
        else:
            chunk = await stream.read()
            if not chunk:
                what = _ENDED if self._path is not None else f"{_ENDED} before an endpoint event"
                raise Over(Closing.ENDED, what)
            self._portions = portions(chunk)
            portion = next(self._portions)
        try:
            return [event for event in self._rewriter.feed(portion, hold=True) if isinstance(event, HeldEvent)]
        except EventTooLarge as error:
            message = f"The server sent what cannot be read in its event stream: {error}"
            raise Over(Closing.PROTOCOL, message) from None

    def _messages(self, events: Sequence[HeldEvent]) -> list[bytes]:
        """What is a message among events; takes note of the first endpoint. Raises `Over`."""
        found: list[bytes] = []
        for event in events:
            kind, data = _kind(event), event.data
            if not data or data.isspace():
                continue
            if self._path is None and kind == b"endpoint":
                where = self._upstream
                try:
                    self._path = message_path(data, where.address, where.port, where.path)
                except BadEndpoint as error:
                    raise Over(Closing.PROTOCOL, f"The server cannot be used: {error}") from None
            elif self._path is not None and kind == b"message":
                # Data of several lines: a line end in JSON is white space, and would end the line that clients get.
                found.append(data.replace(b"\n", b" "))
        return found

    # What it is told.

    async def room(self) -> None:
        """See `Peer`."""
        await self._room.wait()

    def write(self, messages: Sequence[Message], lost: Lost, version: str | None) -> None:
        """See `Peer`."""
        self._room.clear()
        self._sending = asyncio.create_task(self._send(tuple(messages), lost, version))

    async def _send(self, messages: Sequence[Message], lost: Lost, version: str | None) -> None:
        for message in messages:
            while len(self._posts) >= MAX_POSTS or self._posted >= MAX_POST_BYTES:
                await asyncio.wait(self._posts, return_when=asyncio.FIRST_COMPLETED)
            post = self._begin_post(message, lost, version)
            if self._takes_turns:
                done, _ = await asyncio.wait({post}, timeout=self._deadlines.turn)
                self._takes_turns = bool(done)
        self._room.set()

    def _begin_post(self, message: Message, lost: Lost, version: str | None) -> asyncio.Task[None]:
        size = len(message.raw)
        self._posted += size
        self._budget.resize(0, size)
        post = asyncio.create_task(self._post(message, lost, version))
        self._posts.add(post)

        def done(_: asyncio.Task[None]) -> None:
            self._posts.discard(post)
            self._posted -= size
            self._budget.resize(size, 0)

        # Also of a task that is cancelled before its first step.
        post.add_done_callback(done)
        return post

    async def _post(self, message: Message, lost: Lost, version: str | None) -> None:
        try:
            status = await self._status_of(message.raw, version)
        except TimeoutError:
            lost(message, f"The server did not answer the message's POST within {self._deadlines.post:g} s")
        except ConnectFailed:
            lost(message, "The server does not accept connections now")
        except UpstreamError:
            lost(message, "The server broke off its answer to the message's POST")
        else:
            self._judge(status, message, lost)

    async def _status_of(self, body: bytes, version: str | None) -> int:
        """The status that a POST is answered with. Raises `UpstreamError`, `TimeoutError`."""
        if self._path is None:
            raise RuntimeError("a message is sent before there is an endpoint")
        headers = self._headers(Accept="*/*", **{"Content-Type": "application/json"})
        if version is not None:
            headers[VERSION] = version
        answer = self._client.request("POST", self._origin, self._path, headers, body, silence=math.inf)
        try:
            async with asyncio.timeout(self._deadlines.post):
                await answer.head()
            await self._read_away(answer)
            return answer.status
        finally:
            answer.close()

    async def _read_away(self, answer: Answer) -> None:
        """Read a short answer to its end, so that its connection may be used again; any other one is cut off."""
        left = MAX_ANSWER_BYTES
        try:
            async with asyncio.timeout(self._deadlines.rest):
                while left > 0 and (data := await answer.read()):
                    left -= len(data)
        except (UpstreamError, TimeoutError):
            # Its status is all that counts.
            return

    def _judge(self, status: int, message: Message, lost: Lost) -> None:
        if 200 <= status < 300:
            return
        if status in _GONE:
            self._over = Over(Closing.ENDED, f"The server does not know this session any more (HTTP {status})")
            lost(message, self._over.message)
            if self._stream is not None:
                self._stream.close()
            return
        lost(message, f"The server answered the message's POST with HTTP {_described(status)}")

    def _headers(self, **more: str) -> dict[str, str]:
        headers = {"Host": f"{NAME}:{self._upstream.port}", "Accept-Encoding": "identity", **more}
        if self._connection:
            headers[CONNECTION] = self._connection
        return headers

    # Its end.

    def abort(self) -> None:
        """See `Peer`."""
        self._room.set()
        if self._stream is not None:
            self._stream.close()
        for task in self._tasks():
            task.cancel()

    async def ended(self) -> None:
        """See `Peer`."""
        await asyncio.gather(*self._tasks(), return_exceptions=True)

    def _tasks(self) -> list[asyncio.Task[None]]:
        return [*self._posts, *([] if self._sending is None else [self._sending])]

    def last_words(self) -> str:
        """See `Peer`: its container has a log."""
        return ""


def _kind(event: HeldEvent) -> bytes:
    """The type of an event: what its last field of that name says, by default `message` (HTML, server-sent events)."""
    kind = b""
    for line in event.lines:
        field, _, value = line.partition(b":")
        if field == b"event":
            kind = value.removeprefix(b" ")
    return kind or b"message"


def _described(status: int) -> str:
    return f"{status} (a redirect, which is not followed)" if 300 <= status < 400 else str(status)


def _shown(text: str) -> str:
    """Text of a server, fit for a sentence."""
    return "".join(c for c in text[:_TYPE_CHARACTERS] if c.isascii() and c.isprintable())
