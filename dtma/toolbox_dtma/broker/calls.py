"""The requests that run in one shared process: their numbers, and where each message of the process goes. Pure."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass

from toolbox_dtma.broker.messages import CANCELLED, PROGRESS
from toolbox_dtma.broker.rewriting import Mark, Marked
from toolbox_dtma.broker.routing import MAX_RUNNING, TooMany
from toolbox_dtma.gateway.methods import LISTENING_METHODS
from toolbox_dtma.gateway.parsing import Kind

ENVELOPE_ERRORS = frozenset({-32700, -32600, -32602, -32020, -32021, -32022})
METHOD_NOT_FOUND = -32601


@dataclass(frozen=True, slots=True)
class Call:
    """One request."""

    number: int
    """What the process knows it by: as its id, its progress token and its subscription. Never used again."""
    id: bytes
    """As its client wrote it."""
    token: bytes | None
    """Its progress token, as its client wrote it."""
    method: str

    @property
    def listens(self) -> bool:
        """Whether its answer is a stream that ends only when somebody closes it."""
        return self.method in LISTENING_METHODS

    def error(self, code: int, message: str) -> bytes:
        """An answer that is none of the process's."""
        text = json.dumps({"code": code, "message": message}, separators=(",", ":")).encode()
        return b'{"jsonrpc":"2.0","id":%b,"error":%b}' % (self.id, text)


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message for one request's client."""

    call: Call
    raw: bytes | None
    """None where the stream ends without another message."""
    last: bool = False
    status: int = 200
    """Of the HTTP answer, if this is all that there is in it."""


class Calls:
    """Those that are not answered yet."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._running: dict[int, Call] = {}
        self.dropped = 0
        """Messages that belonged to nobody, or not for certain."""

    @property
    def running(self) -> tuple[Call, ...]:
        """All of them, oldest first."""
        return tuple(self._running.values())

    @property
    def attended(self) -> bool:
        """Whether somebody waits for an answer. Who listens does not."""
        return any(not call.listens for call in self._running.values())

    def number(self) -> int:
        """One for a request of the broker's own."""
        return next(self._numbers)

    def begin(self, asked: Marked) -> tuple[Call, bytes]:
        """A request with an id, and its bytes for the process. Raises `TooMany`; then nothing has begun."""
        if len(self._running) >= MAX_RUNNING:
            raise TooMany(f"{MAX_RUNNING} requests of this connection are not answered yet")
        number = self.number()
        ours = str(number).encode()
        token = asked.written(Mark.TOKEN) if asked.id(Mark.TOKEN) is not None else None
        call = Call(number, asked.written(Mark.ID) or b"null", token, asked.method)
        self._running[number] = call
        return call, asked.replaced({Mark.ID: ours, **({} if token is None else {Mark.TOKEN: ours})})

    def leave(self, call: Call) -> bool:
        """Nobody waits for it any more. Whether the process still owed its answer; what comes now is dropped."""
        return self._running.pop(call.number, None) is not None

    def place(self, said: Marked) -> Delivery | None:
        """Whom a message of the process belongs to, with the client's own words in it; None drops it.

        What does not say to which request it belongs is never given to any: log messages do not, and requests of
        servers are not in this revision.
        """
        if said.kind is Kind.RESPONSE:
            delivery = self._answered(said)
        elif said.kind is Kind.REQUEST or not said.clear:
            delivery = None
        elif said.method == PROGRESS:
            call = self._call(said, Mark.PROGRESS)
            known = None if call is None else call.token
            delivery = None if call is None or known is None else Delivery(call, said.replaced({Mark.PROGRESS: known}))
        elif said.method == CANCELLED:
            delivery = self._torn_down(said)
        else:
            call = self._call(said, Mark.SUBSCRIPTION)
            heard = call is not None and call.listens
            delivery = Delivery(call, said.replaced({Mark.SUBSCRIPTION: call.id})) if call and heard else None
        self.dropped += delivery is None
        return delivery

    def _answered(self, said: Marked) -> Delivery | None:
        call = self._call(said, Mark.ID)
        if call is None:
            return None
        concludes = self._call(said, Mark.CONCLUDES) is call
        del self._running[call.number]
        raw = said.replaced({Mark.ID: call.id, **({Mark.CONCLUDES: call.id} if concludes else {})})
        return Delivery(call, raw, last=True, status=status_of(said))

    def _torn_down(self, said: Marked) -> Delivery | None:
        """The server ends a subscription, the one thing that it may cancel: over HTTP by the end of its stream."""
        call = self._call(said, Mark.CANCELS)
        if call is None or not call.listens:
            return None
        del self._running[call.number]
        return Delivery(call, None, last=True)

    def _call(self, said: Marked, mark: Mark) -> Call | None:
        number = said.number(mark)
        return None if number is None else self._running.get(number)


def status_of(answer: Marked) -> int:
    """The HTTP status that goes with an answer (2026-07-28: streamable HTTP, basic)."""
    code = answer.values.get(Mark.CODE) if answer.failed else None
    if code == METHOD_NOT_FOUND:
        return 404
    return 400 if isinstance(code, int) and code in ENVELOPE_ERRORS else 200
