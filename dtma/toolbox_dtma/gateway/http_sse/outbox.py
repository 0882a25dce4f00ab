"""What waits for a client to read its stream, and for the worker to work off: bounded, for one stream and for all."""

from __future__ import annotations

import asyncio
from collections import deque

MAX_HELD_BYTES = 16 * 1024 * 1024
"""Of one stream: messages in both directions, also those of which only a part has come."""
MAX_HELD_BY_ALL_BYTES = 128 * 1024 * 1024
"""Of all streams of a worker together."""
ALWAYS_HELD_BYTES = 64 * 1024
"""So much of a stream is held whatever the others hold."""
HIGH_WATER_BYTES = 256 * 1024
HIGH_WATER_EVENTS = 256
"""Above either, answers of the server are no longer read until the client has read some."""


class Overfull(Exception):
    """More waits than may wait."""


class Budget:
    """Bytes that all streams of a worker hold."""

    def __init__(self, most: int = MAX_HELD_BY_ALL_BYTES):
        self.most = most
        self.held = 0


class Holding:
    """Bytes that one stream holds."""

    def __init__(self, budget: Budget):
        self._budget = budget
        self.held = 0

    def take(self, size: int) -> None:
        """Hold so many more. Raises `Overfull`, and holds none of them then."""
        own, all_ = self.held + size, self._budget.held + size
        if own > MAX_HELD_BYTES or (all_ > self._budget.most and own > ALWAYS_HELD_BYTES):
            raise Overfull
        self.held, self._budget.held = own, all_

    def give_back(self, size: int) -> None:
        """Hold so many less."""
        self.held -= size
        self._budget.held -= size

    def close(self) -> None:
        """Hold nothing any more."""
        self.give_back(self.held)


class Outbox:
    """Events on their way to the client. Any number of tasks put, one takes."""

    def __init__(self, holding: Holding):
        self._holding = holding
        self._events: deque[bytes] = deque()
        self._size = 0
        self._leaving = 0
        """Size of the event that was taken last, which may not have left yet."""
        self._closed = False
        self._something = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    @property
    def is_empty(self) -> bool:
        """Whether everything that was put has left."""
        return not self._events and not self._leaving

    async def put(self, event: bytes) -> None:
        """Add one, once there is room; it is dropped where nobody takes any more. Raises `Overfull`."""
        # Held from now on: those that wait for room are what there is most of.
        self._holding.take(len(event))
        try:
            while not self._room.is_set() and not self._closed:
                await self._room.wait()
        except BaseException:
            self._holding.give_back(len(event))
            raise
        if self._closed:
            self._holding.give_back(len(event))
            return
        self._events.append(event)
        self._size += len(event)
        if self._size >= HIGH_WATER_BYTES or len(self._events) >= HIGH_WATER_EVENTS:
            self._room.clear()
        self._something.set()

    def close(self) -> None:
        """Let the taker have what is there, and nothing more."""
        self._closed = True
        self._something.set()
        self._room.set()

    async def take(self, seconds: float) -> bytes | None:
        """The next event; empty if none came in this time, None at the end. The one taken before has left."""
        self._holding.give_back(self._leaving)
        self._leaving = 0
        if not self._events and not self._closed:
            self._something.clear()
            try:
                async with asyncio.timeout(seconds):
                    await self._something.wait()
            except TimeoutError:
                return b""
        if not self._events:
            return None
        event = self._events.popleft()
        self._leaving = len(event)
        self._size -= len(event)
        if self._size < HIGH_WATER_BYTES and len(self._events) < HIGH_WATER_EVENTS:
            self._room.set()
        return event
