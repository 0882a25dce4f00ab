"""Call records in PostgreSQL: each once, counted with it, whatever happens to the connection."""

from __future__ import annotations

import asyncio
import dataclasses
import uuid
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest

from support.proxies.tcp_proxy import Proxy, proxy_to
from support.reconcilers.memory_calls import call
from support.record.rows import CLUSTER, PATIENT, QUICK, Leader, World, new_id, query, running, until_written
from toolbox_dtma.wire import CallOutcome, CallRecord
from toolbox_operator.domain.usage import Use
from toolbox_operator.runtime import Fenced, SystemClock
from toolbox_operator.store.api import Kept, Refusal, agent_id
from toolbox_operator.store.sql import SqlStore

pytestmark = pytest.mark.integration

CALLS = "SELECT * FROM magic_toolbox.agent_mcp_calls ORDER BY created_at, id"
USAGE = "SELECT connection_id::text, calls, last_used_at FROM magic_toolbox.agent_mcp_usage ORDER BY 1"
PARTITIONS = """
    SELECT child.relname FROM pg_inherits JOIN pg_class child ON child.oid = inhrelid
    WHERE inhparent = 'magic_toolbox.agent_mcp_calls'::regclass
"""


def now() -> datetime:
    return datetime.now(UTC)


async def ready(store: SqlStore) -> None:
    """The schema and the partitions of these days are there."""
    store.submit(World().toolbox())
    await until_written(store)


async def keep(store: SqlStore, calls: list[CallRecord], shown: dict[str, int] | None = None) -> Kept:
    kept = await store.keep_calls(calls, shown or {})
    assert kept is not None
    return kept


async def partitions(dsn: str) -> set[str]:
    return {row["relname"] for row in await query(dsn, PARTITIONS)}


@pytest.fixture
async def proxy(postgres: str) -> AsyncGenerator[Proxy]:
    parts = urlsplit(postgres)
    assert parts.hostname is not None and parts.port is not None
    async with proxy_to(parts.hostname, parts.port) as proxy:
        yield proxy


def through(proxy: Proxy, dsn: str) -> str:
    parts = urlsplit(dsn)
    return parts._replace(netloc=f"{parts.username}:{parts.password}@127.0.0.1:{proxy.port}").geturl()


async def test_a_call_becomes_a_row_with_everything_that_was_recorded_of_it(postgres: str) -> None:
    connection, instance, at = new_id(), new_id(), now()
    record = call(
        connection,
        at,
        instance=instance,
        namespace="team-a",
        tool="naïve\x00tool",
        outcome=CallOutcome.TOOL_ERROR,
        duration_ms=2**40,
        bytes_in=2**70,
        trace_id="a" * 32,
    )
    async with running(postgres) as store:
        await ready(store)
        kept = await keep(store, [record])
    assert kept == Kept(1, {}, {connection: Use(1, at)})
    (row,) = await query(postgres, CALLS)
    assert row == {
        "id": record.id,
        "created_at": at,
        "connection_id": uuid.UUID(connection),
        "agent_id": uuid.UUID(agent_id(CLUSTER, "team-a", "research-bot")),
        "instance_id": uuid.UUID(instance),
        "subject": None,
        "tool": "naïve�tool",
        "outcome": "tool_error",
        "duration_ms": 2**31 - 1,
        "bytes_in": 2**63 - 1,
        "bytes_out": 200,
        "protocol_version": "2025-11-25",
        "trace_id": "a" * 32,
    }


async def test_the_agent_of_a_call_is_the_agent_of_its_connection(postgres: str) -> None:
    world = World()
    async with running(postgres) as store:
        store.submit(world.connection())
        await until_written(store)
        await keep(store, [call(world.connection_id, now(), namespace="team-a")])
    joined = "SELECT a.name FROM magic_toolbox.agent_mcp_calls k JOIN magic_toolbox.agents a ON a.id = k.agent_id"
    assert await query(postgres, joined) == [{"name": "research-bot"}]


async def test_every_outcome_of_the_wire_has_its_place(postgres: str) -> None:
    connection = new_id()
    async with running(postgres) as store:
        await ready(store)
        kept = await keep(store, [call(connection, now(), outcome=outcome) for outcome in CallOutcome])
    assert (kept.added, dict(kept.refused)) == (len(CallOutcome), {})


