"""What a server says by itself: the GET stream of its session, opened again whenever it ends."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from enum import Enum
from typing import Protocol

from toolbox_dtma.gateway.headers import EVENT_STREAM, media_type
from toolbox_dtma.gateway.http_sse.reading import Deliver, Events, MessageTooLarge
from toolbox_dtma.gateway.sse import EventTooLarge
from toolbox_dtma.gateway.upstream.connection import Answer
from toolbox_dtma.gateway.upstream.errors import UpstreamError

MAX_FAILURES = 10
"""Attempts in a row that brought nothing, some four minutes; the client then has to begin anew."""
LIMITED = 429
PASSING = frozenset({408, LIMITED, 500, 502, 503, 504})
"""Answers after which the same request may succeed."""


class Said(Enum):
    """How listening ended."""

    NOTHING = "nothing"
    """The server has no such stream."""
    OVER = "over"
    """It does not know the session any more, or was not reached for too long."""


class BackOff(Protocol):
    """Seconds between attempts."""

    @property
    def first_back_off(self) -> float:
        """Before the first attempt anew."""
        ...

    @property
    def longest_back_off(self) -> float:
        """Each waits twice as long as the one before, and no longer than this."""
        ...

    @property
    def steady(self) -> float:
        """A stream that ran so long makes good for the failures before it."""
        ...


class Listening:
    """Listens for one session, as long as it lasts."""

    def __init__(
        self,
        ask: Callable[[str | None], Answer],
        events: Events,
        deliver: Deliver,
        back_off: BackOff,
        jitter: Callable[[], float] = random.random,
    ):
        """`ask` sends the GET, with the id of the last event if there is one."""
        self._ask = ask
        self._events = events
        self._deliver = deliver
        self._back_off = back_off
        self._jitter = jitter
        self._listened = False
        """Whether the server ever had a stream for this session."""
        self._limited = False
        """Whether the last attempt met a limit of the connection, which says nothing about the server."""

    async def run(self) -> Said:
        """Deliver until there is nothing to listen to. Raises `Overfull`."""
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            begun, count = loop.time(), self._events.count
            said = await self._once()
            if said is not None:
                return said
            brought = self._events.count > count or loop.time() - begun >= self._back_off.steady
            if not self._limited:
                failures = 0 if brought else failures + 1
            if failures > MAX_FAILURES:
                return Said.OVER
            await asyncio.sleep(self._pause(failures))

    def _pause(self, failures: int) -> float:
        back_off = self._back_off
        grown = min(back_off.first_back_off * 2**failures, back_off.longest_back_off)
        # What a client may send in a minute is for its own requests first.
        longest = back_off.longest_back_off if self._limited else grown
        return max(longest * (0.5 + self._jitter() / 2), self._events.retry or 0.0)

    async def _once(self) -> Said | None:
        """One stream from its head to its end; None if another should be tried."""
        events = self._events
        answer = self._ask(events.last_id)
        self._limited = False
        try:
            await answer.head()
            self._limited = answer.status == LIMITED
            if answer.status == 200 and media_type(answer.headers) == EVENT_STREAM:
                self._listened = True
                await events.read(answer, self._deliver)
                return None
            if answer.status == 400 and events.last_id is not None:
                # Signed by a key that is gone; the stream goes on without what came meanwhile.
                events.last_id = None
                return None
            if answer.status == 404 and self._listened:
                return Said.OVER
            # There are servers that answer 404 where they should say 405, so a first one proves nothing.
            return None if answer.status in PASSING else Said.NOTHING
        except UpstreamError:
            return None
        except (EventTooLarge, MessageTooLarge):
            # What it was about nobody can be told; the stream goes on after it, if the server can resume.
            return None
        finally:
            answer.close()
