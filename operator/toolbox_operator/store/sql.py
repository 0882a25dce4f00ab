"""The record in PostgreSQL: takes rows without waiting, and one writer catches up whenever PostgreSQL is there."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import structlog
from prometheus_client import CollectorRegistry
from sqlalchemy.ext.asyncio import AsyncConnection

from toolbox_dtma.wire import CallRecord
from toolbox_operator.api.meta import Kind as ObjectKind
from toolbox_operator.domain.usage import Use
from toolbox_operator.runtime import Clock, Leadership
from toolbox_operator.store import queries
from toolbox_operator.store.api import Kept, Live, Row
from toolbox_operator.store.apply import write_changes, write_events, write_sweep
from toolbox_operator.store.calls import CALLS_KEPT, CallKeeper
from toolbox_operator.store.connect import engine_for
from toolbox_operator.store.deadline import within
from toolbox_operator.store.decide import Fence
from toolbox_operator.store.errors import EXPECTED, SCHEMA_GONE, Next, brief, classify, sqlstate_of
from toolbox_operator.store.ids import uuid7
from toolbox_operator.store.jobs import Away, Jobs
from toolbox_operator.store.metrics import RecordMetrics
from toolbox_operator.store.migrate import migrate
from toolbox_operator.store.pending import Change, Event, Pending
from toolbox_operator.store.records import Kind, canonical, records_of, storable
from toolbox_operator.store.upkeep import Upkeep

log = structlog.get_logger(__name__)

_TABLES: Final = {
    ObjectKind.TOOLBOX: Kind.TOOLBOX,
    ObjectKind.MCP_SERVER: Kind.INSTANCE,
    ObjectKind.CONNECTION: Kind.CONNECTION,
}


@dataclass(frozen=True, slots=True)
class Limits:
    """Deadlines in seconds, and sizes; tests shorten them."""

    connect: float = 5.0
    statement: float = 10.0
    lock: float = 5.0
    transaction: float = 30.0
    migration: float = 180.0
    backoff_first: float = 0.5
    backoff_max: float = 15.0
    attempts: int = 5
    """Times a transaction that lost a race is done again before its rows are refused one by one."""
    batch: int = 200
    events: int = 10_000
    """Lifecycle events kept while PostgreSQL is away."""
    maintenance: float = 300.0
    """How often partitions are looked after and refused rows tried again."""
    partitions_ahead: int = 7
    """Days."""
    calls_kept: int = CALLS_KEPT
    """Days that calls are kept, besides today."""
    events_kept: int = 90
    """Days that lifecycle events are kept, besides today."""
    events_at_once: int = 1000
    event_batches: int = 50
    """Of old lifecycle events in one round; the rest goes in the next, so that rows never wait for long."""


DEFAULTS = Limits()


class SqlStore:
    """See `store.api.Record`. One instance, one event loop, one connection."""

    def __init__(
        self,
        dsn: str,
        cluster_id: str,
        leadership: Leadership,
        clock: Clock,
        *,
        limits: Limits = Limits(),
        registry: CollectorRegistry | None = None,
        rng: random.Random | None = None,
    ) -> None:
        """`dsn` is anything libpq understands; `cluster_id` the UID of the `kube-system` namespace."""
        self._engine = engine_for(dsn, limits.connect)
        self._cluster_id = canonical(cluster_id)
        self._leadership = leadership
        self._clock = clock
        self._limits = limits
        self._rng = rng or random.Random()
        self._pending = Pending(limits.events)
        self._wake = asyncio.Event()
        self._jobs = Jobs(self._wake.set)
        self._calls = CallKeeper(self._jobs, clock, self._cluster_id, limits.calls_kept)
        self._idle = asyncio.Event()
        self._idle.set()
        self._hurry = asyncio.Event()
        self._failing_since: float | None = None
        self._delay = limits.backoff_first
        self._migrated = False
        self._next_maintenance = 0.0
        self._upkeep = Upkeep(lambda work: self._in_transaction(work, limits.transaction), clock, limits)
        self._metrics = RecordMetrics(registry or CollectorRegistry())
        self._metrics.watch(
            up=lambda: self.healthy,
            backlog=lambda: self._pending.backlog,
            refused=lambda: self._pending.refused,
            dropped=lambda: self._pending.dropped_events,
        )

    @property
    def healthy(self) -> bool:
        """Whether the schema is there and the last transaction was committed."""
        return self._migrated and self._failing_since is None

    @property
    def backlog(self) -> int:
        """Rows, events and sweeps that are not written yet."""
        return self._pending.backlog

    def submit(self, row: Row) -> None:
        """See `Store`."""
        self._pending.submit(records_of(row, self._cluster_id), self._clock.now())
        self._note()

    def close(self, row: Row, reason: str) -> None:
        """See `Store`."""
        self._pending.close(records_of(row, self._cluster_id), reason, self._clock.now())
        self._note()

    def sweep(self, live: Live) -> None:
        """See `Store`."""
        ids = (frozenset(map(canonical, group)) for group in (live.toolboxes, live.instances, live.connections))
        self._pending.sweep(Live(*ids), self._clock.now())
        self._note()

    def vanished(self, kind: ObjectKind, namespace: str, name: str) -> None:
        """See `Store`."""
        self._pending.vanished(_TABLES[kind], namespace, name, self._clock.now())
        self._note()

    def log(self, *, object_kind: str, object_id: str, type_: str, reason: str, message: str) -> None:
        """See `Store`."""
        now = self._clock.now()
        texts = (storable(text) for text in (object_kind, canonical(object_id), type_, reason, message))
        self._pending.log(Event(uuid7(now, self._rng), now, *texts))
        self._note()

    async def keep_calls(self, calls: Sequence[CallRecord], shown: Mapping[str, int]) -> Kept | None:
        """See `Record`."""
        return await self._calls.keep(calls, shown)

    async def used(self) -> Mapping[str, Use] | None:
        """See `Record`."""
        return await self._calls.used()

    async def flush(self, deadline: float) -> bool:
        """See `Record`."""
        try:
            async with asyncio.timeout(deadline):
                self._wake.set()
                self._hurry.set()
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def run(self) -> None:
        """See `Record`."""
        try:
            while True:
                self._wake.clear()
                try:
                    more = await self._step()
                except EXPECTED as error:
                    await self._outage(error)
                    continue
                self._recovered()
                if not self._pending.backlog:
                    self._idle.set()
                if not more:
                    await _set_within(self._wake, max(0.0, self._next_maintenance - self._clock.monotonic()))
        finally:
            self._jobs.give_up()
            await self._engine.dispose()

    def _note(self) -> None:
        if self._pending.backlog:
            self._idle.clear()
            self._wake.set()

    async def _step(self) -> bool:
        """Write one batch; False when nothing is left."""
        if not self._migrated:
            await self._in_transaction(self._migrate, self._limits.migration)
            self._migrated = True
        if self._clock.monotonic() >= self._next_maintenance:
            await self._upkeep.round()
            self._pending.retry_refused()
            self._next_maintenance = self._clock.monotonic() + self._limits.maintenance
        # One after the other, so that many calls never hold up rows, nor many rows calls.
        worked = await self._do_job()
        changes = self._pending.batch(self._limits.batch)
        if changes:
            await self._write(changes)
            return True
        events = self._pending.events(self._limits.batch)
        if events:
            await self._write_events(events)
            return True
        sweep = self._pending.due_sweep()
        if sweep is not None:

            async def close(connection: AsyncConnection) -> None:
                closed = await write_sweep(connection, sweep, self._fence())
                if closed:
                    log.info("record.swept", rows=closed)

            await self._again(close)
            self._pending.confirm((), sweep=sweep)
            return True
        return worked

    async def _do_job(self) -> bool:
        """Do what somebody waits for, and tell them; False when nobody does."""
        job = self._jobs.next()
        if job is None:
            return False
        try:
            await self._again(job.do)
        except EXPECTED as error:
            next_ = classify(error)
            job.failed(error if next_ is Next.REFUSE else Away())
            if next_ is Next.WAIT:
                raise
            self._metrics.failed(next_)
        else:
            job.committed()
        finally:
            job.failed(Away())  # unless it was told already
        return True

    async def _write(self, changes: Sequence[Change]) -> None:
        """In one transaction; where the data of one is not acceptable, each in its own."""

        async def write(connection: AsyncConnection) -> None:
            await write_changes(connection, changes, self._fence())

        try:
            await self._again(write)
        except EXPECTED as error:
            if classify(error) is Next.WAIT:
                raise
            if len(changes) > 1:
                for change in changes:
                    await self._write([change])
                return
            record = changes[0].record
            self._metrics.failed(Next.REFUSE)
            self._pending.refuse(changes[0])
            log.error(
                "record.row_refused",
                kind=record.kind.name.lower(),
                key=f"{record.namespace}/{record.name}",
                id=record.id,
                error=brief(error),
            )
            return
        self._pending.confirm(changes)
        self._metrics.written(len(changes))

    async def _write_events(self, events: Sequence[Event]) -> None:
        async def write(connection: AsyncConnection) -> None:
            await write_events(connection, events, self._cluster_id)

        try:
            await self._again(write)
        except EXPECTED as error:
            if classify(error) is Next.WAIT:
                raise
            if len(events) > 1:
                for event in events:
                    await self._write_events([event])
                return
            self._metrics.failed(Next.REFUSE)
            self._pending.refuse_events(events)
            log.error("record.event_refused", object=events[0].object, error=brief(error))
            return
        self._pending.confirm((), events=events)
        self._metrics.written(len(events))

    async def _again(self, work: Callable[[AsyncConnection], Awaitable[None]]) -> None:
        """The transaction, and again when it lost a race."""
        for attempt in range(1, self._limits.attempts + 1):
            try:
                return await self._in_transaction(work, self._limits.transaction)
            except EXPECTED as error:
                if classify(error) is not Next.AGAIN or attempt == self._limits.attempts:
                    raise
                self._metrics.failed(Next.AGAIN)
                await asyncio.sleep(self._rng.uniform(0, 0.02 * 2**attempt))

    async def _in_transaction(self, work: Callable[[AsyncConnection], Awaitable[None]], deadline: float) -> None:
        """Everything is written again after an error, so it does not matter whether a COMMIT went through."""
        self._leadership.check()
        await within(deadline, self._transaction(work))

    async def _transaction(self, work: Callable[[AsyncConnection], Awaitable[None]]) -> None:
        async with self._engine.begin() as connection:
            limits = {
                "statement_timeout": f"{self._limits.statement * 1000:.0f}",
                "lock_timeout": f"{self._limits.lock * 1000:.0f}",
            }
            await connection.execute(queries.LIMITS, limits)
            await work(connection)
            # Once more: the work may have taken longer than the lease has left.
            self._leadership.check()

    def _fence(self) -> Fence:
        return Fence(self._cluster_id, self._leadership.epoch, self._clock.now())

    async def _migrate(self, connection: AsyncConnection) -> None:
        await migrate(connection)

    async def _outage(self, error: BaseException) -> None:
        """Say so once, then wait: longer every time, or until a flush asks."""
        self._metrics.failed(Next.WAIT)
        now = self._clock.monotonic()
        if self._failing_since is None:
            self._failing_since = now
            self._delay = self._limits.backoff_first
            log.warning("record.away", error=brief(error), backlog=self._pending.backlog)
        if sqlstate_of(error) in SCHEMA_GONE:
            self._migrated = False
        self._jobs.give_up()
        await self._engine.dispose()
        delay = self._rng.uniform(self._delay / 2, self._delay)
        self._delay = min(self._delay * 2, self._limits.backoff_max)
        await _set_within(self._hurry, delay)
        self._hurry.clear()

    def _recovered(self) -> None:
        if self._failing_since is None:
            return
        # It may be another server now, or one restored from a copy: what it confirmed before may be gone.
        self._pending.rewrite()
        log.info(
            "record.back",
            after=round(self._clock.monotonic() - self._failing_since, 1),
            backlog=self._pending.backlog,
        )
        self._failing_since = None
        self._note()


async def _set_within(event: asyncio.Event, seconds: float) -> None:
    """Wait until the event is set, at most so long."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
