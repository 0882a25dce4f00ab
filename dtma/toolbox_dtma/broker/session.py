"""One session: a process, and the HTTP exchanges with the one connection that it belongs to."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from toolbox_dtma.broker.budget import Budget
from toolbox_dtma.broker.framing import Frames, Lines, LineTooLong, Stream, Tail, Unframed, as_line
from toolbox_dtma.broker.messages import Heard, Id, Message, NotAMessage, read
from toolbox_dtma.broker.outlets import Outlet, Said
from toolbox_dtma.broker.routing import Fate, Place, Routes
from toolbox_dtma.broker.turns import Turns
from toolbox_dtma.gateway.refusal import SERVER_ERROR, rpc_error
from toolbox_dtma.gateway.skimming import is_quick, run
from toolbox_dtma.link.broker import Closing

READ_BYTES = 64 * 1024
LINES_AT_A_TIME = 16
"""Lines that are read before other sessions have their turn."""

ENDED = "The server's process has ended"
CANCELLED_MESSAGE = "The request was cancelled"


class SessionOver(Exception):
    """The session has ended; the text is for the client."""


class InputFull(Exception):
    """The process takes no input; nothing of the message has reached it."""


class _TooMuch(Exception):
    """All sessions together hold too much, and this one more than its part."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Whom a session belongs to: a connection by its UID, or a probe by its ticket."""

    connection: str = ""
    ticket: str = ""
    route: str = field(default="", compare=False)
    """By which it came now; for DTMA."""


class Keeper(Protocol):
    """Whose sessions they are."""

    def over(self, session: Session, why: Closing | None) -> None:
        """It has ended; `why` is for DTMA, None where that said so itself."""
        ...


@dataclass(frozen=True, slots=True)
class Patience:
    """Deadlines in seconds."""

    handshake: float = 60.0
    """For the answer to the first request."""
    input: float = 30.0
    """How long a process may take no input before a message is refused."""
    cancelled: float = 5.0
    """How long a process may still answer a request that its client has cancelled; most never do."""
    last_words: float = 1.0
    """How long what a process wrote before its end may take to be read."""


@dataclass(frozen=True, slots=True)
class Shared:
    """What all sessions use together."""

    patience: Patience
    turns: Turns
    budget: Budget
    keeper: Keeper