async def test_calls_that_come_again_are_neither_doubled_nor_counted_twice(postgres: str) -> None:
    one, two, begin = new_id(), new_id(), now()
    calls = [call(each, begin + timedelta(milliseconds=i)) for i in range(500) for each in (one, two)]
    async with running(postgres) as store:
        await ready(store)
        first = await keep(store, calls[:600])
        again = await keep(store, calls[400:] + calls[400:450])
        third = await keep(store, calls)
    assert (first.added, again.added, third) == (600, 400, Kept())
    assert again.used[one] == Use(500, begin + timedelta(milliseconds=499))
    assert len(await query(postgres, CALLS)) == 1000
    assert {row["connection_id"]: row["calls"] for row in await query(postgres, USAGE)} == {one: 500, two: 500}


async def test_calls_of_two_operators_at_once_are_counted_once(postgres: str) -> None:
    connection, begin = new_id(), now()
    calls = [call(connection, begin + timedelta(milliseconds=i)) for i in range(2000)]
    async with running(postgres) as store, running(postgres, Leader(epoch=2)) as other:
        await ready(store)
        await ready(other)
        parts = [calls[i : i + 100] for i in range(0, 2000, 100)]
        pairs = [keep(each, part) for part in parts for each in (store, other)]
        kept = await asyncio.gather(*pairs)
    assert sum(each.added for each in kept) == 2000
    (row,) = await query(postgres, USAGE)
    assert row["calls"] == 2000


async def test_a_count_never_starts_below_what_status_shows(postgres: str) -> None:
    known, new = new_id(), new_id()
    async with running(postgres) as store:
        await ready(store)
        await keep(store, [call(known, now()) for _ in range(5)])
        kept = await keep(store, [call(known, now()), call(new, now()), call(new, now())], {known: 3, new: 40})
        assert {id_: use.calls for id_, use in kept.used.items()} == {known: 6, new: 42}
        kept = await keep(store, [call(known, now())], {known: 90})
        assert kept.used[known].calls == 91


async def test_the_sums_of_open_connections_of_this_cluster_are_told(postgres: str) -> None:
    world, closed = World(), World("closed")
    at = now()
    async with running(postgres) as store:
        store.submit(world.connection())
        store.submit(closed.connection())
        await until_written(store)
        await keep(store, [call(each, at) for each in (world.connection_id, closed.connection_id, new_id())])
        store.close(dataclasses.replace(closed.connection()), "deleted")
        await until_written(store)
    async with running(postgres) as later:
        await ready(later)
        assert await later.used() == {world.connection_id: Use(1, at)}
    async with running(postgres, cluster_id=new_id()) as another:
        await ready(another)
        assert await another.used() == {}


async def test_days_get_their_partitions_when_their_calls_come_and_no_others_do(postgres: str) -> None:
    connection, today = new_id(), now().replace(hour=12)
    async with running(postgres) as store:
        await ready(store)
        before = await partitions(postgres)
        days = [today - timedelta(days=days) for days in (3, 60, 90)]
        kept = await keep(store, [call(connection, day) for day in days])
    assert kept.added == 3
    assert await partitions(postgres) - before == {f"agent_mcp_calls_{day:%Y%m%d}" for day in days}


async def test_calls_of_impossible_days_make_no_partition_and_hold_up_no_others(postgres: str) -> None:
    connection = new_id()
    odd = [now() + timedelta(days=days) for days in (-20_000, -92, 3, 400, 100_000)]
    async with running(postgres) as store:
        await ready(store)
        before = await partitions(postgres)
        kept = await keep(store, [call(connection, at) for at in (*odd, now())])
    assert (kept.added, dict(kept.refused)) == (1, {Refusal.CLOCK: 5})
    assert await partitions(postgres) == before


async def test_a_call_that_postgresql_refuses_holds_up_no_others(postgres: str) -> None:
    connection = new_id()
    calls = [call(connection, now(), tool=f"tool-{i}") for i in range(37)]
    async with running(postgres) as store:
        await ready(store)
        await query(
            postgres,
            "ALTER TABLE magic_toolbox.agent_mcp_calls ADD CONSTRAINT odd CHECK (tool NOT IN ('tool-0', 'tool-20'))",
        )
        kept = await keep(store, calls)
        assert store.healthy
    assert (kept.added, dict(kept.refused)) == (35, {Refusal.DATA: 2})
    assert kept.used[connection].calls == 35


