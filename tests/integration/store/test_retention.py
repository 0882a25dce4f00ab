"""Calls and lifecycle events are kept for a while; calls go by whole days, events in batches."""

from __future__ import annotations

import dataclasses
import random
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from support.record.rows import OTHER_CLUSTER, PATIENT, World, new_id, query, running, until_written
from toolbox_operator.store.ids import uuid7
from toolbox_operator.store.sql import DEFAULTS

pytestmark = pytest.mark.integration

PARTITIONS = """
    SELECT child.relname FROM pg_inherits JOIN pg_class child ON child.oid = inhrelid
    WHERE inhparent = 'magic_toolbox.agent_mcp_calls'::regclass
"""


def named(days_ago: int) -> str:
    return f"agent_mcp_calls_{datetime.now(UTC).date() - timedelta(days=days_ago):%Y%m%d}"


async def partitions(dsn: str) -> set[str]:
    return {row["relname"] for row in await query(dsn, PARTITIONS)}


async def filled(dsn: str, kept: int) -> None:
    """A migrated database with partitions around the end of what is kept."""
    async with running(dsn) as store:
        store.submit(World().toolbox())
        await until_written(store)
    await query(
        dsn,
        "SELECT magic_toolbox.ensure_call_partitions(current_date - %(kept)s - 3, current_date - %(kept)s + 1)",
        {"kept": kept},
    )


async def test_days_beyond_what_is_kept_are_dropped_and_no_others(postgres: str) -> None:
    kept = DEFAULTS.calls_kept
    await filled(postgres, kept)
    await query(postgres, "CREATE TABLE magic_toolbox.agent_mcp_calls_archive (LIKE magic_toolbox.agent_mcp_calls)")
    before = await partitions(postgres)
    async with running(postgres) as store:
        store.submit(World().toolbox())
        await until_written(store)
    assert before - await partitions(postgres) == {named(kept + days) for days in (1, 2, 3)}
    assert await query(postgres, "SELECT to_regclass('magic_toolbox.agent_mcp_calls_archive') AS there") != []


async def test_a_day_that_somebody_reads_waits_and_holds_up_no_row(postgres: str) -> None:
    kept, world = DEFAULTS.calls_kept, World()
    await filled(postgres, kept)
    read = named(kept + 2)
    async with await psycopg.AsyncConnection.connect(postgres) as reader:
        await reader.execute(f'SELECT * FROM magic_toolbox."{read}"'.encode())  # noqa: S608 -- a name made here
        async with running(postgres) as store:
            store.submit(world.toolbox())
            await until_written(store, 30)
            assert store.healthy
    left = await partitions(postgres)
    assert read in left
    assert named(kept + 1) not in left


async def event(dsn: str, days_ago: float, cluster: str) -> str:
    """One that was written so long ago, counted from the beginning of today; its id."""
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    at = midnight - timedelta(days=days_ago)
    id_ = uuid7(at, random.Random())
    row = "(%(id)s, %(cluster)s, %(at)s, 'Toolbox', %(id)s, 'Normal', 'Ready', '')"
    insert = f"INSERT INTO magic_toolbox.lifecycle_events VALUES {row}"  # noqa: S608 -- constants
    await query(dsn, insert, {"id": id_, "cluster": cluster, "at": at})
    return id_


async def events(dsn: str) -> set[str]:
    return {row["id"] for row in await query(dsn, "SELECT id::text FROM magic_toolbox.lifecycle_events")}


async def test_lifecycle_events_beyond_what_is_kept_are_deleted_and_no_others(postgres: str) -> None:
    kept = DEFAULTS.events_kept
    await filled(postgres, kept)
    cluster = new_id()
    old = {await event(postgres, kept + days, each) for days in (0.001, 1, 400) for each in (cluster, OTHER_CLUSTER)}
    young = {await event(postgres, kept - days, cluster) for days in (0, 0.5, 80)}
    assert await events(postgres) == old | young
    async with running(postgres) as store:
        store.submit(World().toolbox())
        await until_written(store)
    assert await events(postgres) == young


async def test_many_old_events_go_in_several_rounds_and_hold_up_no_row(postgres: str) -> None:
    kept, world = DEFAULTS.events_kept, World()
    await filled(postgres, kept)
    for days in range(35):
        await event(postgres, kept + 1 + days, new_id())
    async with running(postgres, limits=dataclasses.replace(PATIENT, events_at_once=10, event_batches=3)) as store:
        store.submit(world.toolbox())
        await until_written(store)
        assert len(await events(postgres)) == 5
    async with running(postgres) as store:
        store.submit(world.toolbox())
        await until_written(store)
    assert await events(postgres) == set()
