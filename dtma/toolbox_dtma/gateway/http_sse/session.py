"""One stream of a client, and what stands behind it: a client of streamable HTTP at the worker's own /mcp."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

from multidict import CIMultiDict

from toolbox_dtma.gateway.clients import Clients
from toolbox_dtma.gateway.headers import EVENT_STREAM, LAST_EVENT_ID, SESSION, media_type
from toolbox_dtma.gateway.http_sse.answers import Awaited, negotiated
from toolbox_dtma.gateway.http_sse.incoming import Incoming
from toolbox_dtma.gateway.http_sse.listening import Listening, Said
from toolbox_dtma.gateway.http_sse.outbox import Budget, Holding, Outbox, Overfull
from toolbox_dtma.gateway.http_sse.own import OwnClient
from toolbox_dtma.gateway.http_sse.reading import MAX_MESSAGE_BYTES, Events, MessageTooLarge, read_document
from toolbox_dtma.gateway.methods import HANDSHAKE_VERSIONS
from toolbox_dtma.gateway.parsing import SERVER_ERROR
from toolbox_dtma.gateway.refusal import BROKE_OFF, RETRY_SECONDS, SESSION_NOT_FOUND, Refusal, errors
from toolbox_dtma.gateway.relay import CALL_IDLE_SECONDS, STREAM_IDLE_SECONDS
from toolbox_dtma.gateway.sse import EventTooLarge, message_event
from toolbox_dtma.gateway.upstream.connection import Answer
from toolbox_dtma.gateway.upstream.errors import UpstreamError

MAX_WAITING = 64
"""Messages that were accepted and are not on their way yet."""
MAX_RUNNING = 64
"""Requests of one stream that are not answered yet."""
_SILENCE_SLACK = 60.0
"""The relay's own deadlines come first, and say more."""
_NEITHER = "this transport has no revision without handshake: begin with initialize"
TOO_LARGE = f"The answer is larger than the {MAX_MESSAGE_BYTES} bytes that a message of this transport may have"
OVER = "The session with the server has ended; connect again"


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds."""

    ordered: float = 10.0
    """How long what comes after a notification waits for the server to have it."""
    delete: float = 5.0
    resume: float = 1.0
    """Before an answer is asked for again whose stream ended early, unless the server says when."""
    first_back_off: float = 1.0
    longest_back_off: float = 30.0
    steady: float = 30.0
    """A stream of the server's that ran so long begins again without delay of the earlier ones."""


MAX_RESUMES = 5
"""How often in a row an answer is asked for again without anything coming."""


