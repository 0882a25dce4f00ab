"""Events of the host, kept for a while so that a watcher can go on where it was."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel

from toolbox_dtma.management.problems import Refused
from toolbox_dtma.wire import ProblemCode

EventKind = Literal["instance", "deleted", "grant", "gateway"]
_CURSOR = re.compile(r"^(\d{1,18}):(\d{1,18})$", re.ASCII)


@dataclass(frozen=True, slots=True)
class Event:
    """One event of one owner; `data` is JSON on one line."""

    seq: int
    owner: str
    kind: EventKind
    data: str


class EventLog:
    """Host-wide sequence numbers, and the newest events up to a number and a size."""

    def __init__(self, boot_id: int, *, max_events: int, max_bytes: int):
        self.boot_id = boot_id
        self.seq = 0
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._events: deque[Event] = deque()
        self._bytes = 0
        self._forgotten = 0
        self._wake: set[asyncio.Event] = set()
        self._closed = False

    @property
    def cursor(self) -> str:
        """Where a watcher begins that knows everything up to now."""
        return f"{self.boot_id}:{self.seq}"

    def next_seq(self) -> int:
        """The sequence number of the event that is published next."""
        return self.seq + 1

    def publish(self, owner: str, kind: EventKind, data: BaseModel) -> int:
        """Append an event; its sequence number."""
        self.seq += 1
        event = Event(self.seq, owner, kind, data.model_dump_json(by_alias=True))
        self._events.append(event)
        self._bytes += len(event.data)
        while len(self._events) > self._max_events or self._bytes > self._max_bytes:
            old = self._events.popleft()
            self._bytes -= len(old.data)
            self._forgotten = old.seq
        for wake in self._wake:
            wake.set()
        return self.seq

    def parse_cursor(self, text: str | None) -> int:
        """The sequence number to go on after. Raises `Refused` (Invalid, Gone)."""
        if text is None:
            return self.seq
        match = _CURSOR.fullmatch(text)
        if match is None:
            raise Refused(ProblemCode.INVALID, "a cursor is `{bootId}:{seq}`, as a list returned it")
        boot_id, seq = int(match[1]), int(match[2])
        if boot_id != self.boot_id or not self._forgotten <= seq <= self.seq:
            raise Refused(ProblemCode.GONE, f"events after {text} are not held any more")
        return seq

    def close(self) -> None:
        """End every watch."""
        self._closed = True
        for wake in self._wake:
            wake.set()

    async def watch(self, owner: str, after: int, *, heartbeat: float) -> AsyncGenerator[Event | None]:
        """Events of an owner after a sequence number; None every `heartbeat` seconds without one.

        Ends when the watcher is so slow that what it would get next is gone, and when the log is closed.
        """
        wake = asyncio.Event()
        self._wake.add(wake)
        try:
            while not self._closed and after >= self._forgotten:
                wake.clear()
                batch = [event for event in self._after(after) if event.owner == owner]
                after = self.seq
                for event in batch:
                    yield event
                try:
                    async with asyncio.timeout(heartbeat):
                        await wake.wait()
                except TimeoutError:
                    yield None
        finally:
            self._wake.discard(wake)

    def _after(self, seq: int) -> list[Event]:
        missing = self.seq - seq
        return list(self._events)[len(self._events) - missing :] if missing else []
