"""Between a process and one HTTP answer: a few messages that wait until the client takes them."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

HIGH_WATER = 64 * 1024
"""Bytes that wait before the process is held up."""


@dataclass(frozen=True, slots=True)
class Said:
    """A message on its way to the client."""

    raw: bytes
    last: bool = False
    """Whether it is all that the stream still gets."""
    failed: bool = False
    """Whether it is an error response."""


class Outlet:
    """One task puts messages in, another one takes them out."""

    def __init__(self) -> None:
        self._items: deque[Said] = deque()
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self.held = 0
        """Bytes that were put in and are not written yet."""
        self._closed = False

    def put(self, said: Said) -> None:
        """Never waits; `room` does."""
        if self._closed:
            return
        self._items.append(said)
        self.held += len(said.raw)
        if self.held > HIGH_WATER:
            self._room.clear()
        self._news.set()
        self._closed = said.last

    def close(self) -> None:
        """Nothing more will be put in."""
        self._closed = True
        self._news.set()
        self._room.set()

    def desert(self) -> None:
        """Nothing more will be taken out."""
        self._items.clear()
        self.held = 0
        self.close()

    async def room(self) -> None:
        """Wait until the client has taken enough, or is gone."""
        await self._room.wait()

    async def take(self) -> Said | None:
        """The next message; None after the last one. `written` has to follow."""
        while not self._items:
            if self._closed:
                return None
            self._news.clear()
            await self._news.wait()
        return self._items.popleft()

    def written(self, said: Said) -> None:
        """The client's side has taken a message."""
        self.held = max(self.held - len(said.raw), 0)
        if self.held <= HIGH_WATER:
            self._room.set()