@dataclass(eq=False, slots=True)
class _Sent:
    """A message on its way."""

    message: Incoming
    answer: Answer
    place: str | None
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once the next message may follow."""


class Session:
    """From the opening of a client's stream to its end. Nothing here outlives `close`."""

    def __init__(
        self,
        client: OwnClient,
        clients: Clients,
        budget: Budget,
        *,
        connection: str,
        instance: str,
        source: str,
        headers: Mapping[str, str],
        broken: Callable[[BaseException], None],
        patience: Patience | None = None,
    ):
        """`headers` are those of the client's GET that requests of the worker's own are made with.

        `broken` is called if it cannot go on: with `Overfull` where the client does not take what there is for it.
        """
        self.connection = connection
        self._client = client
        self._clients = clients
        self._origin = client.origin(source)
        self._source = source
        self._path = f"/servers/{instance}/mcp"
        self._headers = headers
        self._broken = broken
        self._patience = patience or Patience()
        self._holding = Holding(budget)
        self.outbox = Outbox(self._holding)
        self._waiting: asyncio.Queue[Incoming] = asyncio.Queue()
        self._sent: dict[_Sent, asyncio.Task[None]] = {}
        self._session: str | None = None
        """The signed id of the server's session."""
        self._version: str | None = None
        self._over = asyncio.Event()
        self._listens = False
        self._others: set[asyncio.Task[None]] = set()
        self._begin(self._work())

    # ------------------------------------------------------------- from outside
    def is_busy(self) -> bool:
        """Whether the client is owed something."""
        return not (self.outbox.is_empty and self._waiting.empty() and not self._running)

    @property
    def _running(self) -> int:
        return sum(bool(sent.message.ids) and not sent.settled.is_set() for sent in self._sent)

    def accept(self, message: Incoming) -> None:
        """Take a message to be sent after those before it. Raises `Refusal` 404, 429."""
        if self._over.is_set():
            raise gone()
        try:
            if self._waiting.qsize() >= MAX_WAITING:
                raise Overfull
            self._holding.take(len(message.raw))
        except Overfull:
            text = "Too many messages wait for this server; send them later"
            headers = {"Retry-After": str(RETRY_SECONDS)}
            raise Refusal.rpc(429, "sse-waiting", SERVER_ERROR, text, id=message.first_id, headers=headers) from None
        self._waiting.put_nowait(message)

    def close(self) -> None:
        """The client is gone: its calls are hung up on, and nothing more is said to it."""
        self._over.set()
        self.outbox.close()
        for task in (*self._others, *self._sent.values()):
            task.cancel()

    async def ended(self, *, delete: bool) -> None:
        """Once it is closed: return when everything has ended, and the server was told if it is to be."""
        await asyncio.gather(*self._others, *self._sent.values(), return_exceptions=True)
        self._holding.close()
        if self._session is None or not delete:
            return
        answer = self._request("DELETE", self._headers, None)
        try:
            async with asyncio.timeout(self._patience.delete):
                await answer.head()
        except (UpstreamError, TimeoutError):
            # The server has deadlines of its own for sessions that nobody uses.
            return
        finally:
            answer.close()

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._others.add(task)
        task.add_done_callback(self._check)

    def _check(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._broken(error)

    # ------------------------------------------------------------------ sending
    async def _work(self) -> None:
        """Send what was accepted, in order."""
        while True:
            message = await self._waiting.get()
            sent = await self._send(message)
            if sent is None:
                self._holding.give_back(len(message.raw))
            elif message.opens:
                # Without its answer there is no session that the next one could belong to.
                await sent.settled.wait()
            elif not message.ids:
                # A server may refuse a request that overtakes `notifications/initialized`.
                await _wait(sent.settled, self._patience.ordered)

    async def _send(self, message: Incoming) -> _Sent | None:
        """Begin an exchange; None where the client is told why not."""
        if self._over.is_set():
            await self._tell(errors(message.ids, OVER))
            return None
        if message.is_modern:
            supported = sorted(HANDSHAKE_VERSIONS)
            text = f"Unsupported protocol version; {_NEITHER} and one of {', '.join(supported)}"
            await self._tell(errors(message.ids, text, {"supported": supported}))
            return None
        place = None
        if message.ids:
            # Any other client would need a connection for it, and gets none beyond its share either.
            place = self._clients.enter(self._source) if self._running < MAX_RUNNING else None
            if place is None:
                text = "Too many requests of this client run at once; try again"
                await self._tell(errors(message.ids, text, {"retryAfterMs": RETRY_SECONDS * 1000}))
                return None
        self._headers = message.headers
        try:
            answer = self._request("POST", message.headers, message.raw)
        except BaseException:
            self._leave(place)
            raise
        sent = _Sent(message, answer, place)
        task = asyncio.create_task(self._exchange(sent))
        self._sent[sent] = task
        task.add_done_callback(self._check)
        # Also of a task that is cancelled before its first step.
        task.add_done_callback(lambda _: self._ended(sent))
        return sent

    def _ended(self, sent: _Sent) -> None:
        del self._sent[sent]
        sent.answer.close()
        sent.settled.set()
        self._holding.give_back(len(sent.message.raw))
        self._leave(sent.place)

    def _leave(self, place: str | None) -> None:
        if place is not None:
            self._clients.leave(place)

    def _request(self, method: str, more: Mapping[str, str], body: bytes | None, last_id: str | None = None) -> Answer:
        headers = CIMultiDict(more)
        headers["Accept"] = f"application/json, {EVENT_STREAM}" if method == "POST" else EVENT_STREAM
        if body is not None:
            headers["Content-Type"] = "application/json"
        if self._session is not None:
            headers[SESSION] = self._session
        if self._version is not None:
            headers["MCP-Protocol-Version"] = self._version
        if last_id is not None:
            headers[LAST_EVENT_ID] = last_id
        silence = (STREAM_IDLE_SECONDS if method == "GET" else CALL_IDLE_SECONDS) + _SILENCE_SLACK
        return self._client.request(method, self._origin, self._path, headers, body, silence=silence)

    # ---------------------------------------------------------------- answering
    async def _exchange(self, sent: _Sent) -> None:
        """Read the answer of one message, and see to it that each of its requests has one."""
        awaited = Awaited(sent.message.ids)
        why = await self._answered(sent, awaited)
        if self._over.is_set():
            why = OVER
        await self._tell(errors(awaited.take_left(), why))

    async def _answered(self, sent: _Sent, awaited: Awaited) -> str:
        """Pass on what comes; why there is nothing for what is not answered. Raises `Overfull`."""
        try:
            answer, message = sent.answer, sent.message
            await answer.head()
            status = answer.status
            if status == 404 and self._session is not None and not message.opens:
                self._lose()
                return OVER
            if message.opens and status < 300 and SESSION in answer.headers:
                self._session = answer.headers[SESSION]
            if not message.ids:
                sent.settled.set()
                if message.is_initialized and status < 300:
                    self._listen()
                return ""
            if media_type(answer.headers) == EVENT_STREAM:
                await self._followed(sent, awaited)
                return BROKE_OFF
            for document in awaited.document(status, await read_document(answer, self._holding)):
                await self._pass(document, sent, awaited)
            return f"The server answered {status}, and nothing to this request"
        except UpstreamError:
            return BROKE_OFF
        except (MessageTooLarge, EventTooLarge):
            return TOO_LARGE

    async def _pass(self, data: bytes, sent: _Sent, awaited: Awaited) -> None:
        if sent.message.opens and awaited.is_over:
            self._version = negotiated(data) or self._version
        await self.outbox.put(message_event(data))
        if awaited.is_over:
            sent.settled.set()

    async def _followed(self, sent: _Sent, awaited: Awaited) -> None:
        """Pass on a stream, from further answers if it ends early and can be resumed."""
        events = Events(self._holding)

        async def deliver(data: bytes) -> None:
            await self._pass(awaited.event(data), sent, awaited)

        tries = 0
        while True:
            before = events.count
            try:
                await events.read(sent.answer, deliver)
            except UpstreamError:
                if events.last_id is None:
                    raise
            tries = 0 if events.count > before else tries + 1
            if awaited.is_over or events.last_id is None or tries > MAX_RESUMES:
                return
            await _wait(self._over, events.retry if events.retry is not None else self._patience.resume)
            if self._over.is_set():
                return
            sent.answer.close()
            sent.answer = self._request("GET", self._headers, None, events.last_id)
            await sent.answer.head()
            if sent.answer.status != 200 or media_type(sent.answer.headers) != EVENT_STREAM:
                return

    async def _tell(self, messages: list[bytes]) -> None:
        for message in messages:
            await self.outbox.put(message_event(message))

    # ---------------------------------------------------------------- listening
    def _listen(self) -> None:
        """Pass on what the server says by itself, once."""
        if not self._listens:
            self._listens = True
            listening = Listening(
                lambda last_id: self._request("GET", self._headers, None, last_id),
                Events(self._holding),
                lambda data: self.outbox.put(message_event(data)),
                self._patience,
            )
            self._begin(self._listened(listening))

    async def _listened(self, listening: Listening) -> None:
        if await listening.run() is Said.OVER:
            self._lose()

    # ------------------------------------------------------------------ the end
    def _lose(self) -> None:
        """The server has no such session any more: whoever waits is told, and the stream ends."""
        if not self._over.is_set():
            self._over.set()
            self._session = None
            self._begin(self._wind_up())

    async def _wind_up(self) -> None:
        while not self._waiting.empty():
            message = self._waiting.get_nowait()
            self._holding.give_back(len(message.raw))
            await self._tell(errors(message.ids, OVER))
        for sent in tuple(self._sent):
            sent.answer.close()
        await asyncio.gather(*self._sent.values(), return_exceptions=True)
        self.outbox.close()


def gone() -> Refusal:
    """404: whatever it names, it is no stream of this connection."""
    return Refusal.rpc(404, "session", SESSION_NOT_FOUND, "Session not found; initialize again")


async def _wait(event: asyncio.Event, seconds: float) -> None:
    """Return once it is set, or the time is over."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
