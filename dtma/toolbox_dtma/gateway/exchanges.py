"""Requests in flight, by connection, so that a revocation ends them before it is acknowledged."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable
from enum import Enum

from toolbox_dtma.gateway.limits import Bounds
from toolbox_dtma.gateway.observer import UNMEASURED, Observer
from toolbox_dtma.gateway.state import Admitted, PolicyState

_LONGEST_TIMER = 3600.0
"""Seconds. Wall clocks move; an expiry further away is looked at again."""


class Cause(Enum):
    """Why an exchange was ended from outside."""

    REVOKED = "revoked"
    NO_POLICY = "no-policy"
    STOPPING = "stopping"
    TIMEOUT = "call-timeout"


class Exchange:
    """One request in flight, or the rest of a call whose client hung up."""

    def __init__(self, admitted: Admitted, transport: asyncio.Transport | None, task: asyncio.Task[object]):
        self.admitted = admitted
        self.aborted: Cause | None = None
        self.started = False
        """Whether bytes of an answer may already be on their way."""
        self.listening = False
        """Whether it is a stream that ends only when somebody closes it."""
        self.busy: Callable[[], bool] = _never
        """Whether such a stream is not to be closed by a worker that drains, since answers are still owed on it."""
        self.calls: Observer = UNMEASURED
        """Who wants to know how its calls end."""
        self._transport = transport
        self._task = task
        self.timer: asyncio.TimerHandle | None = None
        self.bounds: Bounds | None = None
        """Of a connection with limits, once the request is let in."""
        self.deserted = False
        """Whether the client went away without having taken the whole answer."""
        self.cut: str | None = None
        """Reason for which the answer was broken off, if the connection's limits are why."""
        self._ending: asyncio.TimerHandle | None = None

    def bind(self, bounds: Bounds) -> None:
        """Take over what is left of the limits; the place among the running requests goes back at the end."""
        self.bounds = bounds
        if bounds.ends_at is not None:
            self._ending = asyncio.get_running_loop().call_at(bounds.ends_at, self.abort, Cause.TIMEOUT)

    def unbind(self) -> Bounds | None:
        """Give up what `bind` took over, to somebody who goes on with it."""
        if self._ending is not None:
            self._ending.cancel()
        bounds, self.bounds = self.bounds, None
        return bounds

    @property
    def max_response_bytes(self) -> int | None:
        """Bytes that an answer's body may have."""
        return None if self.bounds is None else self.bounds.max_response_bytes

    @property
    def task(self) -> asyncio.Task[object]:
        """The task that ends once both sides are closed."""
        return self._task

    def abort(self, cause: Cause) -> None:
        """End it now. What was written but not sent is discarded, so nothing leaves after this call."""
        self.aborted = self.aborted or cause
        if self.started and self._transport is not None:
            self._transport.abort()
        self._task.cancel()


class Entered:
    """An exchange for the time of a `with` block. By hand, since every request has one: generators cost more."""

    __slots__ = ("_exchange", "_exchanges")

    def __init__(self, exchanges: Exchanges, exchange: Exchange):
        self._exchanges = exchanges
        self._exchange = exchange

    def __enter__(self) -> Exchange:
        self._exchanges.begin(self._exchange)
        return self._exchange

    def __exit__(self, *_: object) -> None:
        self._exchanges.end(self._exchange)


class Exchanges:
    """All requests in flight of this worker."""

    def __init__(self, *, unix_clock: Callable[[], float]):
        self._unix = unix_clock
        self._by_connection: defaultdict[str, set[Exchange]] = defaultdict(set)
        self.count = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def enter(self, admitted: Admitted, transport: asyncio.Transport | None) -> Entered:
        """Register the current task for the time of a `with` block."""
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("exchanges belong to tasks")
        return Entered(self, Exchange(admitted, transport, task))

    def begin(self, exchange: Exchange) -> None:
        """See `enter`."""
        self._by_connection[exchange.admitted.grant.uid].add(exchange)
        self.count += 1
        self._idle.clear()
        self._arm(exchange)

    def end(self, exchange: Exchange) -> None:
        """See `enter`."""
        self.count -= 1
        if not self.count:
            self._idle.set()
        # Of the same connection as at the beginning, whatever was admitted since.
        uid = exchange.admitted.grant.uid
        members = self._by_connection[uid]
        members.discard(exchange)
        if not members:
            del self._by_connection[uid]
        if exchange.timer is not None:
            exchange.timer.cancel()
        bounds = exchange.unbind()
        if bounds is not None:
            bounds.release()

    async def ended(self) -> None:
        """Return once nothing is in flight."""
        await self._idle.wait()

    def recheck(self, connections: Iterable[str], state: PolicyState) -> list[asyncio.Task[object]]:
        """Abort what the policy in force no longer admits. Returns the tasks that are ending."""
        ending: list[asyncio.Task[object]] = []
        for uid in connections:
            for exchange in tuple(self._by_connection.get(uid, ())):
                old = exchange.admitted
                now = state.still_admitted(uid, old.digest, old.grant.instance)
                if now is None:
                    exchange.abort(Cause.REVOKED)
                    ending.append(exchange.task)
                else:
                    exchange.admitted = now
                    self._arm(exchange)
        return ending

    def abort_all(self, cause: Cause, *, listening_only: bool = False) -> None:
        """Abort everything, or only the streams that never end by themselves."""
        for members in tuple(self._by_connection.values()):
            for exchange in tuple(members):
                if not listening_only or (exchange.listening and not exchange.busy()):
                    exchange.abort(cause)

    def _arm(self, exchange: Exchange) -> None:
        if exchange.timer is not None:
            exchange.timer.cancel()
            exchange.timer = None
        ends_at = exchange.admitted.ends_at
        if ends_at is not None:
            delay = min(max(ends_at - self._unix(), 0.0), _LONGEST_TIMER)
            exchange.timer = asyncio.get_running_loop().call_later(delay, self._expire, exchange, ends_at)

    def _expire(self, exchange: Exchange, ends_at: float) -> None:
        if self._unix() >= ends_at:
            exchange.abort(Cause.REVOKED)
        else:
            self._arm(exchange)


def _never() -> bool:
    return False