class Session:
    """Reads what the process writes until it ends, and writes what the client says. Methods run in one event loop."""

    def __init__(
        self,
        id: str,
        name: str,
        instance: str,
        owner: Owner,
        idle_seconds: float,
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        shared: Shared,
    ):
        """`id` is the client's word for it, `name` DTMA's."""
        self.id = id
        self.name = name
        self.instance = instance
        self.owner = owner
        self._idle_seconds = idle_seconds
        self._reader, self._writer = streams
        self._shared = shared
        self._loop = asyncio.get_running_loop()
        self._routes = Routes()
        self._outlets: dict[int, Outlet] = {}
        self._numbers = itertools.count(1)
        self._frames, self._lines, self._tail = Frames(), Lines(), Tail()
        self._writing = asyncio.Lock()
        self._counted = 0
        """Bytes that the budget knows of."""
        self.over: str | None = None
        """What is said to those who come too late."""
        self._farewell: str | None = None
        """What DTMA said of the end of the process, whose output may still be read."""
        self._touched = self._loop.time()
        self._timers: set[asyncio.TimerHandle] = set()
        self._later(self._idle_seconds, self._check_idle)
        shared.budget.sessions += 1
        self._reading = asyncio.create_task(self._read())

    @property
    def dropped(self) -> int:
        """Messages that nobody got."""
        return self._routes.dropped

    # The client's side.

    async def send(self, heard: Heard) -> tuple[int, Outlet] | None:
        """Give a body's messages to the process; a stream of the answers, if any are owed.

        Raises `SessionOver`, `InputFull`, and what `Routes.begin` does.
        """
        self._check()
        requests = heard.requests
        stream, outlet = (next(self._numbers), Outlet()) if requests else (0, None)
        if outlet is not None:
            self._routes.begin(stream, requests)
            self._outlets[stream] = outlet
        try:
            await self._write(b"".join(as_line(message.raw) for message in heard.messages))
        except BaseException:
            self._routes.undo(stream)
            self.leave(stream)
            raise
        if outlet is not None:
            self._put_all(outlet, self._routes.take_kept(stream))
        for message in heard.messages:
            if message.cancels is not None and self._routes.is_running(message.cancels):
                self._later(self._shared.patience.cancelled, lambda id=message.cancels: self._give_up(id))
        return None if outlet is None else (stream, outlet)

    def begun(self) -> None:
        """The handshake went well: other messages than its answer may now go to streams."""
        self._routes.begun = True

    def listen(self) -> tuple[int, Outlet]:
        """A stream of what belongs to no request. Raises `SessionOver`, `TooMany`."""
        self._check()
        stream, outlet = next(self._numbers), Outlet()
        self._routes.listen(stream)
        self._outlets[stream] = outlet
        self._put_all(outlet, self._routes.take_kept(stream))
        return stream, outlet

    def leave(self, stream: int) -> None:
        """Nobody reads a stream any more; known or not."""
        self._routes.leave(stream)
        outlet = self._outlets.pop(stream, None)
        if outlet is not None:
            outlet.desert()
        self._touch()

    def end(self, why: Closing | None, message: str) -> None:
        """End it now: whoever waits for an answer gets an error, later ones are told that there is no such session."""
        if self.over is not None:
            return
        self.over = message
        for timer in self._timers:
            timer.cancel()
        for stream, outlet in self._outlets.items():
            waiting = self._routes.waiting(stream)
            for left, id_ in enumerate(waiting, 1 - len(waiting)):
                outlet.put(Said(_error(id_, message), last=not left, failed=True))
            outlet.close()
        self._outlets.clear()
        self._writer.transport.abort()
        self._reading.cancel()
        self._shared.budget.sessions -= 1
        self._count(0)
        self._shared.keeper.over(self, why)

    async def exited(self, message: str) -> None:
        """The process is gone: what it wrote before is still passed on."""
        self._farewell = message
        await asyncio.wait({self._reading}, timeout=self._shared.patience.last_words)
        self.end(None, self._with_last_words(message))

    def _check(self) -> None:
        if self.over is not None:
            raise SessionOver(self.over)

    def _put_all(self, outlet: Outlet, messages: Sequence[bytes]) -> None:
        for raw in messages:
            outlet.put(Said(raw))
        self._touch()

    async def _write(self, line: bytes) -> None:
        """Raises `SessionOver`, `InputFull`."""
        budget = self._shared.budget
        if not budget.has_room(len(line)):
            raise InputFull("the messages of all sessions take too much memory now")
        budget.resize(0, len(line))
        try:
            async with asyncio.timeout(self._shared.patience.input), self._writing:
                # Waiting is done before, not after: what was written cannot be taken back.
                await self._writer.drain()
                self._check()
                self._writer.write(line)
        except TimeoutError:
            raise InputFull("the server's process takes no input") from None
        except OSError:
            # The reading side meets the same end, and says so to all who wait.
            raise SessionOver(self.over or ENDED) from None
        finally:
            budget.resize(len(line), 0)
        self._touch()

    def _give_up(self, id: Id) -> None:
        """A request that its client has cancelled was not answered."""
        if self._routes.is_running(id):
            self._put(self._routes.answered(id), Said(_error(id, CANCELLED_MESSAGE), failed=True))

    # The process's side.

    async def _read(self) -> None:
        try:
            await self._read_all()
        except (Unframed, LineTooLong, NotAMessage) as error:
            what = "what is no message" if isinstance(error, NotAMessage) else "what cannot be read"
            self.end(Closing.PROTOCOL, f"The server wrote {what} to its standard output: {error}")
        except _TooMuch:
            self.end(Closing.PROTOCOL, "The server wrote more than can be held for it now")
        except OSError:
            self._at_end()
        else:
            self._at_end()

    def _at_end(self) -> None:
        """The process has closed its output."""
        why = Closing.ENDED if self._farewell is None else None
        self.end(why, self._with_last_words(self._farewell or ENDED))

    async def _read_all(self) -> None:
        lines = 0
        while data := await self._reader.read(READ_BYTES):
            for stream, piece in self._frames.feed(data):
                if stream is Stream.ERRORS:
                    self._tail.feed(piece)
                    continue
                for line in self._lines.feed(piece):
                    await self._deliver(line)
                    lines += 1
                    if lines % LINES_AT_A_TIME == 0:
                        await asyncio.sleep(0)
            held = self._lines.held + self._routes.kept_bytes + sum(each.held for each in self._outlets.values())
            self._count(held)
            if self._shared.budget.is_excessive(held):
                raise _TooMuch

    async def _deliver(self, line: bytes) -> None:
        heard = run(read(line)) if is_quick(line) else await self._shared.turns.run(read(line))
        for message in heard.messages:
            outlet = self._put(self._routes.place(message), _said(message))
            if outlet is not None:
                await outlet.room()

    def _put(self, place: Place, said: Said) -> Outlet | None:
        """To the stream that it goes to, if there is one."""
        if place.fate is not Fate.SENT:
            return None
        outlet = self._outlets.pop(place.stream) if place.last else self._outlets[place.stream]
        outlet.put(Said(said.raw, place.last, said.failed))
        self._touch()
        return outlet

    def _with_last_words(self, message: str) -> str:
        """For a probe, whose result is for the admin, also what the process complained of last."""
        words = self._tail.last_line() if self.owner.ticket and not self._routes.begun else ""
        return f"{message}: {words}" if words else message

    # Time and memory.

    def _touch(self) -> None:
        self._touched = self._loop.time()

    def _check_idle(self) -> None:
        left = self._touched + self._idle_seconds - self._loop.time()
        if self._routes.attended:
            left = self._idle_seconds
        if left <= 0:
            self.end(Closing.IDLE, "The session was idle for too long")
        else:
            self._later(left, self._check_idle)

    def _later(self, seconds: float, what: Callable[[], None]) -> None:
        def due() -> None:
            self._timers.discard(handle)
            what()

        handle = self._loop.call_later(seconds, due)
        self._timers.add(handle)

    def _count(self, held: int) -> None:
        self._shared.budget.resize(self._counted, held)
        self._counted = held

    async def ended(self) -> None:
        """Wait until nothing of it runs any more."""
        with suppress(asyncio.CancelledError):
            await self._reading


def _said(message: Message) -> Said:
    # A carriage return is white space in JSON, and ends the line of an event.
    return Said(message.raw.replace(b"\r", b" "), failed=message.failed)


def _error(id: Id, message: str) -> bytes:
    return json.dumps(rpc_error(SERVER_ERROR, message, id), separators=(",", ":")).encode()
