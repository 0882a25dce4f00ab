"""Call records on their way: from a host into the record, and what they add up to into the status of connections."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final, Protocol

import structlog

from toolbox_dtma.wire import CallRecord
from toolbox_operator.api.connection import AgentMCPConnectionStatus
from toolbox_operator.api.meta import Body, Key, Kind
from toolbox_operator.api.parse import ConnectionObject, parse_status
from toolbox_operator.domain.usage import Use, grown, shown_use, wait_left
from toolbox_operator.reconcile.index import part
from toolbox_operator.runtime import Clock, Requeue
from toolbox_operator.store.api import Kept, Refusal

log = structlog.get_logger(__name__)

_CURES: Final = {
    Refusal.CLOCK: "set the clock of this host: calls of other days than it is here, or long gone, are not kept",
    Refusal.UNREADABLE: "the host's agent is newer: bring the operator to its version",
    Refusal.DATA: "see record.call_refused",
}


class UsageBook:
    """What was counted of the connections of this cluster, and when the status of each may say so.

    Listens to the cache: a connection that is gone is forgotten.
    """

    def __init__(self, queue: Requeue, clock: Clock, every: float) -> None:
        """`every`: the least seconds between two writes of status that say more."""
        self._queue = queue
        self._clock = clock
        self._every = every
        self._begun = clock.monotonic()
        self._keys: dict[str, Key] = {}
        self._shown: dict[str, Use] = {}
        """What status says."""
        self._counted: dict[str, Use] = {}
        self._written: dict[str, float] = {}

    def changed(self, kind: Kind, key: Key, old: Body | None, new: Body | None) -> None:
        """To be told of every change of the cache."""
        if kind is not Kind.CONNECTION:
            return
        uid = None if new is None else str(new["metadata"]["uid"])
        if old is not None and (gone := str(old["metadata"]["uid"])) != uid:
            for known in (self._keys, self._shown, self._counted, self._written):
                known.pop(gone, None)
        if uid is not None and new is not None:
            self._keys[uid] = key
            use = shown_in(new)
            if use is None:
                self._shown.pop(uid, None)
            else:
                self._shown[uid] = use

    def shown(self, uids: Iterable[str]) -> Mapping[str, int]:
        """How many calls the status of each connection shows, where it shows any."""
        return {uid: self._shown[uid].calls for uid in uids if uid in self._shown}

    def note(self, used: Mapping[str, Use]) -> None:
        """So much was counted in all. Connections whose status says less get their turn when that may change."""
        for uid, use in used.items():
            if (key := self._keys.get(uid)) is None:
                continue
            # As status shows it: a part of a second must not look like news for ever.
            seconds = replace(use, last=use.last.replace(microsecond=0))
            self._counted[uid] = grown(self._counted.get(uid), seconds) or seconds
            if (left := self._left(uid)) is not None:
                self._queue.add_after(Kind.CONNECTION, key, left)

    def come_back(self, uid: str) -> None:
        """To be told of every pass over the connection, which took the place of the one planned: if its status may
        not say all yet, plan anew. Where it may, the pass itself sees to it, and backs off if that fails."""
        key, left = self._keys.get(uid), self._left(uid)
        if key is not None and left:
            self._queue.add_after(Kind.CONNECTION, key, left)

    def due(self, uid: str) -> Use | None:
        """What the status may say now; None when it says all, or spoke of it too recently."""
        return self._counted[uid] if self._left(uid) == 0.0 else None

    def wrote(self, uid: str) -> None:
        """The status says more since now."""
        self._written[uid] = self._clock.monotonic()

    def _left(self, uid: str) -> float | None:
        """Seconds until the status may say more; None when there is nothing more to say."""
        shown = self._shown.get(uid)
        if grown(shown, self._counted.get(uid)) == shown:
            return None
        return wait_left(shown, self._written.get(uid), self._begun, self._clock.monotonic(), self._every)


class CallRecords(Protocol):
    """The part of the record that keeps calls."""

    @property
    def healthy(self) -> bool: ...
    async def keep_calls(self, calls: Sequence[CallRecord], shown: Mapping[str, int]) -> Kept | None: ...
    async def used(self) -> Mapping[str, Use] | None: ...


class CallMetrics(Protocol):
    """What is told of calls."""

    def calls_added(self, number: int) -> None: ...
    def calls_refused(self, reason: str, number: int) -> None: ...


class Accounting:
    """A `CallSink`: first the record, then the book."""

    def __init__(self, record: CallRecords, book: UsageBook, metrics: CallMetrics) -> None:
        self._record = record
        self._book = book
        self._metrics = metrics
        self._caught_up = False
        self._told: set[tuple[Key, Refusal]] = set()

    @property
    def ready(self) -> bool:
        """See `CallSink`."""
        return self._record.healthy

    async def keep(self, toolbox: Key, calls: Sequence[CallRecord], unreadable: int) -> bool:
        """See `CallSink`."""
        if not self._caught_up:
            # What a process before committed, and did not come to show, is in no batch any more.
            self._caught_up = True
            used = await self._record.used()
            if used is None:
                self._caught_up = False
                return False
            self._book.note(used)
        kept: Kept | None = Kept()
        if calls:
            kept = await self._record.keep_calls(calls, self._book.shown({call.connection for call in calls}))
        if kept is None:
            self._caught_up = False
            return False
        self._metrics.calls_added(kept.added)
        for reason, number in (*kept.refused.items(), (Refusal.UNREADABLE, unreadable)):
            if number:
                self._refused(toolbox, reason, number)
        self._book.note(kept.used)
        return True

    def _refused(self, toolbox: Key, reason: Refusal, number: int) -> None:
        self._metrics.calls_refused(reason, number)
        if (toolbox, reason) not in self._told:
            self._told.add((toolbox, reason))
            log.warning("calls.refused", toolbox=str(toolbox), reason=reason, records=number, cure=_CURES[reason])


def shown_in(body: Body) -> Use | None:
    """What a connection's body shows of its use, without parsing all of it."""
    status = part(body, "status")
    names = ("calls", "lastUsedTime")
    return shown_use(parse_status(AgentMCPConnectionStatus, {name: status[name] for name in names if name in status}))


def shows_more(connection: ConnectionObject, use: Use | None) -> bool:
    """Whether a status with this use says more than the connection's own."""
    before = shown_use(connection.status)
    return grown(before, use) != before
