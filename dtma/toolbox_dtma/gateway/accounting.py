"""One record for every `tools/call` that came with a valid credential: what was called and how it ended.

Nothing here suspends, no answer waits for it, and of a call's content only the name of its tool is kept.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from json.encoder import encode_basestring
from typing import Any, cast

from multidict import CIMultiDictProxy

from toolbox_dtma.gateway.backlog import Backlog
from toolbox_dtma.gateway.exchanges import Cause, Exchange
from toolbox_dtma.gateway.limits import RESPONSE_SIZE
from toolbox_dtma.gateway.methods import TRACE_META
from toolbox_dtma.gateway.observer import Observer
from toolbox_dtma.gateway.outcomes import UNKNOWN_ID, Ended, EventsLook, Look
from toolbox_dtma.gateway.parsing import Body, Kind, RpcMessage
from toolbox_dtma.gateway.refusal import Refusal
from toolbox_dtma.gateway.reporting import Reporter
from toolbox_dtma.gateway.sse import HeldEvent
from toolbox_dtma.gateway.tracing import trace_id
from toolbox_dtma.gateway.upstream.errors import Silent
from toolbox_dtma.link.calls import REFUSAL_REASONS
from toolbox_dtma.wire import CallOutcome

CALL = "tools/call"
MAX_TOOL = 256
_VERSION = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
"""What revisions are named by. Anything else is a client's own words, which no record keeps."""
_STATUS = re.compile(r"upstream-\d+", re.ASCII)
_OUTCOMES = {
    "call-timeout": CallOutcome.TIMEOUT,
    "concurrency-limit": CallOutcome.LIMITED,
    "denied": CallOutcome.DENIED,
    "no-room-for-limits": CallOutcome.LIMITED,
    "rate-limit": CallOutcome.LIMITED,
    "request-size-limit": CallOutcome.LIMITED,
    "response-size-limit": CallOutcome.LIMITED,
    Silent.reason: CallOutcome.TIMEOUT,
}
_BY_STATUS = {408: CallOutcome.TIMEOUT, 413: CallOutcome.LIMITED, 429: CallOutcome.LIMITED, 504: CallOutcome.TIMEOUT}


def refusal_word(reason: str) -> str:
    """A refusal's reason as one of `REFUSAL_REASONS`."""
    if reason in REFUSAL_REASONS:
        return reason
    return "upstream-status" if _STATUS.fullmatch(reason) else "other"


def refused_outcome(refusal: Refusal) -> CallOutcome:
    """How a call ended that the gateway answered by itself."""
    known = _OUTCOMES.get(refusal.reason) or _BY_STATUS.get(refusal.status)
    if known is not None:
        return known
    return CallOutcome.UPSTREAM_ERROR if refusal.status >= 500 else CallOutcome.DENIED


def cancelled_outcome(exchange: Exchange) -> CallOutcome:
    """How calls ended whose request was ended from outside."""
    return CallOutcome.TIMEOUT if exchange.aborted is Cause.TIMEOUT else CallOutcome.CANCELLED


def _unanswered(exchange: Exchange) -> CallOutcome:
    """How calls ended that had no answer when their request did."""
    if exchange.cut == RESPONSE_SIZE:
        return CallOutcome.LIMITED
    return CallOutcome.CANCELLED if exchange.deserted else CallOutcome.UPSTREAM_ERROR


