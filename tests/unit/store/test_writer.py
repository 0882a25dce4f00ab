from __future__ import annotations

import asyncio
import random
import uuid
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from psycopg import errors as pg
from sqlalchemy.exc import DBAPIError, StatementError

from support.record.rows import CLUSTER, QUICK, Leader, World
from support.record.rows import running as running_store
from toolbox_operator.runtime import SystemClock
from toolbox_operator.store.api import Live, Record
from toolbox_operator.store.apply import WrittenMeanwhile
from toolbox_operator.store.connect import engine_for
from toolbox_operator.store.deadline import within
from toolbox_operator.store.errors import Next, classify
from toolbox_operator.store.ids import uuid7
from toolbox_operator.store.none import NoRecord
from toolbox_operator.store.sql import SqlStore

NOBODY = "postgresql://nobody@127.0.0.1:1/none"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (pg.SerializationFailure(), Next.AGAIN),
        (pg.DeadlockDetected(), Next.AGAIN),
        (pg.UniqueViolation(), Next.AGAIN),
        (WrittenMeanwhile(), Next.AGAIN),
        (pg.CheckViolation(), Next.REFUSE),
        (pg.ForeignKeyViolation(), Next.REFUSE),
        (pg.InvalidTextRepresentation(), Next.REFUSE),
        (pg.ReadOnlySqlTransaction(), Next.WAIT),
        (pg.DiskFull(), Next.WAIT),
        (pg.LockNotAvailable(), Next.WAIT),
        (pg.QueryCanceled(), Next.WAIT),
        (pg.AdminShutdown(), Next.WAIT),
        (pg.TooManyConnections(), Next.WAIT),
        (pg.InsufficientPrivilege(), Next.WAIT),
        (pg.UndefinedTable(), Next.WAIT),
        (psycopg.OperationalError("connection refused"), Next.WAIT),
        (TimeoutError(), Next.WAIT),
        (ConnectionResetError(), Next.WAIT),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_what_an_error_means(error: Exception, expected: Next) -> None:
    assert classify(error) is expected
    if isinstance(error, psycopg.Error):
        assert classify(DBAPIError("", {}, error)) is expected


def test_a_value_that_cannot_even_be_sent_is_refused() -> None:
    assert classify(StatementError("not serialisable", "", {}, TypeError())) is Next.REFUSE


def test_ids_carry_their_time_and_sort_by_it() -> None:
    rng, start = random.Random(1), datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)
    ids = [uuid7(start + timedelta(milliseconds=i), rng) for i in range(5)]
    first = uuid.UUID(ids[0])
    assert (first.version, first.variant) == (7, uuid.RFC_4122)
    assert first.int >> 80 == int(start.timestamp() * 1000)
    assert ids == sorted(ids)


async def test_submitting_never_waits_or_raises_while_nobody_writes() -> None:
    store, world = SqlStore(NOBODY, CLUSTER, Leader(), SystemClock(), limits=QUICK), World()
    store.submit(world.connection())
    store.close(world.connection(), "deleted")
    store.sweep(Live(frozenset({"no uuid"}), frozenset(), frozenset()))
    store.log(object_kind="Toolbox", object_id="no uuid", type_="Normal", reason="R", message="m")
    assert store.backlog == 5
    assert not store.healthy
    assert not await store.flush(0.01)


async def test_a_database_that_cannot_be_reached_is_seen_in_the_metrics() -> None:
    registry = CollectorRegistry()
    store = SqlStore(NOBODY, CLUSTER, Leader(), SystemClock(), limits=QUICK, registry=registry)
    writer = asyncio.create_task(store.run())
    store.submit(World().toolbox())
    failed = 'magic_toolbox_record_errors_total{next="wait"}'
    async with asyncio.timeout(15):
        while failed not in generate_latest(registry).decode():
            assert not await store.flush(0.05)
    writer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writer
    text = generate_latest(registry).decode()
    assert "magic_toolbox_record_up 0.0" in text
    assert "magic_toolbox_record_backlog 1.0" in text


async def test_nothing_to_write_is_flushed_at_once() -> None:
    async with running_store(NOBODY) as store:
        assert await store.flush(0.01)


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://u:p@h1:1,h2:2/d?target_session_attrs=any&connect_timeout=3",
        "host=/run/postgresql dbname=d user=u",
        "postgres://u@h/d?sslmode=verify-full&sslrootcert=/etc/ca.crt",
    ],
)
async def test_any_dsn_that_libpq_understands_is_taken(dsn: str) -> None:
    await engine_for(dsn, 5).dispose()


async def test_work_that_ignores_its_first_cancellation_is_ended_by_a_second() -> None:
    cancelled: list[str] = []

    async def stubborn() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append("first")
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.append("second")

    with pytest.raises(TimeoutError, match="within"):
        await within(0.01, stubborn(), grace=0.01)
    assert cancelled == ["first", "second"]


async def test_work_ends_with_its_caller() -> None:
    ended = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    caller = asyncio.create_task(within(60, work(), grace=0.01))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert ended.is_set()


async def test_errors_of_work_come_through() -> None:
    async def fail() -> None:
        raise ValueError("as it is")

    with pytest.raises(ValueError, match="as it is"):
        await within(1, fail())


async def test_without_a_database_everything_is_taken_and_nothing_owed() -> None:
    record: Record = NoRecord(SystemClock())
    world = World()
    record.submit(world.connection())
    record.close(world.connection(), "deleted")
    record.sweep(Live(frozenset(), frozenset(), frozenset()))
    record.log(object_kind="Toolbox", object_id=world.toolbox_id, type_="Normal", reason="R", message="m")
    assert record.healthy
    assert await record.flush(0)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await record.run()
