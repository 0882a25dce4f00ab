"""One session: a server's side of it, and the HTTP exchanges with the one connection that it belongs to."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from toolbox_dtma.broker.budget import Budget
from toolbox_dtma.broker.messages import Heard, Id, Message, NotAMessage, read
from toolbox_dtma.broker.outlets import Outlet, Said
from toolbox_dtma.broker.peer import Over, Peer
from toolbox_dtma.broker.pipe import Pipe
from toolbox_dtma.broker.routing import Fate, Place, Routes
from toolbox_dtma.broker.turns import Turns
from toolbox_dtma.gateway.parsing import SERVER_ERROR, Kind
from toolbox_dtma.gateway.refusal import rpc_error
from toolbox_dtma.gateway.skimming import is_quick, run
from toolbox_dtma.link.broker import Closing

CANCELLED_MESSAGE = "The request was cancelled"


class SessionOver(Exception):
    """The session has ended; the text is for the client."""


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
    """How long a server may take no input before a message is refused."""
    cancelled: float = 5.0
    """How long a server may still answer a request that its client has cancelled; most never do."""
    last_words: float = 1.0
    """How long what a process wrote before its end may take to be read."""
    discover: float = 8.0
    """For the answer to what a process speaks that was just started; its client may wait for 10 s."""
    probed: float = 20.0
    """The same for a probe, whose word on it stands for a while; enough is left of what it gets for another process."""
    quiet: float = 2.0
    """How long one may be silent before it is asked whether it is there."""
    present: float = 1.0
    """How long one that is there may be silent still."""
    present_probed: float = 5.0
    """The same for a probe."""
    late: float = 30.0
    """The same for one that was silent for so long, and is of no use meanwhile."""


@dataclass(frozen=True, slots=True)
class Shared:
    """What all sessions use together."""

    patience: Patience
    turns: Turns
    budget: Budget
    keeper: Keeper


class Session:
    """Reads what the server sends until it ends, and sends what the client says. Methods run in one event loop."""

    def __init__(
        self,
        id: str,
        name: str,
        instance: str,
        owner: Owner,
        idle_seconds: float,
        peer: Peer,
        shared: Shared,
    ):
        """`id` is the client's word for it, `name` DTMA's."""
        self.id = id
        self.name = name
        self.instance = instance
        self.owner = owner
        self._idle_seconds = idle_seconds
        self._peer = peer
        self._shared = shared
        self._pipe = Pipe(peer, shared.budget, shared.patience.input)
        self._loop = asyncio.get_running_loop()
        self._routes = Routes()
        self._outlets: dict[int, Outlet] = {}
        self._numbers = itertools.count(1)
        self._lost_messages = 0
        """Without anybody who could be told."""
        self.over: str | None = None
        """What is said to those who come too late."""
        self._farewell: str | None = None
        """What DTMA said of the end of the process, whose output may still be read."""
        self._touched = self._loop.time()
        self._timers: set[asyncio.TimerHandle] = set()
        self._later(self._idle_seconds, self._check_idle)
        self._reading = asyncio.create_task(self._read())

    @property
    def dropped(self) -> int:
        """Messages that nobody got."""
        return self._routes.dropped + self._lost_messages

    # The client's side.

    async def send(self, heard: Heard, version: str | None = None) -> tuple[int, Outlet] | None:
        """Give a body's messages to the server; a stream of the answers, if any are owed. `version`: what it names.

        Raises `SessionOver`, `InputFull`, and what `Routes.begin` does.
        """
        self._check()
        requests = heard.requests
        stream, outlet = (next(self._numbers), Outlet()) if requests else (0, None)
        if outlet is not None:
            self._routes.begin(stream, requests)
            self._outlets[stream] = outlet
        try:
            await self._write(heard.messages, version)
        except BaseException:
            self._routes.undo(stream)
            self.leave(stream)
            raise
        if outlet is not None:
            self._put_all(outlet, self._routes.take_kept(stream))
        for message in heard.messages:
            if message.cancels is not None and self._routes.is_running(message.cancels):
                seconds = self._shared.patience.cancelled
                self._later(seconds, lambda id=message.cancels: self._fail(id, CANCELLED_MESSAGE))
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
        self._peer.abort()
        self._reading.cancel()
        self._pipe.leave()
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

    async def _write(self, messages: Sequence[Message], version: str | None) -> None:
        """Raises `SessionOver`, `InputFull`."""

        def say(peer: Peer) -> None:
            peer.write(messages, self._lost, version)

        try:
            await self._pipe.write(sum(len(message.raw) for message in messages), say)
        except Over as over:
            raise SessionOver(self.over or over.message) from None
        self._touch()

    def _lost(self, message: Message, why: str) -> None:
        """`Lost` of the peer: whoever waits for an answer gets an error, and nobody else waits for anything."""
        if message.kind is Kind.REQUEST and message.id is not None:
            self._fail(message.id, why)
        else:
            self._lost_messages += 1

    def _fail(self, id: Id, why: str) -> None:
        """Answer a request in the server's place, unless it was answered."""
        if self.over is None and self._routes.is_running(id):
            self._put(self._routes.answered(id), Said(_error(id, why), failed=True))

    # The server's side.

    async def _read(self) -> None:
        try:
            await self._pipe.read(self._deliver, self._held)
        except Over as over:
            self._at_end(over)
        except NotAMessage as error:
            self.end(Closing.PROTOCOL, f"{self._peer.not_a_message}: {error}")

    def _at_end(self, over: Over) -> None:
        if over.why is not Closing.ENDED:
            self.end(over.why, over.message)
        elif self._farewell is not None:
            self.end(None, self._with_last_words(self._farewell))
        else:
            self.end(over.why, self._with_last_words(over.message))

    def _held(self) -> int:
        return self._routes.kept_bytes + sum(outlet.held for outlet in self._outlets.values())

    async def _deliver(self, document: bytes) -> None:
        heard = run(read(document)) if is_quick(document) else await self._shared.turns.run(read(document))
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
        """For a probe, whose result is for the admin, also what the server complained of last."""
        words = self._peer.last_words() if self.owner.ticket and not self._routes.begun else ""
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

    async def ended(self) -> None:
        """Wait until nothing of it runs any more."""
        with suppress(asyncio.CancelledError):
            await self._reading
        await self._peer.ended()


def _said(message: Message) -> Said:
    # A carriage return is white space in JSON, and ends the line of an event.
    return Said(message.raw.replace(b"\r", b" "), failed=message.failed)


def _error(id: Id, message: str) -> bytes:
    return json.dumps(rpc_error(SERVER_ERROR, message, id), separators=(",", ":")).encode()