async def test_a_commit_whose_outcome_is_unknown_is_asked_for_again_and_nothing_is_doubled(
    proxy: Proxy, postgres: str
) -> None:
    connection, begin = new_id(), now()
    calls = [call(connection, begin + timedelta(milliseconds=i)) for i in range(50)]
    async with running(through(proxy, postgres)) as store:
        await ready(store)
        cuts: list[bytes] = []

        def commit(data: bytes) -> bool:
            if b"COMMIT" in data.upper():
                cuts.append(data)
            return bool(cuts)

        proxy.cut_when = commit
        assert await store.keep_calls(calls, {}) is None, "not acknowledged"
        assert cuts
        await ready(store)
        await keep(store, calls)
        assert await store.keep_calls(calls[:1], {}) == Kept()
    assert len(await query(postgres, CALLS)) == 50
    (row,) = await query(postgres, USAGE)
    assert row["calls"] == 50


async def test_nothing_is_kept_while_postgresql_is_away_and_all_of_it_when_it_is_back(
    proxy: Proxy, postgres: str
) -> None:
    connection = new_id()
    calls = [call(connection, now()) for _ in range(10)]
    async with running(through(proxy, postgres)) as store:
        await ready(store)
        await proxy.close()
        async with asyncio.timeout(20):
            assert await store.keep_calls(calls, {}) is None
            assert await store.used() is None
        assert not store.healthy
        await proxy.open()
        await ready(store)
        assert store.healthy
        assert (await keep(store, calls)).added == 10


async def test_a_hanging_postgresql_is_given_up_at_the_deadline(proxy: Proxy, postgres: str) -> None:
    async with running(through(proxy, postgres), limits=QUICK) as store:
        await ready(store)
        proxy.freeze()
        async with asyncio.timeout(25):
            assert await store.keep_calls([call(new_id(), now())], {}) is None
        proxy.cut()
        proxy.thaw()
        await ready(store)
        last = call(new_id(), now())
        # Asked again: with deadlines so short a busy machine may have it given up once more.
        async with asyncio.timeout(60):
            while await store.keep_calls([last], {}) is None:
                await ready(store)
    assert [str(row["connection_id"]) for row in await query(postgres, CALLS)] == [last.connection]


async def test_a_process_that_lost_its_leadership_writes_no_calls(postgres: str) -> None:
    leader = Leader()
    store = SqlStore(postgres, CLUSTER, leader, SystemClock(), limits=PATIENT)
    writer = asyncio.create_task(store.run())
    await ready(store)
    leader.lost = True
    assert await store.keep_calls([call(new_id(), now())], {}) is None
    with pytest.raises(Fenced):
        await writer
    assert await query(postgres, CALLS) == []


async def test_rows_and_calls_hold_each_other_up_by_one_batch_at_most(postgres: str) -> None:
    worlds = [World(f"ns-{i}") for i in range(40)]
    connection = new_id()
    limits = dataclasses.replace(PATIENT, batch=1)
    async with running(postgres, limits=limits) as store:
        await ready(store)
        for world in worlds:
            store.submit(world.toolbox())
        backlogs: list[int] = []
        for _ in range(5):
            await keep(store, [call(connection, now())])
            backlogs.append(store.backlog)
        assert backlogs == sorted(backlogs, reverse=True)
        assert backlogs[0] > backlogs[-1] > 0
        await until_written(store)


async def test_a_flush_does_not_wait_for_calls_that_never_end(postgres: str) -> None:
    connection = new_id()
    async with running(postgres) as store:
        await ready(store)

        async def go_on() -> None:
            while True:
                await keep(store, [call(connection, now())])

        callers = [asyncio.create_task(go_on()) for _ in range(4)]
        store.submit(World("late").toolbox())
        await until_written(store, 5)
        for caller in callers:
            caller.cancel()
        outcomes: list[Any] = await asyncio.gather(*callers, return_exceptions=True)
        assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