class Measured(Observer):
    """The calls of one request."""

    __slots__ = (
        "_alone", "_begun", "_bytes_in", "_calls", "_connection", "_ended", "_events", "_look", "_meter", "_rest",
        "_sent", "_settled", "_status", "_version",
    )  # fmt: skip

    def __init__(
        self,
        meter: Meter,
        connection: str,
        calls: list[tuple[object, str, str | None]],
        *,
        alone: bool,
        begun: float,
        bytes_in: int,
        version: str | None,
    ):
        """`calls` are (id, tool, trace id), `alone` if they are all that the request asks for; `begun` is monotonic."""
        self._alone = alone
        self._meter = meter
        self._connection = connection
        self._calls = calls
        self._begun = begun
        self._bytes_in = bytes_in
        self._version = version
        self._status = 0
        self._sent = 0
        self._look: Look | None = None
        self._events: EventsLook | None = None
        self._ended: dict[object, CallOutcome] = {}
        self._rest: CallOutcome | None = None
        """Outcome of what the server did not answer; None while that is for the end of the request to say."""
        self._settled = False

    @property
    def answered(self) -> bool:
        """See `Observer`."""
        return self._alone and self._events is not None and all(call[0] in self._ended for call in self._calls)

    def answering(self, status: int, kind: str) -> None:
        """Begin to look at an answer."""
        self._status = status
        if kind == "text/event-stream":
            self._events = EventsLook()
        else:
            self._look = Look()

    def body(self, chunk: bytes) -> None:
        """Look at bytes of a document."""
        if self._look is not None:
            self._look.feed(chunk)

    def event(self, piece: bytes | HeldEvent) -> None:
        """Look at a piece of a stream."""
        events = self._events
        if events is not None:
            self._note(events.held(piece) if isinstance(piece, HeldEvent) else events.feed(piece))

    def _note(self, ended: list[Ended]) -> None:
        for id_, outcome in ended:
            # An answer to the only call there is may have no id: an error about its form, or a document too large
            # to be seen whole.
            if len(self._calls) == 1 and (id_ is UNKNOWN_ID or (id_ is None and outcome is CallOutcome.RPC_ERROR)):
                id_ = self._calls[0][0]
            self._ended.setdefault(id_, outcome)

    def sent(self, number: int) -> None:
        """Count bytes on their way to the client."""
        self._sent += number

    def complete(self) -> None:
        """Judge what the server did not say."""
        look, events = self._look, self._events
        if look is not None:
            ended = look.ended()
            if len(self._calls) == 1 and len(ended) == 1:
                # Whatever its id: a document answers the request that it came upon.
                ended = [(self._calls[0][0], ended[0][1])]
            self._note(ended)
            # Too large to be looked at whole, and no error where errors show.
            self._rest = CallOutcome.OK if look.is_cut and self._status < 400 else CallOutcome.UPSTREAM_ERROR
        elif events is not None:
            # A server may end a stream early that can be resumed; the answer then comes upon another request.
            self._rest = CallOutcome.DETACHED if events.resumable else CallOutcome.UPSTREAM_ERROR

    def broke(self, error: BaseException) -> None:
        """Tell a server that broke off from one that fell silent, and from a client that is gone."""
        if isinstance(error, Silent):
            self._rest = CallOutcome.TIMEOUT
        elif isinstance(error, TimeoutError | ConnectionError):
            # Of writing to the client, who is gone or takes nothing.
            self._rest = CallOutcome.CANCELLED
        else:
            self._rest = CallOutcome.UPSTREAM_ERROR

    def settle(self, outcome: CallOutcome, *, refused: bool = False) -> None:
        """Record every call."""
        if self._settled:
            return
        self._settled = True
        if refused:
            self._ended.clear()
            self._rest = None
        rest = self._rest or outcome
        bytes_in, bytes_out = self._bytes_in, self._sent
        for id_, tool, trace in self._calls:
            ended = self._ended.get(id_, rest)
            self._meter.record(self._connection, tool, ended, self._begun, bytes_in, bytes_out, self._version, trace)
            # A batch's bytes are told once, so that sums are right.
            bytes_in = bytes_out = 0
        self._meter.ended(len(self._calls))


