"""Where each message of a process goes: to the request that it belongs to, or to whoever listens. Pure.

A stream is an answer under way: that of a POST, open until all its requests are answered, or that of a GET.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from toolbox_dtma.broker.messages import PROGRESS, Id, Message
from toolbox_dtma.gateway.parsing import Kind

MAX_RUNNING = 512
"""Requests of a session that are not answered yet."""
MAX_LISTENERS = 8
MAX_KEPT = 256
MAX_KEPT_BYTES = 1024 * 1024


class IdInUse(Exception):
    """A request has the id of one that is still running."""


class TooMany(Exception):
    """More of something than a session may have; the text says of what."""


class Fate(Enum):
    """What becomes of a message."""

    SENT = auto()
    """It goes to a stream."""
    KEPT = auto()
    """Nobody is there now; it waits."""
    DROPPED = auto()
    """It belongs to somebody who is not there any more."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where one message goes."""

    fate: Fate
    stream: int = 0
    last: bool = False
    """Whether it ends the stream."""


@dataclass(slots=True)
class _Post:
    waits: set[Id]
    """Requests that are not answered yet."""


@dataclass(slots=True)
class _Call:
    stream: int
    token: Id | None


@dataclass(slots=True)
class Routes:
    """The requests that run in one session, and who listens."""

    begun: bool = False
    """Whether the session's first request was answered. Before, that answer is all that its stream gets."""
    dropped: int = 0
    """Messages that nobody got: too many waited, or they belonged to nobody."""
    _posts: dict[int, _Post] = field(default_factory=dict[int, _Post])
    _calls: dict[Id, _Call] = field(default_factory=dict[Id, _Call])
    _tokens: dict[Id, Id] = field(default_factory=dict[Id, Id])
    """From a progress token to the request that gave it out."""
    _listeners: list[int] = field(default_factory=list[int])
    _kept: deque[bytes] = field(default_factory=deque[bytes])
    kept_bytes: int = 0

    @property
    def attended(self) -> bool:
        """Whether somebody waits for the answer to a request."""
        return bool(self._posts)

    def is_running(self, id: Id) -> bool:
        """Whether the process owes the answer to a request, whoever still waits for it."""
        return id in self._calls

    def begin(self, stream: int, requests: Sequence[Message]) -> None:
        """A POST with requests, which all have an id. Raises `IdInUse`, `TooMany`; then nothing has begun."""
        ids = {request.id for request in requests if request.id is not None}
        if len(ids) < len(requests) or not ids.isdisjoint(self._calls):
            raise IdInUse("a request with this id is still running")
        if len(self._calls) + len(ids) > MAX_RUNNING:
            raise TooMany(f"{MAX_RUNNING} requests of this session are not answered yet")
        self._posts[stream] = _Post(ids)
        for request in requests:
            if request.id is not None:
                self._calls[request.id] = _Call(stream, request.token)
                if request.token is not None:
                    self._tokens[request.token] = request.id

    def undo(self, stream: int) -> None:
        """The requests of this POST never reached the process."""
        post = self._posts.pop(stream, None)
        for id_ in post.waits if post is not None else ():
            self._forget(id_)

    def listen(self, stream: int) -> None:
        """A GET. Raises `TooMany`."""
        if len(self._listeners) == MAX_LISTENERS:
            raise TooMany(f"{MAX_LISTENERS} streams of this session are open")
        self._listeners.append(stream)

    def leave(self, stream: int) -> None:
        """Nobody reads this stream any more. Its requests run on; their answers are dropped."""
        self._posts.pop(stream, None)
        if stream in self._listeners:
            self._listeners.remove(stream)

    def waiting(self, stream: int) -> frozenset[Id]:
        """Requests whose answers this stream still waits for."""
        post = self._posts.get(stream)
        return frozenset(post.waits) if post is not None else frozenset()

    def place(self, message: Message) -> Place:
        """Decide about a message of the process, and note that it went there."""
        if message.kind is Kind.RESPONSE:
            return self.answered(message.id) if message.id is not None else self._drop()
        if message.method == PROGRESS and message.token in self._tokens:
            stream = self._calls[self._tokens[message.token]].stream
            return Place(Fate.SENT, stream) if stream in self._posts else self._drop()
        # The newest GET: an older one may be of a client that is gone without anybody knowing.
        if self._listeners:
            return Place(Fate.SENT, self._listeners[-1])
        if self.begun and self._posts:
            return Place(Fate.SENT, next(iter(self._posts)))
        self._keep(message.raw)
        return Place(Fate.KEPT)

    def answered(self, id: Id) -> Place:
        """A request has its answer, from whomever."""
        call = self._calls.get(id)
        if call is None:
            return self._drop()
        self._forget(id)
        post = self._posts.get(call.stream)
        if post is None:
            return self._drop()
        post.waits.discard(id)
        if not post.waits:
            del self._posts[call.stream]
        return Place(Fate.SENT, call.stream, last=not post.waits)

    def _forget(self, id: Id) -> None:
        call = self._calls.pop(id)
        if call.token is not None and self._tokens.get(call.token) == id:
            del self._tokens[call.token]

    def _drop(self) -> Place:
        self.dropped += 1
        return Place(Fate.DROPPED)

    def _keep(self, raw: bytes) -> None:
        self._kept.append(raw)
        self.kept_bytes += len(raw)
        while len(self._kept) > MAX_KEPT or (self.kept_bytes > MAX_KEPT_BYTES and len(self._kept) > 1):
            self.kept_bytes -= len(self._kept.popleft())
            self.dropped += 1

    def take_kept(self, stream: int) -> list[bytes]:
        """What has waited for a stream such as this one, which has just been opened."""
        if stream in self._posts and (self._listeners or not self.begun):
            return []
        kept = list(self._kept)
        self._kept.clear()
        self.kept_bytes = 0
        return kept
