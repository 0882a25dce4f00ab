"""A process as a session's peer: messages are lines of its attach stream (MCP, stdio transport)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from toolbox_dtma.broker.framing import Frames, Lines, LineTooLong, Stream, Tail, Unframed, as_line
from toolbox_dtma.broker.messages import Message
from toolbox_dtma.broker.peer import Lost, Over
from toolbox_dtma.link.broker import Closing

READ_BYTES = 64 * 1024
ENDED = "The server's process has ended"


class ProcessStreams:
    """A `Peer`."""

    full = "the server's process takes no input"
    not_a_message = "The server wrote what is no message to its standard output"

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self._reader, self._writer = reader, writer
        self._frames, self._lines, self._tail = Frames(), Lines(), Tail()
        self._over: Over | None = None
        """What is raised once the lines before it were given out."""

    @property
    def held(self) -> int:
        """See `Peer`."""
        return self._lines.held

    async def receive(self) -> Sequence[bytes]:
        """See `Peer`."""
        if self._over is not None:
            raise self._over
        try:
            data = await self._reader.read(READ_BYTES)
        except OSError:
            data = b""
        if not data:
            raise Over(Closing.ENDED, ENDED)
        lines: list[bytes] = []
        try:
            for stream, piece in self._frames.feed(data):
                if stream is Stream.ERRORS:
                    self._tail.feed(piece)
                else:
                    lines += self._lines.feed(piece)
        except (Unframed, LineTooLong) as error:
            message = f"The server wrote what cannot be read to its standard output: {error}"
            self._over = Over(Closing.PROTOCOL, message)
            if not lines:
                raise self._over from None
        return lines

    async def room(self) -> None:
        """See `Peer`. Waiting is done before a message, not after it: what was written cannot be taken back."""
        try:
            await self._writer.drain()
        except OSError:
            # The reading side meets the same end, and says so to all who wait.
            raise Over(Closing.ENDED, ENDED) from None

    def write(self, messages: Sequence[Message], lost: Lost, version: str | None) -> None:
        """See `Peer`."""
        del lost, version
        self.say(*(message.raw for message in messages))

    def say(self, *messages: bytes) -> None:
        """Write messages after `room`, each a line."""
        self._writer.write(b"".join(map(as_line, messages)))

    def abort(self) -> None:
        """See `Peer`."""
        self._writer.transport.abort()

    async def ended(self) -> None:
        """See `Peer`."""

    def last_words(self) -> str:
        """See `Peer`."""
        return self._tail.last_line()