class Settling:
    """Records the calls of an exchange when a `with` block ends, by how it ends."""

    __slots__ = ("_exchange",)

    def __init__(self, exchange: Exchange):
        self._exchange = exchange

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        exchange = self._exchange
        if error is None:
            exchange.calls.settle(_unanswered(exchange))
        elif isinstance(error, Refusal):
            exchange.calls.sent(len(error.body))
            ended = exchange.aborted in {None, Cause.TIMEOUT}
            exchange.calls.settle(refused_outcome(error) if ended else CallOutcome.CANCELLED, refused=True)
        else:
            ordinary = isinstance(error, Exception) and not isinstance(error, ConnectionError)
            exchange.calls.settle(CallOutcome.UPSTREAM_ERROR if ordinary else cancelled_outcome(exchange))


class Meter:
    """Writes records to the backlog, and counts refusals."""

    def __init__(
        self,
        backlog: Backlog,
        reporter: Reporter,
        *,
        unix_clock: Callable[[], float],
        monotonic: Callable[[], float],
    ):
        self._backlog = backlog
        self._reporter = reporter
        self._unix = unix_clock
        self.now = monotonic

    def begin(self, exchange: Exchange, body: Body, *, size: int, begun: float, headers: CIMultiDictProxy[str]) -> None:
        """Measure the calls in a body, if there are any. `begun` is when the request came in, by `now`."""
        messages = [m for m in body.messages if m.method == CALL and m.kind is Kind.REQUEST]
        if not messages:
            return
        self._backlog.begun(len(messages))
        traced = trace_id(headers.getall("traceparent", ()))
        versions = headers.getall("MCP-Protocol-Version", ())
        exchange.calls = Measured(
            self,
            exchange.admitted.grant.uid,
            [(message.id, _tool(message), traced or _own_trace(message)) for message in messages],
            alone=len(messages) == sum(message.kind is Kind.REQUEST for message in body.messages),
            begun=begun,
            bytes_in=size,
            version=versions[0] if len(versions) == 1 and _VERSION.fullmatch(versions[0]) else None,
        )

    def refused(self, reason: str) -> None:
        """The gateway answered a request by itself."""
        self._reporter.refusals[refusal_word(reason)] += 1
        self._reporter.wake()

    def ended(self, number: int) -> None:
        """So many calls are recorded."""
        self._backlog.ended(number)
        self._reporter.wake()

    def record(
        self,
        connection: str,
        tool: str,
        outcome: CallOutcome,
        begun: float,
        bytes_in: int,
        bytes_out: int,
        version: str | None,
        trace: str | None,
    ) -> None:
        """Keep one record, as `CallEntry` has it."""
        seconds = max(0.0, self.now() - begun)
        # Written by hand, for speed: all but the tool's name is of letters and digits.
        entry = (
            f'{{"id":"{uuid7(self._unix() - seconds)}","connection":"{connection}","tool":{encode_basestring(tool)},'
            f'"outcome":"{outcome.value}","duration_ms":{round(seconds * 1000)},'
            f'"bytes_in":{bytes_in},"bytes_out":{bytes_out}'
        )
        if version is not None:
            entry += f',"protocol_version":"{version}"'
        if trace is not None:
            entry += f',"trace_id":"{trace}"'
        self._backlog.append(connection, (entry + "}").encode())


def uuid7(at: float) -> str:
    """A UUID of version 7 (RFC 9562, section 5.7) for a Unix time, as 32 hexadecimal digits."""
    random = int.from_bytes(os.urandom(10))
    value = int(at * 1000) << 80 | 0x7 << 76 | (random >> 62 & 0xFFF) << 64 | 0b10 << 62 | random & (1 << 62) - 1
    return f"{value:032x}"


def _tool(message: RpcMessage) -> str:
    """The name as called; empty if it is none."""
    name = (message.params or {}).get("name")
    return name[:MAX_TOOL] if isinstance(name, str) else ""


def _own_trace(message: RpcMessage) -> str | None:
    """The trace that a client names in the message itself (SEP-414)."""
    meta: Any = (message.params or {}).get("_meta")
    return trace_id([cast("dict[str, Any]", meta).get(TRACE_META)]) if isinstance(meta, dict) else None
