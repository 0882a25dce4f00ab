"""What the record needs besides rows: partitions for the days to come, and an end to what is old."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, date, datetime, time, timedelta
from typing import Protocol

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from toolbox_operator.runtime import Clock
from toolbox_operator.store import queries
from toolbox_operator.store.errors import EXPECTED, OCCUPIED, sqlstate_of
from toolbox_operator.store.ids import first_id

log = structlog.get_logger(__name__)

Transaction = Callable[[Callable[[AsyncConnection], Awaitable[None]]], Awaitable[None]]


class Terms(Protocol):
    """How long things are kept, in days, and how much is removed at once."""

    @property
    def partitions_ahead(self) -> int: ...
    @property
    def calls_kept(self) -> int: ...
    @property
    def events_kept(self) -> int: ...
    @property
    def events_at_once(self) -> int: ...
    @property
    def event_batches(self) -> int: ...


class Upkeep:
    """One round after another, each of several transactions."""

    def __init__(self, transaction: Transaction, clock: Clock, terms: Terms) -> None:
        self._transaction = transaction
        self._clock = clock
        self._terms = terms

    async def round(self) -> None:
        """Everything that is due. Raises what the transactions raise; the next round makes up for it."""
        await self._transaction(self._make_partitions)
        await self._drop_days()
        await self._delete_events()

    def _today(self) -> date:
        return self._clock.now().astimezone(UTC).date()

    async def _make_partitions(self, connection: AsyncConnection) -> None:
        today = self._today()
        days = {"first": today - timedelta(days=1), "last": today + timedelta(days=self._terms.partitions_ahead)}
        made = await connection.scalar(queries.PARTITIONS, days)
        if made:
            log.info("record.partitions", made=made, last=days["last"].isoformat())

    async def _drop_days(self) -> None:
        """One day after the other; one that somebody is reading is left for the next time."""
        names: list[str] = []

        async def look(connection: AsyncConnection) -> None:
            oldest = self._today() - timedelta(days=self._terms.calls_kept)
            found = await connection.scalars(queries.EXPIRED_PARTITIONS, {"oldest": f"{oldest:%Y%m%d}"})
            names.extend(found.all())

        await self._transaction(look)
        for name in names:

            async def drop(connection: AsyncConnection, name: str = name) -> None:
                await connection.execute(queries.BRIEFLY)
                await connection.execute(queries.drop_partition(name))

            try:
                await self._transaction(drop)
            except EXPECTED as error:
                if sqlstate_of(error) not in OCCUPIED:
                    raise
                log.info("record.partition_in_use", name=name)
            else:
                log.info("record.partition_dropped", name=name)

    async def _delete_events(self) -> None:
        """In batches. What is old is told by the ids, which carry their time: their index is the only one needed."""
        midnight = datetime.combine(self._today() - timedelta(days=self._terms.events_kept), time(), UTC)
        parameters = {"bound": first_id(midnight), "limit": self._terms.events_at_once}
        gone = 0
        for _ in range(self._terms.event_batches):
            ids: list[str] = []

            async def delete(connection: AsyncConnection, ids: list[str] = ids) -> None:
                ids[:] = (await connection.scalars(queries.EXPIRED_EVENTS, parameters)).all()
                if ids:
                    await connection.execute(queries.DELETE_EVENTS, {"ids": ids})

            await self._transaction(delete)
            gone += len(ids)
            if len(ids) < self._terms.events_at_once:
                break
        if gone:
            log.info("record.events_deleted", events=gone, before=midnight.date().isoformat())
