"""Two protocols of one process, joined as by a connection: in order, with back-pressure, without a socket."""

from __future__ import annotations

import asyncio
from collections import deque

HIGH_WATER = 64 * 1024
"""Bytes on their way to the other end above which a writer is asked to wait, unless it sets a bound of its own."""


class PipeEnd(asyncio.Transport):
    """What one side writes to. Nothing is delivered before the writer gave up its turn."""

    def __init__(self, loop: asyncio.AbstractEventLoop, protocol: asyncio.Protocol):
        super().__init__()
        self._loop = loop
        self._protocol = protocol
        self._other: PipeEnd | None = None
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self._high = HIGH_WATER
        self._low = HIGH_WATER // 4
        self._told_to_wait = False
        self._reading = True
        self._scheduled = False
        self._closing = False
        self._lost = False

    def begin(self, other: PipeEnd) -> None:
        """Join it to the other end, and tell its protocol."""
        self._other = other
        self._protocol.connection_made(self)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """See `asyncio.WriteTransport`."""
        if self._closing or not data:
            return
        self._waiting.append(bytes(data))
        self._size += len(data)
        self._deliver_soon()
        if self._size > self._high and not self._told_to_wait:
            self._told_to_wait = True
            self._protocol.pause_writing()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """See `asyncio.WriteTransport`."""
        self._high = HIGH_WATER if high is None else high
        self._low = self._high // 4 if low is None else low

    def get_write_buffer_size(self) -> int:
        """See `asyncio.WriteTransport`."""
        return self._size

    def pause_reading(self) -> None:
        """See `asyncio.ReadTransport`."""
        self._reading = False

    def resume_reading(self) -> None:
        """See `asyncio.ReadTransport`."""
        self._reading = True
        if self._other is not None:
            self._other._deliver_soon()

    def is_reading(self) -> bool:
        """See `asyncio.ReadTransport`."""
        return self._reading and not self._closing

    def is_closing(self) -> bool:
        """See `asyncio.BaseTransport`."""
        return self._closing

    def close(self) -> None:
        """End it once everything that was written has been delivered."""
        if not self._closing:
            self._closing = True
            self._deliver_soon()

    def abort(self) -> None:
        """End it, and drop what was not delivered yet."""
        self._closing = True
        self._drop()
        self._loop.call_soon(self._end)

    def _deliver_soon(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._deliver)

    def _deliver(self) -> None:
        self._scheduled = False
        other = self._other
        while other is not None and self._waiting and other.is_reading():
            data = self._waiting.popleft()
            self._size -= len(data)
            other._protocol.data_received(data)
        if self._told_to_wait and self._size <= self._low and not self._lost:
            self._told_to_wait = False
            self._protocol.resume_writing()
        if self._closing and (not self._waiting or other is None or other.is_closing()):
            self._end()

    def _end(self) -> None:
        if self._lost:
            return
        self._lost = True
        self._drop()
        self._protocol.connection_lost(None)
        if self._other is not None:
            self._loop.call_soon(self._other._hung_up)

    def _hung_up(self) -> None:
        """The other end is gone: a half-open pipe is of no use to anybody."""
        if not self._closing:
            self._closing = True
            self._protocol.eof_received()
        self._end()

    def _drop(self) -> None:
        self._waiting.clear()
        self._size = 0


def join(one: asyncio.Protocol, other: asyncio.Protocol) -> None:
    """Connect two protocols in the running loop."""
    loop = asyncio.get_running_loop()
    ends = PipeEnd(loop, one), PipeEnd(loop, other)
    ends[0].begin(ends[1])
    ends[1].begin(ends[0])
