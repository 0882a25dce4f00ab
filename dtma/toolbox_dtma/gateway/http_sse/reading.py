"""Answers of the worker itself, read as a client of streamable HTTP reads them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from toolbox_dtma.gateway.http_sse.outbox import Holding
from toolbox_dtma.gateway.sse import MAX_EVENT_BYTES, HeldEvent, SseRewriter, portions
from toolbox_dtma.gateway.upstream.connection import Answer

MAX_MESSAGE_BYTES = MAX_EVENT_BYTES
"""Of one message to a client."""
LONGEST_RETRY_SECONDS = 30.0
"""However long a server asks for."""

Deliver = Callable[[bytes], Awaitable[None]]


class MessageTooLarge(Exception):
    """An answer is larger than a message may be."""


async def read_document(answer: Answer, holding: Holding) -> bytes:
    """A whole body. Raises `MessageTooLarge`, `Overfull`, `UpstreamError`."""
    raw = bytearray()
    try:
        while chunk := await answer.read():
            if len(raw) + len(chunk) > MAX_MESSAGE_BYTES:
                raise MessageTooLarge
            holding.take(len(chunk))
            raw += chunk
        return bytes(raw)
    finally:
        holding.give_back(len(raw))


class Events:
    """The events of a stream of the server, which may come in several answers, each from where the last one ended."""

    def __init__(self, holding: Holding):
        self._holding = holding
        self._part = 0
        """Bytes of an event that is not whole."""
        self.last_id: str | None = None
        """The event after which the stream can go on."""
        self.retry: float | None = None
        """Seconds that the server asks to wait before that."""
        self.count = 0
        """Messages so far."""

    async def read(self, answer: Answer, deliver: Deliver) -> None:
        """Deliver what comes until the answer ends. Raises `MessageTooLarge`, `Overfull`, `UpstreamError`."""
        # What the worker sends has ids that are signed already, and LF for every line end.
        rewriter = SseRewriter(lambda event_id: event_id, MAX_MESSAGE_BYTES)
        try:
            while chunk := await answer.read():
                for portion in portions(chunk):
                    if portion is not chunk:
                        await asyncio.sleep(0)
                    whole = [piece for piece in rewriter.feed(portion, hold=True) if isinstance(piece, HeldEvent)]
                    self._hold(len(portion), begun=not whole, partly=rewriter.unterminated)
                    for event in whole:
                        await self._deliver(event, deliver)
        finally:
            self._holding.give_back(self._part)
            self._part = 0

    def _hold(self, size: int, *, begun: bool, partly: bool) -> None:
        """Hold what may still be part of an event: after the end of one, of these bytes at most."""
        now = (self._part + size if begun else size) if partly else 0
        if now > self._part:
            self._holding.take(now - self._part)
        else:
            self._holding.give_back(self._part - now)
        self._part = now

    async def _deliver(self, event: HeldEvent, deliver: Deliver) -> None:
        kind = b"message"
        for line in event.lines:
            field, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if field == b"id":
                self.last_id = value.decode("latin-1") or None
            elif field == b"event":
                kind = value or kind
            elif field == b"retry" and value.isdigit():
                self.retry = min(int(value[:9]) / 1000, LONGEST_RETRY_SECONDS)
        if event.data and kind == b"message":
            self.count += 1
            await deliver(event.data)
