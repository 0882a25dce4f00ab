"""The streams of one process, for many who write and one who reads: bounded in time and in what all may hold."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import NoReturn

from toolbox_dtma.broker.budget import Budget
from toolbox_dtma.broker.peer import Over
from toolbox_dtma.broker.session import DOCUMENTS_AT_A_TIME, InputFull
from toolbox_dtma.broker.streams import ProcessStreams
from toolbox_dtma.link.broker import Closing


class Pipe:
    """Around a process's streams, as long as it is told to."""

    def __init__(self, streams: ProcessStreams, budget: Budget, input_seconds: float) -> None:
        """`input_seconds`: how long the process may take no input before a message is refused."""
        self.streams = streams
        self._budget = budget
        self._input_seconds = input_seconds
        self._writing = asyncio.Lock()
        self._counted = 0
        self._left = False
        budget.sessions += 1

    async def write(self, message: bytes) -> None:
        """Write a message, whole or not at all. Raises `InputFull`, `Over`."""
        if not self._budget.has_room(len(message)):
            raise InputFull("the messages of all sessions take too much memory now")
        self._budget.resize(0, len(message))
        try:
            async with asyncio.timeout(self._input_seconds), self._writing:
                await self.streams.room()
                if self._left:
                    raise Over(Closing.ENDED, "The server's process is used by nobody any more")
                self.streams.say(message)
        except TimeoutError:
            raise InputFull(self.streams.full) from None
        finally:
            self._budget.resize(len(message), 0)

    async def read(self, heard: Callable[[bytes], Awaitable[None]], held: Callable[[], int]) -> NoReturn:
        """Give every line to `heard`. `held`: bytes of it that wait elsewhere. Raises `Over`, and what `heard` does."""
        lines = 0
        while True:
            for line in await self.streams.receive():
                await heard(line)
                lines += 1
                if lines % DOCUMENTS_AT_A_TIME == 0:
                    await asyncio.sleep(0)
            holds = self.streams.held + held()
            self._count(holds)
            if self._budget.is_excessive(holds):
                raise Over(Closing.PROTOCOL, "The server wrote more than can be held for it now")

    def leave(self) -> None:
        """Count it no more: somebody else goes on with the streams, or nobody."""
        self._left = True
        self._budget.sessions -= 1
        self._count(0)

    def _count(self, held: int) -> None:
        self._budget.resize(self._counted, held)
        self._counted = held
