"""Call records of one host: asked for batch by batch, and acknowledged once they are kept.

A pull asks with the cursor of the batch before, which acknowledges that one; so it asks only after the sink kept it.
Nothing else depends on this: whatever fails here costs records at most, never contact with the host.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import structlog

from toolbox_dtma.wire import CallRecord, ProblemCode
from toolbox_operator.api.meta import Key
from toolbox_operator.hosts.api import HostError, HostProblem
from toolbox_operator.hosts.contact import Contact
from toolbox_operator.runtime import Clock, Fenced, Leadership, Timings

log = structlog.get_logger(__name__)

FULL: Final = 100
"""So many records at once: there may be more, which are asked for soon."""
_RESTS: Final = 2.0
"""A pull after which there may be more is followed by a pause of so many times what it took, at most: a host with a
long past must not take all the time of this process and of the database, which others wait for."""
_SLOWEST: Final = 6
"""A host that fails is asked so many times more slowly, in the end."""
_ABSENT: Final = frozenset({ProblemCode.NOT_FOUND, ProblemCode.METHOD_NOT_ALLOWED})


class CallSink(Protocol):
    """Where call records go."""

    @property
    def ready(self) -> bool:
        """Whether records would be kept now. While not, none are asked for."""
        ...

    async def keep(self, toolbox: Key, calls: Sequence[CallRecord], unreadable: int) -> bool:
        """Returns True once the host may forget them; False when they have to be asked for again. Told of every
        pull, also of one without records."""
        ...


@dataclass(frozen=True, slots=True)
class PullView:
    """How the pulling of one host's records is."""

    pulled: float | None = None
    """When the newest batch was kept, by the monotonic clock."""
    dropped: int = 0
    """Records that the host lost for want of space, by its own word."""
    supported: bool = True


class CallPull:
    """Pulls one host's records for as long as its Toolbox is kept in contact."""

    def __init__(
        self,
        contact: Contact,
        sink: CallSink,
        *,
        leadership: Leadership,
        clock: Clock,
        timings: Timings,
        rng: random.Random,
    ) -> None:
        self._contact = contact
        self._sink = sink
        self._leadership = leadership
        self._clock = clock
        self._timings = timings
        self._rng = rng
        self._cursor: str | None = None
        self._view = PullView()
        self._refused_in: int | None = None
        """The contact in which the host said that it has no such records."""
        self._asked_again = 0.0
        self._failures = 0
        self._task: asyncio.Task[None] | None = None

    @property
    def view(self) -> PullView:
        """How it is."""
        return self._view

    def start(self) -> None:
        """Begin, after a pause: a process that starts has more urgent things to ask of every host."""
        self._task = asyncio.create_task(self._run(), name=f"calls of {self._contact.key}")

    async def aclose(self) -> None:
        """Stop. What was not acknowledged stays on the host."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _run(self) -> None:
        pause = self._timings.calls_active
        while True:
            await asyncio.sleep(pause * self._rng.uniform(0.5, 1.0))
            try:
                pause = await self.step()
            except Exception:
                # The boundary of this worker: a defect met with one batch must not end the accounting for good.
                log.exception("calls.failed", toolbox=str(self._contact.key))
                pause = self._slower()

    async def step(self) -> float:
        """One pull, where it makes sense. Returns the seconds until the next."""
        contact = self._contact.view()
        if not contact.usable or not self._sink.ready or self._has_none(contact.contact):
            return self._timings.calls_idle
        begun = self._clock.monotonic()
        try:
            self._leadership.check()
            pulled = await self._contact.host.calls(self._cursor)
        except Fenced:
            return self._timings.calls_idle
        except HostError as error:
            return self._failed(error, contact.contact)
        batch = pulled.batch
        if not await self._sink.keep(self._contact.key, batch.items, pulled.unreadable):
            return self._timings.calls_idle
        if self._failures or not self._view.supported:
            log.info("calls.back", toolbox=str(self._contact.key))
        moved = batch.cursor != self._cursor
        self._cursor, self._failures, self._refused_in = batch.cursor, 0, None
        self._view = PullView(pulled=self._clock.monotonic(), dropped=batch.dropped)
        found = len(batch.items) + pulled.unreadable
        if not found:
            return self._timings.calls_idle
        if not moved or found < FULL:
            return self._timings.calls_active
        return min(_RESTS * (self._clock.monotonic() - begun), self._timings.calls_active)

    def _has_none(self, contact: int) -> bool:
        """Whether the host is not worth asking: in this contact it said that it keeps no records, and not long ago."""
        return self._refused_in == contact and self._clock.monotonic() < self._asked_again

    def _failed(self, error: HostError, contact: int) -> float:
        if isinstance(error, HostProblem) and error.code in _ABSENT:
            if self._view.supported:
                log.warning(
                    "calls.none", toolbox=str(self._contact.key), hint="the host's agent is older: no accounting"
                )
            self._refused_in, self._asked_again = contact, self._clock.monotonic() + self._timings.resync
            self._view = PullView(supported=False)
            return self._timings.calls_idle
        if not self._failures:
            log.warning("calls.unanswered", toolbox=str(self._contact.key), error=str(error))
        return self._slower()

    def _slower(self) -> float:
        self._failures += 1
        return self._timings.calls_idle * min(self._failures, _SLOWEST)
