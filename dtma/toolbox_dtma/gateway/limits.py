"""A connection's limits, applied to its requests (design §6)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from toolbox_dtma.gateway.counts import NoRoom, TooManyRunning, TooManyThisMinute, Wanted
from toolbox_dtma.gateway.methods import LISTENING_METHODS
from toolbox_dtma.gateway.parsing import Body, Kind
from toolbox_dtma.gateway.refusal import RETRY_SECONDS, Asker, Refusal
from toolbox_dtma.link.messages import GrantPolicy
from toolbox_dtma.wire import GrantLimits

RATE = "rate-limit"
CONCURRENCY = "concurrency-limit"
REQUEST_SIZE = "request-size-limit"
RESPONSE_SIZE = "response-size-limit"
NO_ROOM = "no-room-for-limits"
TIMEOUT = "call-timeout"

LIMITED = frozenset({RATE, CONCURRENCY, REQUEST_SIZE, RESPONSE_SIZE, NO_ROOM})
"""Reasons of a refusal, or of a cut, by a limit of the connection other than `TIMEOUT`."""


class Counting(Protocol):
    """What `Counts` does."""

    def enter(self, connection: str, wanted: Wanted) -> Callable[[], None]:
        """Let something in; returns what takes it out again. Raises `TooMany`, `NoRoom`."""
        ...


class AnswerTooLarge(Exception):
    """An answer, or what has come of a stream, is larger than the connection may receive."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a request that was let in may still take."""

    asker: Asker
    release: Callable[[], None]
    """Gives its place among the running requests back, once."""
    ends_at: float | None = None
    """Time of the event loop at which it is ended."""
    seconds: int | None = None
    """The whole time it had."""
    max_response_bytes: int | None = None

    def too_large(self) -> Refusal:
        """The answer instead of one that is too large."""
        message = f"The answer is larger than the {self.max_response_bytes} bytes that this connection may receive"
        return self.asker.refusal(502, RESPONSE_SIZE, message)

    def too_slow(self) -> Refusal:
        """The answer instead of one that did not come in time."""
        return self.asker.refusal(504, TIMEOUT, f"The call took longer than {self.seconds} s and was ended")


class Load(NamedTuple):
    """What one HTTP request counts."""

    running: int = 0
    """Requests that are answered; streams that are listened to end only when somebody closes them."""
    arriving: int = 1
    """Messages; an HTTP request without any counts one as well."""
    listening: bool = False

    @classmethod
    def of(cls, body: Body) -> Load:
        """What the messages of a body count."""
        running = sum(m.kind is Kind.REQUEST and m.method not in LISTENING_METHODS for m in body.messages)
        return cls(running, len(body.messages), is_listening(body))


def is_listening(body: Body) -> bool:
    """Whether all that a body asks for is a stream to listen to."""
    return not body.batch and body.messages[0].method in LISTENING_METHODS


def check_size(limits: GrantLimits, size: int, asker: Asker) -> None:
    """Refuse a body by its size in bytes. Raises `Refusal`."""
    if limits.max_request_bytes is not None and size > limits.max_request_bytes:
        message = f"A request of this connection may have at most {limits.max_request_bytes} bytes"
        raise asker.refusal(413, REQUEST_SIZE, message)


def let_in(
    counts: Counting, grant: GrantPolicy, limits: GrantLimits, load: Load, asker: Asker, *, arrived: float
) -> Bounds:
    """Count a request that is about to be forwarded. `arrived`: time of the event loop. Raises `Refusal`.

    What is refused is not counted.
    """
    seconds = None if load.listening else limits.call_timeout_seconds
    return Bounds(
        asker,
        _counted(counts, grant.uid, limits, load, asker),
        ends_at=None if seconds is None else arrived + seconds,
        seconds=seconds,
        max_response_bytes=limits.max_response_bytes,
    )


def _counted(counts: Counting, connection: str, limits: GrantLimits, load: Load, asker: Asker) -> Callable[[], None]:
    if limits.requests_per_minute is None and limits.concurrent_calls is None:
        return _nothing
    wanted = Wanted(load.running, load.arriving, limits.concurrent_calls, limits.requests_per_minute)
    try:
        return counts.enter(connection, wanted)
    except TooManyRunning as full:
        message = f"{limits.concurrent_calls} calls of this connection may run at once{_advice(full.wait)}"
        raise asker.refusal(429, CONCURRENCY, message, wait=full.wait) from None
    except TooManyThisMinute as full:
        message = f"This connection may make {limits.requests_per_minute} requests per minute{_advice(full.wait)}"
        raise asker.refusal(429, RATE, message, wait=full.wait) from None
    except NoRoom:
        message = "The gateway counts as many connections with limits as it can; try again"
        raise asker.refusal(503, NO_ROOM, message, wait=RETRY_SECONDS) from None


def _advice(wait: float | None) -> str:
    return "; send fewer in one batch" if wait is None else "; try again"


def _nothing() -> None:
    """Where nothing was counted."""


def bounded(read: Callable[[], Awaitable[bytes]], most: int | None) -> Callable[[], Awaitable[bytes]]:
    """Reads chunks as long as they have at most so many bytes together; then it raises `AnswerTooLarge`.

    With `most` None, `read` itself.
    """
    if most is None:
        return read
    left = most

    async def next_chunk() -> bytes:
        nonlocal left
        chunk = await read()
        left -= len(chunk)
        if left < 0:
            raise AnswerTooLarge
        return chunk

    return next_chunk
