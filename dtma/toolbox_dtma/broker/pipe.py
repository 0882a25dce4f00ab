"""The two ends of a process's streams: lines go in, one at a time, and lines come out, whole."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from toolbox_dtma.broker.budget import Budget
from toolbox_dtma.broker.framing import Frames, Lines, LineTooLong, Stream, Tail, Unframed, as_line
from toolbox_dtma.broker.session import DOCUMENTS_AT_A_TIME, InputFull
from toolbox_dtma.broker.streams import READ_BYTES

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class PipeClosed(Exception):
    """The process takes nothing any more."""


class Unreadable(Exception):
    """The process wrote what must not be read on; the text says what."""


class Pipe:
    """One process's. Reading and writing are for one task each, but for `write`, which is for any number of them."""

    def __init__(self, streams: Streams, budget: Budget, input_seconds: float) -> None:
        """`input_seconds`: how long the process may take no input before a message is refused."""
        self.streams = streams
        self._reader, self._writer = streams
        self._budget = budget
        self._input_seconds = input_seconds
        self._frames, self._lines, self.tail = Frames(), Lines(), Tail()
        self._writing = asyncio.Lock()
        self._counted = 0
        budget.sessions += 1

    @property
    def between_lines(self) -> bool:
        """Whether nothing was read that is not all of a line."""
        return self._frames.between and not self._lines.held

    async def write(self, message: bytes) -> None:
        """Write a message as a line, whole or not at all. Raises `InputFull`, `PipeClosed`."""
        line = as_line(message)
        if not self._budget.has_room(len(line)):
            raise InputFull("the messages of all sessions take too much memory now")
        self._budget.resize(0, len(line))
        try:
            async with asyncio.timeout(self._input_seconds), self._writing:
                # Waiting is done before, not after: what was written cannot be taken back.
                await self._writer.drain()
                if self._writer.transport.is_closing():
                    raise PipeClosed
                self._writer.write(line)
        except TimeoutError:
            raise InputFull("the server's process takes no input") from None
        except OSError:
            raise PipeClosed from None
        finally:
            self._budget.resize(len(line), 0)

    async def read(self, heard: Callable[[bytes], Awaitable[None]], held: Callable[[], int]) -> None:
        """Give every line to `heard` until the process ends. `held`: bytes of it that wait elsewhere.

        Raises `Unreadable`, and what `heard` raises.
        """
        lines = 0
        try:
            while data := await self._reader.read(READ_BYTES):
                for stream, piece in self._frames.feed(data):
                    if stream is Stream.ERRORS:
                        self.tail.feed(piece)
                        continue
                    for line in self._lines.feed(piece):
                        await heard(line)
                        lines += 1
                        if lines % DOCUMENTS_AT_A_TIME == 0:
                            await asyncio.sleep(0)
                holds = self._lines.held + held()
                self._count(holds)
                if self._budget.is_excessive(holds):
                    raise Unreadable("more than can be held for it now")
        except (Unframed, LineTooLong) as error:
            raise Unreadable(f"what cannot be read to its standard output: {error}") from None
        except OSError:
            # Its end, as the engine's stream shows it at times.
            return

    def close(self) -> None:
        """Hang up now."""
        self._writer.transport.abort()
        self.forget()

    def forget(self) -> None:
        """Count it no more: somebody else goes on with its streams, or nobody."""
        self._budget.sessions -= 1
        self._count(0)

    def _count(self, held: int) -> None:
        self._budget.resize(self._counted, held)
        self._counted = held
