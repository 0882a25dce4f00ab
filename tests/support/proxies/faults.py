"""What a proxy before an HTTP API saw, and what a test wants to go wrong there."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it arrived; of the Kubernetes API also what it means there."""

    at: float
    """On the monotonic clock."""
    method: str
    target: str
    """Path and query."""
    headers: Mapping[str, str]
    body: bytes
    verb: str = ""
    """get, list, watch, create, replace, patch or delete."""
    resource: str = ""
    namespace: str = ""
    name: str = ""
    subresource: str = ""

    @property
    def writes(self) -> bool:
        """Whether it changes something."""
        return self.method not in ("GET", "HEAD", "OPTIONS")

    @property
    def document(self) -> dict[str, Any]:
        """The body as JSON."""
        return cast("dict[str, Any]", json.loads(self.body))


@dataclass(slots=True)
class Exchange:
    """A request, what the server answered to it, and what the client was told."""

    request: Request
    answered: int | None = None
    """None: it never reached the server, or its answer is not there yet."""
    told: int | None = None
    """None: the client heard nothing (yet)."""
    told_at: float | None = None
    """When, on the monotonic clock: the client heard it later than this."""
    problem: str = ""
    """The beginning of the server's answer when it is an error."""


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a watch."""

    resource: str
    type: str
    object: dict[str, Any]

    @property
    def name(self) -> str:
        """Of the object."""
        return str(self.object.get("metadata", {}).get("name", ""))

    @property
    def namespace(self) -> str:
        """Of the object."""
        return str(self.object.get("metadata", {}).get("namespace", ""))


Match = Callable[[Request], bool]
EventMatch = Callable[[Event], bool]


class Gate:
    """Opened once, from any thread; waited for in the proxy's loop."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._open = asyncio.Event()

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Where it is waited for."""
        self._loop = loop

    def open(self) -> None:
        """Let pass what waits."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._open.set)

    async def passed(self) -> None:
        """Returns once it is open."""
        await self._open.wait()


@dataclass(frozen=True, slots=True)
class Refuse:
    """Answer with a `Status`; the server never sees the request."""

    status: int
    reason: str = "Fault"
    retry_after: int | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer with a stored body; the server never sees the request."""

    body: bytes


@dataclass(frozen=True, slots=True)
class Lose:
    """The server does it; the client is cut off before it hears so."""


@dataclass(frozen=True, slots=True)
class Drop:
    """The client is cut off, and the server never sees the request."""


@dataclass(frozen=True, slots=True)
class Hold:
    """Nothing reaches the server until the fault is released; then it does, also when the client has gone."""


@dataclass(frozen=True, slots=True)
class HoldAnswer:
    """The server does it; the client waits for the answer until the fault is released."""


@dataclass(frozen=True, slots=True)
class Slow:
    """So many seconds pass before the server is asked."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Truncate:
    """The answer ends in the middle, as if it were complete."""


Action = Refuse | Answer | Lose | Drop | Hold | HoldAnswer | Slow | Truncate


@dataclass(frozen=True, slots=True)
class Hide:
    """The event is not passed on."""


@dataclass(frozen=True, slots=True)
class Silence:
    """From this event on the stream stays open and delivers nothing."""


@dataclass(frozen=True, slots=True)
class Cut:
    """The stream ends in the middle of the answer."""


@dataclass(frozen=True, slots=True)
class Fail:
    """An ERROR event with this code instead of the event; then the stream ends."""

    code: int
    reason: str


StreamAction = Hide | Silence | Cut | Fail
GONE = Fail(410, "Expired")


@dataclass(slots=True, eq=False)
class Fault:
    """What happens to the requests that match: after `skip` of them, to so many `times` (None: until removed)."""

    match: Match
    action: Action
    skip: int = 0
    times: int | None = None
    seen: int = 0
    hits: int = 0
    met: threading.Event = field(default_factory=threading.Event)
    """Set at the first hit."""
    gate: Gate = field(default_factory=Gate)

    def takes(self, request: Request) -> bool:
        """Whether the fault befalls this request; counts it."""
        if (self.times is not None and self.hits >= self.times) or not self.match(request):
            return False
        self.seen += 1
        if self.seen <= self.skip:
            return False
        self.hits += 1
        self.met.set()
        return True

    def release(self) -> None:
        """Let go what is held, and hold nothing more."""
        self.times = self.hits
        self.gate.open()


@dataclass(slots=True)
class StreamFault:
    """The same for events of watches."""

    match: EventMatch
    action: StreamAction
    skip: int = 0
    times: int | None = 1
    seen: int = 0
    hit: list[Event] = field(default_factory=list[Event])

    def takes(self, event: Event) -> bool:
        """Whether the fault befalls this event; counts it."""
        if (self.times is not None and len(self.hit) >= self.times) or not self.match(event):
            return False
        self.seen += 1
        if self.seen <= self.skip:
            return False
        self.hit.append(event)
        return True
