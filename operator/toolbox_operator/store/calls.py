"""Call records as rows: which are acceptable, and the one statement that writes them and counts them."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Final

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from toolbox_dtma.wire import CallRecord
from toolbox_operator.domain.usage import Use
from toolbox_operator.runtime import Clock
from toolbox_operator.store import queries
from toolbox_operator.store.api import Kept, Refusal, agent_id
from toolbox_operator.store.errors import EXPECTED, brief
from toolbox_operator.store.jobs import Away, Jobs
from toolbox_operator.store.records import canonical, storable

log = structlog.get_logger(__name__)

CALLS_KEPT: Final = 90
"""Days that calls are kept, besides today."""
CALLS_AHEAD: Final = 1
"""Days that a host's clock may be ahead before its calls are refused."""
_LARGEST_INT: Final = 2**31 - 1
_LARGEST_BIGINT: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Judged:
    """Call records that can become rows, and why the others cannot."""

    calls: Sequence[CallRecord]
    refused: Mapping[Refusal, int]


def judge(calls: Iterable[CallRecord], now: datetime, *, kept: int = CALLS_KEPT) -> Judged:
    """Which records can become rows. One that is `kept` days old at most, or a day ahead, has a partition or gets one.

    The time is not bent to fit: it is part of the key, by which a record that comes again is known.
    """
    today = now.astimezone(UTC).date()
    earliest, latest = today - timedelta(days=kept), today + timedelta(days=CALLS_AHEAD)
    refused: Counter[Refusal] = Counter()
    fine: list[CallRecord] = []
    for call in calls:
        if not earliest <= _day(call) <= latest:
            refused[Refusal.CLOCK] += 1
        elif not (_is_uuid(call.connection) and _is_uuid(call.instance)):
            refused[Refusal.DATA] += 1
        else:
            fine.append(call)
    return Judged(fine, refused)


def tally(calls: Iterable[CallRecord]) -> Mapping[str, Use]:
    """How often each connection was called, and when last; by its canonical id."""
    found: dict[str, Use] = {}
    for call in calls:
        id_ = canonical(call.connection)
        before = found.get(id_)
        last = call.started_at if before is None else max(before.last, call.started_at)
        found[id_] = Use(1 if before is None else before.calls + 1, last)
    return found


def together(one: Kept, next_: Kept) -> Kept:
    """What became of both, the one after the other."""
    refused = Counter(one.refused) + Counter(next_.refused)
    return Kept(one.added + next_.added, refused, {**one.used, **next_.used})


class CallKeeper:
    """Keeps call records by way of the writer, and tells what they add up to."""

    def __init__(self, jobs: Jobs, clock: Clock, cluster_id: str, kept: int) -> None:
        """`kept`: days."""
        self._jobs = jobs
        self._clock = clock
        self._cluster_id = cluster_id
        self._kept = kept

    async def keep(self, calls: Sequence[CallRecord], shown: Mapping[str, int]) -> Kept | None:
        """See `Record.keep_calls`."""
        judged = judge(calls, self._clock.now(), kept=self._kept)
        try:
            return together(Kept(refused=judged.refused), await self._keep(judged.calls, shown))
        except Away:
            return None

    async def used(self) -> Mapping[str, Use] | None:
        """See `Record.used`."""
        try:
            return await self._jobs.do(lambda connection: read_used(connection, self._cluster_id))
        except Away:
            return None

    async def _keep(self, calls: Sequence[CallRecord], shown: Mapping[str, int]) -> Kept:
        """In one transaction; where the data of one is not acceptable, by halves until it is found."""
        if not calls:
            return Kept()

        async def write(connection: AsyncConnection) -> Kept:
            return await write_calls(connection, calls, self._cluster_id, shown)

        try:
            return await self._jobs.do(write)
        except EXPECTED as error:
            if len(calls) == 1:
                log.error("record.call_refused", id=str(calls[0].id), error=brief(error))
                return Kept(refused={Refusal.DATA: 1})
        half = len(calls) // 2
        return together(await self._keep(calls[:half], shown), await self._keep(calls[half:], shown))


async def write_calls(
    connection: AsyncConnection, calls: Sequence[CallRecord], cluster_id: str, shown: Mapping[str, int]
) -> Kept:
    """Insert what is new, and count it, in the connection's transaction: neither is ever without the other."""
    days = sorted({_day(call) for call in calls})
    await connection.execute(queries.CALL_DAYS, {"days": days})
    connections = sorted({canonical(call.connection) for call in calls})
    parameters = {
        "cluster_id": cluster_id,
        "known": connections,
        "shown": [shown.get(id_, 0) for id_ in connections],
        "ids": [str(call.id) for call in calls],
        "times": [call.started_at for call in calls],
        "connections": [canonical(call.connection) for call in calls],
        "agents": [agent_id(cluster_id, call.namespace, call.agent) for call in calls],
        "instances": [canonical(call.instance) for call in calls],
        "tools": [storable(call.tool) for call in calls],
        "outcomes": [call.outcome.value for call in calls],
        "durations": [min(call.duration_ms, _LARGEST_INT) for call in calls],
        "bytes_in": [min(call.bytes_in, _LARGEST_BIGINT) for call in calls],
        "bytes_out": [min(call.bytes_out, _LARGEST_BIGINT) for call in calls],
        "versions": [storable(call.protocol_version) for call in calls],
        "traces": [call.trace_id for call in calls],
    }
    rows = (await connection.execute(queries.INSERT_CALLS, parameters)).all()
    return Kept(
        added=sum(row.added for row in rows),
        used={str(row.connection_id): Use(row.calls, row.last_used_at) for row in rows},
    )


async def read_used(connection: AsyncConnection, cluster_id: str) -> Mapping[str, Use]:
    """What was counted of the cluster's open connections."""
    rows = (await connection.execute(queries.USED, {"cluster_id": cluster_id})).all()
    return {str(row.connection_id): Use(row.calls, row.last_used_at) for row in rows}


def _day(call: CallRecord) -> date:
    return call.started_at.astimezone(UTC).date()


def _is_uuid(text: str) -> bool:
    try:
        uuid.UUID(text)
    except ValueError:
        return False
    return True
