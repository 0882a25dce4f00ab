"""What goes to a server and comes of it: many write, one reads, bounded in time and in what all of them hold."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, NoReturn, Protocol, TypeVar

from toolbox_dtma.broker.budget import Budget
from toolbox_dtma.broker.peer import Over
from toolbox_dtma.link.broker import Closing

DOCUMENTS_AT_A_TIME = 16
"""Documents that are read before others have their turn."""


class InputFull(Exception):
    """The server takes no input; nothing of the message has reached it."""


class Streams(Protocol):
    """As much of a `Peer` as a pipe needs."""

    @property
    def full(self) -> str:
        """See `Peer`."""
        ...

    @property
    def held(self) -> int:
        """See `Peer`."""
        ...

    async def receive(self) -> Sequence[bytes]:
        """See `Peer`."""
        ...

    async def room(self) -> None:
        """See `Peer`."""
        ...


S = TypeVar("S", bound=Streams)


class Pipe(Generic[S]):
    """Around a server's streams, as long as it is told to."""

    def __init__(self, streams: S, budget: Budget, input_seconds: float) -> None:
        """`input_seconds`: how long the server may take no input before a message is refused."""
        self.streams = streams
        self._budget = budget
        self._input_seconds = input_seconds
        self._writing = asyncio.Lock()
        self._counted = 0
        """Bytes that the budget knows of."""
        self._left = False
        budget.sessions += 1

    async def write(self, size: int, say: Callable[[S], None]) -> None:
        """Have `say` write so many bytes once there is room for them, or nothing at all. Raises `InputFull`, `Over`."""
        if not self._budget.has_room(size):
            raise InputFull("the messages of all sessions take too much memory now")
        self._budget.resize(0, size)
        try:
            async with asyncio.timeout(self._input_seconds), self._writing:
                await self.streams.room()
                if self._left:
                    raise Over(Closing.ENDED, "The server is used by nobody any more")
                say(self.streams)
        except TimeoutError:
            raise InputFull(self.streams.full) from None
        finally:
            self._budget.resize(size, 0)

    async def read(self, heard: Callable[[bytes], Awaitable[None]], held: Callable[[], int]) -> NoReturn:
        """Give every document to `heard`. `held`: bytes of them that wait elsewhere.

        Raises `Over`, and what `heard` does.
        """
        documents = 0
        while True:
            for document in await self.streams.receive():
                await heard(document)
                documents += 1
                if documents % DOCUMENTS_AT_A_TIME == 0:
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
